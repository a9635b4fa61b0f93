"""What is counted, for Prometheus: requests, pictures, what they were taken for, and what waits. Nothing of a picture
itself."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from thoraclip.bundle.runtime import Prediction
from thoraclip.errors import ImageError

__all__ = ["EXPOSITION", "Meters"]

EXPOSITION = CONTENT_TYPE_LATEST
"""Content type of `Meters.text`."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "thoraclip_requests", "Requests that were answered.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "thoraclip_request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pictures = Counter(
            "thoraclip_pictures",
            "Pictures by what came of them: a class, or unreadable.",
            ("bundle", "outcome"),
            registry=self._registry,
        )
        self._strange = Counter(
            "thoraclip_pictures_ood",
            "Pictures that are unlike the training images.",
            ("bundle",),
            registry=self._registry,
        )
        self._batches = Histogram(
            "thoraclip_batch_pictures",
            "Pictures that a thread took at once.",
            buckets=(1, 2, 4, 8),
            registry=self._registry,
        )
        self._waiting = Gauge(
            "thoraclip_waiting_pictures", "Pictures that wait for the classifier.", registry=self._registry
        )
        self._held = Gauge(
            "thoraclip_held_bytes", "Bytes of the requests that are received or answered.", registry=self._registry
        )

    def watch(self, *, waiting: Callable[[], int], held: Callable[[], int]) -> None:
        """Ask for these whenever somebody looks."""
        self._waiting.set_function(waiting)
        self._held.set_function(held)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is a template, never what a client wrote."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def picture(self, bundle: str, found: Prediction | ImageError) -> None:
        """A picture was answered."""
        self._pictures.labels(bundle, "unreadable" if isinstance(found, ImageError) else found.label).inc()
        if isinstance(found, Prediction) and found.ood:
            self._strange.labels(bundle).inc()

    def batch(self, pictures: int) -> None:
        """A thread has answered so many at once."""
        self._batches.observe(pictures)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
