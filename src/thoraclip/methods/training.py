"""What the loops that train share: the order of samples, the learning rate, checkpoints, and stopping at a signal.

All of it is a pure function of the seed and the step, so that a checkpoint needs no random state.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from thoraclip.errors import ConfigError
from thoraclip.runs import atomic_open, canonical_json

__all__ = [
    "SAMPLINGS",
    "Batch",
    "Checkpoint",
    "Progressing",
    "Sampler",
    "learning_rate_at",
    "require_positive",
    "stop_requests",
]

SAMPLINGS = ("shuffle", "balanced")
Rows = npt.NDArray[np.int64]


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
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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

    def write(
        self, done: Progressing, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Put everything into the file."""
        tensors = {f"parameter/{name}": p.detach() for name, p in parameters.items()}
        for name, parameter in parameters.items():
            state = optimizer.state.get(parameter, {})
            tensors |= {f"adamw/{name}/{key}": state[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in state}
        tensors |= {f"best/{name}": value for name, value in done.best.items()}
        kept = {key: value for key, value in asdict(done).items() if key != "best"}
        kept["best_value"] = None if math.isinf(done.best_value) else done.best_value
        note = canonical_json({"schema": 1, "token": self._token, **kept})
        data = save({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, {"training": note})
        with atomic_open(self.path) as stream:
            stream.write(data)
        self._last = time.monotonic()

    def read(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Progressing:
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
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                state = {k: tensors.get(f"adamw/{name}/{k}") for k in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] is not None:
                    moved = {k: v.to(parameter.device) for k, v in state.items() if v is not None and k != "step"}
                    optimizer.state[parameter] = {"step": state["step"], **moved}
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
