"""Prometheus metrics of one server: requests, images, their classes, and what waits. Nothing of an image itself."""

from __future__ import annotations

from functools import partial

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
