"""How far a result depends on one training: over seeds, over folds, and together with the patients who were drawn.

A table of scores is one training's. Another seed, or other training images, gives another table, and resampled patients
do not know that. With k seeds the variance of their mean is s^2 / k beside the patients' V. With K folds every image is
scored by one of K trainings that share most of their images; s^2 over the folds holds both sources, and Nadeau & Bengio
2003 (Machine Learning 52:239) put the variance of the mean at (1 / K + 1 / (K - 1)) s^2. V is known here from the
patients, more exactly than K values tell it, so only what exceeds it is taken from the folds:

    V + (1 / K + 1 / (K - 1)) max(0, s^2 - K V)

Degrees of freedom of a sum: Satterthwaite 1946 (Biometrics Bulletin 2:110); over folds no more than 4 (K - 1), and with
fewer than five folds 2 (K - 1), since an excess of 0 is then often luck. docs/statistics.md has how often equal
algorithms are called different with that, and how often different ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats

__all__ = ["FOLDS", "PATIENTS", "SEEDS", "Variance", "difference_variances", "total", "training_variance"]


PATIENTS, SEEDS, FOLDS = "patients", "patients and seeds", "folds"
"""What a variance was estimated from."""
_FEW_FOLDS = 5


@dataclass(frozen=True)
class Variance:
    """A variance of an estimate, its degrees of freedom, and its `source`."""

    value: float
    df: float = float("inf")
    source: str = PATIENTS


def training_variance(values: Floats) -> Variance | None:
    """Of the mean of a metric over its trainings.

    Args:
        values: f64[k, K], seed by fold (K = 1: no folds).

    Returns:
        `None` where one training was made, or the seeds change nothing (which is one training), or a value does not
        exist.
    """
    seeds, folds = values.shape
    if np.isnan(values).any() or seeds * folds < 2 or (folds == 1 and np.ptp(values) < 1e-9):
        return None
    if folds == 1:
        return Variance(float(values.var(ddof=1)) / seeds, seeds - 1, SEEDS)
    spread = float(values.mean(axis=0).var(ddof=1))
    return Variance((1 / folds + 1 / (folds - 1)) * spread, folds - 1, FOLDS)


def difference_variances(trainings: Sequence[tuple[Floats, bool]]) -> list[Variance] | None:
    """What training adds to the variance of a difference of two methods.

    Folds are paired: both methods are judged on the same images of each.

    Args:
        trainings: of both methods, f64[k, K] as in `training_variance`, and whether the method is trained at all.

    Returns:
        Empty where neither is; `None` where one that is was trained once.
    """
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
