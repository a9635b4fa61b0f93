"""Prediction sets that hold the true class as often as promised, class by class: split conformal prediction.

Angelopoulos & Bates 2021 (arXiv:2107.07511), section 2 and, class by class, 4.2; Vovk 2012 (arXiv:1209.2673), section
4; Sadinle, Lei & Wasserman 2019 (arXiv:1609.00451), who show that these sets are the smallest on average. Patients are
the unit, see `quantile`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.errors import ConfigError
from thoraclip.posthoc.quantile import patient_quantile, patients_needed

__all__ = ["ALPHA", "ClassThresholds", "fit_thresholds", "set_patients_needed"]


ALPHA = 0.1
"""Share of a class's images whose set may miss it."""


@dataclass(frozen=True)
class ClassThresholds:
    """What the images that calibrate say about every class.

    Args:
        alpha: promised share of misses.
        threshold: f64[C], the largest 1 - score of a class with which it is in the set; infinite where there are too
            few patients of it: the class is then in every set.
        images, patients: i64[C], calibrating images of each class, and their patients.
    """

    alpha: float
    threshold: Floats
    images: Ints
    patients: Ints

    def sets(self, scores: Floats) -> Masks:
        """f64[N, C] scores -> bool[N, C], whether a class is in the image's set; a set may be empty."""
        return np.asarray(1 - scores <= self.threshold, dtype=np.bool_)


def set_patients_needed(alpha: float = ALPHA) -> int:
    """Patients of a class that a finite threshold takes: ceil(1 / alpha) - 1; ConfigError for an alpha that is not
    between 0 and 1."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha = {alpha}: a number between 0 and 1 is needed; 0.1 asks for sets that miss 10 %")
    return patients_needed(1 - alpha)


def fit_thresholds(
    scores: Floats, target: Ints, *, patients: Ints | None = None, alpha: float = ALPHA
) -> ClassThresholds:
    """Threshold of class c: the `patient_quantile` of 1 - score_c over its images, at 1 - alpha.

    With one image a patient, an image of class c that is exchangeable with these n_c has c in its set with a
    probability of at least 1 - alpha and, where no scores are equal, of at most 1 - alpha + 1 / (n_c + 1), over the
    draw of all n_c + 1.

    Args:
        scores: f64[N, C] of images that the classifier has not learned from.
        target: i64[N] in [0, C).
        patients: i64[N], whose image it is; `None` where every image stands for itself.
        alpha: in (0, 1), else ConfigError.
    """
    set_patients_needed(alpha)
    owners, classes = np.arange(len(target)) if patients is None else patients, range(scores.shape[1])
    threshold = [patient_quantile(1 - scores[target == c, c], owners[target == c], 1 - alpha) for c in classes]
    people = [len(np.unique(owners[target == c])) for c in classes]
    return ClassThresholds(
        alpha, np.array(threshold), np.bincount(target, minlength=len(classes)), np.array(people, dtype=np.int64)
    )
