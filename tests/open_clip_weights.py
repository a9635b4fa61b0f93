"""Weights of open_clip's format drawn from their names and shapes, the same in every version of NumPy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, npt.NDArray[np.float32]]:
    """Name -> weight f32, a function of name and shape alone; large enough that every part is felt in the features.

    `RandomState` is frozen: its numbers never change.
    """
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if name.startswith("logit_scale"):
        return np.full(shape, 2.5, np.float32)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    values = np.random.RandomState(seed).standard_normal(shape)
    if "norm" in name.lower() or ".ln_" in f".{name}":
        values = values * 0.2 + name.endswith("weight")
    elif len(shape) > 1 and "embed" not in name:
        values *= 1.5 / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1:
        values *= 0.3
    return values.astype(np.float32)
