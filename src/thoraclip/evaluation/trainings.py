"""How far a result depends on one training: over seeds, over folds, and together with the patients who were drawn.

A table of scores is one training's. Another seed, or other training images, gives another table, and resampled patients
do not know that. With k seeds the variance of their mean is s^2 / k beside the patients' V. With K folds every image is
scored by one of K trainings that share most of their images; s^2 over the folds holds both sources, and Nadeau & Bengio
2003 (Machine Learning 52:239) put the variance of the mean at (1 / K + 1 / (K - 1)) s^2. V is known here from the
patients, more exactly than K values tell it, so only what exceeds it is taken from the folds:

    V + (1 / K + 1 / (K - 1)) max(0, s^2 - K V)

With few shots, D trainings each draw k patients of a class from the N that are there, and s^2 is the variance of their
values. The mean over the draws varies by s^2 / D, and with the N patients themselves by as much as a jackknife that
deletes all but k says (Shao & Wu 1989, Annals of Statistics 17:1176):

    (1 / D + K k / (N - k)) s^2

with K folds, whose draws the pooled values average. Without the second part, draws that share most of their patients
would seem more certain than they are.

Degrees of freedom of a sum: Satterthwaite 1946 (Biometrics Bulletin 2:110); over folds no more than 4 (K - 1), and with
fewer than five folds 2 (K - 1), since an excess of 0 is then often luck. docs/statistics.md has how often equal
algorithms are called different with that, and how often different ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats

__all__ = [
    "DRAWS",
    "FOLDS",
    "PATIENTS",
    "SEEDS",
    "Variance",
    "difference_variances",
    "draw_variance",
    "total",
    "training_variance",
]


PATIENTS, SEEDS, FOLDS, DRAWS = "patients", "patients and seeds", "folds", "draws"
"""What a variance was estimated from."""
_FEW_FOLDS = 5


@dataclass(frozen=True)
class Variance:
    """A variance of an estimate, its degrees of freedom, and its `source`."""

    value: float
    df: float = float("inf")
    source: str = PATIENTS


def training_variance(values: Floats) -> Variance | None:
    """Of the mean of a metric over its trainings, f64[k, K], seed by fold (K = 1: no folds); `None` where one training
    was made, or the seeds change nothing (which is one training), or a value does not exist."""
    seeds, folds = values.shape
    if np.isnan(values).any() or seeds * folds < 2 or (folds == 1 and np.ptp(values) < 1e-9):
        return None
    if folds == 1:
        return Variance(float(values.var(ddof=1)) / seeds, seeds - 1, SEEDS)
    spread = float(values.mean(axis=0).var(ddof=1))
    return Variance((1 / folds + 1 / (folds - 1)) * spread, folds - 1, FOLDS)


def draw_variance(values: Floats, *, shots: int, patients: Sequence[int], folds: int = 1) -> Variance | None:
    """Of the mean of a metric over the draws of few shots, see the module.

    Args:
        values: f64[D], one a draw; with folds, on all of them pooled.
        shots: k, patients of each class that are drawn.
        patients: N of each class, from which they are drawn; their harmonic mean counts.
        folds: K, each with a draw of its own.

    Returns:
        `None` of fewer than two draws, or where no class has more patients than are drawn.
    """
    pool = len(patients) / sum(1 / count for count in patients)
    if len(values) < 2 or pool <= shots:
        return None
    share = 1 / len(values) + folds * shots / (pool - shots)
    return Variance(share * float(values.var(ddof=1)), len(values) - 1, DRAWS)


def difference_variances(trainings: Sequence[tuple[Floats, bool]]) -> list[Variance] | None:
    """What training adds to the variance of a difference of two methods, given f64[k, K] of each as in
    `training_variance`, and whether it is trained at all: nothing where neither is, `None` where one that is was
    trained once. Folds are paired: both methods are judged on the same images of each."""
    if not any(trained for _, trained in trainings):
        return []
    (a, _), (b, _) = trainings
    if a.shape[1] > 1:
        found = [training_variance((a.mean(axis=0) - b.mean(axis=0))[None])]
    else:
        found = [training_variance(values) for values, trained in trainings if trained]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def total(sampling: Variance, training: Iterable[Variance]) -> Variance:
    """The variance over patients and trainings, see the module."""
    parts, most = [sampling], float("inf")
    for one in training:
        if one.source != FOLDS:
            parts.append(one)
            continue
        folds = one.df + 1
        most = min(most, (2 if folds < _FEW_FOLDS else 4) * one.df)
        excess = one.value - sampling.value * (2 * folds - 1) / (folds - 1)
        parts.append(Variance(max(0.0, excess), one.df, FOLDS))
    value = sum(part.value for part in parts)
    weight = sum(part.value**2 / part.df for part in parts)
    return Variance(value, min(most, value**2 / weight if weight > 0 else sampling.df), parts[-1].source)
