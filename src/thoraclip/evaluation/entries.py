"""One method's entry of the report: metrics with intervals, and what its figures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.calibration import reliability_bins
from thoraclip.evaluation.intervals import estimate
from thoraclip.evaluation.metrics import METRICS, PER_CLASS, Scored, confusion, headline, known_mean, per_class, roc
from thoraclip.evaluation.resampling import Replicates
from thoraclip.evaluation.results import MAJORITY

__all__ = ["MISTAKES", "method_entry"]

Floats = npt.NDArray[np.float64]

MISTAKES = 24
"""Most confident wrong answers kept for each method."""

_ROC_POINTS = 60


def method_entry(
    name: str, kind: str, tables: Sequence[Scored], aligned: Aligned, drawn: Sequence[Replicates]
) -> dict[str, Any]:
    """What can be computed about one method.

    Args:
        tables: one per seed; figures are drawn from the first.
        drawn: resamples of every table; none when nothing can be resampled.
    """
    first, exact = tables[0], name == MAJORITY
    return {
        "name": name,
        "kind": kind,
        "n": len(first.target),
        "metrics": _metrics(tables, aligned, drawn, exact=exact),
        "per_class": _per_class(tables, aligned, drawn, exact=exact),
        "confusion": confusion(first).tolist(),
        "calibration": reliability_bins(first.confidence, first.correct),
        "roc": {label: _roc(first, c) for c, label in enumerate(aligned.labels.names)},
        "mistake_count": int((~first.correct).sum()),
        "mistakes": [] if exact else _mistakes(first, aligned),
    }


def _metrics(tables: Sequence[Scored], aligned: Aligned, drawn: Sequence[Replicates], *, exact: bool) -> dict[str, Any]:
    """Headline metrics; of several seeds with each one's value and their standard deviation (n - 1).

    `exact` is for constant predictions, whose unvarying metrics are no luck of the draw.
    """
    values = [headline(table) for table in tables]
    rarest = min(aligned.groups_of(aligned.target == c) for c in np.unique(aligned.target))
    entries: dict[str, Any] = {}
    for name, metric in METRICS.items():
        each = [one[name] for one in values]
        trials = 0 if exact else aligned.group_count if name == "accuracy" else rarest
        draws = [one.headline[name] for one in drawn]
        noise = [one.noise[name] for one in drawn if name in one.noise]
        direction: Any = {"bounds": metric.bounds, "higher_is_better": metric.higher_is_better}
        entries[name] = _estimated(name, each, draws, trials, noise, **direction)
        if len(each) > 1:
            known = [value for value in each if value is not None]
            entries[name]["per_seed"] = each
            entries[name]["seed_sd"] = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return entries


def _estimated(
    name: str, values: Sequence[float | None], drawn: Sequence[Floats], trials: int, noise: Any = (), **metric: Any
) -> dict[str, Any]:
    """The mean over the seeds, with the interval of that mean."""
    means = [np.mean(each, axis=0) if each else None for each in (drawn, noise)]
    return estimate(name, known_mean(values), means[0], trials=trials, noise=means[1], **metric).as_json()


def _per_class(
    tables: Sequence[Scored], aligned: Aligned, drawn: Sequence[Replicates], *, exact: bool
) -> dict[str, Any]:
    values = [per_class(table) for table in tables]
    entries: dict[str, Any] = {}
    for c, label in enumerate(aligned.labels.names):
        members = aligned.target == c
        entry: dict[str, Any] = {"support": int(members.sum())}
        for name in PER_CLASS:
            trials = 0 if exact else aligned.groups_of(~members if name == "specificity" else members)
            of_class = [one[name][c] for one in values]
            entry[name] = _estimated(name, of_class, [one.per_class[name][:, c] for one in drawn], trials)
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
    wrong = np.flatnonzero(~scored.correct)
    worst = wrong[np.argsort(-scored.confidence[wrong], kind="stable")][:MISTAKES]
    names = aligned.labels.names
    return [
        {
            "image_id": aligned.image_id[row],
            "true": names[scored.target[row]],
            "predicted": names[scored.predicted[row]],
            "score": round(float(scored.confidence[row]), 4),
        }
        for row in worst
    ]
