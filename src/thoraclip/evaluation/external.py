"""External test sets: what methods score on images from elsewhere, and how much less that is than inside.

The drop of a metric is its value inside (on the study's judged images) minus its value outside. Both sets are resampled
independently (patients where known), and of trained methods both intervals hold the spread over trainings, so the
interval is that of a difference of two independent estimates. Where the external set has no image of some classes, the
value inside is computed on the images of the other classes, too; the methods may still answer any class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.errors import MismatchError
from thoraclip.evaluation.adaptation import Adaptation, adaptation_entry
from thoraclip.evaluation.align import Aligned, align
from thoraclip.evaluation.compare import Contestant, correct_p, pair, t_test
from thoraclip.evaluation.entries import mean_estimate, metric_estimate, training_values
from thoraclip.evaluation.intervals import Estimate, difference_interval
from thoraclip.evaluation.metrics import METRICS, Scored, per_class
from thoraclip.evaluation.reading import MAIN_METRIC
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.results import MethodResult
from thoraclip.evaluation.trainings import SEEDS, Variance, total, training_variance

__all__ = ["DROPS", "ExternalResult", "Sample", "difference", "external_entries", "measure"]


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
        adaptation: classifiers that labels from there were trained into, see `adaptation.adaptation_entry`; without it
            the entry has no key `adaptation`.
    """

    name: str
    note: str = ""
    methods: tuple[MethodResult, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    patients_shared: int = 0
    images_of_shared: int = 0
    not_scored: Mapping[str, str] = field(default_factory=dict)
    adaptation: Adaptation | None = None


@dataclass(frozen=True)
class Sample:
    """Metrics of one method on one set of images: `values` by name of `_MEASURED`, and `recall` by class that has
    images."""

    values: Mapping[str, Estimate]
    recall: Mapping[str, Estimate]


def external_entries(
    results: Sequence[ExternalResult],
    inside: Aligned,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """An entry of the report for each external set; `inside` are the study's judged images and every method's scores.

    Args:
        pairs: methods whose macro F1 outside is compared; see `compare.pair`. Their rows are `comparisons` of the
            entry, one family for Holm's correction.
        resamples: of each set.
        seed: of the resampling inside; outside it is the next number, so that the two are independent.

    Raises:
        MismatchError: a method outside has other classes than inside, or is not among the methods there; see
            `align.align`.
    """
    known: dict[tuple[str, tuple[str, ...]], Sample] = {}
    entries = [_entry(one, inside, known, resamples, seed) for one in results]
    for one, entry in zip(results, entries, strict=True):
        if pairs:
            entry["comparisons"] = _compared(one, pairs, resamples, seed + 1)
    return entries


def _compared(one: ExternalResult, pairs: Sequence[tuple[str, str]], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Of the pairs of which both methods were scored."""
    known = {method.name: method for method in one.methods}
    pairs = [both for both in pairs if {*both} <= known.keys()]
    if not pairs:
        return []
    outside = align([known[name] for name in dict.fromkeys(name for both in pairs for name in both)])
    intervals, every = outside.group_count > 1, [t for tables in outside.scored.values() for t in tables]
    given: dict[str, Any] = {"resamples": resamples, "seed": seed, "names": [MAIN_METRIC]}
    drawn = iter(replicate(every, outside.groups, **given) if intervals else [])
    contestants = dict[str, Contestant]()
    for name, tables in outside.scored.items():
        mine = [row.headline[MAIN_METRIC] for row in islice(drawn, len(tables))]
        contestants[name] = Contestant(
            name,
            {MAIN_METRIC: float(np.mean([METRICS[MAIN_METRIC].point(table) for table in tables]))},
            {MAIN_METRIC: np.mean(mine, axis=0)} if mine else {},
            None,
            training_values(tables, np.zeros_like(outside.target), names=[MAIN_METRIC]),
            known[name].is_trained,
        )
    rows = [pair(contestants[a], contestants[b], MAIN_METRIC, intervals, outside.groups) for a, b in pairs]
    correct_p(rows)
    return rows


def _entry(
    one: ExternalResult, inside: Aligned, known: dict[tuple[str, tuple[str, ...]], Sample], resamples: int, seed: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": one.name, "note": one.note, "n": 0, "unit": None, "groups": 0}
    entry |= {"images_per_class": {}, "absent": [], "inside_n": 0}
    entry |= {key: getattr(one, key) for key in ("splits", "left_out", "patients_shared", "images_of_shared")}
    not_scored = [{"name": name, "reason": reason} for name, reason in one.not_scored.items()]
    entry |= {"commonest": None, "methods": [], "not_scored": not_scored}
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
            fold_of = inside.fold_of[rows] if method.is_trained else None
            tables = [Scored(inside.target[rows], table.scores[rows]) for table in inside.scored[method.name]]
            known[key] = measure(tables, inside, rows, fold_of=fold_of, resamples=resamples, seed=seed)
        fold_of, folds = (np.zeros_like(outside.target), max(1, len(inside.folds))) if method.is_trained else (None, 1)
        every, scored = np.ones(len(outside.target), dtype=bool), outside.scored[method.name]
        there = measure(scored, outside, every, fold_of=fold_of, folds=folds, resamples=resamples, seed=seed + 1)
        entry["methods"].append(_method(method, known[key], there, counts))
    for metric in DROPS:
        correct_p([method["drop"][metric] for method in entry["methods"]])
    if one.adaptation:
        entry["adaptation"] = adaptation_entry(one.adaptation, inside, resamples=resamples, seed=seed)
    return entry


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
    tables: Sequence[Scored],
    aligned: Aligned,
    rows: Masks,
    *,
    fold_of: Ints | None,
    folds: int = 1,
    resamples: int,
    seed: int,
) -> Sample:
    """Metrics of one method, the mean over its tables, and of that mean the interval over resampled images.

    Args:
        tables: T tables over the chosen images, one a training.
        aligned, rows: the images, and bool[N], the chosen ones.
        fold_of: i64 of the chosen ones, as in `entries.training_values`; `None` of a method that is not trained.
        folds: classifiers of each seed among the tables, which are ordered by seed and share most training images.
    """
    groups, target, values = np.unique(aligned.groups[rows], return_inverse=True)[1], tables[0].target, {}
    drawn = replicate(tables, groups, resamples=resamples, seed=seed) if groups.max() > 0 else []
    trainings = {} if fold_of is None else training_values(tables, fold_of, names=_MEASURED)
    for name in _MEASURED:
        training = _training(trainings[name], folds) if trainings else None
        values[name] = metric_estimate(name, tables, drawn, groups, training=training)
    recalls, recall = [per_class(table)["recall"] for table in tables], {}
    for c in np.unique(target).tolist():
        recall[aligned.labels.names[c]] = mean_estimate(
            [one[c] for one in recalls],
            [one.per_class["recall"][:, c] for one in drawn],
            clusters=len(np.unique(groups[target == c])),
        )
    return Sample(values, recall)


def _training(values: Floats, folds: int) -> Variance | None:
    """f64[T, 1] over several classifiers on the same images, or f64[k, K] as inside."""
    if folds == 1 or len(values) % folds:
        return training_variance(values)
    found = training_variance(values.reshape(-1, folds))
    return None if found is None else replace(found, source=SEEDS)  # all of it is the trainings'


def difference(inside: Sample, outside: Sample, name: str) -> dict[str, float | None]:
    """Value inside minus value outside of a metric in `DROPS`: `value`, `low`, `high` and `p`, `None` where they do not
    exist. The interval is put together from those of both; p is that of Student's t on the sum of both variances."""
    here, there = inside.values[name], outside.values[name]
    found: dict[str, float | None] = dict.fromkeys(("value", "low", "high", "p", "p_holm"))
    if here.value is None or there.value is None:
        return found
    value = _unsigned(here.value - there.value)
    found["value"] = value
    if here.low is None or here.high is None or there.low is None or there.high is None:
        return found
    assert here.variance is not None and there.variance is not None, "what has an interval has a variance"
    variance = total(here.variance, [there.variance])
    low, high = difference_interval((here.value, here.low, here.high), (there.value, there.low, there.high))
    ends = {"low": _unsigned(max(-1.0, low)), "high": _unsigned(min(1.0, high))}
    return found | ends | {"p": t_test(value, variance)}


def _unsigned(value: float) -> float:
    """What is 0 but for rounding is 0, without a sign."""
    return value if abs(value) > 1e-12 else 0.0
