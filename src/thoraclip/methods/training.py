"""What trainings share: their settings, the order of samples, the learning rate, checkpoints, and stopping at a signal.

All of it is a pure function of the seed and the step, so that a checkpoint needs no random state.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.methods.processes import require_trackers
from thoraclip.models.augment import Augmentation
from thoraclip.runs import atomic_open, canonical_json

__all__ = [
    "SAMPLINGS",
    "Batch",
    "Checkpoint",
    "Progressing",
    "Sampler",
    "TrainingSettings",
    "learning_rate_at",
    "require_known",
    "require_positive",
    "stop_requests",
]

SAMPLINGS = ("shuffle", "balanced")
_WEIGHTINGS = ("none", "balanced")
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Augmentation):
    """How long, how fast and on what a network is trained, and by what its weights are chosen."""

    batch_size: int = 64
    """Images per optimizer step."""
    chunk_size: int = 32
    """Images per forward pass, a part of a batch: memory only, but for a network with dropout of its own."""
    epochs: int = 10
    """Passes over the training images; an incomplete last batch is left out."""
    steps: int = 0
    """Optimizer steps; 0 counts in epochs."""
    learning_rate: float = 1e-4
    """Peak of AdamW's step size."""
    warmup_steps: int = -1
    """Steps of linear warm-up before the cosine; -1 for a tenth of all."""
    weight_decay: float = 0.01
    """AdamW's."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    class_weight: str = "none"
    """none or balanced: whether images of rare classes weigh more in the loss."""
    sampling: str = "shuffle"
    """shuffle (every image once an epoch) or balanced (as many of each class)."""
    augmentation: bool = True
    """Turn, move, zoom and change the grey of training images; never upside down, and mirrored only if asked for."""
    val_fraction: float = 0.1
    """Share of the training images held out by patient where the manifest names no validation split."""
    validate_every: int = 0
    """Steps between validations; 0 for once an epoch."""
    patience: int = 0
    """Stop after this many validations without a better one; 0 never stops early."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, more time."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; one is also written at SIGINT and SIGTERM."""
    processes: int = 0
    """How many processes there must be; 0 takes as many as were launched."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the metrics too: mlflow, tensorboard, trackio, wandb. Their files tell the time, so that, unlike
    the rest of a run folder, they are other bytes in every run."""
    seed: int = 0
    """Decides initial values, held-out part, order, augmentation and dropout."""

    NOT_IN_THE_RESULT: ClassVar[tuple[str, ...]] = ("checkpoint_minutes", "processes", "trackers")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, class_weight=_WEIGHTINGS, sampling=SAMPLINGS)
        require_positive(
            batch_size=self.batch_size, chunk_size=self.chunk_size, epochs=self.epochs, learning_rate=self.learning_rate,
            checkpoint_minutes=self.checkpoint_minutes,
        )  # fmt: skip
        if self.chunk_size > self.batch_size:
            raise ConfigError(
                f"chunk_size = {self.chunk_size} exceeds batch_size = {self.batch_size}; a chunk is a part of a batch"
            )
        if self.patience and getattr(self, "select", "") == "last":
            raise ConfigError(
                f"patience = {self.patience}: with select = last no validation is the better one; set it to 0"
            )
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"val_fraction = {self.val_fraction}: a number between 0 and 1 is needed")
        require_trackers(self.trackers)
        for name in ("steps", "validate_every", "patience", "processes", "weight_decay", "max_norm", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative")


@dataclass(frozen=True)
class Batch:
    """The images of one optimiser's step.

    Args:
        step: its number, from 0.
        rows: i64[B] rows of the manifest.
        samples: i64[B], a number for each draw: the row, and another one where a row is drawn again within an epoch.
    """

    step: int
    rows: Rows
    samples: Rows


class Sampler:
    """Whole batches in an order that is new in every epoch; what is left over at an epoch's end is left out.

    Args:
        rows: i64[N], the training rows of a manifest of `total` rows.
        targets: i64[N], their classes.
        total: rows of the manifest.
        batch_size: B.
        sampling: `shuffle`: every image once an epoch; `balanced`: images of rarer classes again until all classes have
            as many.
        seed: of the order.

    Raises:
        ConfigError: the batch is larger than the training set.
    """

    def __init__(
        self, rows: Rows, targets: Rows, *, total: int, batch_size: int, sampling: str = "shuffle", seed: int = 0
    ) -> None:
        self._rows, self._targets, self._total, self._seed = rows, targets, total, seed
        self._balanced, self._batch = sampling == "balanced", batch_size
        self._epoch: tuple[int, Rows] = (-1, rows)
        draws = len(self._order(0))
        if batch_size > draws:
            raise ConfigError(
                f"batch_size = {batch_size}: larger than the training set, {draws} images; take a smaller one"
            )
        self.steps_per_epoch = draws // batch_size

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        drawn = self._epoch[1][place * self._batch : (place + 1) * self._batch]
        return Batch(step, drawn % self._total, drawn)

    def _order(self, epoch: int) -> Rows:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        if not self._balanced:
            return self._rows[rng.permutation(len(self._rows))]
        groups = [self._rows[self._targets == target] for target in np.unique(self._targets)]
        most = max(len(group) for group in groups)
        drawn = []
        for group in groups:
            for again in range(-(-most // len(group))):
                mixed = group[rng.permutation(len(group))][: most - again * len(group)]
                drawn.append(mixed + again * self._total)
        return np.concatenate(drawn)[rng.permutation(most * len(groups))]


def learning_rate_at(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts).

    Args:
        step: 0..steps-1.
        steps: of the whole training.
        warmup_steps: steps of the warm-up; -1 for a tenth of all.
        peak: the highest rate.
    """
    warmup = max(1, steps // 10) if warmup_steps < 0 else warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@dataclass
class Progressing:
    """How far a training is; with the tensors of a `Checkpoint` it is all that a continued one needs.

    Args:
        step: optimiser's steps taken.
        best_step: step of the best validation so far; -1 before the first.
        best_value: its value; the higher, the better.
        waited: validations since then.
        rows: what `metrics.jsonl` gets.
        best: the trainable tensors at the best step.
    """

    step: int = 0
    best_step: int = -1
    best_value: float = -math.inf
    waited: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kept_step(self) -> int:
        """Step of the weights that are kept: the best, or the last where none was chosen."""
        return self.best_step if self.best else self.step

    def note(self, value: float, tensors: Mapping[str, Tensor]) -> bool:
        """Take in a validation; True where it is the best so far (of equal ones, the first)."""
        if value > self.best_value:
            self.best_step, self.best_value, self.best, self.waited = self.step, value, dict(tensors), 0
            return True
        self.waited += 1
        return False


class Checkpoint:
    """One safetensors file with trainable tensors, AdamW's moments, the best tensors and `Progressing`; replaced whole.

    Args:
        path: the file.
        token: equal for trainings that must give the same result; the file of another one is passed over.
        minutes: how often it is due.
    """

    def __init__(self, path: Path, *, token: str, minutes: float) -> None:
        self.path, self._token, self._seconds = path, token, minutes * 60
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True where the last one is older than `minutes`."""
        return time.monotonic() - self._last >= self._seconds

    def write(self, done: Progressing, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Put everything into the file; `state` holds every tensor that a step changes."""
        tensors = {f"parameter/{name}": p.detach() for name, p in state.items()}
        for name, parameter in state.items():
            moments = optimizer.state.get(parameter, {})
            tensors |= {
                f"adamw/{name}/{key}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in moments
            }
        tensors |= {f"best/{name}": value for name, value in done.best.items()}
        kept = {key: value for key, value in asdict(done).items() if key != "best"}
        kept["best_value"] = None if math.isinf(done.best_value) else done.best_value
        note = canonical_json({"schema": 1, "token": self._token, **kept})
        data = save({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, {"training": note})
        with atomic_open(self.path) as stream:
            stream.write(data)
        self._last = time.monotonic()

    def read(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Progressing:
        """Go on from the file where it belongs to this training; else from the beginning."""
        try:
            with safe_open(self.path, framework="pt") as file:
                note = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return Progressing()
        if note.pop("token", None) != self._token or note.pop("schema", None) != 1:
            return Progressing()
        note["best_value"] = -math.inf if note["best_value"] is None else note["best_value"]
        with torch.no_grad():
            for name, parameter in state.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                if f"adamw/{name}/step" in tensors:
                    moved = {k: tensors[f"adamw/{name}/{k}"].to(parameter.device) for k in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": tensors[f"adamw/{name}/step"], **moved}
        best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        return Progressing(**note, best=best)

    def remove(self) -> None:
        """The training is over."""
        self.path.unlink(missing_ok=True)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a step can end and a checkpoint be written before stopping."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_positive(**values: float) -> None:
    """Raise ConfigError for the first value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} = {value}: must be positive")


def require_known(config: object, **choices: Sequence[str]) -> None:
    """Raise ConfigError for the first setting that is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"unknown {name} '{value}'{did_you_mean(value, known)}")
