"""One method's entry of the report: metrics with intervals, and what its figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.calibration import reliability_bins
from thoraclip.evaluation.intervals import Estimate, estimate
from thoraclip.evaluation.metrics import METRICS, PER_CLASS, Scored, confusion, per_class, roc
from thoraclip.evaluation.resampling import Replicates
from thoraclip.evaluation.results import MAJORITY
from thoraclip.evaluation.trainings import training_variance

__all__ = ["MISTAKES", "mean_clusters", "mean_estimate", "method_entry", "metric_estimate", "training_values"]


MISTAKES = 24
"""Most confident wrong answers kept for each method."""

_ROC_POINTS = 60


def method_entry(
    name: str, kind: str, tables: Sequence[Scored], aligned: Aligned, drawn: Sequence[Replicates], *, trained: bool
) -> dict[str, Any]:
    """What can be computed about one method: `tables`, one per seed (figures are drawn from the first), `drawn`, the
    resamples of each or none, and `trained`, whether the spread over seeds or folds is one of trainings."""
    first, exact = tables[0], name == MAJORITY
    several = trained and (len(tables) > 1 or bool(aligned.fold_of.any()))
    trainings = training_values(tables, aligned.fold_of) if several else {}
    spread = training_variance(trainings["accuracy"]) if several else None
    return {
        "name": name,
        "kind": kind,
        "n": len(first.target),
        "trained": trained,
        "spread": spread.source if spread else None,
        "metrics": _metrics(tables, aligned.groups, drawn, trainings, exact=exact),
        "per_class": _per_class(tables, aligned, drawn, several=several, exact=exact),
        "confusion": confusion(first).tolist(),
        "calibration": reliability_bins(first.confidence, first.correct, aligned.groups),
        "roc": {label: _roc(first, c) for c, label in enumerate(aligned.labels.names)},
        "mistake_count": int((~first.correct).sum()),
        "mistakes": [] if exact else _mistakes(first, aligned),
    }


def training_values(
    tables: Sequence[Scored], fold_of: Ints, names: Sequence[str] = tuple(METRICS)
) -> dict[str, Floats]:
    """The value of every training: metric -> f64[k, K], of k tables (seeds) and the K folds of i64[N] `fold_of`; NaN
    where it does not exist, or where a mean over classes lacks one in a fold."""
    parts, classes = _by_training(tables, fold_of), len(np.unique(tables[0].target))

    def value(name: str, part: Scored) -> float | None:
        is_other = METRICS[name].by_class and len(np.unique(part.target)) < classes
        return None if is_other else METRICS[name].point(part)

    return {name: np.array([[value(name, p) for p in folds] for folds in parts], dtype=np.float64) for name in names}


def _by_training(tables: Sequence[Scored], fold_of: Ints) -> list[list[Scored]]:
    rows = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    return [[Scored(table.target[r], table.scores[r]) for r in rows] for table in tables]


def mean_clusters(target: Ints, groups: Ints) -> float:
    """How many patients are behind a mean over the classes: C^2 / sum_c 1 / g_c, with g_c patients of class c.

    Were every class's value of the same variance per patient, the mean would have that of this many.
    """
    counts = np.array([len(np.unique(groups[target == c])) for c in np.unique(target)])
    return float(len(counts) ** 2 / (1 / counts).sum())


def _metrics(
    tables: Sequence[Scored], groups: Ints, drawn: Sequence[Replicates], trainings: Mapping[str, Floats], *, exact: bool
) -> dict[str, Any]:
    """Headline metrics; of several seeds with each one's value and their standard deviation (n - 1).

    `exact` is for constant predictions, whose unvarying metrics are no luck of the draw.
    """
    entries: dict[str, Any] = {}
    for name in METRICS:
        training = training_variance(trainings[name]) if trainings else None
        entries[name] = metric_estimate(name, tables, drawn, groups, training=training, exact=exact).as_json()
        if len(tables) > 1:
            each = [METRICS[name].point(table) for table in tables]
            known = [value for value in each if value is not None]
            entries[name]["per_seed"] = each
            entries[name]["seed_sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return entries


def metric_estimate(
    name: str, tables: Sequence[Scored], drawn: Sequence[Replicates], groups: Ints, **more: Any
) -> Estimate:
    """A metric of `METRICS`: the mean over tables of the same images (i64[N] `groups`) with the interval of that mean,
    from the resamples of each; `more` as in `estimate`."""
    metric, noise = METRICS[name], [one.noise[name] for one in drawn if name in one.noise]
    return mean_estimate(
        [metric.point(table) for table in tables],
        [one.headline[name] for one in drawn],
        clusters=mean_clusters(tables[0].target, groups) if metric.by_class else int(groups.max()) + 1,
        bounds=metric.bounds,
        higher_is_better=metric.higher_is_better,
        noise=np.mean(noise, axis=0) if noise else None,
        **more,
    )


def mean_estimate(values: Sequence[float | None], drawn: Sequence[Floats], **more: Any) -> Estimate:
    """The mean over several tables, with the interval of that mean; `more` as in `estimate`."""
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    return estimate(mean, np.mean(drawn, axis=0) if drawn else None, **more)


def _per_class(
    tables: Sequence[Scored], aligned: Aligned, drawn: Sequence[Replicates], *, several: bool, exact: bool
) -> dict[str, Any]:
    parts = _by_training(tables, aligned.fold_of) if several else []
    trainings = [[per_class(part) for part in folds] for folds in parts]
    values = [per_class(table) for table in tables]
    entries: dict[str, Any] = {}
    for c, label in enumerate(aligned.labels.names):
        members = aligned.target == c
        spreads = several and not any(label in classes for classes in aligned.lacking.values())
        entry: dict[str, Any] = {"support": int(members.sum())}
        for name in PER_CLASS:
            each = np.array([[part[name][c] for part in folds] for folds in trainings], dtype=np.float64)
            entry[name] = mean_estimate(
                [one[name][c] for one in values],
                [one.per_class[name][:, c] for one in drawn],
                clusters=len(np.unique(aligned.groups[~members if name == "specificity" else members])),
                training=training_variance(each) if spreads else None,
                exact=exact,
            ).as_json()
        if not any((table.predicted == c).any() for table in tables):
            entry["precision"] = {"value": 0.0, "low": None, "high": None, "reason": "the class is never named"}
        entries[label] = entry
    return entries


def _roc(scored: Scored, c: int) -> dict[str, list[float]] | None:
    """Corners of the ROC curve of one class against the rest, thinned for drawing; `None` where it does not exist."""
    if c not in scored.rankable:
        return None
    false, true = roc(scored.target == c, scored.scores[:, c])
    keep = np.unique(np.linspace(0, len(false) - 1, min(len(false), _ROC_POINTS)).round().astype(int))
    return {"fpr": [round(float(v), 4) for v in false[keep]], "tpr": [round(float(v), 4) for v in true[keep]]}


def _mistakes(scored: Scored, aligned: Aligned) -> list[dict[str, Any]]:
    """The wrong answers with the highest score, most confident first."""
    wrong, names = np.flatnonzero(~scored.correct), aligned.labels.names
    worst = wrong[np.argsort(-scored.confidence[wrong], kind="stable")][:MISTAKES]
    return [
        {
            "image_id": aligned.image_id[row],
            "true": names[scored.target[row]],
            "predicted": names[scored.predicted[row]],
            "score": round(float(scored.confidence[row]), 4),
        }
        for row in worst
    ]
