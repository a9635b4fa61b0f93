"""The work of a study as tasks: a unit that is measured once, how often it is done, and on how many images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Task", "Unit", "Work", "training_unit"]

_NOT_IN_THE_COST: Mapping[str, Any] = {
    "seed": 0, "epochs": 1, "steps": 0, "learning_rate": 1e-3, "warmup_steps": -1, "weight_decay": 0.0, "max_norm": 1.0,
    "class_weight": "none", "sampling": "shuffle", "val_fraction": 0.2, "validate_every": 0, "patience": 0,
    "checkpoint_minutes": 5.0, "processes": 0, "trackers": (), "only_folds": (), "select": "last", "loss": "unicl",
    "alpha": 16.0, "rslora": True, "logit_scale_max": 100.0, "layer_decay": 1.0, "label_smoothing": 0.0,
}  # fmt: skip
"""Settings of a training that do not change what a step costs, each at a value that is always allowed."""


@dataclass(frozen=True)
class Unit:
    """Work of one kind, measured once however often it is done.

    Args:
        kind: what is done; see `measuring`.
        config: the settings that its cost depends on.
        about: whatever else it depends on.
    """

    kind: str
    config: Any = None
    about: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Task:
    """A unit, done some number of times.

    Args:
        unit: what.
        size: images (for the judge: weights) of one time.
        times: how often.
        encoded, trained: images that go through a network in all these times: forward alone, or forward and backward.
        what: of a pass of images through a network, in a word.
    """

    unit: Unit
    size: int = 0
    times: int = 1
    encoded: int = 0
    trained: int = 0
    what: str = ""

    @property
    def model(self) -> str:
        """The network, as the user named it."""
        return str(getattr(self.unit.config, "model", ""))


@dataclass
class Work:
    """What one run, or one stage of the study, has to do.

    Args:
        name, kind, seed: of the run; a stage is of kind `stage`.
        done: nothing is left to do.
        tasks: in the order of their doing.
        cached: what is on disk already, of `run`, `pixels`, `embeddings`, `captions`.
        shared: what an earlier run of the same study makes, of `pixels`, `embeddings`.
        seconds: known without measuring.
        error: why it cannot run, or cannot be counted.
    """

    name: str
    kind: str
    seed: int | None = None
    done: bool = False
    tasks: list[Task] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


def training_unit(config: Any) -> Unit:
    """The unit of a training: settings that a step's cost depends on; more chunks than two cost as two, and so much more."""
    given = {f.name for f in dataclasses.fields(config)}
    plain = {name: value for name, value in _NOT_IN_THE_COST.items() if name in given}
    chunk = min(config.chunk_size, config.batch_size)
    batch = chunk if config.batch_size == chunk else 2 * chunk
    return Unit("training", dataclasses.replace(config, **plain, batch_size=batch, chunk_size=chunk))
