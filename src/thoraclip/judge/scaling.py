"""Temperature and vector scaling of scores, fitted on images that the classifier has not learned from.

Guo et al. 2017 (arXiv:1706.04599), section 4.2: softmax(w * z + b) on the logits z, where w is the one number 1/T and b is
0 (temperature scaling, which changes no answer), or both have a number for every class (vector scaling). A table of scores
has no logits; z = ln(score) differs from them by a constant a row, which the softmax takes away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import InputError

__all__ = ["MAX_TEMPERATURE", "MIN_TEMPERATURE", "TemperatureScaling", "VectorScaling", "fit_temperature", "fit_vector"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of T: images that are all right would draw it to 0, scores that mean nothing to infinity."""

_LEAST_SCORE = 1e-12
"""Scores are lifted to it before the logarithm."""


@dataclass(frozen=True)
class TemperatureScaling:
    """softmax(z / T).

    Args:
        temperature: T, above 1 for a classifier that is too sure, below 1 for one that is not sure enough.
    """

    temperature: float

    @property
    def is_at_bound(self) -> bool:
        """True where the images would have T beyond `MIN_TEMPERATURE` or `MAX_TEMPERATURE`."""
        return self.temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE)

    def apply(self, scores: Floats) -> Floats:
        """f64[N, C] scores -> f64[N, C] scaled scores; rows sum to 1, and their order within a row stays."""
        return _softmax(_logits(scores) / self.temperature)


@dataclass(frozen=True)
class VectorScaling:
    """softmax(w * z + b), a number for every class.

    Args:
        scale: w, f64[C].
        bias: b, f64[C].
    """

    scale: Floats
    bias: Floats

    def apply(self, scores: Floats) -> Floats:
        """f64[N, C] scores -> f64[N, C] scaled scores; rows sum to 1. The answers may change."""
        return _softmax(_logits(scores) * self.scale + self.bias)


def fit_temperature(scores: Floats, target: Ints) -> TemperatureScaling:
    """The T > 0 with the smallest mean of -ln p(true class), between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.

    In 1/T this mean is convex, so its derivative, E[sum_c p_c z_c - z_true], has one root or none between the bounds.

    Args:
        scores: f64[N, C], not negative; below 1e-12 they count as 1e-12.
        target: i64[N] in [0, C).

    Raises:
        InputError: no image, or the scores of every image are all equal, so that no temperature changes them.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    logits = _checked_logits(scores, target)
    true = logits[np.arange(len(target)), target]

    def slope(inverse: float) -> float:
        return float(((_softmax(inverse * logits) * logits).sum(axis=1) - true).mean())

    if slope(1 / MAX_TEMPERATURE) >= 0:
        return TemperatureScaling(MAX_TEMPERATURE)
    if slope(1 / MIN_TEMPERATURE) <= 0:
        return TemperatureScaling(MIN_TEMPERATURE)
    return TemperatureScaling(1 / float(brentq(slope, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, xtol=1e-10)))


def fit_vector(scores: Floats, target: Ints, *, names: Sequence[str] = ()) -> VectorScaling:
    """The w and b with the smallest mean of -ln p(true class), held weakly at those of temperature scaling.

    mean(-ln p) + (|T w - 1|^2 + |b|^2) / (2 N): the pull is that of a normal prior of unit spread around (1/T, 0). It fades
    with the number of images N, and keeps few of them, or images that are all right, from drawing w or b to infinity.

    Args:
        scores, target: as in `fit_temperature`.
        names: of the classes, for the message.

    Raises:
        InputError: as in `fit_temperature`, or a class has no image.
    """
    from scipy.optimize import minimize

    logits = _checked_logits(scores, target)
    n, classes = logits.shape
    absent = np.flatnonzero(np.bincount(target, minlength=classes) == 0)
    if len(absent):
        name = f"'{names[absent[0]]}'" if names else f"number {absent[0]}"
        raise InputError(f"class {name} has no validation image, so vector scaling cannot be fitted; add images of it")
    temperature = fit_temperature(scores, target).temperature
    scaled, truth = logits / temperature, np.eye(classes)[target]

    def objective(values: Floats) -> tuple[float, Floats]:
        scale, bias = values[:classes], values[classes:]
        moved = scaled * scale + bias
        moved = moved - moved.max(axis=1, keepdims=True)
        chance = np.exp(moved)
        total = chance.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - (moved * truth).sum(axis=1)).mean()
        excess = (chance / total - truth) / n
        pull = np.concatenate([scale - 1, bias])
        gradient = np.concatenate([(excess * scaled).sum(axis=0), excess.sum(axis=0)]) + pull / n
        return float(loss + (pull**2).sum() / (2 * n)), gradient

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    found: Any = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    )
    return VectorScaling(found.x[:classes] / temperature, found.x[classes:])


def _logits(scores: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(scores, _LEAST_SCORE)), dtype=np.float64)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def _checked_logits(scores: Floats, target: Ints) -> Floats:
    """f64[N, C] of images that tell something."""
    if not len(target):
        raise InputError("no validation image, so nothing can be fitted; keep some out of training")
    logits = _logits(scores)
    if float(np.ptp(logits, axis=1).max()) < 1e-9:
        raise InputError(f"each of {len(target)} validation images has equal scores for all classes: nothing to scale")
    return logits
