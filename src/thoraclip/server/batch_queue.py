"""A bounded queue in front of a bundle, served by threads in micro-batches.

A thread takes as many of the waiting images as cost least together, and never waits for more to come. An answer does
not depend on the other images of its batch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from thoraclip.bundle.runtime import BundleClassifier, Prediction
from thoraclip.dtypes import Singles
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.heatmaps import MAPS
from thoraclip.heatmaps.picture import Explanation, explain_pixels
from thoraclip.imaging import fit
from thoraclip.server.limits import MEGA, Limits, RefusedError
from thoraclip.server.monitoring import Metrics
from thoraclip.threads import cores

__all__ = ["METHODS", "BatchQueue"]

Answer = Prediction | ImageError
Job = tuple[bytes, Future[Answer]]

METHODS = tuple(name for name, method in MAPS.items() if not method.needs_network)  # a bundle shows only its scores


class BatchQueue:
    """Answers for one bundle, by the name that clients know it by; any number of requests may ask at once. `threads`
    decode and predict; 0 for as many as there are cores."""

    def __init__(
        self, classifier: BundleClassifier, *, name: str, limits: Limits, metrics: Metrics, threads: int = 0
    ) -> None:
        self.classifier, self.name, self.limits = classifier, name, limits
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._idle, self._is_open, self._explaining = 0, True, 0
        self._seconds_each = 0.1  # that an image takes of a thread, a moving mean
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True)
            for number in range(threads or cores())
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that no thread has taken yet."""
        return len(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether an image that comes now would be taken."""
        return self._is_open and len(self._waiting) < self.limits.waiting

    async def predict(self, pictures: Sequence[bytes]) -> list[Answer]:
        """What the bundle says of each image file, or why it cannot be read; in their order.

        Raises:
            RefusedError: too many wait already, or they have waited for longer than the limit (429); decoding one of
                them takes longer than the limit (422).
        """
        jobs = [(data, Future[Answer]()) for data in pictures]
        with self._changed:
            if not self._is_open or len(self._waiting) + len(jobs) > self.limits.waiting:
                raise _busy(f"{len(self._waiting)} pictures are waiting already", self._retry_after())
            self._waiting.extend(jobs)
            self._changed.notify(len(jobs))
        try:
            async with asyncio.timeout(self.limits.seconds):
                answers = list(await asyncio.gather(*(asyncio.wrap_future(future) for _, future in jobs)))
        except TimeoutError as error:
            if any(not future.cancel() and not future.done() for _, future in jobs):  # one has begun
                raise RefusedError(422, f"takes longer than {self.limits.seconds:g} s") from error
            reason = f"no answer within {self.limits.seconds:g} s, so many are waiting"
            raise _busy(reason, self._retry_after()) from error
        for answer in answers:
            self._metrics.count_answer(self.name, answer)
        return answers

    async def explain(
        self, picture: bytes, *, class_name: str = "", method: str = ""
    ) -> tuple[Prediction, Explanation]:
        """What the bundle says of an image, and where it sees evidence for a class; the scores of both are the same.

        An empty class is the predicted one, an empty method the first of `METHODS`. Raises RefusedError as `predict`
        does, ImageError or ConfigError where the image cannot be read, and for no such class or method.
        """
        names = self.classifier.labels.names
        if class_name and class_name not in names:
            raise ConfigError(f"class: '{class_name}' is not one of the classes{did_you_mean(class_name, names)}")
        if method and method not in METHODS:
            raise ConfigError(f"method: unknown method '{method}'{did_you_mean(method, METHODS)}")
        with self._changed:
            if not self._is_open or self._explaining >= self.limits.explanations:
                raise _busy(f"{self._explaining} explanations are waited for", 10)
            self._explaining += 1
        deadline = time.monotonic() + self.limits.seconds
        future = self._explainer.submit(self._explain, picture, class_name, method, deadline)
        future.add_done_callback(self._explained)
        try:
            prediction, explanation = await asyncio.wrap_future(future)
        except ImageError as error:
            self._metrics.count_answer(self.name, error)
            raise
        self._metrics.count_answer(self.name, prediction)
        return prediction, explanation

    def close(self, *, seconds: float = 30.0) -> None:
        """Take no more, and wait so long for what waits to be answered."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._explainer.shutdown(wait=False)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _retry_after(self) -> int:
        """Whole seconds until what waits now will be done, at the pace of late."""
        return min(60, max(1, math.ceil(len(self._waiting) * self._seconds_each / len(self._threads))))

    def _take(self) -> list[Job]:
        """Some jobs; none when the queue is closed and nothing waits."""
        with self._changed:
            self._idle += 1
            while not self._waiting and self._is_open:
                self._changed.wait()
            share = math.ceil(len(self._waiting) / self._idle)  # so that no thread is idle while another has several
            self._idle -= 1
            return [self._waiting.popleft() for _ in range(min(share, self.classifier.together))]

    def _work(self) -> None:
        while jobs := self._take():
            begun = time.perf_counter()
            if alive := [job for job in jobs if job[1].set_running_or_notify_cancel()]:
                self._answer(alive)
                self._seconds_each += 0.1 * ((time.perf_counter() - begun) / len(alive) - self._seconds_each)
                self._metrics.batches.observe(len(alive))

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Set every future; whatever one image does to the decoder, the others get their answers."""
        pixels = self.limits.megapixels * MEGA
        try:
            answers = self.classifier.classify_each([data for data, _ in jobs], max_pixels=pixels)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for (_, future), answer in zip(jobs, answers, strict=True):
            # a new error: the frames of the first would keep the image alive
            future.set_result(ImageError(str(answer)) if isinstance(answer, ImageError) else answer)

    def _explain(self, picture: bytes, class_name: str, method: str, deadline: float) -> tuple[Prediction, Explanation]:
        if time.monotonic() > deadline:
            raise _busy(f"no explanation within {self.limits.seconds:g} s", 10)

        def predict(pixels: Singles) -> Singles:  # some hundred times for a map
            if time.monotonic() > deadline:
                raise RefusedError(422, f"explaining it takes longer than {self.limits.seconds:g} s")
            return self.classifier.predict(pixels)

        labels, spec = self.classifier.labels, self.classifier.preprocess
        timed: Any = SimpleNamespace(labels=labels, preprocess=spec, predict=predict)
        radiograph = self.classifier.read(picture, max_pixels=self.limits.megapixels * MEGA)
        pixels, prediction = radiograph.pixels, self.classifier.classify_grey(fit(radiograph.pixels, spec))
        prediction = dataclasses.replace(prediction, remarks=radiograph.remarks)
        note = self.classifier.bundle.note_on(picture)
        shown = explain_pixels(timed, pixels, class_name=class_name or prediction.label, method=method, note=note)
        return prediction, dataclasses.replace(shown, scores=prediction.scores)

    def _explained(self, _: object) -> None:
        with self._changed:
            self._explaining -= 1


def _busy(reason: str, seconds: int) -> RefusedError:
    return RefusedError(429, f"{reason}; come later", headers={"retry-after": str(seconds)})
