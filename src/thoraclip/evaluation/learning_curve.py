"""Learning curves: macro F1 against how many labelled patients of each class a method was trained on.

A point is the mean over several draws of so many patients. Its interval counts the test patients, by the resamples of
the report, and the draws, by `trainings.draw_variance`. Draws are nested, so the gain from one point to the next is
paired: by draw and by test image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats
from thoraclip.errors import MismatchError
from thoraclip.evaluation.align import Aligned, align
from thoraclip.evaluation.entries import mean_clusters, mean_estimate, training_values
from thoraclip.evaluation.intervals import bootstrap_variance
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.reading import MAIN_METRIC, between, listed, points, share, share_interval
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.results import MAJORITY, MethodResult
from thoraclip.evaluation.trainings import Variance, draw_variance, total, training_variance
from thoraclip.pages import counted
from thoraclip.proportions import t_quantile

__all__ = ["FewShot", "labels_text", "learning_curve", "learning_notes", "learning_reading", "shots_columns"]

Shots = int | str


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """What a study hands to the judge about its few-shot runs.

    Args:
        runs: (name of a method of the report, shots) -> its result, with a table for each draw, or its error.
        draws: trainings behind each.
        unit: patient, or image where no patient is known.
        patients: class -> training patients that shots are drawn from, in the fold that has the fewest.
        labelled: class -> the same together with a validation split: what a training on all images has.
        with_all: whether the curves end with the training on all images.
    """

    runs: Mapping[tuple[str, int], MethodResult]
    draws: int
    unit: str
    patients: Mapping[str, int]
    labelled: Mapping[str, int]
    with_all: bool


@dataclass(frozen=True)
class Point:
    """Macro F1 of one method at one number of shots (`all` of a method of the report).

    Args:
        values: f64[D], one a training.
        drawn: f64[R], resamples of their mean; `None` where nothing can be resampled.
        training: variance of the mean over trainings, where it is known.
    """

    shots: Shots
    values: Floats
    drawn: Floats | None
    training: Variance | None


def learning_curve(
    few: FewShot, entries: Sequence[Mapping[str, Any]], aligned: Aligned, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The entry `learning_curve` of a report.

    Args:
        entries: of the methods of the report.
        aligned: the judged images, and every method's scores.
        resamples, seed: of the report, so that test images are paired with those of the full trainings.

    Raises:
        MismatchError: a few-shot run was scored on other images than the methods of the report.
    """
    tables: dict[tuple[str, Shots], Sequence[Scored]] = {}
    if known := {key: run for key, run in few.runs.items() if run.predictions}:
        own = align(list(known.values()))
        if own.image_id != aligned.image_id:
            raise MismatchError("few-shot runs were scored on other images than the methods; run the study again")
        tables = {key: own.scored[run.name] for key, run in known.items()}
    tables |= {(name, "all"): several for name, several in aligned.scored.items() if name != MAJORITY}
    found = curve_points(tables, few, aligned, resamples=resamples, seed=seed)
    untrained = [e for e in entries if not e["trained"] and e["name"] != MAJORITY]
    best = max(untrained, key=lambda e: e["metrics"][MAIN_METRIC]["value"], default=None)
    judge = Judge(few, aligned, found[best["name"], "all"] if best else None)
    rows, kinds = {e["name"]: e for e in entries}, {name: run.kind for (name, _), run in few.runs.items()}
    methods, failed = [], [(key, run.failed) for key, run in few.runs.items() if run.failed]
    for name, kind in kinds.items():
        curve = [found[key] for key in few.runs if key[0] == name and key in found]
        curve += [found[name, "all"]] if few.with_all and name in rows else []
        drawn = [judge.point(point, rows.get(name)) for point in curve]
        gains = [judge.gain(a, b) for a, b in pairwise(curve)]
        methods.append({"name": name, "kind": kind, "points": drawn, "gains": gains})
    return {
        "metric": MAIN_METRIC,
        "draws": few.draws,
        "unit": few.unit,
        "patients": dict(few.patients),
        "labelled": dict(few.labelled),
        "methods": methods,
        "untrained": [{"name": e["name"], **e["metrics"][MAIN_METRIC]} for e in untrained],
        "floor": best["name"] if best else None,
        "failed": [{"name": name, "shots": shots, "error": error} for (name, shots), error in failed],
    }


def curve_points(
    tables: Mapping[tuple[str, Shots], Sequence[Scored]], few: FewShot, aligned: Aligned, *, resamples: int, seed: int
) -> dict[tuple[str, Shots], Point]:
    """The point of each (method, shots), from a table for each of its trainings; arguments as of `learning_curve`."""
    flat, drawn = [table for several in tables.values() for table in several], list[Floats]()
    if aligned.group_count > 1:
        rows = replicate(flat, aligned.groups, resamples=resamples, seed=seed, names=[MAIN_METRIC])
        drawn = [row.headline[MAIN_METRIC] for row in rows]
    folds, patients = int(aligned.fold_of.max()) + 1, list(few.patients.values())
    found = dict[tuple[str, Shots], Point]()
    for (name, shots), several in tables.items():
        mean, drawn = (np.mean(drawn[: len(several)], axis=0) if drawn else None), drawn[len(several) :]
        values = np.array([METRICS[MAIN_METRIC].point(table) for table in several], dtype=np.float64)
        if isinstance(shots, int):
            training = draw_variance(values, shots=shots, patients=patients, folds=folds)
        else:
            training = training_variance(training_values(several, aligned.fold_of, names=[MAIN_METRIC])[MAIN_METRIC])
        found[name, shots] = Point(shots, values, mean, training)
    return found


@dataclass(frozen=True)
class Judge:
    """What the intervals of all points have in common; `floor` is the best method that is not trained."""

    few: FewShot
    aligned: Aligned
    floor: Point | None

    def point(self, point: Point, row: Mapping[str, Any] | None) -> dict[str, Any]:
        """A point with its interval, and its lead over the floor; `row` is the method's entry in the report."""
        if point.shots == "all" and row is not None:
            ends = {key: row["metrics"][MAIN_METRIC][key] for key in ("value", "low", "high")}
        else:
            drawn = [] if point.drawn is None else [point.drawn]
            clusters = mean_clusters(self.aligned.target, self.aligned.groups)
            ends = mean_estimate(point.values.tolist(), drawn, clusters=clusters, training=point.training).as_json()
        lead = None if self.floor is None else self.difference(self.floor, point, [point.training])
        counts = point.training is not None
        return {"shots": point.shots, **ends, "trainings": point.values, "counts_training": counts, "lead": lead}

    def gain(self, a: Point, b: Point) -> dict[str, Any]:
        """From one point to the next."""
        training = [a.training, b.training]
        if isinstance(b.shots, int):  # the same draws, in the same order
            patients, folds = list(self.few.patients.values()), int(self.aligned.fold_of.max()) + 1
            training = [draw_variance(b.values - a.values, shots=b.shots, patients=patients, folds=folds)]
        return {"from": a.shots, "to": b.shots, **self.difference(a, b, training)}

    def difference(self, a: Point, b: Point, training: Sequence[Variance | None]) -> dict[str, float | None]:
        """b - a with its 95 % interval, by Student's t as in `compare.compare`."""
        value = float(b.values.mean() - a.values.mean())
        if a.drawn is None or b.drawn is None:
            return {"difference": value, "low": None, "high": None}
        sampling = bootstrap_variance(b.drawn - a.drawn, self.aligned.group_count)
        variance = total(sampling, [one for one in training if one])
        reach = t_quantile(variance.df) * math.sqrt(variance.value)
        return {"difference": value, "low": max(-1.0, value - reach), "high": min(1.0, value + reach)}


def learning_reading(report: Mapping[str, Any]) -> list[str]:
    """A sentence for the top of the report: of the best method that has a curve."""
    curve = report.get("learning_curve")
    if not curve:
        return []
    known = [method for method in curve["methods"] if method["points"]]
    order = {m["name"]: m["metrics"][MAIN_METRIC]["value"] for m in report["methods"]}
    best = max(known, key=lambda m: order.get(m["name"], -1.0), default=None)
    return [] if best is None else [f"Learning curve: {_of_method(curve, best)}"]


def learning_notes(curve: Mapping[str, Any]) -> list[str]:
    """What the curves answer, a paragraph for each method, and what limits them."""
    notes = [_of_method(curve, method) for method in curve["methods"] if method["points"]]
    once = [m["name"] for m in curve["methods"] if m["points"] and not m["points"][-1]["counts_training"]]
    if once:
        notes.append(f"All labels were trained on once by {listed(once)}: that interval counts the test images alone.")
    if curve["failed"]:
        rows = [f"{row['name']} with {row['shots']} ({row['error']})" for row in curve["failed"]]
        notes.append(f"Failed, and so not drawn: {listed(rows)}.")
    return notes


def shots_columns(curve: Mapping[str, Any]) -> list[Shots]:
    """The numbers of shots that any method has a point of, ascending, and `all` where one has."""
    found: set[Shots] = {point["shots"] for method in curve["methods"] for point in method["points"]}
    return [*sorted(shots for shots in found if isinstance(shots, int)), *(found & {"all"})]


def labels_text(curve: Mapping[str, Any]) -> str:
    """`36 to 39`: of the classes, how many labelled patients all are."""
    fewest, most = min(curve["labelled"].values()), max(curve["labelled"].values())
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _of_method(curve: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    last, unit = method["points"][-1], curve["unit"]
    labels = f"all labels ({labels_text(curve)} {unit}s of each class)"
    if last["shots"] != "all":
        labels = f"{counted(last['shots'], f'labelled {unit}')} of each class"
    said = f"With {labels}, {method['name']} reaches a macro F1 of {share_interval(last)} %."
    return " ".join([said, *_gains(method["gains"]), *_lead(curve, method["points"])])


def _gains(gains: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether more labels still helped at the end of the curve."""
    if not gains or gains[-1]["low"] is None:
        return []
    last = gains[-1]
    size = f"From {last['from']} to {last['to']} the gain is {points(last['difference'])} points{between(last, points)}"
    if last["low"] > 0:
        return [f"{size}: more labels still help."]
    said = [f"{size}: it may be chance."]
    if shown := [gain for gain in gains if gain["low"] > 0]:
        earlier = shown[-1]
        said.append(f"The last step with a gain that is more than chance is from {earlier['from']} to {earlier['to']}.")
    return said


def _lead(curve: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """From how many labels on the method beats the best one that needs none."""
    leads = [point["lead"] for point in found]
    if not curve["floor"] or any(lead is None or lead["low"] is None for lead in leads):
        return []
    row = next(one for one in curve["untrained"] if one["name"] == curve["floor"])
    floor = f"{row['name']}, which needs no labels ({share(row['value'])} %)"
    first = len(found)
    while first and leads[first - 1]["low"] > 0:
        first -= 1
    if first == len(found):
        return [f"It cannot be shown to beat {floor}."]
    shots = found[first]["shots"]
    where = "with all labels" if shots == "all" else f"from {counted(shots, curve['unit'])} of each class on"
    return [f"It beats {floor}, {where}."]
