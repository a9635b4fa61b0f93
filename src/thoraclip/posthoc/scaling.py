"""Temperature and vector scaling of scores, fitted on images that the classifier has not learned from.

Guo et al. 2017 (arXiv:1706.04599), section 4.2: softmax(w * z + b) on the logits z, where w is the one number 1/T and b
is 0 (temperature scaling, which changes no answer), or both have a number for every class (vector scaling). A table of
scores has no logits; z = ln(score) differs from them by a constant a row, which the softmax takes away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats, Ints
from thoraclip.errors import InputError

__all__ = ["TemperatureScaling", "fit_temperature", "fit_vector"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of T: images that are all right would draw it to 0, scores that mean nothing to infinity."""
PATIENTS_NEEDED = 30
"""Fewest patients to fit on. With fewer, a classifier that is 1.5 times too sure has a larger log-loss on new patients
after the fit than before, on average (docs/statistics.md, `temperature`)."""
_HALVINGS, _NEWTON = 40, 100
"""Halvings of the bounds on 1/T, 20 apart: to 2e-11; most steps for w and b: 5 to 20 suffice. Both by hand: to load
scipy.optimize takes 0.4 s of processor time, a sixth of a whole report."""

_LEAST_SCORE = 1e-12
"""Scores are lifted to it before the logarithm."""


@dataclass(frozen=True)
class TemperatureScaling:
    """softmax(z / T): T is above 1 for a classifier that is too sure, below 1 for one that is not sure enough."""

    temperature: float

    def apply(self, scores: Floats) -> Floats:
        """f64[N, C] scores -> f64[N, C] scaled scores; rows sum to 1, and their order within a row stays."""
        return _softmax(_logits(scores) / self.temperature)


@dataclass(frozen=True)
class VectorScaling:
    """softmax(w * z + b): `scale` w and `bias` b have a number for every class, f64[C]."""

    scale: Floats
    bias: Floats

    def apply(self, scores: Floats) -> Floats:
        """f64[N, C] scores -> f64[N, C] scaled scores; rows sum to 1. The answers may change."""
        return _softmax(_logits(scores) * self.scale + self.bias)


def fit_temperature(scores: Floats, target: Ints, *, patients: Ints | None = None) -> TemperatureScaling:
    """The T with the smallest mean of -ln p(true class), which lies between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`.

    In 1/T this mean is convex, so its derivative, E[sum_c p_c z_c - z_true], has one root or none between the bounds.

    Args:
        scores: f64[N, C], not negative; below 1e-12 they count as 1e-12.
        target: i64[N] in [0, C).
        patients: i64[N], whose image it is; `None`: each is of a patient of its own.

    Raises:
        InputError: fewer than `PATIENTS_NEEDED` patients, the scores of every image are all equal, so that no
            temperature changes them, or T does not lie between the bounds.
    """
    logits = _checked_logits(scores, target, patients)
    true = logits[np.arange(len(target)), target]

    def slope(inverse: float) -> float:
        return float(((_softmax(inverse * logits) * logits).sum(axis=1) - true).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if (is_vague := slope(low) >= 0) or slope(high) <= 0:
        bound = MAX_TEMPERATURE if is_vague else MIN_TEMPERATURE
        cause = "their scores tell too little of the classes" if is_vague else "too few of them are wrong"
        raise InputError(
            f"the best temperature of {len(target)} validation images is not inside {MIN_TEMPERATURE:g} to "
            f"{MAX_TEMPERATURE:g} (it reaches {bound:g}): {cause}"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return TemperatureScaling(2 / (low + high))


def fit_vector(
    scores: Floats, target: Ints, *, patients: Ints | None = None, names: Sequence[str] = ()
) -> VectorScaling:
    """The w and b with the smallest mean of -ln p(true class), held weakly at those of temperature scaling.

    mean(-ln p) + (|T w - 1|^2 + |b|^2) / (2 N): the pull is that of a normal prior of unit spread around (1/T, 0). It
    fades with the number of images N, and keeps w and b finite where a class has few images.

    Args:
        scores, target, patients: as in `fit_temperature`.
        names: of the classes, for the message.

    Raises:
        InputError: as in `fit_temperature`, or a class has no image.
    """
    logits = _checked_logits(scores, target, patients)
    n, classes = logits.shape
    absent = np.flatnonzero(np.bincount(target, minlength=classes) == 0)
    if len(absent):
        name = f"'{names[absent[0]]}'" if names else f"number {absent[0]}"
        raise InputError(f"class {name} has no validation image, so vector scaling cannot be fitted; add images of it")
    temperature = fit_temperature(scores, target, patients=patients).temperature
    scaled, truth = logits / temperature, np.eye(classes)[target]

    def pieces(values: Floats) -> tuple[float, Floats]:
        """(value to make smallest, f64[N, C] probabilities)."""
        moved = scaled * values[:classes] + values[classes:]
        moved = moved - moved.max(axis=1, keepdims=True)
        total = np.exp(moved).sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - (moved * truth).sum(axis=1)).mean()
        return float(loss + ((values - start) ** 2).sum() / (2 * n)), np.exp(moved) / total

    values = start = np.concatenate([np.ones(classes), np.zeros(classes)])
    value, chance = pieces(values)
    for _ in range(_NEWTON):  # Newton's method, its steps halved until the value falls
        excess = chance - truth
        gradient = (np.concatenate([(excess * scaled).sum(axis=0), excess.sum(axis=0)]) + values - start) / n
        spread = chance[:, :, None] * (np.eye(classes) - chance[:, None, :])  # f64[N, C, C]
        mixed = scaled[:, :, None] * spread
        own = (mixed * scaled[:, None, :]).sum(axis=0)
        mixed = mixed.sum(axis=0)
        curve = (np.block([[own, mixed], [mixed.T, spread.sum(axis=0)]]) + np.eye(2 * classes)) / n
        step = np.linalg.solve(curve, gradient)
        fall = float(gradient @ step)
        if fall < 1e-20:
            break
        size, (next_value, next_chance) = 1.0, pieces(values - step)
        while next_value > value - 1e-4 * size * fall and size > 1e-9:
            size /= 2
            next_value, next_chance = pieces(values - size * step)
        values, value, chance = values - size * step, next_value, next_chance
    return VectorScaling(values[:classes] / temperature, values[classes:])


def _logits(scores: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(scores, _LEAST_SCORE)), dtype=np.float64, order="C")  # one order of summing


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def _checked_logits(scores: Floats, target: Ints, patients: Ints | None) -> Floats:
    """f64[N, C] of patients enough, and of images that tell something."""
    known = len(target if patients is None else np.unique(patients))
    if known < PATIENTS_NEEDED:
        raise InputError(
            f"{known} validation patients, and {PATIENTS_NEEDED} are needed (an image of unknown patient counts as one)"
        )
    logits = _logits(scores)
    if float(np.ptp(logits, axis=1).max()) < 1e-9:
        raise InputError(f"each of {len(target)} validation images has equal scores for all classes: nothing to scale")
    return logits
