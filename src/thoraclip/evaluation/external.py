"""External test sets: what methods score on images from elsewhere, and how much less that is than inside.

The drop of a metric is its value inside (on the study's judged images) minus its value outside. Both sets are resampled
independently (patients where known), so the interval is that of a difference of two independent estimates. Where the
external set has no image of some classes, the value inside is computed on the images of the other classes, too; the
methods may still answer any class. Macro F1 is the mean over the classes that have images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import MismatchError
from thoraclip.evaluation.align import Aligned, align
from thoraclip.evaluation.compare import bootstrap_p, holm
from thoraclip.evaluation.intervals import LEVEL, Estimate, estimate
from thoraclip.evaluation.metrics import METRICS, Scored, known_mean, per_class
from thoraclip.evaluation.resampling import Replicates, replicate
from thoraclip.evaluation.results import MethodResult

__all__ = ["DROPS", "ExternalResult", "Sample", "difference", "external_entries", "measure"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DROPS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
"""Metrics whose drop is told."""
_MEASURED = (*DROPS, "ece")


@dataclass(frozen=True, kw_only=True)
class ExternalResult:
    """What a study hands to the judge about one external set.

    Args:
        name: of the set.
        note: for the reader.
        methods: those that were scored; a table for each of a method's classifiers (seed and fold), no split named.
        left_out: reason -> images.
        splits: of the set's own, which the images are from; `()` where it names none.
        patients_shared: patients whose id the study has, too.
        images_of_shared: their images.
        not_scored: method -> why it was not.
    """

    name: str
    note: str = ""
    methods: tuple[MethodResult, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    patients_shared: int = 0
    images_of_shared: int = 0
    not_scored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Metrics of one method on one set of images.

    Args:
        values: metric -> `Estimate`, with the names of `_MEASURED`.
        recall: class -> `Estimate`, of the classes that have images.
        replicates: metric -> f64[R], of `DROPS`; empty when nothing can be resampled.
    """

    values: Mapping[str, Estimate]
    recall: Mapping[str, Estimate]
    replicates: Mapping[str, Floats]


def external_entries(
    results: Sequence[ExternalResult], inside: Aligned, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """An entry of the report for each external set.

    Args:
        results: of the study.
        inside: the study's judged images and every method's scores on them.
        resamples: of each set.
        seed: of the resampling inside; outside it is the next number, so that the two are independent.

    Raises:
        MismatchError: a method outside has other classes than inside, or is not among the methods there; see
            `align.align`.
    """
    known: dict[tuple[str, tuple[str, ...]], Sample] = {}
    return [_entry(one, inside, known, resamples, seed) for one in results]


def _entry(
    one: ExternalResult,
    inside: Aligned,
    known: dict[tuple[str, tuple[str, ...]], Sample],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": one.name,
        "note": one.note,
        "n": 0,
        "unit": None,
        "groups": 0,
        "images_per_class": {},
        "absent": [],
        "inside_n": 0,
        "splits": one.splits,
        "left_out": one.left_out,
        "patients_shared": one.patients_shared,
        "images_of_shared": one.images_of_shared,
        "commonest": None,
        "methods": [],
        "not_scored": [{"name": name, "reason": reason} for name, reason in one.not_scored.items()],
    }
    if not one.methods:
        return entry
    outside = align(one.methods)
    if set(outside.labels.names) != set(inside.labels.names) or not set(outside.scored) <= set(inside.scored):
        raise MismatchError(
            f"external '{one.name}': its methods or classes are not those of the study; run the study again"
        )
    counts = {name: int((outside.target == outside.labels.index(name)).sum()) for name in inside.labels.names}
    present = tuple(name for name, count in counts.items() if count)
    rows = np.isin(inside.target, [inside.labels.index(name) for name in present])
    entry |= {
        "n": len(outside.image_id),
        "unit": outside.unit,
        "groups": outside.group_count,
        "images_per_class": counts,
        "absent": [name for name, count in counts.items() if not count],
        "inside_n": int(rows.sum()),
        "commonest": max(counts.values()) / len(outside.image_id),
    }
    for method in one.methods:
        key = (method.name, present)
        if key not in known:
            known[key] = measure(_take(inside, method.name, rows), inside, rows, resamples=resamples, seed=seed)
        everything = np.ones(len(outside.image_id), dtype=bool)
        there = measure(outside.scored[method.name], outside, everything, resamples=resamples, seed=seed + 1)
        entry["methods"].append(_method(method, known[key], there, counts))
    _correct(entry["methods"])
    return entry


def _take(aligned: Aligned, name: str, rows: npt.NDArray[np.bool_]) -> tuple[Scored, ...]:
    return tuple(Scored(aligned.target[rows], table.scores[rows]) for table in aligned.scored[name])


def _method(method: MethodResult, inside: Sample, outside: Sample, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "name": method.name,
        "kind": method.kind,
        "classifiers": len(method.predictions),
        "metrics": {name: found.as_json() for name, found in outside.values.items()},
        "inside": {name: found.as_json() for name, found in inside.values.items()},
        "drop": {name: difference(inside, outside, name) for name in DROPS},
        "per_class": {
            name: {"support": counts[name], "recall": found.as_json(), "inside": inside.recall[name].as_json()}
            for name, found in outside.recall.items()
            if name in inside.recall
        },
    }


def measure(
    tables: Sequence[Scored], aligned: Aligned, rows: npt.NDArray[np.bool_], *, resamples: int, seed: int
) -> Sample:
    """Metrics of one method, the mean over its tables, and of that mean the interval over resampled images.

    Args:
        tables: T tables over the chosen images.
        aligned: the images.
        rows: bool[N], the chosen ones.
        resamples: of groups.
        seed: of the resampling.
    """
    groups = np.unique(aligned.groups[rows], return_inverse=True)[1]
    target, many = tables[0].target, int(groups.max()) + 1
    drawn = replicate(tables, groups, resamples=resamples, seed=seed) if many > 1 else []
    rarest = min(len(np.unique(groups[target == c])) for c in np.unique(target))
    by_class = [per_class(table) for table in tables]
    points = [_points(table, found["f1"]) for table, found in zip(tables, by_class, strict=True)]
    resampled = [_resampled(one) for one in drawn]
    values, replicates = {}, {}
    for name in _MEASURED:
        if resampled:
            replicates[name] = np.asarray(np.mean([one[name] for one in resampled], axis=0), dtype=np.float64)
        noise = np.asarray(np.mean([one.noise[name] for one in drawn], axis=0)) if drawn and name == "ece" else None
        trials = many if name == "accuracy" else rarest
        value = known_mean([one[name] for one in points])
        values[name] = estimate(
            name,
            value,
            replicates.get(name),
            trials=trials,
            higher_is_better=METRICS[name].higher_is_better,
            noise=noise,
        )
    recall = {}
    for c in np.unique(target).tolist():
        draws = np.mean([one.per_class["recall"][:, c] for one in drawn], axis=0) if drawn else None
        value = known_mean([found["recall"][c] for found in by_class])
        trials = len(np.unique(groups[target == c]))
        recall[aligned.labels.names[c]] = estimate("recall", value, draws, trials=trials)
    return Sample(values, recall, {name: replicates[name] for name in DROPS if name in replicates})


def _points(table: Scored, f1: Sequence[float | None]) -> dict[str, float | None]:
    return {name: known_mean(f1) if name == "macro_f1" else METRICS[name].point(table) for name in _MEASURED}


def _resampled(drawn: Replicates) -> dict[str, Floats]:
    """Metric -> f64[R]; F1 is the mean over the classes that a resample has images of."""
    f1 = drawn.per_class["f1"]
    known = ~np.isnan(f1)
    mean_f1 = np.where(known, f1, 0.0).sum(axis=1) / known.sum(axis=1)
    return {name: mean_f1 if name == "macro_f1" else drawn.headline[name] for name in _MEASURED}


def difference(inside: Sample, outside: Sample, name: str) -> dict[str, float | None]:
    """Value inside minus value outside: `value`, `low`, `high` and `p`, `None` where they do not exist.

    The interval is the percentile interval of the difference of two independent resamplings (Efron & Tibshirani 1993,
    sections 8.3 and 13.3), its p as in `compare.bootstrap_p`. Where one of the two never varies (a perfect score), the
    interval is put together from both intervals, low = d - sqrt((i - i_low)^2 + (o_high - o)^2) and high likewise (Zou
    & Donner 2008, Stat. Med. 27:1693), and p is not known.

    Args:
        inside, outside: of one method.
        name: in `DROPS`.
    """
    here, there = inside.values[name], outside.values[name]
    found: dict[str, float | None] = dict.fromkeys(("value", "low", "high", "p", "p_holm"))
    if here.value is None or there.value is None:
        return found
    value = _unsigned(here.value - there.value)
    found["value"] = value
    if here.low is None or here.high is None or there.low is None or there.high is None:
        return found
    pair = inside.replicates[name], outside.replicates[name]
    drawn = pair[0] - pair[1]
    drawn = drawn[np.isfinite(drawn)]
    still = [bool(np.ptp(one[np.isfinite(one)]) < 1e-12) for one in pair]
    if any(still):
        low = value - float(np.hypot(here.value - here.low, there.high - there.value))
        high = value + float(np.hypot(here.high - here.value, there.value - there.low))
    else:
        low, high = (float(v) for v in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    p = None if any(still) else bootstrap_p(drawn)
    low, high = max(-1.0, min(low, value)), min(1.0, max(high, value))
    return found | {"low": _unsigned(low), "high": _unsigned(high), "p": p}


def _unsigned(value: float) -> float:
    """What is 0 but for rounding is 0, without a sign."""
    return value if abs(value) > 1e-12 else 0.0


def _correct(methods: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over the methods of a set, metric by metric."""
    for metric in DROPS:
        known = [method["drop"][metric] for method in methods if method["drop"][metric]["p"] is not None]
        for drop, corrected in zip(known, holm([drop["p"] for drop in known]), strict=True):
            drop["p_holm"] = corrected
