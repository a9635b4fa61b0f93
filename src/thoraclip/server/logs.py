"""One JSON object a line on standard error, without a file name, a query, an address, or content of an image."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

__all__ = ["LOGGER", "log_event", "set_up_logs"]

LOGGER = logging.getLogger("thoraclip.server")
_NOISY = ("pydicom", "PIL", "python_multipart", "multipart", "uvicorn.access", "asyncio")  # may quote a file


def set_up_logs() -> None:
    """Send the records of this package and of Uvicorn to standard error, and silence those that may quote an image."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
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
        frames = traceback.extract_tb(error.__traceback__)
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
        return json.dumps(head | facts)
