"""An operating point: the threshold on one class's score that finds as large a share of its images as was asked for."""

from __future__ import annotations

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.errors import ConfigError
from thoraclip.posthoc.quantile import patient_quantile, patients_needed, rank

__all__ = ["SENSITIVITY", "chance_of_goal", "choose_threshold", "positives_needed"]


SENSITIVITY = 0.95
"""Share of new images of a class that its operating point must find on average."""


def positives_needed(goal: float = SENSITIVITY) -> int:
    """Patients of the class that a threshold takes: ceil(goal / (1 - goal)); ConfigError for a goal that is not between
    0 and 1."""
    if not 0 < goal < 1:
        raise ConfigError(f"sensitivity = {goal}: a number between 0 and 1 is needed, such as {SENSITIVITY}")
    return patients_needed(goal)


def choose_threshold(
    score: Floats, positive: Masks, *, patients: Ints | None = None, goal: float = SENSITIVITY
) -> float | None:
    """The highest threshold whose sensitivity for new patients is at least `goal` on average, see `patient_quantile`:
    with one image a patient, the ceil(goal (P + 1))-th highest score of the P positives. (The ceil(goal P)-th finds
    ceil(goal P) / (P + 1) on average, which is below the goal for every P.)

    Args:
        score: f64[N], of one class; an image at the threshold or above is called positive.
        positive: bool[N], whether an image is of this class.
        patients: i64[N], whose image it is; `None` where every image stands for itself.
        goal: in (0, 1), else ConfigError.

    Returns:
        A score, or `None` where fewer than `positives_needed` patients have the class.
    """
    positives_needed(goal)
    owners = np.arange(len(score)) if patients is None else patients
    threshold = -patient_quantile(-score[positive], owners[positive], goal)
    return threshold if np.isfinite(threshold) else None


def chance_of_goal(patients: int, goal: float = SENSITIVITY) -> float:
    """How probable it is that a threshold chosen on P patients of one image each finds `goal` of all, or more.

    Its sensitivity is distributed as the r-th smallest of P uniform numbers, r = ceil(goal (P + 1)): Beta(r, P - r + 1)
    (David & Nagaraja 2003, "Order Statistics", 2.3). About a half for every P: the goal is met on average.
    """
    from scipy.special import betainc  # type: ignore[import-untyped]  # 0.2 s that not every command needs

    reached = rank(patients, goal)
    return float(1 - betainc(reached, patients - reached + 1, goal))
