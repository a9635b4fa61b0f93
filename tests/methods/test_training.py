"""What training loops share: order, rate, checkpoints and signals, each a pure function or a round trip."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.conftest import examples
from torch import Tensor, nn

from thoraclip.errors import ConfigError
from thoraclip.methods.training.checkpoint import Checkpoint, TrainingProgress, stop_requests
from thoraclip.methods.training.sampler import Sampler, learning_rate_at
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.methods.training.steps import Steps

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


def test_every_epoch_and_every_seed_has_an_order_of_its_own_and_leaves_out_another_image() -> None:
    orders = [tuple(epoch(sampler(seed=s), e)) for s in range(5) for e in range(12)]
    assert len(set(orders)) == 60
    left = [set(ROWS) - set(order) for order in orders]
    assert {len(rows) for rows in left} == {1} and set.union(*left) == set(ROWS)
    unsaid = Sampler(ROWS, TARGETS, total=TOTAL, batch_size=3)
    assert tuple(epoch(unsaid, 0)) == orders[0], "shuffled by seed 0 where nothing is said"


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_a_batch_is_a_function_of_seed_and_step(sampling: str) -> None:
    """Read forwards, backwards, or each by a sampler of its own, whatever the global stream has drawn."""
    expected = [sampler(sampling=sampling).batch(step) for step in range(20)]
    np.random.seed(1)  # noqa: NPY002  the global one
    of = sampler(sampling=sampling)
    for step in [*range(19, -1, -1), 7, 0, 19, *range(20)]:
        batch = of.batch(step)
        assert (batch.step, batch.samples.tolist()) == (step, expected[step].samples.tolist())
        assert batch.rows.tolist() == (batch.samples % TOTAL).tolist()
        assert batch.rows.dtype == batch.samples.dtype == np.int64 and len(batch.rows) == 3


def test_every_order_is_as_likely() -> None:
    firsts = Counter(int(sampler(seed=s).batch(0).rows[0]) for s in range(3000))
    assert set(firsts) == set(ROWS.tolist())
    assert all(abs(count - 300) < 5 * math.sqrt(3000 * 0.09) for count in firsts.values())


@examples(40)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99), number=st.integers(0, 9))
def test_balanced_classes_are_drawn_equally_often(counts: list[int], seed: int, number: int) -> None:
    """No image of a class comes once more before all have come as often; drawn again, an image is another sample."""
    targets = np.repeat(np.arange(len(counts)), counts)
    rows, total = np.arange(len(targets)) * 3 + 1, 3 * len(targets) + 1
    of = Sampler(rows, targets, total=total, batch_size=1, sampling="balanced", seed=seed)
    drawn = epoch(of, number)
    assert len(drawn) == max(counts) * len(counts)
    for target in range(len(counts)):
        own = [np.sort(drawn[drawn % total == row] // total) for row in rows[targets == target]]
        assert all(again.tolist() == list(range(len(again))) for again in own)
        times = [len(again) for again in own]
        assert sum(times) == max(counts) and max(times) - min(times) <= 1


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
    assert found[10:] == pytest.approx([3e-4 * 0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)])
    assert rates(4, 0) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert rates(1, 0) == rates(1, -1) == rates(1, 1) == [1.0] and rates(3, 4) == [0.25, 0.5, 0.75]


@examples(100)
@given(steps=st.integers(1, 300), warmup=st.integers(-1, 400), peak=st.floats(1e-8, 10))
def test_the_rate_is_positive_below_the_peak_and_has_one_summit(steps: int, warmup: int, peak: float) -> None:
    """A warm-up of -1 is a tenth of all steps."""
    found = rates(steps, warmup, peak)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert rates(steps, -1) == rates(steps, max(1, steps // 10))


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


def progress(step: int = 3) -> TrainingProgress:
    rows = [{"step": 0, "val_macro_f1": 0.1}, {"step": 1, "loss": 0.1 + 0.2, "who": "Zoë"}, {"step": 3, "loss": 1e-300}]
    best = {"a": torch.tensor([0.1, -0.0, 3e-39]), "log_scale": torch.tensor(2.5)}
    return TrainingProgress(step=step, best_step=1, best_value=0.1 + 0.2, waited=2, rows=rows, best=best)


def checkpoint(folder: Path, *, token: str = "t", minutes: float = 10) -> Checkpoint:
    return Checkpoint(folder / "training.safetensors", token=token, minutes=minutes)


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_a_training_that_is_taken_up_again_ends_with_the_same_bits(at: int, tmp_path: Path) -> None:
    first = trained(at)
    checkpoint(tmp_path).write(TrainingProgress(step=at), first.parameters, first.optimizer)
    second = Training()
    done = checkpoint(tmp_path).read(second.parameters, second.optimizer)
    assert done.step == at
    assert bits(second.state()) == bits(first.state())
    for number in range(done.step, 5):
        second.step(number)
    assert bits(second.state()) == bits(trained(5).state())
    assert all(p.requires_grad and p.is_leaf for p in second.parameters.values())


def test_progress_comes_back_as_it_was_and_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for expected in (progress(), progress(), TrainingProgress(step=1)):
        training = trained(3)
        checkpoint(tmp_path).write(expected, training.parameters, training.optimizer)
        found = checkpoint(tmp_path).read(training.parameters, training.optimizer)
        assert bits(found.best) == bits(expected.best)
        assert {**vars(found), "best": None} == {**vars(expected), "best": None}
        written.append(checkpoint(tmp_path).path.read_bytes())
    assert written[0] == written[1] != written[2]


def test_what_does_not_belong_to_this_training_is_passed_over(tmp_path: Path) -> None:
    """No file, another training's, a torn one, another program's, and one of another schema."""

    def begins_anew() -> bool:
        training, untouched = Training(), bits(Training().state())
        found = checkpoint(tmp_path).read(training.parameters, training.optimizer)
        assert bits(training.state()) == untouched
        return vars(found) == vars(TrainingProgress())

    training, file = trained(3), checkpoint(tmp_path).path
    assert begins_anew()
    checkpoint(tmp_path, token="another").write(progress(), training.parameters, training.optimizer)
    assert begins_anew()
    checkpoint(tmp_path).write(progress(), training.parameters, training.optimizer)
    whole = file.read_bytes()
    for torn in (b"", *(whole[: int(len(whole) * share)] for share in (0.01, 0.3, 0.9, 0.999)), b"not a checkpoint"):
        file.write_bytes(torn)
        assert begins_anew(), torn
    for metadata in (
        None,
        {"format": "pt"},
        {"training": "{"},
        {"training": "{}"},
        {"training": '{"token": "t", "schema": 2}'},
    ):
        save_file({"a": torch.zeros(2)}, file, metadata=metadata)
        assert begins_anew(), metadata


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the last one; no reader ever sees half."""
    training, own = trained(3), checkpoint(tmp_path)
    own.write(progress(), training.parameters, training.optimizer)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(os, "fsync", lambda _: 1 / 0)
        own.write(progress(4), training.parameters, training.optimizer)
    assert own.read(training.parameters, training.optimizer).step == 3
    assert list(tmp_path.iterdir()) == [own.path]
    own.write(progress(4), training.parameters, training.optimizer)
    assert own.read(training.parameters, training.optimizer).step == 4
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
    done, kept, weight = TrainingProgress(), [], torch.tensor(0.0)
    assert vars(done) == {"step": 0, "best_step": -1, "best_value": -math.inf, "waited": 0, "rows": [], "best": {}}
    steps: Any = SimpleNamespace(progress=done, _state={"a": weight})
    for step, value in enumerate([0.5, 0.4, None, 0.7, 0.7, 0.6, 0.8, float("nan")]):
        done.step = step
        assert done.kept_step == (done.best_step if step else 0), "the last one where none was chosen"
        Steps.keep_best(steps, value)
        weight += 1
        kept.append((done.best_step, done.waited))
    assert kept == [(0, 0), (0, 1), (0, 1), (3, 0), (3, 1), (3, 2), (6, 0), (6, 1)]
    assert (done.best_value, float(done.best["a"])) == (0.8, 6.0)
    assert TrainingProgress(step=3).kept_step == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_for_a_stop_and_ends_nothing(number: signal.Signals) -> None:
    """Its handler comes back, after an error too; another thread leaves signals alone."""

    def harmless(*_: object) -> None:
        """What runs where nothing takes the signal, so that this test fails and the suite goes on."""

    before = signal.signal(number, harmless)
    try:
        with pytest.raises(RuntimeError), stop_requests() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.wait(5)
            raise RuntimeError
        assert signal.getsignal(number) is harmless
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(lambda: stop_requests().__enter__().is_set()).result()
    finally:
        signal.signal(number, before)


SETTINGS = {
    "batch_size": 64, "chunk_size": 32, "epochs": 10, "steps": 0, "learning_rate": 1e-4, "warmup_steps": -1, "weight_decay": 0.01,
    "max_norm": 1.0, "class_weight": "none", "sampling": "shuffle", "augmentation": "standard", "val_fraction": 0.1, "validate_every": 0,
    "patience": 0, "gradient_checkpointing": False, "checkpoint_minutes": 5.0, "processes": 0, "trackers": (), "shots": "all", "seed": 0,
}  # fmt: skip


def test_the_defaults_are_the_documented_ones_and_the_bounds_are_fine() -> None:
    assert asdict(TrainingSettings()) == SETTINGS
    TrainingSettings(chunk_size=64, patience=1, weight_decay=0, max_norm=0, val_fraction=0.001)
    TrainingSettings(
        batch_size=1, chunk_size=1, epochs=1, learning_rate=1e-9, checkpoint_minutes=1e-9, val_fraction=0.999
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_weight": "balance"}, "unknown class_weight 'balance'; did you mean 'balanced'"),
        ({"sampling": "shufle"}, "unknown sampling 'shufle'; did you mean 'shuffle'"),
        ({"trackers": ("wandd",)}, "unknown tracker 'wandd'; did you mean 'wandb'"),
        ({"augmentation": "standrd"}, "unknown augmentation 'standrd'; did you mean 'standard'"),
    ],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingSettings(**values)
