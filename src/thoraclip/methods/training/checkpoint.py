"""How far a training is, the file that it goes on from after a kill, and stopping at a signal."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from thoraclip.documents import parse_json
from thoraclip.errors import InputError
from thoraclip.interrupts import handled
from thoraclip.runs import atomic_open, canonical_json, remove_file

__all__ = ["Checkpoint", "TrainingProgress", "stop_requests"]


@dataclass
class TrainingProgress:
    """How far a training is; with the tensors of a `Checkpoint` it is all that a continued one needs."""

    step: int = 0  # optimiser's steps taken
    best_step: int = -1  # step of the best validation so far; -1 before the first
    best_value: float = -math.inf  # its value; the higher, the better
    waited: int = 0  # validations since then
    rows: list[dict[str, Any]] = field(default_factory=list)  # what `metrics.jsonl` gets
    best: dict[str, Tensor] = field(default_factory=dict)  # the trainable tensors at the best step

    @property
    def kept_step(self) -> int:
        """Step of the weights that are kept: the best, or the last where none was chosen."""
        return self.best_step if self.best else self.step


class Checkpoint:
    """One safetensors file with trainable tensors, AdamW's moments, the best tensors and the progress; replaced whole.

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

    def write(self, progress: TrainingProgress, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Put everything into the file; `state` holds every tensor that a step changes."""
        tensors = {f"parameter/{name}": p.detach() for name, p in state.items()}
        for name, parameter in state.items():
            moments = optimizer.state.get(parameter, {})
            tensors |= {
                f"adamw/{name}/{key}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in moments
            }
        tensors |= {f"best/{name}": value for name, value in progress.best.items()}
        kept = {key: value for key, value in asdict(progress).items() if key != "best"}
        kept["best_value"] = None if math.isinf(progress.best_value) else progress.best_value
        note = canonical_json({"schema": 1, "token": self._token, **kept})
        data = save({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())}, {"training": note})
        with atomic_open(self.path) as stream:
            stream.write(data)
        self._last = time.monotonic()

    def read(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> TrainingProgress:
        """Go on from the file where it belongs to this training; else from the beginning."""
        try:
            with safe_open(self.path, framework="pt") as file:
                note = parse_json(file.metadata()["training"], self.path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except (OSError, SafetensorError, KeyError, TypeError, InputError):
            return TrainingProgress()
        if note.pop("token", None) != self._token or note.pop("schema", None) != 1:
            return TrainingProgress()
        note["best_value"] = -math.inf if note["best_value"] is None else note["best_value"]
        with torch.no_grad():
            for name, parameter in state.items():
                parameter.copy_(tensors[f"parameter/{name}"])
                if f"adamw/{name}/step" in tensors:
                    moved = {k: tensors[f"adamw/{name}/{k}"].to(parameter.device) for k in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": tensors[f"adamw/{name}/step"], **moved}
        best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
        return TrainingProgress(**note, best=best)

    def remove(self) -> None:
        """The training is over."""
        remove_file(self.path)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that a signal to end sets, so that a step can end and a checkpoint be written before stopping."""
    asked = threading.Event()
    with handled(lambda *_: asked.set()):
        yield asked
