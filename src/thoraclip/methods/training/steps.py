"""The training loop: resume, learning rate, steps, log, best weights, early stopping, signals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thoraclip.errors import InputError, TrainingError
from thoraclip.methods.training.checkpoint import TrainingProgress, stop_requests
from thoraclip.methods.training.folds import FoldTraining
from thoraclip.methods.training.sampler import Batch, Sampler, learning_rate_at

__all__ = ["Steps", "Trainable"]


class Trainable(Protocol):
    """What a loop trains."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Those that are trained, by name."""

    def backward(self, batch: Batch) -> float:
        """Add the gradients of the batch's loss, which is returned."""

    def after_step(self) -> Mapping[str, float]:
        """Called after each step of the optimizer; returns more values for the metrics."""


class Steps:
    """The steps of one training, from its checkpoint, where there is one, to the last or the end of patience.

    Args:
        training: which images, and where its files are.
        sampler: the order of the training images.
        optimizer: its groups may hold `share`, the part of the learning rate that they take; 1 where they do not.
        state: name -> every tensor that a step changes: the parameters, and running statistics.

    Raises:
        InputError: the processes read different checkpoints.
    """

    def __init__(
        self, training: FoldTraining[Any], sampler: Sampler, optimizer: Optimizer, state: Mapping[str, Tensor]
    ) -> None:
        config, group = training.config, training.group
        self._training, self._sampler, self._optimizer, self._state = training, sampler, optimizer, state
        self._total = config.steps or config.epochs * sampler.steps_per_epoch
        self._validate_every = config.validate_every or sampler.steps_per_epoch
        self.progress = training.checkpoint.read(state, optimizer)
        if group.any(self.progress.step != group.first(self.progress.step)):
            raise InputError(
                f"{training.folder}: not every process sees the same files there; name a folder that all machines share"
            )

    def run(self, step: Trainable, validate: Callable[[], None]) -> TrainingProgress:
        """The loop. `validate` is called before the first step, every `validate_every` steps and after the last one.

        Raises:
            TrainingError: a loss, a gradient or a validation is not finite.
            KeyboardInterrupt: a signal to end came; the step was finished and a checkpoint written.
        """
        config, parameters, progress = self._training.config, step.parameters, self.progress
        if not progress.rows:
            validate()
        with stop_requests() as stop:
            while progress.step < self._total and not (config.patience and progress.waited >= config.patience):
                batch, rate = self._begin()
                loss = step.backward(batch)
                norm = float(nn.utils.clip_grad_norm_(parameters.values(), config.max_norm or torch.inf))
                self._require_finite(batch, loss=loss, gradient_norm=norm)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                self._add_row({"loss": loss, "learning_rate": rate, "gradient_norm": norm, **step.after_step()})
                if progress.step % self._validate_every == 0 or progress.step == self._total:
                    validate()
                self._end(stop)
        return progress

    def _begin(self) -> tuple[Batch, float]:
        """(batch, learning rate) of the next step; the rate is set in the optimizer."""
        training, step = self._training, self.progress.step
        epoch, place = divmod(step, self._sampler.steps_per_epoch)
        if place == 0:
            epochs = -(-self._total // self._sampler.steps_per_epoch)
            scores = [row["val_macro_f1"] for row in self.progress.rows if "val_macro_f1" in row]
            latest = f" (validation macro F1 {scores[-1]:.3f})" if scores else ""
            training.context.log(f"{training.title}epoch {epoch + 1} of {epochs}{latest}")
        config = training.config
        rate = learning_rate_at(step, steps=self._total, warmup_steps=config.warmup_steps, peak=config.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        return self._sampler.batch(step), rate

    def _require_finite(self, batch: Batch, *, loss: float, gradient_norm: float) -> None:
        """Raise TrainingError where the loss or a gradient is not finite; the last good weights are kept."""
        if np.isfinite(loss) and np.isfinite(gradient_norm):
            return
        path = self._save()
        self._training.group.wait()
        ids = self._training.context.manifest.column("image_id")
        what = f"the loss is {loss}" if not np.isfinite(loss) else "a gradient is not finite"
        raise TrainingError(
            f"step {batch.step + 1}: {what}, in the batch of {len(batch.rows)} images that begins with "
            f"'{ids[batch.rows[0]]}'; the weights of step {self.progress.step} are kept in {path}; {self._remedy}"
        )

    def log_validation(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add the values of a validation to the metrics.

        Returns:
            The values of the first process: what all processes decide by must be the same numbers.

        Raises:
            TrainingError: a value is not finite.
        """
        shared = {name: self._training.group.first(values[name]) for name in sorted(values)}
        for name, value in shared.items():
            if not np.isfinite(value):
                step = self.progress.step
                raise TrainingError(f"step {step}: {name} is {value} on the validation images; {self._remedy}")
        self._add_row(shared)
        return shared

    def keep_best(self, criterion: float | None) -> None:
        """Copy the weights where the criterion is the highest so far; `None` copies none."""
        progress = self.progress
        if criterion is None:
            return
        if criterion > progress.best_value:  # of equal ones the first
            progress.best_step, progress.best_value, progress.waited = progress.step, criterion, 0
            progress.best = {name: tensor.detach().cpu().clone() for name, tensor in self._state.items()}
        else:
            progress.waited += 1

    def restore_best(self) -> None:
        """Give every tensor that a step changes its value at the best validation, where one was chosen by."""
        with torch.no_grad():
            for name, value in self.progress.best.items():
                self._state[name].copy_(value)

    def _end(self, stop: threading.Event) -> None:
        """Draw the progress, and write the checkpoint where it is due or a stop was asked for."""
        training, size = self._training, self._training.config.batch_size
        if training.context.progress:
            training.context.progress(self.progress.step * size, self._total * size)
        is_stopping = training.group.any(stop.is_set())
        if is_stopping or training.checkpoint.is_due:
            self._save()
        if is_stopping:
            training.group.wait()
            raise KeyboardInterrupt

    @property
    def _remedy(self) -> str:
        return f"lower learning_rate = {self._training.config.learning_rate:g}, or set precision = fp32"

    def _save(self) -> Path:
        checkpoint = self._training.checkpoint
        if self._training.group.is_main:
            checkpoint.write(self.progress, self._state, self._optimizer)
        return checkpoint.path

    def _add_row(self, values: Mapping[str, float]) -> None:
        """Into the metrics and to the trackers, under names of its own where several folds go to one tracker."""
        step, fold = self.progress.step, self._training.part.fold
        self.progress.rows.append({"step": step, **values})
        prefix = "" if fold is None else f"fold-{fold}/"
        if self._training.tracked:
            self._training.tracked.log({f"{prefix}{name}": value for name, value in values.items()}, step=step)
