"""Where pictures wait for a classifier: a bounded queue, served by threads in micro-batches.

A thread takes as many of the waiting pictures as cost least together, and never waits for more to come. Since an answer
does not depend on the pictures beside it, nobody can tell in whose company a picture was.
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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.bundle.runtime import BundleClassifier, Prediction
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.heatmaps import MAPS
from thoraclip.heatmaps.picture import Explanation, explain_pixels
from thoraclip.imaging import Preprocess, decode, fit
from thoraclip.labels import LabelSet
from thoraclip.server.limits import Limits
from thoraclip.server.meters import Meters
from thoraclip.threads import cores

__all__ = ["METHODS", "BusyError", "Desk", "TooLongError"]

Grey = npt.NDArray[np.uint8]
Answer = Prediction | ImageError

METHODS = tuple(name for name, method in MAPS.items() if not method.needs_network)
"""Of explaining a bundle, which shows its scores and no network."""


class BusyError(Exception):
    """Too much is waiting.

    Args:
        reason: for the client.
        retry_after: seconds after which it may be worth to come again.
    """

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


class TooLongError(Exception):
    """The picture itself takes longer than the limit."""


@dataclass(eq=False)
class _Job:
    """A picture that waits."""

    data: bytes
    future: Future[Answer] = field(default_factory=Future)


class Desk:
    """Answers for one bundle, of which any number may be asked for at once.

    Args:
        classifier: of the bundle.
        name: by which clients know the bundle.
        limits: of the server.
        meters: count what is done.
        threads: that decode and predict; 0 for as many as there are cores.
    """

    def __init__(
        self, classifier: BundleClassifier, *, name: str, limits: Limits, meters: Meters, threads: int = 0
    ) -> None:
        self.classifier, self.name, self.limits = classifier, name, limits
        self._meters, self._count = meters, threads or cores()
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._idle, self._is_open, self._explaining = 0, True, 0
        self._pace = _Pace()
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True) for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that no thread has taken yet."""
        return len(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Whether a picture that comes now would be taken."""
        return self._is_open and len(self._waiting) < self.limits.waiting

    async def predict(self, pictures: Sequence[bytes]) -> list[Answer]:
        """What the bundle says of each picture, or why it cannot be read; in their order.

        Raises:
            BusyError: too many wait already, or they have waited for longer than the limit.
            TooLongError: decoding one of them takes longer than the limit.
        """
        jobs = self._put(pictures)
        try:
            async with asyncio.timeout(self.limits.seconds):
                found = list(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs)))
        except TimeoutError as error:
            has_begun = any(not job.future.cancel() and not job.future.done() for job in jobs)
            if has_begun:
                raise TooLongError(f"takes longer than {self.limits.seconds:g} s") from error
            reason = f"no answer within {self.limits.seconds:g} s, so many are waiting; come later"
            raise BusyError(reason, self._retry_after()) from error
        for one in found:
            self._meters.picture(self.name, one)
        return found

    async def explain(
        self, picture: bytes, *, class_name: str = "", method: str = ""
    ) -> tuple[Prediction, Explanation]:
        """What the bundle says of a picture, and where it sees evidence for a class; the scores of both are the same.

        Args:
            picture: content of a file.
            class_name: empty for the predicted class.
            method: one of `METHODS`; empty for the first.

        Raises:
            BusyError: too many explanations wait already, or this one has waited for longer than the limit.
            TooLongError: it takes longer than the limit.
            ImageError: the picture cannot be read.
            ConfigError: no such class or method.
        """
        names = self.classifier.labels.names
        if class_name and class_name not in names:
            raise ConfigError(f"class: '{class_name}' is not one of the classes{did_you_mean(class_name, names)}")
        if method and method not in METHODS:
            raise ConfigError(f"method: unknown method '{method}'{did_you_mean(method, METHODS)}")
        with self._changed:
            if not self._is_open or self._explaining >= self.limits.explanations:
                raise BusyError(f"{self._explaining} explanations are waited for; come later", 10)
            self._explaining += 1
        deadline = time.monotonic() + self.limits.seconds
        future = self._painter.submit(self._explain, picture, class_name, method, deadline)
        future.add_done_callback(self._explained)
        try:
            found, shown = await asyncio.wrap_future(future)
        except ImageError as error:
            self._meters.picture(self.name, error)
            raise
        self._meters.picture(self.name, found)
        return found, shown

    def close(self, *, seconds: float = 30.0) -> None:
        """Take no more, and wait so long for what waits to be answered."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._painter.shutdown(wait=False, cancel_futures=False)
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _put(self, pictures: Sequence[bytes]) -> list[_Job]:
        jobs = [_Job(picture) for picture in pictures]
        with self._changed:
            if not self._is_open or len(self._waiting) + len(jobs) > self.limits.waiting:
                raise BusyError(f"{len(self._waiting)} pictures are waiting already; come later", self._retry_after())
            self._waiting.extend(jobs)
            self._changed.notify(len(jobs))
        return jobs

    def _retry_after(self) -> int:
        """Whole seconds until what waits now will be done, at the pace of late."""
        return min(60, max(1, math.ceil(len(self._waiting) * self._pace.seconds / self._count)))

    def _take(self) -> list[_Job]:
        """Some jobs; none when the desk is closed and nothing waits."""
        with self._changed:
            self._idle += 1
            while not self._waiting and self._is_open:
                self._changed.wait()
            share = math.ceil(len(self._waiting) / self._idle)  # so that no thread is idle while another has several
            self._idle -= 1
            taken = [self._waiting.popleft() for _ in range(min(share, self.classifier.together))]
        return taken

    def _work(self) -> None:
        while jobs := self._take():
            alive = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            begun = time.perf_counter()
            self._answer(alive)
            if alive:
                self._pace.note((time.perf_counter() - begun) / len(alive))
                self._meters.batch(len(alive))

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Set the result of each job; whatever one of them does to the decoder, the others get theirs."""
        readable: list[tuple[_Job, Grey]] = []
        for job in jobs:
            try:
                readable.append((job, self._grey(job.data)))
            except ImageError as error:
                job.future.set_result(
                    ImageError(str(error))
                )  # one that keeps no frames, and in them the picture, alive
            except BaseException as error:
                job.future.set_exception(error)
        if not readable:
            return
        try:
            found = self.classifier.classify_greys(np.stack([grey for _, grey in readable]))
        except BaseException as error:
            for job, _ in readable:
                job.future.set_exception(error)
            return
        for (job, _), one in zip(readable, found, strict=True):
            job.future.set_result(one)

    def _grey(self, data: bytes) -> Grey:
        return fit(decode(data, max_pixels=self.limits.pixels).pixels, self.classifier.preprocess)

    def _explain(self, picture: bytes, class_name: str, method: str, deadline: float) -> tuple[Prediction, Explanation]:
        if time.monotonic() > deadline:
            raise BusyError(f"no explanation within {self.limits.seconds:g} s; come later", 10)
        timed = _Timed(self.classifier, deadline, f"explaining it takes longer than {self.limits.seconds:g} s")
        pixels = decode(picture, max_pixels=self.limits.pixels).pixels
        found = self.classifier.classify_grey(fit(pixels, self.classifier.preprocess))
        note = self.classifier.bundle.title
        shown = explain_pixels(timed, pixels, class_name=class_name or found.label, method=method, note=note)
        return found, dataclasses.replace(shown, scores=found.scores)

    def _explained(self, _: Future[Any]) -> None:
        with self._changed:
            self._explaining -= 1


class _Pace:
    """Seconds that a picture takes of a thread, a moving mean."""

    def __init__(self) -> None:
        self.seconds = 0.1

    def note(self, seconds: float) -> None:
        self.seconds += 0.1 * (seconds - self.seconds)


class _Timed:
    """A `Predictor` that gives up at a deadline: an explanation asks it some hundred times."""

    def __init__(self, classifier: BundleClassifier, deadline: float, reason: str) -> None:
        self._classifier, self._deadline, self._reason = classifier, deadline, reason

    @property
    def labels(self) -> LabelSet:
        return self._classifier.labels

    @property
    def preprocess(self) -> Preprocess:
        return self._classifier.preprocess

    def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if time.monotonic() > self._deadline:
            raise TooLongError(self._reason)
        return self._classifier.predict(pixels)
