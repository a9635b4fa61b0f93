"""What a method's validation images allow: calibrated scores, sets with a promise, thresholds, and when not to answer.

All is fitted on validation images and measured on the judged ones; what is counted and promised is patients, where they
are known. With folds, the images of each fold are treated by what was fitted on that fold's own validation images, and
then pooled. With several seeds: the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.dtypes import Ints, Masks
from thoraclip.errors import InputError, LeakError
from thoraclip.evaluation.align import Aligned, in_order
from thoraclip.evaluation.calibration import COVERAGES, accuracy_at, accuracy_curve, aurc
from thoraclip.evaluation.intervals import bootstrap_variance
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.recalibration import BEFORE, recalibration
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.results import MethodResult
from thoraclip.evaluation.trainings import total, training_variance
from thoraclip.pages import counted
from thoraclip.posthoc.conformal import ALPHA, fit_thresholds, set_patients_needed
from thoraclip.posthoc.operating import SENSITIVITY, chance_of_goal, choose_threshold, positives_needed
from thoraclip.posthoc.scaling import fit_temperature, fit_vector
from thoraclip.proportions import patient_share, share_interval
from thoraclip.tables.predictions import Predictions

__all__ = ["trust_entry"]


_CURVE_POINTS = 50


@dataclass(frozen=True)
class _Fold:
    """Validation images that something is fitted on, whose `patients` (i64[V]) all folds number alike, and `rows`
    (i64[R]) of the judged images, which it is measured on; `number` of the held-out fold, `None` with a split."""

    number: int | None
    val: Scored
    patients: Ints
    rows: Ints


def trust_entry(
    method: MethodResult, aligned: Aligned, *, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Masks]]:
    """What can be fitted on the validation images of a method, and what it does to the judged ones.

    Returns:
        JSON-able: `selective`, which needs no validation image, and either `reason`, why nothing could be fitted, or
        `validation`, `temperature`, `vector`, `before`, `after_temperature`, `after_vector`, `conformal`,
        `operating_point`. And class -> bool[N], whether the score of each judged image reaches the threshold of its
        fold; a class without a threshold is absent.

    Raises:
        LeakError: an image, or a patient known by name, is among the validation and the judged images of one fold.
    """
    test, names = aligned.scored[method.name][0], aligned.labels.names
    entry: dict[str, Any] = {"seed": method.seeds[0] if len(method.predictions) > 1 and method.seeds else None}
    fold_of = aligned.fold_of if method.is_trained and aligned.fold_of.any() else None  # else no training varies
    folds, calls = _folds(method, aligned), dict[str, Masks]()
    entry["reason"] = folds if isinstance(folds, str) else None
    if not isinstance(folds, str):
        counts = [np.bincount(fold.val.target, minlength=len(names)) for fold in folds]
        entry["validation"] = {
            "folds": [fold.number for fold in folds if fold.number is not None],
            "images": [len(fold.val.target) for fold in folds],
            "per_class": {name: [int(row[c]) for row in counts] for c, name in enumerate(names)},
        }
        entry |= _scaled(folds, test, aligned, resamples, seed, fold_of)
        entry["conformal"] = _conformal(folds, test, aligned)
        entry["operating_point"], calls = _operating_points(folds, test, aligned)
    return entry | {"selective": _selective(test, aligned, resamples, seed, fold_of)}, calls


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
        own_table, rows = table.take(own), np.arange(len(aligned.image_id))
        _refuse_leak(method.name, table, own_table, aligned.image_id)
        return [_Fold(None, _scored(own_table, aligned), own_table.groups(), rows)]
    fold_of = dict(zip(table.image_id, table.fold, strict=True))
    numbers = np.array([-1 if (f := fold_of[image]) is None else f for image in aligned.image_id], dtype=np.int64)
    seen: dict[str, int] = {}
    folds, left = [], np.ones(len(numbers), dtype=bool)
    for val in kept:
        number = val.fold[0]
        rows = np.flatnonzero(left if number is None else numbers == number)
        _refuse_leak(method.name, table, val, [aligned.image_id[row] for row in rows])
        left[rows] = False
        if len(rows):
            folds.append(_Fold(number, _scored(val, aligned), val.groups(seen), rows))
    if left.any():
        images = counted(int(left.sum()), "judged image")
        return f"{images} have no validation scores of their fold; run the method again"
    return folds


def _refuse_leak(name: str, table: Predictions, val: Predictions, judged: Sequence[str]) -> None:
    """Raise LeakError where `val` shares an image or a known patient with the `judged` images of a method's table."""
    patient_of = dict(zip(table.image_id, table.patient, strict=True))
    images = sorted(set(judged).intersection(val.image_id))
    patients = sorted({p for image in judged if (p := patient_of[image]) is not None}.intersection(val.patient))
    for both, first, what in ((images, "'{}' is", "images"), (patients, "patient '{}' is", "patients")):
        if both:
            raise LeakError(
                f"method '{name}': {first.format(both[0])} among its validation images and among those that it is "
                f"judged on ({len(both)} such {what}); nothing can be fitted on judged {what}"
            )


def _scored(table: Predictions, aligned: Aligned) -> Scored:
    ordered = in_order(table, aligned.labels, table.image_id)
    return Scored(ordered.target, ordered.scores)


def _scaled(
    folds: Sequence[_Fold], test: Scored, aligned: Aligned, resamples: int, seed: int, fold_of: Ints | None
) -> dict[str, Any]:
    """Both scalings: what was fitted, or `reason`; and calibration before and after."""
    names, tables = aligned.labels.names, {BEFORE: test}
    found: dict[str, Any] = {}
    fits: dict[str, Callable[[_Fold], Any]] = {
        "temperature": lambda fold: fit_temperature(fold.val.scores, fold.val.target, patients=fold.patients),
        "vector": lambda fold: fit_vector(fold.val.scores, fold.val.target, patients=fold.patients, names=names),
    }
    for name, fit in fits.items():
        try:
            fitted = [fit(fold) for fold in folds]
        except InputError as error:
            found[name] = {"reason": f"not calibrated: {error}"}
            continue
        scores = test.scores.copy()
        for fold, scaling in zip(folds, fitted, strict=True):
            scores[fold.rows] = scaling.apply(test.scores[fold.rows])
        tables[f"after_{name}"] = Scored(test.target, scores)
        found[name] = {"reason": None}
        if name == "temperature":
            found[name]["fitted"] = [scaling.temperature for scaling in fitted]
        for part in ("scale", "bias") if name == "vector" else ():
            values = [getattr(scaling, part) for scaling in fitted]
            found[name][part] = {label: [float(v[c]) for v in values] for c, label in enumerate(names)}
    measured = recalibration(tables, aligned.groups, fold_of=fold_of, resamples=resamples, seed=seed)
    return found | {"after_temperature": None, "after_vector": None} | measured


def _conformal(folds: Sequence[_Fold], test: Scored, aligned: Aligned) -> dict[str, Any]:
    sets = np.zeros_like(test.scores, dtype=np.bool_)
    fitted = [fit_thresholds(f.val.scores, f.val.target, patients=f.patients, alpha=ALPHA) for f in folds]
    for fold, thresholds in zip(folds, fitted, strict=True):
        sets[fold.rows] = thresholds.sets(test.scores[fold.rows])
    needed, size, n = set_patients_needed(ALPHA), sets.sum(axis=1), len(sets)
    classes: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(aligned.labels.names):
        fewest = min(int(one.patients[c]) for one in fitted)
        classes[name] = {
            "images": [int(one.images[c]) for one in fitted],
            "patients": [int(one.patients[c]) for one in fitted],
            "threshold": [float(one.threshold[c]) for one in fitted],  # infinite becomes null
            "reason": f"in every set: {_too_few(fewest, needed, aligned.unit)}" if fewest < needed else None,
            "coverage": _share(sets[:, c], test.target == c, aligned.groups),
        }
    return {
        "alpha": ALPHA,
        "promised": 1 - ALPHA,
        "patients_needed": needed,
        "fewest": min(int(one.patients.min()) for one in fitted),
        "classes": classes,
        "coverage": _share(sets[np.arange(n), test.target], np.ones(n, dtype=np.bool_), aligned.groups),
        "mean_size": float(size.mean()),
        "empty": float((size == 0).mean()),
        "single": float((size == 1).mean()),
        "sizes": [int((size == k).sum()) for k in range(len(classes) + 1)],
    }


def _too_few(known: int, needed: int, unit: str) -> str:
    return f"{counted(known, f'validation {unit}')} of the class, and {needed} are needed: {needed - known} more"


def _operating_points(
    folds: Sequence[_Fold], test: Scored, aligned: Aligned
) -> tuple[dict[str, Any], dict[str, Masks]]:
    goal, classes, calls = SENSITIVITY, {}, {}
    needed = positives_needed(goal)
    target, patients = (np.concatenate(part) for part in zip(*((f.val.target, f.patients) for f in folds), strict=True))
    for c, name in enumerate(aligned.labels.names):
        sides = [(f.val.scores[:, c], f.val.target == c, f.patients) for f in folds]
        known = [len(np.unique(owners[positive])) for _, positive, owners in sides]
        chosen = [choose_threshold(score, positive, patients=owners, goal=goal) for score, positive, owners in sides]
        found = [threshold for threshold in chosen if threshold is not None]
        entry: dict[str, Any] = {
            "threshold": chosen,
            "positives": [int(positive.sum()) for _, positive, _ in sides],
            "patients": known,
            "chance": [chance_of_goal(p, goal) if p >= needed else None for p in known],
        }
        if len(found) < len(chosen):
            reason = f"no threshold: {_too_few(min(known), needed, aligned.unit)}"
            classes[name] = entry | {"reason": reason, "validation": None, "test": None}
            continue
        called = calls[name] = np.zeros(len(test.target), dtype=np.bool_)
        for fold, threshold in zip(folds, found, strict=True):
            called[fold.rows] = test.scores[fold.rows, c] >= threshold
        called_val = [score >= threshold for (score, *_), threshold in zip(sides, found, strict=True)]
        rates = {"validation": _rates(np.concatenate(called_val), target == c, patients)}
        classes[name] = entry | {"reason": None, **rates, "test": _rates(called, test.target == c, aligned.groups)}
    return {"goal": goal, "patients_needed": needed, "classes": classes}, calls


def _rates(called: Masks, positive: Masks, patients: Ints) -> dict[str, Any]:
    return {"sensitivity": _share(called, positive, patients), "specificity": _share(~called, ~positive, patients)}


def _share(right: Masks, among: Masks, patients: Ints) -> dict[str, Any]:
    """Of the images `among` bool[N], the share that is `right`, with its interval by patient."""
    if not among.any():
        return {"value": None, "low": None, "high": None, "of": 0, "reason": "no such image"}
    low, high = patient_share(right[among], patients[among])
    return {"value": float(right[among].mean()), "low": low, "high": high, "of": int(among.sum())}


def _selective(test: Scored, aligned: Aligned, resamples: int, seed: int, fold_of: Ints | None) -> dict[str, Any]:
    """Curve, area, and the accuracy at `COVERAGES`; the answers are ordered by the scores as they are."""
    curve, n, groups = accuracy_curve(test.confidence, test.correct), len(test.target), aligned.group_count
    values = accuracy_at(test.confidence, test.correct)[:, 0]
    bounds = np.full((len(COVERAGES), 2), np.nan)  # becomes null
    if groups > 1:
        weights = resample_weights(aligned.groups, resamples=resamples, seed=seed)
        drawn = np.concatenate([accuracy_at(test.confidence, test.correct, w) for w in weights], axis=1)
        parts = [] if fold_of is None else [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
        by_fold = [accuracy_at(test.confidence[p], test.correct[p])[:, 0] for p in parts]
        for row, coverage in enumerate(COVERAGES):
            training = training_variance(np.array([[one[row] for one in by_fold]])) if by_fold else None
            variance = total(bootstrap_variance(drawn[row], groups), [training] if training else [])
            clusters = max(1.0, coverage * groups)
            bounds[row] = share_interval(float(values[row]), variance.value, clusters=clusters, df=variance.df)
    keep = np.unique(np.linspace(max(1, n // 20), n, min(n, _CURVE_POINTS)).round().astype(int))
    answered, right = [round(k / n, 4) for k in keep.tolist()], [round(float(v), 4) for v in curve[keep - 1]]
    return {
        "aurc": aurc(test.confidence, test.correct),
        "at": [
            {"coverage": c, "value": float(v), "low": low, "high": high}
            for c, v, (low, high) in zip(COVERAGES, values, bounds, strict=True)
        ],
        "curve": {"coverage": answered, "accuracy": right},
    }
