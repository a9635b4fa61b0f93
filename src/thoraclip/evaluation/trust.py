"""What a method's validation images allow: calibrated scores, sets with a promise, thresholds, and when not to answer.

All is fitted on validation images and measured on the judged ones. With folds, the images of each fold are treated by
what was fitted on that fold's own validation images, and then pooled. With several seeds: the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import InputError, LeakError
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.intervals import LEVEL
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.recalibration import BEFORE, recalibration
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.results import MethodResult
from thoraclip.evaluation.selective import COVERAGES, accuracy_at, accuracy_curve, aurc
from thoraclip.pages import counted
from thoraclip.posthoc.conformal import ALPHA, fit_thresholds, images_needed
from thoraclip.posthoc.operating import SENSITIVITY, Counts, choose_threshold, count, positives_needed
from thoraclip.posthoc.scaling import fit_temperature, fit_vector
from thoraclip.proportions import clopper_pearson, wilson
from thoraclip.tables.predictions import Predictions

__all__ = ["trust_entry"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_CURVE_POINTS = 50
_NONE_KEPT = (
    "no scores of validation images: the run kept none (run it again with this version), or the file has no row of "
    "split 'val'"
)


@dataclass(frozen=True)
class _Round:
    """Images that something is fitted on, and those that it is measured on.

    Args:
        fold: number of the held-out fold; `None` with a split.
        val: the validation images.
        rows: i64[R], which of the judged images.
    """

    fold: int | None
    val: Scored
    rows: Rows


def trust_entry(
    method: MethodResult,
    aligned: Aligned,
    *,
    resamples: int,
    seed: int,
    alpha: float = ALPHA,
    sensitivity: float = SENSITIVITY,
) -> dict[str, Any]:
    """What can be fitted on the validation images of a method, and what it does to the judged ones; JSON-able.

    Args:
        method: one that did not fail.
        aligned: the judged images, with this method's scores.
        resamples, seed: of the intervals, as in the report.
        alpha: share of the images of a class whose prediction set may miss it.
        sensitivity: that a class's operating point must have on the validation images.

    Returns:
        `selective`, which needs no validation image, and either `reason`, why nothing could be fitted, or `validation`,
        `temperature`, `vector`, `before`, `after_temperature`, `after_vector`, `conformal`, `operating_point`.

    Raises:
        LeakError: an image is among the validation and the judged images of one round.
        ConfigError: see `conformal.images_needed`, `operating.positives_needed`.
    """
    test, names = aligned.scored[method.name][0], aligned.labels.names
    found: dict[str, Any] = {"seed": method.seeds[0] if len(method.predictions) > 1 and method.seeds else None}
    rounds = _rounds(method, aligned)
    if isinstance(rounds, str):
        found["reason"] = rounds
    else:
        found |= {"reason": None, "validation": _validation(rounds, names)}
        found |= _scaled(rounds, test, aligned, resamples, seed)
        found["conformal"] = _conformal(rounds, test, names, alpha)
        found["operating_point"] = _operating_points(rounds, test, names, sensitivity)
    return found | {"selective": _selective(test, aligned.groups, resamples, seed)}


def _rounds(method: MethodResult, aligned: Aligned) -> list[_Round] | str:
    """The rounds of the first seed, or why there are none."""
    table = method.predictions[0]
    kept = method.validation[0] if method.validation else ()
    if not kept:
        own = np.flatnonzero([s == "val" and t >= 0 for s, t in zip(table.split, table.target, strict=True)])
        if not len(own):
            return _NONE_KEPT
        return [_Round(None, _scored(table.take(own), aligned), np.arange(len(aligned.image_id)))]
    fold_of = dict(zip(table.image_id, table.fold, strict=True))
    folds = np.array([-1 if (f := fold_of[image]) is None else f for image in aligned.image_id], dtype=np.int64)
    rounds, left = [], np.ones(len(folds), dtype=bool)
    for one in kept:
        fold = one.fold[0]
        rows = np.flatnonzero(left if fold is None else folds == fold)
        _refuse_leak(method.name, one, {aligned.image_id[row] for row in rows})
        left[rows] = False
        if len(rows):
            rounds.append(_Round(fold, _scored(one, aligned), rows))
    if left.any():
        return (
            f"{counted(int(left.sum()), 'judged image')} have no validation scores of their fold; run the method again"
        )
    return rounds


def _refuse_leak(name: str, table: Predictions, judged: set[str]) -> None:
    both = sorted(judged.intersection(table.image_id))
    if both:
        raise LeakError(
            f"method '{name}': '{both[0]}' is among its validation images and among those that it is judged on "
            f"({len(both)} such images); nothing can be fitted on judged images"
        )


def _scored(table: Predictions, aligned: Aligned) -> Scored:
    """A table with its classes in the report's order."""
    columns = [table.labels.index(name) for name in aligned.labels.names]
    return Scored(np.argsort(columns)[table.target], table.scores[:, columns])


def _validation(rounds: Sequence[_Round], names: Sequence[str]) -> dict[str, Any]:
    counts = [np.bincount(one.val.target, minlength=len(names)) for one in rounds]
    return {
        "folds": [one.fold for one in rounds if one.fold is not None],
        "images": [len(one.val.target) for one in rounds],
        "per_class": {name: [int(row[c]) for row in counts] for c, name in enumerate(names)},
    }


def _scaled(rounds: Sequence[_Round], test: Scored, aligned: Aligned, resamples: int, seed: int) -> dict[str, Any]:
    """Both scalings: what was fitted, or `reason`; and calibration before and after."""
    names, tables = aligned.labels.names, {BEFORE: test}
    found: dict[str, Any] = {}
    fits: dict[str, Callable[[Scored], Any]] = {
        "temperature": lambda val: fit_temperature(val.scores, val.target),
        "vector": lambda val: fit_vector(val.scores, val.target, names=names),
    }
    for name, fit in fits.items():
        try:
            fitted = [fit(one.val) for one in rounds]
        except InputError as error:
            found[name] = {"reason": str(error)}
            continue
        scores = test.scores.copy()
        for one, scaling in zip(rounds, fitted, strict=True):
            scores[one.rows] = scaling.apply(test.scores[one.rows])
        tables[f"after_{name}"] = Scored(test.target, scores)
        found[name] = {"reason": None, **_parameters(name, fitted, names)}
    measured = recalibration(tables, aligned.groups, resamples=resamples, seed=seed)
    return found | {"after_temperature": None, "after_vector": None} | measured


def _parameters(name: str, fitted: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Of every round."""
    if name == "temperature":
        return {"fitted": [one.temperature for one in fitted], "at_bound": [one.is_at_bound for one in fitted]}
    return {
        what: {label: [float(getattr(one, what)[c]) for one in fitted] for c, label in enumerate(names)}
        for what in ("scale", "bias")
    }


def _conformal(rounds: Sequence[_Round], test: Scored, names: Sequence[str], alpha: float) -> dict[str, Any]:
    sets = np.zeros_like(test.scores, dtype=np.bool_)
    fitted = [fit_thresholds(one.val.scores, one.val.target, alpha=alpha) for one in rounds]
    for one, thresholds in zip(rounds, fitted, strict=True):
        sets[one.rows] = thresholds.sets(test.scores[one.rows])
    needed, size = images_needed(alpha), sets.sum(axis=1)
    classes: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(names):
        images, own = [int(one.images[c]) for one in fitted], test.target == c
        few = min(images) < needed
        classes[name] = {
            "images": images,
            "threshold": [float(one.threshold[c]) for one in fitted],  # infinite becomes null
            "reason": f"in every set: {min(images)} validation images, at least {needed} are needed" if few else None,
            "coverage": _share(int(sets[own, c].sum()), int(own.sum()), clopper_pearson),
        }
    n = len(size)
    return {
        "alpha": alpha,
        "promised": 1 - alpha,
        "images_needed": needed,
        "fewest": min(int(one.images.min()) for one in fitted),
        "classes": classes,
        "coverage": _share(int(sets[np.arange(n), test.target].sum()), n, clopper_pearson),
        "mean_size": float(size.mean()),
        "empty": float((size == 0).mean()),
        "single": float((size == 1).mean()),
        "sizes": [int((size == k).sum()) for k in range(len(names) + 1)],
    }


def _operating_points(rounds: Sequence[_Round], test: Scored, names: Sequence[str], goal: float) -> dict[str, Any]:
    needed, classes = positives_needed(goal), {}
    for c, name in enumerate(names):
        positives = [int((one.val.target == c).sum()) for one in rounds]
        chosen = [choose_threshold(one.val.scores[:, c], one.val.target == c, goal=goal) for one in rounds]
        entry: dict[str, Any] = {"threshold": chosen, "positives": positives, "reason": None}
        if min(positives) < needed:
            entry["reason"] = (
                f"cannot be promised: {counted(min(positives), 'validation image')} of the class, and {needed} are "
                "needed"
            )
        val, judged = Counts(0, 0, 0, 0), Counts(0, 0, 0, 0)
        known = [(one, t) for one, t in zip(rounds, chosen, strict=True) if t is not None]
        for one, threshold in known if len(known) == len(rounds) else []:
            val += count(one.val.scores[:, c], one.val.target == c, threshold)
            judged += count(test.scores[one.rows, c], test.target[one.rows] == c, threshold)
        classes[name] = entry | {"validation": _rates(val), "test": _rates(judged)}
    return {"goal": goal, "positives_needed": needed, "classes": classes}


def _rates(counts: Counts) -> dict[str, Any]:
    return {
        "sensitivity": _share(counts.found, counts.positives, wilson),
        "specificity": _share(counts.cleared, counts.negatives, wilson),
    }


def _share(right: int, of: int, interval: Callable[[int, int], tuple[float, float]]) -> dict[str, Any]:
    if not of:
        return {"value": None, "low": None, "high": None, "of": 0, "reason": "no such image"}
    low, high = interval(right, of)
    return {"value": right / of, "low": low, "high": high, "of": of}


def _selective(test: Scored, groups: Rows, resamples: int, seed: int) -> dict[str, Any]:
    """Curve, area, and the accuracy at `COVERAGES`; the answers are ordered by the scores as they are."""
    curve, n = accuracy_curve(test.confidence, test.correct), len(test.target)
    values = accuracy_at(test.confidence, test.correct)[:, 0]
    bounds = np.full((2, len(COVERAGES)), np.nan)  # becomes null
    if int(groups.max()) > 0:
        drawn = [
            accuracy_at(test.confidence, test.correct, weights)
            for weights in resample_weights(groups, resamples=resamples, seed=seed)
        ]
        bounds = np.quantile(np.concatenate(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    keep = np.unique(np.linspace(max(1, n // 20), n, min(n, _CURVE_POINTS)).round().astype(int)) - 1
    return {
        "aurc": aurc(test.confidence, test.correct),
        "at": [
            {"coverage": c, "value": float(v), "low": np.minimum(low, v), "high": np.maximum(high, v)}
            for c, v, low, high in zip(COVERAGES, values, *bounds, strict=True)
        ],
        "curve": {
            "coverage": [round(float(k + 1) / n, 4) for k in keep],
            "accuracy": [round(float(curve[k]), 4) for k in keep],
        },
    }
