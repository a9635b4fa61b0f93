"""The queue before a classifier: bounded, fair, in batches, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples
from tests.imaging.files import encoded

from thoraclip.bundle.runtime import BundleClassifier, Prediction
from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging import Preprocess, decode
from thoraclip.labels import LabelSet
from thoraclip.server import batch_queue as batch_queue_module
from thoraclip.server.batch_queue import BatchQueue
from thoraclip.server.limits import Limits, RefusedError
from thoraclip.server.monitoring import Metrics

SPEC = Preprocess(size=8)
pytestmark = pytest.mark.anyio


class Stub:
    """A classifier that says how bright a picture is, when it is let."""

    labels, preprocess, features_key = LabelSet(("dark", "bright")), SPEC, ("stub",)
    bundle, read = SimpleNamespace(note_on=lambda _: "stub"), staticmethod(decode)
    classify_each = BundleClassifier.classify_each

    def __init__(self, together: int, *, is_let: bool) -> None:
        self.together, self.calls = together, list[int]()
        self.go, self.entered = threading.Event(), threading.Semaphore(0)
        if is_let:
            self.go.set()

    def classify_greys(self, greys: np.ndarray) -> list[Prediction]:
        self.entered.release()
        self.calls.append(len(greys))
        assert self.go.wait(30)
        bright = [float(grey.mean()) / 255 for grey in greys]
        return [Prediction("dark", {"dark": 1 - one, "bright": one}, None, None, None) for one in bright]

    def classify_grey(self, grey: np.ndarray) -> Prediction:
        return self.classify_greys(grey[None])[0]

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        self.go.wait(30)
        bright = np.clip(pixels.mean(axis=(1, 2, 3)) * 0.2 + 0.5, 0.01, 0.99)
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def picture(level: int, size: tuple[int, int] = (9, 9)) -> bytes:
    return encoded(Image.new("L", size, level))


@pytest.fixture
def queues() -> Iterator[Any]:
    """`queues(together=1, threads=1, is_let=True, waiting=8)` -> a stub and its queue, which is closed in the end."""
    made: list[tuple[Stub, BatchQueue]] = []

    def make(*, together: int = 1, threads: int = 1, is_let: bool = True, **limits: Any) -> tuple[Stub, BatchQueue]:
        stub: Any = Stub(together, is_let=is_let)
        made.append((stub, BatchQueue(stub, name="stub", limits=Limits(**limits), metrics=Metrics(), threads=threads)))
        return made[-1]

    yield make
    for stub, queue in made:
        stub.go.set()
        queue.close()


async def begun(stub: Stub, queue: BatchQueue) -> asyncio.Task[Any]:
    """A request for picture 1 that a thread has taken."""
    asked = asyncio.create_task(queue.predict([picture(1)]))
    await asyncio.to_thread(stub.entered.acquire)
    return asked


def levels(found: list[Any]) -> list[int]:
    return [round(255 * one.scores["bright"]) for one in found]


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=5), min_size=1, max_size=8),
    together=st.integers(1, 4),
    threads=st.integers(1, 3),
)
def test_each_gets_the_own_answers_in_order(
    queues: Any, requests: list[list[int]], together: int, threads: int
) -> None:
    stub, queue = queues(together=together, threads=threads)

    async def ask() -> list[list[Any]]:
        return await asyncio.gather(*(queue.predict([picture(level) for level in one]) for one in requests))

    found = asyncio.run(ask())
    assert [levels(one) for one in found] == requests
    assert max(stub.calls) <= together and sum(stub.calls) == sum(map(len, requests))


async def test_what_waits_is_taken_together_and_no_thread_is_idle_meanwhile(queues: Any) -> None:
    stub, queue = queues(together=4, is_let=False)
    first = await begun(stub, queue)
    rest = [asyncio.create_task(queue.predict([picture(level)])) for level in range(6)]
    while queue.waiting < 6:
        await asyncio.sleep(0.001)
    stub.go.set()
    await asyncio.gather(first, *rest)
    assert stub.calls == [1, 4, 2]


async def test_several_idle_threads_share_a_request(queues: Any) -> None:
    stub, queue = queues(together=4, threads=2, is_let=False)
    while queue._idle < 2:
        time.sleep(0.001)
    asked = asyncio.create_task(queue.predict([picture(1), picture(2), picture(3), picture(4)]))
    await asyncio.to_thread(stub.entered.acquire)
    await asyncio.to_thread(stub.entered.acquire)
    stub.go.set()
    await asked
    assert stub.calls == [2, 2]


async def test_a_full_queue_says_when_to_come_again_and_takes_no_part_of_a_request(queues: Any) -> None:
    stub, queue = queues(is_let=False, waiting=3, files=3)
    first = await begun(stub, queue)
    second = asyncio.create_task(queue.predict([picture(2), picture(3)]))
    await asyncio.sleep(0)
    assert queue.is_ready
    for pace, seconds in ((10, 20), (1e-3, 1), (99, 60)):
        queue._seconds_each = pace
        with pytest.raises(RefusedError, match="2 pictures are waiting already; come later") as caught:
            await queue.predict([picture(4), picture(5)])
        assert caught.value.headers == {"retry-after": str(seconds)}
    third = asyncio.create_task(queue.predict([picture(6)]))
    await asyncio.sleep(0)
    assert not queue.is_ready
    stub.go.set()
    assert levels([*await first, *await second, *await third]) == [1, 2, 3, 6]
    assert queue.waiting == 0


def test_a_bad_picture_harms_no_other_of_its_batch(queues: Any) -> None:
    _, queue = queues(together=4)
    first, bad, last = asyncio.run(queue.predict([picture(7), b"no picture", picture(9)]))
    assert levels([first, last]) == [7, 9]
    assert isinstance(bad, ImageError) and str(bad) == "image: not a PNG, JPEG or DICOM picture"


def test_a_fault_of_the_model_reaches_who_asked_and_nobody_else(queues: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, queue = queues(together=2)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(stub, "classify_greys", lambda _: 1 / 0)
        asyncio.run(queue.predict([picture(1), picture(2)]))
    assert levels(asyncio.run(queue.predict([picture(3)]))) == [3]


def test_a_fault_of_the_decoder_reaches_who_asked_and_nobody_else(queues: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of one batch."""
    stub, queue = queues(together=4, is_let=False)
    monkeypatch.setattr(stub, "read", lambda data, **how: 1 / 0 if data == b"odd" else decode(data, **how))

    async def ask() -> list[Any]:
        first = await begun(stub, queue)
        asked = [asyncio.create_task(queue.predict([data])) for data in (picture(7), b"odd", picture(9))]
        while queue.waiting < 3:
            await asyncio.sleep(0.001)
        stub.go.set()
        await first
        return await asyncio.gather(*asked, return_exceptions=True)

    before, odd, after = asyncio.run(ask())
    assert levels([*before, *after]) == [7, 9] and isinstance(odd, ZeroDivisionError)


async def test_who_waits_too_long_for_others_is_told_to_come_later_and_costs_nothing(queues: Any) -> None:
    stub, queue = queues(is_let=False, seconds=2)
    blocking = await begun(stub, queue)
    queue.limits = Limits(seconds=0.1)
    with pytest.raises(RefusedError, match=r"no answer within 0.1 s, so many are waiting"):
        await queue.predict([picture(2)])
    with pytest.raises(RefusedError, match=r"takes longer than 0.1 s"):
        await blocking
    queue.limits = Limits(seconds=60)
    stub.go.set()
    assert levels(await queue.predict([picture(3)])) == [3]
    assert stub.calls == [1, 1]  # the picture of the one that has gone was not looked at


def test_too_many_pixels_are_refused_before_they_are_decoded(queues: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number counts, not a side."""
    _, queue = queues(megapixels=1)
    large = [picture(5, (1001, 1000)), picture(5, (250, 4001))]
    assert levels(asyncio.run(queue.predict([picture(5, (4000, 250))]))) == [5]
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    told = [str(one) for one in asyncio.run(queue.predict(large))]
    assert told[0] == "image: 1001 x 1000 pixels is more than 1,000,000; not a radiograph"
    assert told[1].startswith("image: 250 x 4001 pixels is more than")


def test_an_explanation_has_the_scores_of_the_prediction(classifier: BundleClassifier, png: bytes) -> None:
    queue = BatchQueue(classifier, name="probe", limits=Limits(), metrics=Metrics(), threads=1)
    found, shown = asyncio.run(queue.explain(png, method="occlusion"))
    queue.close()
    assert found == classifier.classify(png)
    assert shown.scores == found.scores
    assert shown.label == found.label == shown.predicted
    assert shown.heat.shape == shown.grey.shape == shown.seen.shape


def test_an_explanation_gives_up_in_time_and_the_next_one_is_made(queues: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (stub, queue), now = queues(), [0.0]
    quick = stub.predict
    monkeypatch.setattr(
        batch_queue_module, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    )

    def slow(pixels: np.ndarray) -> np.ndarray:
        now[0] += 16
        return quick(pixels)

    monkeypatch.setattr(stub, "predict", slow)
    with pytest.raises(RefusedError, match="explaining it takes longer than 30 s"):
        asyncio.run(queue.explain(picture(5)))
    assert now == [32]
    monkeypatch.setattr(stub, "predict", quick)
    found, shown = asyncio.run(queue.explain(picture(200), class_name="bright"))
    assert (found.label, shown.label) == ("dark", "bright")


async def test_explanations_are_made_one_by_one_and_few_wait(queues: Any) -> None:
    stub, queue = queues(is_let=False, explanations=2)
    both = [asyncio.create_task(queue.explain(picture(level))) for level in (10, 20)]
    await asyncio.to_thread(stub.entered.acquire)
    with pytest.raises(RefusedError, match="2 explanations are waited for"):
        await queue.explain(picture(30))
    assert not stub.entered.acquire(timeout=0.05), "the second has begun beside the first"
    stub.go.set()
    await asyncio.gather(*both)
    await queue.explain(picture(30))


async def test_a_closed_desk_answers_what_waits_and_takes_no_more(queues: Any) -> None:
    stub, queue = queues(is_let=False)
    first = await begun(stub, queue)
    asked = [first, *(asyncio.create_task(queue.predict([picture(level)])) for level in (2, 3))]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(queue.close))
    while queue._is_open:
        await asyncio.sleep(0.001)
    for refused in (queue.predict([picture(4)]), queue.explain(picture(4))):
        with pytest.raises(RefusedError):
            await refused
    stub.go.set()
    assert levels([(await one)[0] for one in asked]) == [1, 2, 3]
    await closing
    assert not any(thread.is_alive() for thread in queue._threads)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"files": 65}, r"files = 65: no more than can wait \(64\); raise waiting, or lower files"),
        ({"megabytes": 300}, r"megabytes = 300: no more than can be held \(256\)"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(**values)
    assert Limits(files=64, megabytes=256).files == 64, "as many as can wait, and as large as can be held"
