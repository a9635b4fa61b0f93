"""Prometheus metrics of one server: requests, images, their classes, and what waits. Nothing of an image itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from thoraclip.bundle.runtime import Prediction
from thoraclip.errors import ImageError

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The registry of one server and what it holds. The label `route` is a template, never what a client wrote."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "thoraclip_requests", "Requests that were answered.", ("route", "method", "status"), registry=registry
        )
        self.seconds = Histogram(
            "thoraclip_request_seconds",
            "From the first byte of a request to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._pictures = Counter(
            "thoraclip_pictures",
            "Pictures by what came of them: a class, or unreadable.",
            ("bundle", "outcome"),
            registry=registry,
        )
        self._ood = Counter(
            "thoraclip_pictures_ood", "Pictures that are unlike the training images.", ("bundle",), registry=registry
        )
        self.batches = Histogram(
            "thoraclip_batch_pictures", "Pictures that a thread took at once.", buckets=(1, 2, 4, 8), registry=registry
        )
        self.waiting = Gauge("thoraclip_waiting_pictures", "Pictures that wait for the classifier.", registry=registry)
        self.held = Gauge(
            "thoraclip_held_bytes", "Bytes of the requests that are received or answered.", registry=registry
        )

    def count_answer(self, bundle: str, answer: Prediction | ImageError) -> None:
        """Count an answered image by its outcome."""
        self._pictures.labels(bundle, "unreadable" if isinstance(answer, ImageError) else answer.label).inc()
        if isinstance(answer, Prediction) and answer.ood:
            self._ood.labels(bundle).inc()
