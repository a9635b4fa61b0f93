"""What a bundle promises of its scores, fitted on validation images, and what it keeps on test images."""

from __future__ import annotations

from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks, Singles
from thoraclip.errors import InputError
from thoraclip.posthoc.conformal import ClassThresholds, fit_thresholds
from thoraclip.posthoc.ood import MIN_ROWS, OodScore, fit_ood
from thoraclip.posthoc.operating import SENSITIVITY, choose_threshold
from thoraclip.posthoc.scaling import TemperatureScaling, fit_temperature
from thoraclip.proportions import patient_share

__all__ = ["calibrate", "fit_reference", "measure"]


def calibrate(scores: Floats, target: Ints, patients: Ints, names: tuple[str, ...]) -> dict[str, Any]:
    """Temperature, prediction sets and operating points, as `bundle.json` holds them.

    Sets are fitted on the scores as they are, so that their promise holds whatever the temperature; operating points
    on calibrated scores, `None` for a class with too few patients. Where no temperature can be fitted, scores stay as
    they are, and `not_calibrated` says why.

    Args:
        scores: f64[N, C] of images that the classifier has not learned from, as the model gives them.
        target, patients: i64[N], the classes, and whose image it is.
        names: of the C classes.
    """
    scaling: TemperatureScaling | None = None
    reason: str | None = None
    try:
        scaling = fit_temperature(scores, target, patients=patients)
    except InputError as error:
        reason = str(error)
    sets = fit_thresholds(scores, target, patients=patients)
    calibrated = scores if scaling is None else scaling.apply(scores)
    points = [choose_threshold(calibrated[:, c], target == c, patients=patients) for c in range(len(names))]
    positives, people = (dict(zip(names, counts.tolist(), strict=True)) for counts in (sets.images, sets.patients))
    return {
        "temperature": None if scaling is None else scaling.temperature,
        "not_calibrated": reason,
        "sets": {
            "alpha": sets.alpha,
            "threshold": {n: float(t) if np.isfinite(t) else None for n, t in zip(names, sets.threshold, strict=True)},
            "images": positives,
            "patients": people,
        },
        "operating_points": {
            "goal": SENSITIVITY,
            "threshold": dict(zip(names, points, strict=True)),
            "positives": positives,
            "patients": people,
        },
    }


def fit_reference(train: Singles, targets: Ints, val: Singles, patients: Ints) -> OodScore | str:
    """The out-of-distribution reference on the bundle's features of training images f32[N, D], of classes i64[N], and
    of validation images f32[V, D] of patients i64[V], or why there is none."""
    if min(len(train), len(val)) < MIN_ROWS:
        return f"fewer than {MIN_ROWS} training or validation images"
    try:
        return fit_ood(train, targets=targets, held_out=val, patients=patients)
    except InputError as error:
        return str(error)


def measure(
    scores: Floats, features: Singles, target: Ints, patients: Ints, *, sets: ClassThresholds, ood: OodScore | None
) -> dict[str, Any]:
    """What the bundle does on N test images, each share with its interval.

    Args:
        scores, features: f64[N, C] as the model gives them, f32[N, D].
        target, patients: i64[N], the classes, and whose image it is.
        sets, ood: of the bundle.
    """
    n, held = len(target), sets.sets(scores)

    def share(rows: Masks) -> dict[str, float]:
        low, high = patient_share(rows, patients)
        return {"value": float(rows.mean()), "low": low, "high": high}

    return {
        "images": n,
        "accuracy": share(scores.argmax(axis=1) == target),
        "coverage": share(held[np.arange(n), target]),
        "mean_set_size": float(held.sum(axis=1).mean()),
        "flagged": None if ood is None else share(ood.is_flagged(ood.score(features))),
    }
