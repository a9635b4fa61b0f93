"""What training loops share: order, rate, checkpoints and signals, each a pure function or a round trip."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import Tensor, nn

from thoraclip.errors import ConfigError
from thoraclip.methods.training import (
    Checkpoint,
    Progressing,
    Sampler,
    learning_rate_at,
    require_positive,
    stop_requests,
)

TOTAL = 100
ROWS = np.array([3, 5, 8, 13, 21, 34, 55, 89, 90, 99])
TARGETS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])


def sampler(*, batch_size: int = 3, seed: int = 0, sampling: str = "shuffle", total: int = TOTAL) -> Sampler:
    return Sampler(ROWS, TARGETS, total=total, batch_size=batch_size, sampling=sampling, seed=seed)


def epoch(of: Sampler, number: int) -> npt.NDArray[np.int64]:
    """The samples of one epoch."""
    steps = range(number * of.steps_per_epoch, (number + 1) * of.steps_per_epoch)
    return np.concatenate([of.batch(step).samples for step in steps])


@examples(40)
@given(size=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 2**63), number=st.integers(0, 1000))
def test_an_epoch_has_each_image_once_but_for_what_is_left_over(size: int, batch: int, seed: int, number: int) -> None:
    batch = min(batch, size)
    rows = np.arange(size) * 7 + 2
    of = Sampler(rows, np.zeros(size, dtype=np.int64), total=7 * size + 2, batch_size=batch, seed=seed)
    assert of.steps_per_epoch == size // batch
    found = epoch(of, number)
    assert len(found) == size // batch * batch
    assert len(set(found)) == len(found) and set(found) <= set(rows)


def test_a_batch_says_its_step_its_rows_and_their_samples() -> None:
    batch = sampler().batch(4)
    assert batch.step == 4
    assert batch.rows.dtype == batch.samples.dtype == np.int64
    assert batch.rows.shape == batch.samples.shape == (3,)
    assert np.array_equal(batch.rows, batch.samples)


def test_what_is_left_over_is_another_one_in_every_epoch() -> None:
    left = [set(ROWS) - set(epoch(sampler(), number)) for number in range(60)]
    assert all(len(rows) == 1 for rows in left)
    assert set.union(*left) == set(ROWS)


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(epoch(sampler(batch_size=1, seed=s), e)) for s in range(5) for e in range(5)]
    assert len(set(orders)) == 25
    assert len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_a_batch_is_a_function_of_seed_and_step(sampling: str) -> None:
    """Read forwards, backwards, or at once in the middle, whatever the global stream has drawn."""
    expected = {step: sampler(sampling=sampling).batch(step).samples.tolist() for step in range(20)}
    np.random.seed(1)  # noqa: NPY002  the global one
    of = sampler(sampling=sampling)
    for step in [*range(19, -1, -1), 7, 0, 19, *range(20)]:
        assert of.batch(step).samples.tolist() == expected[step]


def test_every_order_is_as_likely() -> None:
    firsts = Counter(int(sampler(seed=s).batch(0).rows[0]) for s in range(3000))
    assert set(firsts) == set(ROWS.tolist())
    assert all(abs(count - 300) < 5 * math.sqrt(3000 * 0.09) for count in firsts.values())


def test_balanced_classes_are_drawn_equally_often() -> None:
    of = sampler(batch_size=1, sampling="balanced")
    assert of.steps_per_epoch == 18
    for number in range(5):
        drawn = epoch(of, number)
        rows = drawn % TOTAL
        counts = Counter(TARGETS[np.searchsorted(ROWS, rows)].tolist())
        assert counts == {0: 6, 1: 6, 2: 6}
        assert Counter(rows.tolist()) == {
            **dict.fromkeys(ROWS[:6].tolist(), 1),
            **dict.fromkeys(ROWS[6:9].tolist(), 2),
            99: 6,
        }


def test_no_image_of_a_class_comes_a_third_time_before_all_have_come_twice() -> None:
    targets = np.array([0] * 7 + [1] * 3)
    of = Sampler(ROWS, targets, total=TOTAL, batch_size=14, sampling="balanced", seed=3)
    for number in range(10):
        counts = Counter((epoch(of, number) % TOTAL).tolist())
        assert sorted(counts[row] for row in ROWS[7:].tolist()) == [2, 2, 3]


def test_an_image_that_is_drawn_again_is_another_sample() -> None:
    of = sampler(batch_size=18, sampling="balanced")
    batch = of.batch(0)
    assert len(set(batch.samples.tolist())) == 18
    assert np.array_equal(batch.samples % TOTAL, batch.rows)
    again = sorted((batch.samples[batch.rows == 99] // TOTAL).tolist())
    assert again == [0, 1, 2, 3, 4, 5]


def test_balancing_equal_classes_changes_no_count() -> None:
    of = Sampler(ROWS, np.arange(10) % 2, total=TOTAL, batch_size=10, sampling="balanced")
    assert sorted(of.batch(0).samples.tolist()) == ROWS.tolist()


@pytest.mark.parametrize(("sampling", "draws"), [("shuffle", 10), ("balanced", 18)])
def test_a_batch_larger_than_the_training_set_is_refused(sampling: str, draws: int) -> None:
    assert sampler(batch_size=draws, sampling=sampling).steps_per_epoch == 1
    with pytest.raises(ConfigError, match=f"batch_size = {draws + 1}: larger than the training set, {draws} images"):
        sampler(batch_size=draws + 1, sampling=sampling)


def rates(steps: int, warmup: int, peak: float = 1.0) -> list[float]:
    return [learning_rate_at(step, steps=steps, warmup_steps=warmup, peak=peak) for step in range(steps)]


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    found = rates(100, 10, peak=3e-4)
    assert found[:10] == pytest.approx([3e-4 * (k + 1) / 10 for k in range(10)])
    expected = [3e-4 * 0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)]
    assert found[10:] == pytest.approx(expected)
    assert found[9] == found[10] == max(found) == 3e-4
    assert found[55] == pytest.approx(1.5e-4)
    assert 0 < found[99] < 3e-4 / 1000


def test_a_warm_up_of_minus_one_is_a_tenth() -> None:
    assert rates(250, -1) == rates(250, 25)
    assert rates(5, -1) == rates(5, 1)


def test_without_a_warm_up_it_begins_at_the_peak() -> None:
    assert rates(10, 0)[0] == 1.0
    assert rates(1, 0) == rates(1, -1) == [1.0]


@examples(100)
@given(steps=st.integers(1, 300), warmup=st.integers(-1, 400), peak=st.floats(1e-8, 10))
def test_the_rate_is_positive_below_the_peak_and_has_one_summit(steps: int, warmup: int, peak: float) -> None:
    found = rates(steps, warmup, peak)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


class Training:
    """Three tensors, of which one gets no gradient, under AdamW on batches that are functions of the step."""

    def __init__(self) -> None:
        self.parameters = {
            name: nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(n)))
            for n, (name, shape) in enumerate([("b.weight", (4, 3)), ("a", (3,)), ("log_scale", ()), ("idle", (2,))])
        }
        values = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(
            [{"params": values[:2]}, {"params": values[2:], "weight_decay": 0.0}], lr=0.1
        )

    def step(self, number: int) -> None:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(number))
        p = self.parameters
        loss = ((x @ p["b.weight"] + p["a"]) * p["log_scale"].exp()).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        tensors = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{name}/{k}": v.clone() for k, v in self.optimizer.state.get(parameter, {}).items()}
        return tensors


def trained(steps: int) -> Training:
    training = Training()
    for number in range(steps):
        training.step(number)
    return training


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: str(value.dtype).encode() + value.numpy().tobytes() for name, value in tensors.items()}


def progress(step: int = 3) -> Progressing:
    rows = [{"step": 0, "val_macro_f1": 0.1}, {"step": 1, "loss": 0.1 + 0.2, "who": "Zoë"}, {"step": 3, "loss": 1e-300}]
    best = {"a": torch.tensor([0.1, -0.0, 3e-39]), "log_scale": torch.tensor(2.5)}
    return Progressing(step=step, best_step=1, best_value=0.1 + 0.2, waited=2, rows=rows, best=best)


def checkpoint(folder: Path, *, token: str = "t", minutes: float = 10) -> Checkpoint:
    return Checkpoint(folder / "training.safetensors", token=token, minutes=minutes)


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_a_training_that_is_taken_up_again_ends_with_the_same_bits(at: int, tmp_path: Path) -> None:
    first = trained(at)
    checkpoint(tmp_path).write(Progressing(step=at), first.parameters, first.optimizer)
    second = Training()
    done = checkpoint(tmp_path).read(second.parameters, second.optimizer)
    assert done.step == at
    assert bits(second.state()) == bits(first.state())
    for number in range(done.step, 5):
        second.step(number)
    assert bits(second.state()) == bits(trained(5).state())
    assert all(p.requires_grad and p.is_leaf for p in second.parameters.values())


def test_progress_comes_back_as_it_was(tmp_path: Path) -> None:
    training, expected = trained(3), progress()
    checkpoint(tmp_path).write(expected, training.parameters, training.optimizer)
    found = checkpoint(tmp_path).read(training.parameters, training.optimizer)
    assert bits(found.best) == bits(expected.best)
    assert {**vars(found), "best": None} == {**vars(expected), "best": None}


def test_before_the_first_validation_nothing_is_the_best(tmp_path: Path) -> None:
    training = trained(1)
    checkpoint(tmp_path).write(Progressing(step=1), training.parameters, training.optimizer)
    found = checkpoint(tmp_path).read(training.parameters, training.optimizer)
    assert (found.best_step, found.best_value, found.best) == (-1, -math.inf, {})


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        training = trained(3)
        checkpoint(tmp_path / name).write(progress(), training.parameters, training.optimizer)
    one, two = ((tmp_path / name / "training.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def begins_anew(folder: Path, *, token: str = "t") -> bool:
    training, untouched = Training(), bits(Training().state())
    found = checkpoint(folder, token=token).read(training.parameters, training.optimizer)
    assert bits(training.state()) == untouched
    return vars(found) == vars(Progressing())


def test_without_a_file_it_begins_anew(tmp_path: Path) -> None:
    assert begins_anew(tmp_path)


def test_another_trainings_file_is_passed_over(tmp_path: Path) -> None:
    training = trained(3)
    checkpoint(tmp_path, token="mine").write(progress(), training.parameters, training.optimizer)
    assert begins_anew(tmp_path, token="yours")
    assert checkpoint(tmp_path, token="mine").read(training.parameters, training.optimizer).step == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_torn_file_is_passed_over(share: float, tmp_path: Path) -> None:
    training = trained(3)
    checkpoint(tmp_path).write(progress(), training.parameters, training.optimizer)
    file = tmp_path / "training.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert begins_anew(tmp_path)


def test_a_file_of_other_tensors_is_passed_over(tmp_path: Path) -> None:
    """Another program's safetensors, one without a note, and text."""
    from safetensors.torch import save_file

    file = tmp_path / "training.safetensors"
    for metadata in (None, {"format": "pt"}, {"training": "{"}, {"training": "{}"}):
        save_file({"a": torch.zeros(2)}, file, metadata=metadata)
        assert begins_anew(tmp_path), metadata
    file.write_text("not a checkpoint", encoding="utf-8")
    assert begins_anew(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the last one; no reader ever sees half."""
    training, own = trained(3), checkpoint(tmp_path)
    own.write(progress(), training.parameters, training.optimizer)
    before = own.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            own.write(progress(4), training.parameters, training.optimizer)
    assert own.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [own.path]
    own.write(progress(4), training.parameters, training.optimizer)
    assert own.read(training.parameters, training.optimizer).step == 4
    assert list(tmp_path.iterdir()) == [own.path]
    own.remove()
    own.remove()
    assert list(tmp_path.iterdir()) == []


def test_it_is_due_when_its_minutes_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    training, own = trained(1), checkpoint(tmp_path, minutes=2)
    now += 119
    assert not own.is_due
    now += 1
    assert own.is_due
    own.write(progress(), training.parameters, training.optimizer)
    assert not own.is_due
    now += 120
    assert own.is_due


def test_of_equal_validations_the_first_is_kept() -> None:
    done = Progressing()
    taken = []
    for step, value in enumerate([0.5, 0.4, 0.7, 0.7, 0.6, 0.8, float("nan")]):
        done.step = step
        taken.append((done.note(value, {"a": torch.tensor(float(step))}), done.best_step, done.waited))
    assert taken == [
        (True, 0, 0), (False, 0, 1), (True, 2, 0), (False, 2, 1), (False, 2, 2), (True, 5, 0), (False, 5, 1),
    ]  # fmt: skip
    assert (done.best_value, float(done.best["a"])) == (0.8, 5.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_ends_nothing(number: signal.Signals) -> None:
    def harmless(*_: object) -> None:
        """What runs where nothing takes the signal, so that this test fails and the suite goes on."""

    before = signal.signal(number, harmless)
    try:
        with stop_requests() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.wait(5)
        assert signal.getsignal(number) is harmless
    finally:
        signal.signal(number, before)


def test_the_handlers_come_back_after_an_error_too() -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    with pytest.raises(RuntimeError), stop_requests():
        raise RuntimeError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_thread_leaves_signals_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_first_value_that_is_not_positive_is_named() -> None:
    require_positive(a=1, b=0.5)
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=f"b = {value}: must be positive"):
            require_positive(a=1, b=value, c=-5)
