"""A training per fold: the loop that all trainings share, what it keeps, and what it says when it cannot go on.

    parts -> Round -> fit(round, trainee) -> artefacts in the round's folder -> scores of its test rows -> pooled

A method gives a `Trainee`: what a step adds to the gradients, and what a validation finds.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thoraclip.data.batches import pixel_cache
from thoraclip.errors import InputError, TrainingError
from thoraclip.imaging import Preprocess
from thoraclip.judge.figures import training_figure
from thoraclip.labels import LabelSet
from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.running import Context, Part, parts, pooled_predictions
from thoraclip.methods.training import (
    Batch,
    Checkpoint,
    Progressing,
    Sampler,
    TrainingSettings,
    learning_rate_at,
    stop_requests,
)
from thoraclip.runs import canonical_json, digest, fold_folder, write_text
from thoraclip.tables.predictions import Predictions

__all__ = ["Round", "Trainee", "fit", "run_rounds"]

_WEIGHTS = ("adapter", "last", "model")
"""Folders of weights in a round's folder."""
Result = tuple[Predictions, dict[str, Any], list[Mapping[str, object]]]


class Trainee(Protocol):
    """What `fit` trains.

    Attributes:
        optimizer: its groups may hold `share`, the part of the learning rate that they take; 1 where they do not.
        parameters: name -> what is trained.
        state: name -> every tensor that a step changes: the parameters, and running statistics.
    """

    optimizer: torch.optim.Optimizer

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...

    @property
    def state(self) -> Mapping[str, Tensor]: ...

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss, and return the loss."""

    def after_step(self) -> Mapping[str, float]:
        """What is to be done after the optimizer's step, and what it adds to the row of metrics."""

    def validate(self) -> Mapping[str, float]:
        """Values by name, `val_...`; the same in every process."""

    def criterion(self, values: Mapping[str, float]) -> float | None:
        """What the best weights are chosen by, the higher, the better; `None` where the last ones are kept."""


@dataclass(frozen=True)
class Round:
    """One training.

    Args:
        config: of the method.
        context: of the run.
        part: its training, validation and test rows.
        labels: the classes.
        group: the processes.
    """

    config: Any
    context: Context
    part: Part
    labels: LabelSet
    group: ProcessGroup

    title: str = ""
    """Which of how many folds, for messages: `fold 2 of 3, `; empty where there is one training."""
    validated: ClassVar[str] = "validation"
    """What gives the answers at a validation, as the figure calls it."""

    @property
    def folder(self) -> Path:
        """Of this round's files: the run folder, or one in it for each fold."""
        return fold_folder(self.context.folder.path, self.part.fold)

    @property
    def token(self) -> str:
        """Equal for rounds that must end with the same weights."""
        return digest([self.context.fingerprint, self.part.fold])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is written beside the weights that were kept; empty before."""
        raise NotImplementedError

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Of the training, while it lasts."""
        file = self.folder / "training.safetensors"
        return Checkpoint(file, token=self.token, minutes=self.config.checkpoint_minutes)

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """i64[N]: the class of every row of the manifest, -1 where unknown."""
        return self.context.manifest.targets(self.labels)

    @property
    def is_trained(self) -> bool:
        """True where the weights of this very round are there."""
        try:
            return bool(self.facts.get("token") == self.token)
        except InputError:
            return False

    @property
    def metrics(self) -> list[Mapping[str, object]]:
        """The rows of `metrics.jsonl`, with the fold."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{"fold": self.part.fold, **json.loads(line)} for line in lines]

    def sampler(self) -> Sampler:
        """The order of the training images."""
        config, rows = self.config, self.part.train
        return Sampler(
            rows, self.targets[rows], total=len(self.targets), batch_size=config.batch_size, sampling=config.sampling,
            seed=config.seed,
        )  # fmt: skip

    def pictures(self, spec: Preprocess) -> npt.NDArray[np.uint8]:
        """u8[N, S, S] from the pixel cache."""
        folder = self.context.pixels or self.context.folder.path / "pixels"
        return pixel_cache(self.context.manifest, spec, folder, progress=self.context.progress).pixels

    def shared_pictures(self, spec: Preprocess) -> npt.NDArray[np.uint8]:
        """The same in all processes, of which the first one makes the cache."""
        if not self.group.is_main:
            self.group.wait()
        pixels = self.pictures(spec)
        if self.group.is_main:
            self.group.wait()
        return pixels

    def track(self, done: Progressing) -> None:
        """Tell the trackers the newest row, under names of its own where several folds go to one tracker."""
        where = "" if self.part.fold is None else f"fold-{self.part.fold}/"
        values = {f"{where}{name}": value for name, value in done.rows[-1].items() if name != "step"}
        self.group.track(values=values, step=done.step)

    def keep_curve(self, done: Progressing) -> None:
        """Write `metrics.jsonl` and `training.svg`."""
        write_text(self.folder / "metrics.jsonl", "".join(canonical_json(row) + "\n" for row in done.rows))
        write_text(
            self.folder / "training.svg", training_figure(done.rows, best_step=done.kept_step, validated=self.validated)
        )

    def note(self, done: Progressing, step: int) -> dict[str, Any]:
        """What stands beside weights: which training they are of, which step, and what they have seen."""
        contents = self.context.manifest.column("sha256")
        validations = {row["step"]: row for row in done.rows if "val_macro_f1" in row}
        return {
            "token": self.token,
            "fold": self.part.fold,
            "batch_size": self.config.batch_size,
            "steps": done.step,
            "step": step,
            "validation": validations.get(step),
            "trained_on": sorted(contents[row] for row in self.part.train if contents[row]),
            "chosen_on": sorted(contents[row] for row in self.part.val if contents[row]),
        }

    def require_finite(
        self, loss: float, norm: float, batch: Batch, done: Progressing, save: Callable[[], Path]
    ) -> None:
        """Stop where a loss or a gradient is not finite: keep the last good weights and say which batch spoilt them.

        Args:
            loss, norm: of this step.
            batch: the step's.
            done: up to the step before.
            save: writes the checkpoint.

        Raises:
            TrainingError: one of them is not finite.
        """
        if np.isfinite(loss) and np.isfinite(norm):
            return
        path = save()
        self.group.wait()
        ids = self.context.manifest.column("image_id")
        what = f"the loss is {loss}" if not np.isfinite(loss) else "a gradient is not finite"
        raise TrainingError(
            f"step {batch.step + 1}: {what}, in the batch of {len(batch.rows)} images that begins with "
            f"'{ids[batch.rows[0]]}'; the weights of step {done.step} are kept in {path}; {_calmer(self.config)}"
        )


R = TypeVar("R", bound=Round)
Scores = npt.NDArray[np.float64]


def run_rounds(
    kind: str,
    config: Any,
    context: Context,
    make: type[R],
    *,
    train: Callable[[R], None],
    score: Callable[[R], tuple[Scores, Scores]],
) -> Result | None:
    """Train once per fold (or once for the split), score its test images, pool.

    Args:
        kind: of the method, for its messages.
        config, context: of the run; the config is a `TrainingSettings` and a `ModelConfig`.
        make: the method's own `Round`.
        train: writes the round's artefacts; left out where they are there.
        score: f64[T, C] for the T test rows of the round, and f64[V, C] for its V validation rows.

    Returns:
        As every method, with what was chosen by fold under `chosen`; `None` in all but the first of several processes.
    """
    with ProcessGroup(wanted=config.processes, trackers=config.trackers, folder=context.folder.path) as group:
        if group.count > 1 and group.is_main:
            context.announce(f"{kind}: {group.count} processes")
        manifest, rows, scores, chosen = context.manifest, [], [], []
        labels = manifest.label_set(config.classes)
        metrics: list[Mapping[str, object]] = []
        group.track(dataclasses.asdict(config))
        rounds = list(
            parts(manifest, labels, val_fraction=config.val_fraction, seed=config.seed, only=config.only_folds)
        )
        if group.is_main:
            _remove_others(context)
        for number, part in enumerate(rounds, start=1):
            title = f"fold {number} of {len(rounds)}, " if len(rounds) > 1 else ""
            one = make(config, context, part, labels, group, title)
            if not group.first(one.is_trained):
                train(one)
            group.wait()
            if group.is_main:
                one.checkpoint.remove()
                metrics += one.metrics
                chosen.append({"fold": part.fold, **{k: one.facts[k] for k in ("step", "steps", "validation")}})
                test, validation = score(one)
                rows.append(part.test)
                scores.append(test)
                context.keep_validation(part, labels, validation)
            group.wait()  # a mistake in the next fold then meets all at once, not the first one in the midst of scoring
        if not group.is_main:
            return None
        return pooled_predictions(manifest, labels, rows, scores), {"chosen": chosen}, metrics


def _remove_others(context: Context) -> None:
    """Take away what a run on another split left: an adapter or network of all images, or of folds that are no more."""
    folder, folds = context.folder.path, {fold for fold in context.manifest.column("fold") if fold is not None}
    kept = {f"fold-{fold}" for fold in folds}
    stale = [place for place in folder.glob("fold-*") if place.name not in kept]
    for place in (*stale, *(folder / name for name in _WEIGHTS if folds)):
        shutil.rmtree(place, ignore_errors=True)


def fit(one: Round, trainee: Trainee, sampler: Sampler) -> Progressing:
    """The loop: from the checkpoint, if there is one, to the last step; the best tensors so far are in what it returns.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM; the checkpoint is written.
        TrainingError: see `Round.require_finite`.
    """
    config: TrainingSettings = one.config
    context, group = one.context, one.group
    steps = config.steps or config.epochs * sampler.steps_per_epoch
    every = config.validate_every or sampler.steps_per_epoch
    checkpoint = one.checkpoint
    done = checkpoint.read(trainee.state, trainee.optimizer)
    if group.any(done.step != group.first(done.step)):
        raise InputError(
            f"{one.folder}: not every process sees the same files there; name a folder that all machines share"
        )

    def save() -> Path:
        if group.is_main:
            checkpoint.write(done, trainee.state, trainee.optimizer)
        return checkpoint.path

    if not done.rows:
        _validate(one, trainee, done)
    epochs = -(-steps // sampler.steps_per_epoch)
    with stop_requests() as stop:
        while done.step < steps and not (config.patience and done.waited >= config.patience):
            if done.step % sampler.steps_per_epoch == 0:
                context.announce(
                    f"{one.title}epoch {done.step // sampler.steps_per_epoch + 1} of {epochs}{_latest(done)}"
                )
            batch = sampler.batch(done.step)
            rate = learning_rate_at(done.step, steps=steps, warmup_steps=config.warmup_steps, peak=config.learning_rate)
            for settings in trainee.optimizer.param_groups:
                settings["lr"] = rate * settings.get("share", 1.0)
            loss = trainee.backward(batch)
            norm = float(nn.utils.clip_grad_norm_(trainee.parameters.values(), config.max_norm or torch.inf))
            one.require_finite(loss, norm, batch, done, save)
            trainee.optimizer.step()
            trainee.optimizer.zero_grad(set_to_none=True)
            done.step += 1
            more = trainee.after_step()
            done.rows.append(
                {"step": done.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm, **more},
            )
            one.track(done)
            if done.step % every == 0 or done.step == steps:
                _validate(one, trainee, done)
            if context.progress:
                context.progress(done.step * config.batch_size, steps * config.batch_size)
            stopping = group.any(stop.is_set())
            if stopping or checkpoint.is_due:
                save()
            if stopping:
                group.wait()
                raise KeyboardInterrupt
    return done


def _latest(done: Progressing) -> str:
    """The newest macro F1 of the validation images, in brackets."""
    values = [row["val_macro_f1"] for row in done.rows if "val_macro_f1" in row]
    return f" (validation macro F1 {values[-1]:.3f})" if values else ""


def _calmer(config: TrainingSettings) -> str:
    return f"lower learning_rate = {config.learning_rate:g}, or set precision = fp32"


def _validate(one: Round, trainee: Trainee, done: Progressing) -> None:
    """Add a row of validation values, and keep the tensors where they are the best so far."""
    found = trainee.validate()
    values = {name: one.group.first(found[name]) for name in sorted(found)}  # as a checkpoint gives them back
    for name, number in values.items():
        if not np.isfinite(number):
            raise TrainingError(f"step {done.step}: {name} is {number} on the validation images; {_calmer(one.config)}")
    done.rows.append({"step": done.step, **values})
    one.track(done)
    value = trainee.criterion(values)
    if value is not None:
        better = value > done.best_value
        done.note(value, {n: t.detach().cpu().clone() for n, t in trainee.state.items()} if better else {})
