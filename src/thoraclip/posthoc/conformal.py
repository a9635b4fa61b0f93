"""Prediction sets that hold the true class as often as promised, class by class: split conformal prediction.

Angelopoulos & Bates 2021 (arXiv:2107.07511), section 2 and, class by class, 4.2; Vovk 2012 (arXiv:1209.2673), section
4; Sadinle, Lei & Wasserman 2019 (arXiv:1609.00451), who show that these sets are the smallest on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError

__all__ = ["ALPHA", "ClassThresholds", "fit_thresholds", "images_needed"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALPHA = 0.1
"""Share of a class's images whose set may miss it."""

_ROUNDING = 1e-9
"""What a product of floats may exceed a whole number by."""


@dataclass(frozen=True)
class ClassThresholds:
    """What the images that calibrate say about every class.

    Args:
        alpha: promised share of misses.
        threshold: f64[C], the largest 1 - score of a class with which it is in the set; infinite where there are too
            few images of it: the class is then in every set.
        images: i64[C], calibrating images of each class.
    """

    alpha: float
    threshold: Floats
    images: Ints

    def sets(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """f64[N, C] scores -> bool[N, C], whether a class is in the image's set; a set may be empty."""
        return np.asarray(1 - scores <= self.threshold, dtype=np.bool_)


def images_needed(alpha: float = ALPHA) -> int:
    """Images of a class that a finite threshold takes: ceil(1 / alpha) - 1.

    Raises:
        ConfigError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha = {alpha}: a number between 0 and 1 is needed; 0.1 asks for sets that miss 10 %")
    return math.ceil(1 / alpha - _ROUNDING) - 1


def fit_thresholds(scores: Floats, target: Ints, *, alpha: float = ALPHA) -> ClassThresholds:
    """Threshold of class c: the ceil((n_c + 1)(1 - alpha))-th smallest of 1 - score_c over its n_c images.

    An image of class c that is exchangeable with these n_c has c in its set with a probability of at least 1 - alpha,
    and, where no scores are equal, of at most 1 - alpha + 1 / (n_c + 1), over the draw of all n_c + 1.

    Args:
        scores: f64[N, C] of images that the classifier has not learned from.
        target: i64[N] in [0, C).
        alpha: in (0, 1).

    Raises:
        ConfigError: see `images_needed`.
    """
    needed, classes = images_needed(alpha), scores.shape[1]
    threshold = np.full(classes, np.inf)
    for c in range(classes):
        strange = np.sort(1 - scores[target == c, c])
        if len(strange) >= needed:
            rank = math.ceil((len(strange) + 1) * (1 - alpha) - _ROUNDING)
            threshold[c] = strange[max(rank, 1) - 1]
    return ClassThresholds(alpha, threshold, np.bincount(target, minlength=classes))
