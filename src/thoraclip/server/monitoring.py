"""JSON log lines on standard error, and Prometheus metrics; neither holds a file name, a query, an address, or content
of an image. A line is short, and so is their number in a second, whatever a client sends."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from thoraclip.bundle.runtime import Prediction
from thoraclip.errors import ImageError

__all__ = ["LOGGER", "Metrics", "log_event", "set_up_logs"]

LOGGER = logging.getLogger("thoraclip.server")
_NOISY = ("pydicom", "PIL", "python_multipart", "multipart", "uvicorn.access", "asyncio")  # may quote a file
_LETTERS, _FRAMES = 300, 20  # most of a text, and most places of an error
_LINES_PER_SECOND, _LINES_AT_ONCE = 100.0, 1000.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def set_up_logs() -> None:
    """Send the records of this package and of Uvicorn to standard error, and silence those that may quote an image."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    handler.addFilter(_Rate())
    for name in (LOGGER.name, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    for name in _NOISY:
        quiet = logging.getLogger(name)
        quiet.handlers, quiet.propagate = [logging.NullHandler()], False


def log_event(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **facts: Any) -> None:
    """Write a line; of an error its kind and where it was raised, not its message, which may quote a picture."""
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__, limit=-_FRAMES)
        facts |= {"error": type(error).__name__, "at": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}
    LOGGER.log(level, event, extra={"facts": facts})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts: dict[str, Any] = getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:  # of Uvicorn
            facts = {**facts, "error": type(record.exc_info[1]).__name__}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"time": when, "level": record.levelname.lower(), "event": record.getMessage().strip()}
        return json.dumps(
            {name: value[:_LETTERS] if isinstance(value, str) else value for name, value in {**head, **facts}.items()}
        )


class _Rate(logging.Filter):
    """Leaves lines out where there are too many in a second, and says in the next one how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._left, self._left_out, self._when = _LINES_AT_ONCE, 0, time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        now = time.monotonic()
        self._left = min(_LINES_AT_ONCE, self._left + (now - self._when) * _LINES_PER_SECOND)
        self._when = now
        if self._left < 1:
            self._left_out += 1
            return False
        if self._left_out:
            record.facts = getattr(record, "facts", {}) | {"lines_left_out": self._left_out}
        self._left, self._left_out = self._left - 1, 0
        return True


class Metrics:
    """The registry of one server and what it holds. The label `route` is a template, never what a client wrote."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        count, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        observe = partial(Histogram, registry=registry)
        self.requests = count("thoraclip_requests", "Requests that were answered.", ("route", "method", "status"))
        text = "From the first byte of a request to its answer."
        self.seconds = observe("thoraclip_request_seconds", text, ("route",), buckets=_SECONDS)
        text = "Pictures by what came of them: a class, or unreadable."
        self._pictures = count("thoraclip_pictures", text, ("bundle", "outcome"))
        self._ood = count("thoraclip_pictures_ood", "Pictures that are unlike the training images.", ("bundle",))
        text = "Pictures that a thread took at once."
        self.batches = observe("thoraclip_batch_pictures", text, buckets=(1, 2, 4, 8))
        self.waiting = gauge("thoraclip_waiting_pictures", "Pictures that wait for the classifier.")
        self.held = gauge("thoraclip_held_bytes", "Bytes of the requests that are received or answered.")

    def count_answer(self, bundle: str, answer: Prediction | ImageError) -> None:
        """Count an answered image by its outcome."""
        self._pictures.labels(bundle, "unreadable" if isinstance(answer, ImageError) else answer.label).inc()
        if isinstance(answer, Prediction) and answer.ood:
            self._ood.labels(bundle).inc()
