"""A quantile of new patients' images: the rank rule of split conformal prediction, with patients as the unit.

Where several images of one patient calibrate, they are not exchangeable with a new one: counted one by one they promise
too much. Each patient has the weight of one, shared among the images (Dunn, Wasserman & Ramdas 2022, J. Am. Stat.
Assoc., arXiv:1809.07441, section 3, the pooled CDF).
"""

from __future__ import annotations

import math

import numpy as np

from thoraclip.dtypes import Floats, Ints

__all__ = ["patient_quantile", "patients_needed", "rank"]


_ROUNDING = 1e-9
"""What a product of floats may exceed a whole number by."""


def rank(patients: int, level: float) -> int:
    """ceil(level (P + 1)): the smallest value of this rank among P is at least a new one with a chance of `level`."""
    return math.ceil(level * (patients + 1) - _ROUNDING)


def patients_needed(level: float) -> int:
    """Fewest patients P with `rank` <= P: ceil(level / (1 - level)), level in (0, 1)."""
    return math.ceil(level / (1 - level) - _ROUNDING)


def patient_quantile(values: Floats, patients: Ints, level: float) -> float:
    """The smallest value v with sum over patients of (share of the patient's values <= v) >= level (P + 1).

    A new patient's image, drawn at random, lies at or below it with a probability of about `level`, over the draw of
    all patients; with one image a patient this is split conformal prediction, and it is `level` or more.

    Args:
        values: f64[N].
        patients: i64[N], whose image it is; any numbers.
        level: in (0, 1).

    Returns:
        One of the values, or infinity where there are fewer than `patients_needed` patients.
    """
    _, member, images = np.unique(patients, return_inverse=True, return_counts=True)
    if len(images) < patients_needed(level):
        return math.inf
    order = np.argsort(values, kind="stable")
    below = np.cumsum((1 / images)[member[order]])
    first = int(np.searchsorted(below, level * (len(images) + 1) - _ROUNDING))
    return float(values[order[min(first, len(order) - 1)]])
