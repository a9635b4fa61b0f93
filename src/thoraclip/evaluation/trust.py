"""What a method's validation images allow: calibrated scores, sets with a promise, thresholds, and when not to answer.

All is fitted on validation images and measured on the judged ones. With folds, the images of each fold are treated by
what was fitted on that fold's own validation images, and then pooled. With several seeds: the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.dtypes import Masks
from thoraclip.errors import InputError, LeakError
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.calibration import COVERAGES, accuracy_at, accuracy_curve, aurc
from thoraclip.evaluation.intervals import LEVEL
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.recalibration import BEFORE, recalibration
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.results import MethodResult
from thoraclip.pages import counted
from thoraclip.posthoc.conformal import ALPHA, fit_thresholds, images_needed
from thoraclip.posthoc.operating import SENSITIVITY, Counts, choose_threshold, count, positives_needed
from thoraclip.posthoc.scaling import fit_temperature, fit_vector
from thoraclip.proportions import clopper_pearson, wilson
from thoraclip.tables.predictions import Predictions

__all__ = ["operating_calls", "trust_entry"]

Rows = npt.NDArray[np.int64]

_CURVE_POINTS = 50


@dataclass(frozen=True)
class _Fold:
    """Validation images that something is fitted on, and `rows` (i64[R]) of the judged images, which it is measured on;
    `number` is that of the held-out fold, `None` with a split."""

    number: int | None
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
        method, aligned: one that did not fail, and the judged images with its scores.
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
    entry: dict[str, Any] = {"seed": method.seeds[0] if len(method.predictions) > 1 and method.seeds else None}
    folds = _folds(method, aligned)
    if isinstance(folds, str):
        entry["reason"] = folds
    else:
        counts = [np.bincount(fold.val.target, minlength=len(names)) for fold in folds]
        entry["reason"] = None
        entry["validation"] = {
            "folds": [fold.number for fold in folds if fold.number is not None],
            "images": [len(fold.val.target) for fold in folds],
            "per_class": {name: [int(row[c]) for row in counts] for c, name in enumerate(names)},
        }
        entry |= _scaled(folds, test, aligned, resamples, seed)
        entry["conformal"] = _conformal(folds, test, names, alpha)
        entry["operating_point"] = _operating_points(folds, test, names, sensitivity)
    return entry | {"selective": _selective(test, aligned.groups, resamples, seed)}


def operating_calls(method: MethodResult, aligned: Aligned, trust: Mapping[str, Any]) -> dict[str, Masks]:
    """Class -> bool[N], whether the score of each judged image reaches the threshold of its fold; `trust` is from
    `trust_entry`. A class without a threshold is absent."""
    folds, test = _folds(method, aligned), aligned.scored[method.name][0]
    calls: dict[str, Masks] = {}
    if isinstance(folds, str):
        return calls
    for c, name in enumerate(aligned.labels.names):
        chosen, limit = trust["operating_point"]["classes"][name]["threshold"], np.full(len(test.target), np.nan)
        for fold, threshold in zip(folds, chosen, strict=True):
            limit[fold.rows] = np.nan if threshold is None else threshold
        if not np.isnan(limit).any():
            calls[name] = test.scores[:, c] >= limit
    return calls


def _folds(method: MethodResult, aligned: Aligned) -> list[_Fold] | str:
    """The folds of the first seed, or why there are none."""
    table = method.predictions[0]
    kept = method.validation[0] if method.validation else ()
    if not kept:
        own = np.flatnonzero([s == "val" and t >= 0 for s, t in zip(table.split, table.target, strict=True)])
        if not len(own):
            return (
                "no scores of validation images: the run kept none (run it again with this version), or the file has "
                "no row of split 'val'"
            )
        return [_Fold(None, _scored(table.take(own), aligned), np.arange(len(aligned.image_id)))]
    fold_of = dict(zip(table.image_id, table.fold, strict=True))
    numbers = np.array([-1 if (f := fold_of[image]) is None else f for image in aligned.image_id], dtype=np.int64)
    folds, left = [], np.ones(len(numbers), dtype=bool)
    for val in kept:
        number = val.fold[0]
        rows = np.flatnonzero(left if number is None else numbers == number)
        both = sorted({aligned.image_id[row] for row in rows}.intersection(val.image_id))
        if both:
            raise LeakError(
                f"method '{method.name}': '{both[0]}' is among its validation images and among those that it is judged "
                f"on ({len(both)} such images); nothing can be fitted on judged images"
            )
        left[rows] = False
        if len(rows):
            folds.append(_Fold(number, _scored(val, aligned), rows))
    if left.any():
        images = counted(int(left.sum()), "judged image")
        return f"{images} have no validation scores of their fold; run the method again"
    return folds


def _scored(table: Predictions, aligned: Aligned) -> Scored:
    """A table with its classes in the report's order."""
    columns = [table.labels.index(name) for name in aligned.labels.names]
    return Scored(np.argsort(columns)[table.target], table.scores[:, columns])


def _scaled(folds: Sequence[_Fold], test: Scored, aligned: Aligned, resamples: int, seed: int) -> dict[str, Any]:
    """Both scalings: what was fitted, or `reason`; and calibration before and after."""
    names, tables = aligned.labels.names, {BEFORE: test}
    found: dict[str, Any] = {}
    fits: dict[str, Callable[[Scored], Any]] = {
        "temperature": lambda val: fit_temperature(val.scores, val.target),
        "vector": lambda val: fit_vector(val.scores, val.target, names=names),
    }
    for name, fit in fits.items():
        try:
            fitted = [fit(fold.val) for fold in folds]
        except InputError as error:
            found[name] = {"reason": str(error)}
            continue
        scores = test.scores.copy()
        for fold, scaling in zip(folds, fitted, strict=True):
            scores[fold.rows] = scaling.apply(test.scores[fold.rows])
        tables[f"after_{name}"] = Scored(test.target, scores)
        found[name] = {"reason": None}
        if name == "temperature":
            found[name]["fitted"] = [scaling.temperature for scaling in fitted]
            found[name]["at_bound"] = [scaling.is_at_bound for scaling in fitted]
        else:
            for part in ("scale", "bias"):
                values = [getattr(scaling, part) for scaling in fitted]
                found[name][part] = {label: [float(v[c]) for v in values] for c, label in enumerate(names)}
    measured = recalibration(tables, aligned.groups, resamples=resamples, seed=seed)
    return found | {"after_temperature": None, "after_vector": None} | measured


def _conformal(folds: Sequence[_Fold], test: Scored, names: Sequence[str], alpha: float) -> dict[str, Any]:
    sets = np.zeros_like(test.scores, dtype=np.bool_)
    fitted = [fit_thresholds(fold.val.scores, fold.val.target, alpha=alpha) for fold in folds]
    for fold, thresholds in zip(folds, fitted, strict=True):
        sets[fold.rows] = thresholds.sets(test.scores[fold.rows])
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


def _operating_points(folds: Sequence[_Fold], test: Scored, names: Sequence[str], goal: float) -> dict[str, Any]:
    needed, classes = positives_needed(goal), {}
    for c, name in enumerate(names):
        positives = [int((fold.val.target == c).sum()) for fold in folds]
        chosen = [choose_threshold(fold.val.scores[:, c], fold.val.target == c, goal=goal) for fold in folds]
        entry: dict[str, Any] = {"threshold": chosen, "positives": positives, "reason": None}
        if min(positives) < needed:
            images = counted(min(positives), "validation image")
            entry["reason"] = f"cannot be promised: {images} of the class, and {needed} are needed"
        val, judged = Counts(0, 0, 0, 0), Counts(0, 0, 0, 0)
        known = [threshold for threshold in chosen if threshold is not None]
        for fold, threshold in zip(folds, known, strict=True) if len(known) == len(folds) else ():
            val += count(fold.val.scores[:, c], fold.val.target == c, threshold)
            judged += count(test.scores[fold.rows, c], test.target[fold.rows] == c, threshold)
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
        weights = resample_weights(groups, resamples=resamples, seed=seed)
        drawn = [accuracy_at(test.confidence, test.correct, w) for w in weights]
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
