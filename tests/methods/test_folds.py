"""The loop of `finetune` and `baseline` on three numbers: against a hand-written loop, stopped, spoilt, by fold."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.conftest import files
from torch import Tensor, nn

from thoraclip.errors import InputError, TrainingError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods import baseline, finetune
from thoraclip.methods.running import Part, RunContext, parts
from thoraclip.methods.training import folds
from thoraclip.methods.training.checkpoint import Checkpoint, TrainingProgress
from thoraclip.methods.training.folds import FoldTraining, train_folds
from thoraclip.methods.training.sampler import Batch, Sampler, learning_rate_at
from thoraclip.methods.training.steps import Steps
from thoraclip.runs import RunFolder, digest
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_validation

LABELS = LabelSet(("a", "b"))
IMAGES = Manifest.from_rows(
    [{"image_id": f"i{n}", "path": f"{n}.png", "sha256": f"s{n:02d}", "label": "ab"[n // 2 % 2], "fold": n % 3} for n in range(24)],
    Path("/nowhere"),
)  # fmt: skip
Config = baseline.Config | finetune.Config
PART = Part(1, np.arange(0, 14), np.arange(14, 18), np.arange(18, 24))


class Group:
    """The first of some processes, or another one; what it says to the others is noted."""

    def __init__(self, *, is_main: bool = True, count: int = 1, agrees: bool = True, **given: Any) -> None:
        self.is_main, self.count, self._agrees, self.given = is_main, count, agrees, given
        self.log: list[Any] = []

    def any(self, flag: bool) -> bool:
        return flag

    def first(self, value: Any) -> Any:
        return value if self._agrees else 7

    def wait(self) -> None:
        self.log.append("wait")

    def track(self, values: Any, *, step: int) -> None:
        """As the `log` of the trackers."""
        self.log.append((step, values))


class Toy:
    """Three numbers that are drawn to the mean of a batch's rows; validations are read off a list."""

    def __init__(
        self,
        f1: Iterator[float] | None = None,
        spoilt: Mapping[int, Callable[[Toy], float]] | None = None,
        highest: float | None = None,
    ):
        self.highest = highest
        self.parameters = {"low": nn.Parameter(torch.zeros(2)), "high": nn.Parameter(torch.ones(1))}
        self.state = self.parameters
        self._f1, self._spoilt = f1, spoilt or {}
        self.optimizer = torch.optim.AdamW(
            [{"params": [self.parameters["low"]], "share": 0.5}, {"params": [self.parameters["high"]]}], lr=9.0
        )

    def loss(self, rows: npt.NDArray[np.int64]) -> Tensor:
        aim = float(rows.mean())
        return (self.parameters["low"] - aim).square().sum() + 3 * (self.parameters["high"] + aim).square().sum()

    def backward(self, batch: Batch) -> float:
        if batch.step in self._spoilt:
            return self._spoilt[batch.step](self)
        loss = self.loss(batch.rows)
        loss.backward()
        return float(loss.detach())

    def after_step(self) -> Mapping[str, float]:
        """As the logit scale of `finetune`, where there is a bound."""
        if self.highest is None:
            return {}
        with torch.no_grad():
            self.parameters["high"].clamp_(max=self.highest)
        return {"logit_scale": float(self.parameters["high"].detach())}

    def validate(self) -> Mapping[str, float]:
        f1 = float(self.parameters["low"].detach().sum()) if self._f1 is None else next(self._f1)
        return {"val_macro_f1": f1, "val_log_loss": 2 * f1}


def config_of(kind: Any = baseline, **settings: Any) -> Config:
    few = {"batch_size": 4, "chunk_size": 4, "learning_rate": 0.02, "precision": "fp32"}
    config: Config = kind.Config(**(few | settings))
    return config


def training_of(config: Config, folder: Path, group: Any = None, **given: Any) -> FoldTraining[Any]:
    context = RunContext(IMAGES, RunFolder(folder), folder / "cache", fingerprint="f", **given)
    group = group or Group()
    tracked: Any = SimpleNamespace(log=group.track)
    return FoldTraining(config, context, PART, LABELS, group, "fold 2 of 3, ", tracked)


def fit(training: FoldTraining[Any], toy: Toy) -> TrainingProgress:
    """By the loop of all methods; the settings are those of one."""
    steps = Steps(training, training.sampler(), toy.optimizer, toy.state)

    def validate() -> None:
        steps.keep_best(steps.log_validation(toy.validate())["val_macro_f1"])

    return steps.run(toy, validate)


def test_the_best_weights_can_be_restored(tmp_path: Path) -> None:
    training, toy = training_of(config_of(steps=3, validate_every=1), tmp_path), Toy(iter([0.1, 0.5, 0.3, 0.2]))
    steps = Steps(training, training.sampler(), toy.optimizer, toy.state)
    start = {name: p.detach().clone() for name, p in toy.state.items()}
    steps.restore_best()
    assert all(torch.equal(toy.state[name], value) for name, value in start.items()), "none was chosen yet"
    done = steps.run(toy, lambda: steps.keep_best(steps.log_validation(toy.validate())["val_macro_f1"]))
    assert done.best_step == 1 and not any(torch.equal(toy.state[name], value) for name, value in done.best.items())
    steps.restore_best()
    assert all(torch.equal(toy.state[name], value) for name, value in done.best.items())
    assert all(p.requires_grad for p in toy.state.values())


F1 = [0.1, 0.5, 0.3, 0.5, 0.4, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
"""Of the validations, the first one before any step."""


@pytest.mark.parametrize("kind", [finetune, baseline])
@pytest.mark.parametrize(
    ("settings", "steps", "every"),
    [
        ({"epochs": 3, "max_norm": 0.0}, 9, 3),
        ({"steps": 10, "validate_every": 1, "patience": 3, "warmup_steps": 4}, 10, 1),
        ({"steps": 7, "validate_every": 3, "max_norm": 5.0, "warmup_steps": 0}, 7, 3),
        (
            {"steps": 10, "validate_every": 2, "sampling": "balanced", "seed": 3, "batch_size": 7, "chunk_size": 7},
            10,
            2,
        ),
    ],
)
def test_a_training_is_that_of_a_hand_written_loop(
    settings: dict[str, Any], steps: int, every: int, kind: Any, tmp_path: Path
) -> None:
    bound = 0.999 if kind is finetune else None
    config, said, drawn, group = config_of(kind, **settings), list[str](), list[tuple[int, int]](), Group()
    training = training_of(
        config, tmp_path, group, log=said.append, progress=lambda done, total: drawn.append((done, total))
    )
    toy = Toy(iter(F1), highest=bound)
    done = fit(training, toy)

    sampler = Sampler(PART.train, IMAGES.targets(LABELS)[PART.train], total=24, batch_size=config.batch_size,
                      sampling=config.sampling, seed=config.seed)  # fmt: skip
    slow, values, an_epoch = Toy(highest=bound), iter(F1), sampler.steps_per_epoch
    first = next(values)
    rows: list[dict[str, Any]] = [{"step": 0, "val_log_loss": 2 * first, "val_macro_f1": first}]
    best, kept, waited, lines = (first, 0), {n: p.detach().clone() for n, p in slow.state.items()}, 0, []
    for step in range(steps):
        if waited == (config.patience or 99):
            break
        if step % an_epoch == 0:
            newest = [row["val_macro_f1"] for row in rows if "val_macro_f1" in row][-1]
            lines.append(
                f"fold 2 of 3, epoch {step // an_epoch + 1} of {-(-steps // an_epoch)} (validation macro F1 {newest:.3f})"
            )
        rate = learning_rate_at(step, steps=steps, warmup_steps=config.warmup_steps, peak=0.02)
        slow.optimizer.param_groups[0]["lr"], slow.optimizer.param_groups[1]["lr"] = rate / 2, rate
        slow.optimizer.zero_grad()
        loss = slow.loss(sampler.batch(step).rows)
        loss.backward()
        norm = float(torch.cat([p.grad for p in slow.parameters.values()]).norm())  # type: ignore[misc]
        for parameter in slow.parameters.values():
            if config.max_norm and norm > config.max_norm:
                parameter.grad *= config.max_norm / norm  # type: ignore[operator]
        slow.optimizer.step()
        more = slow.after_step()
        rows.append(
            {"step": step + 1, "loss": float(loss.detach()), "learning_rate": rate, "gradient_norm": norm, **more}
        )
        if (step + 1) % every == 0 or step + 1 == steps:
            f1 = next(values)
            rows.append({"step": step + 1, "val_log_loss": 2 * f1, "val_macro_f1": f1})
            waited = 0 if f1 > best[0] else waited + 1
            if f1 > best[0]:
                best, kept = (f1, step + 1), {n: p.detach().clone() for n, p in slow.state.items()}
    taken = rows[-1]["step"]
    assert done.rows == [pytest.approx(row, rel=1e-4) for row in rows]
    assert (done.step, done.best_step, done.best_value, done.waited) == (taken, best[1], best[0], waited)
    for name, value in slow.parameters.items():
        torch.testing.assert_close(toy.parameters[name], value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(done.best[name], kept[name].detach(), atol=1e-4, rtol=1e-4)
    assert said == lines
    assert drawn == [(step * config.batch_size, steps * config.batch_size) for step in range(1, taken + 1)]
    tracked = [
        ({f"fold-1/{name}": value for name, value in row.items() if name != "step"}, row["step"]) for row in done.rows
    ]
    assert [entry for entry in group.log if entry != "wait"] == [(step, values) for values, step in tracked]
    assert not (tmp_path / "fold-1" / "training.safetensors").exists(), "no checkpoint is due, and nobody stopped it"


@pytest.mark.parametrize("kind", [finetune, baseline])
@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("how", ["killed", "signal"])
def test_a_stopped_training_goes_on_where_it_was(step: int, how: str, kind: Any, tmp_path: Path) -> None:
    """After a kill from the last checkpoint, which was due; at a signal one is written, and the step is finished."""

    def stop(done: int, total: int) -> None:
        if done == 4 * step:
            if how == "killed":
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGTERM)

    config = config_of(kind, steps=6, validate_every=2)
    whole = fit(training_of(config, tmp_path / "whole"), expected := Toy())
    if how == "killed":
        config = dataclasses.replace(config, checkpoint_minutes=1e-9)
    group = Group()
    training = training_of(config, tmp_path / "again", group, progress=stop)
    with pytest.raises(RuntimeError if how == "killed" else KeyboardInterrupt):
        fit(training, Toy())
    kept = Checkpoint(training.folder / "training.safetensors", token=training.token, minutes=1)
    left = kept.read((fresh := Toy()).state, fresh.optimizer)
    assert left.step == (step if how == "signal" else step - 1)
    assert (group.log[-1] == "wait") == (how == "signal")
    done = fit(training_of(config, tmp_path / "again", log=(said := []).append), toy := Toy())
    assert done.rows == whole.rows and done.best_step == whole.best_step
    for name, value in expected.parameters.items():
        assert torch.equal(toy.parameters[name], value) and torch.equal(done.best[name], whole.best[name])
    assert len(said) == len([k for k in range(left.step, 6) if k % 3 == 0])
    for folder, is_main in (("other", False), ("main", True)):
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            fit(training_of(config, tmp_path / folder, Group(is_main=is_main), progress=stop), Toy())
    assert not files(tmp_path / "other"), "only the first process writes"


def nan_gradient(toy: Toy) -> float:
    toy.loss(np.arange(3)).backward()
    toy.parameters["high"].grad *= torch.nan  # type: ignore[operator]
    return 1.0


@pytest.mark.parametrize("kind", [finetune, baseline])
@pytest.mark.parametrize(
    ("spoil", "what"), [(lambda _: float("nan"), "the loss is nan"), (nan_gradient, "a gradient is not finite")]
)
def test_what_is_not_finite_stops_it_and_the_last_good_weights_are_kept(
    spoil: Callable[[Toy], float], what: str, kind: Any, tmp_path: Path
) -> None:
    group = Group()
    training = training_of(config_of(kind, steps=6), tmp_path, group)
    batch = training.sampler().batch(2)
    with pytest.raises(TrainingError) as refused:
        fit(training, Toy(spoilt={2: spoil}))
    path = tmp_path / "fold-1" / "training.safetensors"
    assert str(refused.value) == (
        f"step 3: {what}, in the batch of 4 images that begins with 'i{batch.rows[0]}'; the weights of step 2 are kept in "
        f"{path}; lower learning_rate = 0.02, or set precision = fp32"
    )
    assert path.exists() and group.log[-1] == "wait"
    with pytest.raises(
        TrainingError, match=r"step 2: val_log_loss is inf on the validation images; lower learning_rate"
    ):
        other = training_of(config_of(kind, steps=6, validate_every=2), tmp_path / "other")
        fit(other, Toy(iter([0.1, float("inf")])))


def test_processes_that_see_other_files_are_refused(tmp_path: Path) -> None:
    training = training_of(config_of(steps=2), tmp_path, Group(agrees=False))
    with pytest.raises(InputError, match="not every process sees the same files there; name a folder that all"):
        fit(training, Toy())


def test_what_stands_beside_the_weights_says_what_they_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_of(config_of(), tmp_path)
    done = TrainingProgress(
        step=4, rows=[{"step": 2, "val_macro_f1": 0.5}, {"step": 4, "loss": 1.0}, {"step": 4, "val_x": 1}]
    )
    token = digest(["f", 1])
    shas = [f"s{n:02d}" for n in range(18)]
    facts = {"token": token, "fold": 1, "batch_size": 4, "steps": 4, "trained_on": shas[:14], "chosen_on": shas[14:]}
    assert training.note(done, 2) == facts | {"step": 2, "validation": {"step": 2, "val_macro_f1": 0.5}}
    assert training.note(done, 4) == facts | {"step": 4, "validation": None}
    drawn: list[Any] = []
    monkeypatch.setattr(folds, "training_figure", lambda rows, **given: drawn.append((rows, given)) or "<svg/>")
    training.write_curve(done)
    assert drawn == [(done.rows, {"best_step": 4, "validated": "validation"})]
    assert (tmp_path / "fold-1" / "training.svg").read_text() == "<svg/>"
    assert training.metrics == [{"fold": 1, **row} for row in done.rows]
    whole = dataclasses.replace(training, part=dataclasses.replace(PART, fold=None))
    assert (whole.folder, whole.token) == (tmp_path, digest(["f", None]))
    Steps(whole, whole.sampler(), Toy().optimizer, {}).log_validation({"val_x": 1})
    assert whole.group.log[-1] == (0, {"val_x": 1})  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_main", [True, False])
def test_the_first_process_makes_the_pixel_cache_and_the_others_wait_for_it(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, asked = Group(is_main=is_main), []

    class Cache:
        arrays: ClassVar = {"pixels": "the pixels"}

    def make(*arguments: Any, **given: Any) -> Cache:
        asked.append((arguments, given))
        group.log.append("cache")
        return Cache()

    monkeypatch.setattr(folds, "pixel_cache", make)
    spec = Preprocess()
    for pixels in (None, tmp_path / "px"):
        training = training_of(config_of(), tmp_path, group, pixels=pixels, progress=print)
        assert training.shared_images(spec) == "the pixels"  # type: ignore[comparison-overlap]
        assert asked.pop() == ((IMAGES, spec, pixels or tmp_path / "pixels"), {"progress": print})
    assert group.log == (["cache", "wait"] if is_main else ["wait", "cache"]) * 2


def read_note(folder: Path) -> Mapping[str, Any]:
    """The weights are a file; what another fingerprint left is not this training's own."""
    try:
        return dict(json.loads((folder / "facts.json").read_text()))
    except OSError as error:
        raise InputError("none") from error


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("is_main", [True, False])
def test_each_fold_is_trained_once_and_scored_by_itself(
    is_main: bool, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[Group] = []

    def group(**given: Any) -> Group:
        groups.append(Group(is_main=is_main, count=count, **given))
        return groups[-1]

    tracked: list[Any] = []
    monkeypatch.setattr(folds, "ProcessGroup", group)
    monkeypatch.setattr(folds, "TrackedRun", lambda *given, **named: nullcontext(tracked.append((*given, named))))
    trained: list[FoldTraining[Any]] = []

    def train(one: FoldTraining[Any]) -> None:
        trained.append(one)
        one.folder.mkdir(parents=True, exist_ok=True)
        note = {"token": one.token, "step": 1, "steps": 2, "validation": None, "more": 3}
        (one.folder / "facts.json").write_text(json.dumps(note))
        (one.folder / "metrics.jsonl").write_text('{"step":0}\n{"step":1}\n')
        (one.folder / "training.safetensors").write_text("a checkpoint")

    def score(one: FoldTraining[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        share = (one.part.fold or 0) / 4
        return tuple(np.tile([share, 1 - share], (len(rows), 1)) for rows in (one.part.test, one.part.val))  # type: ignore[return-value]

    said: list[str] = []
    config = config_of(val_fraction=0.3, seed=2, trackers=("tensorboard",), processes=count)
    context = RunContext(IMAGES, RunFolder(tmp_path), tmp_path, log=said.append, fingerprint="f")
    for stale in ("fold-7", "adapter", "last", "model", "fold-0/model", "keep"):
        (tmp_path / stale).mkdir(parents=True)
        if stale not in ("fold-7", "keep"):
            (tmp_path / stale / "thoraclip.json").write_text("{}")  # ours
    work: dict[str, Any] = {"read_note": read_note, "train": train, "score": score}
    output = train_folds("baseline", config, context, **work)
    assert groups[0].given == {"wanted": count} and groups[0].log == ["wait"] * 6
    names = ("tensorboard",) if is_main else ()
    assert tracked == [(names, tmp_path, {"fingerprint": "f", "settings": dataclasses.asdict(config)})]
    assert said == (["baseline: 2 processes"] if count > 1 and is_main else [])
    wanted = list(parts(IMAGES, LABELS, val_fraction=0.3, seed=2))
    assert [(one.part.fold, one.title) for one in trained] == [(f, f"fold {f + 1} of 3, ") for f in range(3)]
    for one, part in zip(trained, wanted, strict=True):
        assert (one.part.val.tolist(), one.labels, one.group) == (part.val.tolist(), LABELS, groups[0])
        assert (one.folder / "training.safetensors").exists() != is_main
    gone = {name for name in ("fold-7", "adapter", "last", "model") if not (tmp_path / name).exists()}
    assert gone == ({"fold-7", "adapter", "last", "model"} if is_main else set())
    assert (tmp_path / "fold-0" / "model").exists() and (tmp_path / "keep").exists()
    if not is_main:
        assert output is None and not read_validation(tmp_path)
        return
    assert output is not None
    assert output.predictions.scores[:, 0].tolist() == [n % 3 / 4 for n in range(24)]
    assert output.details == {"chosen": [{"fold": f, "step": 1, "steps": 2, "validation": None} for f in range(3)]}
    assert output.metrics == [{"fold": f, "step": s} for f in range(3) for s in range(2)]
    for table, part in zip(read_validation(tmp_path), wanted, strict=True):
        assert table.image_id == tuple(f"i{row}" for row in part.val) and table.scores[0, 0] == (part.fold or 0) / 4
    train_folds("baseline", config, context, **work)
    assert len(trained) == 3, "none is trained again"
    train_folds("baseline", config, dataclasses.replace(context, fingerprint="g"), **work)
    assert len(trained) == 6
    split = IMAGES.with_columns(fold=[None] * 24, split=["train", "val", "test"] * 8)
    train_folds("baseline", config, dataclasses.replace(context, manifest=split), **work)
    assert (trained[-1].title, trained[-1].folder) == ("", tmp_path)
    assert not (tmp_path / "fold-0" / "model").exists() and not (tmp_path / "fold-0" / "metrics.jsonl").exists()
    only = dataclasses.replace(config, only_folds=(2,), classes=("b", "a"))
    again = train_folds("baseline", only, context, **work)
    assert again is not None and set(again.predictions.fold) == {2} and again.predictions.labels.names == ("b", "a")
