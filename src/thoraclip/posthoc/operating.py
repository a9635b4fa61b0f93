"""An operating point: the threshold on one class's score that finds as many of its images as was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError

__all__ = ["SENSITIVITY", "Counts", "choose_threshold", "count", "positives_needed"]

Floats = npt.NDArray[np.float64]

SENSITIVITY = 0.95
"""Share of a class's validation images that its operating point must find."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Counts:
    """Of images at a threshold; those at or above it are called positive.

    Args:
        found, positives: images of the class that are called positive, and all of them.
        cleared, negatives: other images that are not, and all of them.
    """

    found: int
    positives: int
    cleared: int
    negatives: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.found + other.found,
            self.positives + other.positives,
            self.cleared + other.cleared,
            self.negatives + other.negatives,
        )


def positives_needed(goal: float = SENSITIVITY) -> int:
    """1 / (1 - goal), rounded up: with fewer images of the class, the goal lets none be missed, and says little.

    Raises:
        ConfigError: the goal is not between 0 and 1.
    """
    if not 0 < goal < 1:
        raise ConfigError(f"sensitivity = {goal}: a number between 0 and 1 is needed, such as {SENSITIVITY}")
    return math.ceil(1 / (1 - goal) - _ROUNDING)


def choose_threshold(score: Floats, positive: npt.NDArray[np.bool_], *, goal: float = SENSITIVITY) -> float | None:
    """The highest threshold with a sensitivity of at least `goal`: the ceil(goal P)-th highest score of the P
    positives.

    Args:
        score: f64[N], of one class.
        positive: bool[N], whether an image is of this class.
        goal: in (0, 1).

    Returns:
        A score, or `None` where no image is of the class.

    Raises:
        ConfigError: see `positives_needed`.
    """
    positives_needed(goal)
    own = np.sort(score[positive])[::-1]
    return float(own[math.ceil(goal * len(own) - _ROUNDING) - 1]) if len(own) else None


def count(score: Floats, positive: npt.NDArray[np.bool_], threshold: float) -> Counts:
    """What happens to some images at a threshold; arguments as in `choose_threshold`."""
    called = score >= threshold
    return Counts(
        int((called & positive).sum()), int(positive.sum()), int((~called & ~positive).sum()), int((~positive).sum())
    )
