"""Adaptation: macro F1 on an external set against how many of its labelled patients joined the training.

A set is cut by patient into a pool, of which labels are drawn, and a test half, on which every point is measured. A
point is the mean over several draws. Its interval counts the test patients, the draws and the pool that they are from
(`trainings.draw_variance`; the study's own training images are the same in all of them, and taken as given) and, with
folds, the study's trainings. Draws are nested, so
gains are paired by draw and by test image. The same classifiers are measured inside, on the study's judged images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats
from thoraclip.errors import MismatchError
from thoraclip.evaluation.align import Aligned, align
from thoraclip.evaluation.entries import mean_clusters, training_values
from thoraclip.evaluation.intervals import bootstrap_variance
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.reading import MAIN_METRIC
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.results import MethodResult
from thoraclip.evaluation.trainings import SEEDS, Variance, draw_variance, total, training_variance
from thoraclip.proportions import share_interval, t_quantile

__all__ = ["Adaptation", "Labels", "Place", "Point", "adaptation_entry"]

Labels = int | str
"""Labelled patients of each class that joined the training, or `all` of the pool; 0: not adapted."""
Run = tuple[str, Labels]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What a study hands to the judge about the classifiers that were adapted to an external set.

    Args:
        outside: (method, labels) -> its tables of the test half, those of one training (a table for each fold) behind
            those of the other; with 0 labels too.
        inside: (method, labels) -> a table of the study's judged images for each training, or its error; without 0.
        draws: trainings behind each number of labels but 0 and all.
        unit: patient, or image where no patient is known.
        patients: class -> patients of the pool.
        images: in the pool.
        shared: images that are in neither half, of patients whose id the study has, too.
        not_adapted: method -> why it was not.
    """

    outside: Mapping[Run, MethodResult]
    inside: Mapping[Run, MethodResult]
    draws: int
    unit: str
    patients: Mapping[str, int]
    images: int
    shared: int = 0
    not_adapted: Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """Macro F1 of one method with so many labels.

    Args:
        values: f64[T], one a training.
        by_fold: f64[T, K], of each training in each fold; K = 1 without folds.
        drawn: f64[R], resamples of the mean; `None` where nothing can be resampled.
    """

    labels: Labels
    values: Floats
    by_fold: Floats
    drawn: Floats | None

    @property
    def is_drawn(self) -> bool:
        """True where its trainings are draws."""
        return isinstance(self.labels, int) and self.labels > 0


@dataclass(frozen=True)
class Place:
    """Where points are measured, and what their intervals count.

    Args:
        aligned: the images.
        patients: of each class in the pool.
        all_folds: True where every image is scored by the trainings of all folds; False where by its own fold's.
    """

    aligned: Aligned
    patients: Sequence[int]
    all_folds: bool

    def points(
        self, tables: Mapping[Run, Sequence[Scored]], *, folds: int, resamples: int, seed: int
    ) -> dict[Run, Point]:
        """The point of each (method, labels); `folds` tables a training where `all_folds`, else one."""
        flat, drawn = [table for several in tables.values() for table in several], list[Floats]()
        if self.aligned.group_count > 1:
            rows = replicate(flat, self.aligned.groups, resamples=resamples, seed=seed, names=[MAIN_METRIC])
            drawn = [row.headline[MAIN_METRIC] for row in rows]
        found = dict[Run, Point]()
        for key, several in tables.items():
            mean, drawn = (np.mean(drawn[: len(several)], axis=0) if drawn else None), drawn[len(several) :]
            values = np.array([METRICS[MAIN_METRIC].point(table) for table in several], dtype=np.float64)
            by_fold = values.reshape(-1, folds if self.all_folds else 1)
            if not self.all_folds and folds > 1:
                by_fold = training_values(several, self.aligned.fold_of, names=[MAIN_METRIC])[MAIN_METRIC]
            values = by_fold.mean(axis=1) if self.all_folds else values
            found[key] = Point(key[1], values, by_fold, mean)
        return found

    def trainings(self, point: Point) -> list[Variance]:
        """What its trainings add to the variance of a point."""
        return [*self._between(point), *self._folds(point.by_fold)]

    def entry(self, point: Point) -> dict[str, Any]:
        """value, low and high."""
        value = float(point.values.mean())
        if point.drawn is None:
            return {"value": value, "low": None, "high": None}
        clusters = mean_clusters(self.aligned.target, self.aligned.groups)
        variance = total(bootstrap_variance(point.drawn, clusters), self.trainings(point))
        low, high = share_interval(min(1.0, value), variance.value, clusters=clusters, df=variance.df)
        return {"value": value, "low": min(low, value), "high": max(high, value)}

    def difference(self, a: Point, b: Point) -> dict[str, float | None]:
        """b - a with its 95 % interval by Student's t, paired by test image, by fold, and by draw where both have
        draws."""
        value = float(b.values.mean() - a.values.mean())
        if a.drawn is None or b.drawn is None:
            return {"difference": value, "low": None, "high": None}
        if a.is_drawn and b.is_drawn:
            between = self._between(replace(b, values=b.values - a.values))
        else:
            between = [*self._between(a), *self._between(b)]
        trainings = [*between, *self._folds((b.by_fold.mean(axis=0) - a.by_fold.mean(axis=0))[None])]
        variance = total(bootstrap_variance(b.drawn - a.drawn, self.aligned.group_count), trainings)
        reach = t_quantile(variance.df) * math.sqrt(variance.value)
        return {"difference": value, "low": max(-1.0, value - reach), "high": min(1.0, value + reach)}

    def _between(self, point: Point) -> list[Variance]:
        """Of draws, or of seeds; folds hold the seeds already."""
        if point.is_drawn:
            assert isinstance(point.labels, int)
            more = [count for count in self.patients if count > point.labels]  # the others give all that they have
            found = draw_variance(point.values, shots=point.labels, patients=more) if more else None
        else:
            found = training_variance(point.values[:, None]) if point.by_fold.shape[1] == 1 else None
        return [found] if found else []

    def _folds(self, by_fold: Floats) -> list[Variance]:
        found = training_variance(by_fold) if by_fold.shape[1] > 1 else None
        if found is None:
            return []
        return [replace(found, source=SEEDS) if self.all_folds else found]  # there all of it is the trainings'


def adaptation_entry(made: Adaptation, study: Aligned, *, resamples: int, seed: int) -> dict[str, Any]:
    """The entry `adaptation` of an external set in a report.

    Args:
        made: at least one method that is scored with 0 labels.
        study: the judged images of the study, and every method's scores.
        resamples, seed: of the report; outside it is the next seed, as for the set itself.

    Raises:
        MismatchError: an adapted classifier was scored inside on other images than the methods of the study.
    """
    names = {name: run.kind for (name, _), run in made.outside.items()}
    done = {key: run for key, run in made.outside.items() if run.predictions and (not key[1] or made.inside[key])}
    there = align(list(done.values()))
    folds = max(1, len(study.folds))
    outside = Place(there, list(made.patients.values()), all_folds=True)
    tables: dict[Run, Sequence[Scored]] = {key: there.scored[run.name] for key, run in done.items()}
    found = outside.points(tables, folds=folds, resamples=resamples, seed=seed + 1)
    inside = Place(study, list(made.patients.values()), all_folds=False)
    tables = {(name, 0): study.scored[name] for name in names}
    if kept := {key: run for key, run in made.inside.items() if key in done}:
        here = align(list(kept.values()))
        if here.image_id != study.image_id:
            raise MismatchError("adapted classifiers were scored on other images than the methods; run the study again")
        tables |= {key: here.scored[run.name] for key, run in kept.items()}
    home = inside.points(tables, folds=folds, resamples=resamples, seed=seed)
    methods = []
    for name, kind in names.items():
        curve = [found[key] for key in done if key[0] == name]
        points = [_point(outside, inside, point, found[name, 0], home, name) for point in curve]
        gains = [{"from": a.labels, "to": b.labels, **outside.difference(a, b)} for a, b in pairwise(curve)]
        methods.append({"name": name, "kind": kind, "points": points, "gains": gains})
    failed = [(key, run.failed) for key, run in made.outside.items() if run.failed]
    return {
        "metric": MAIN_METRIC,
        "draws": made.draws,
        "unit": made.unit,
        "patients": dict(made.patients),
        "pool_images": made.images,
        "test": {"n": len(there.image_id), "unit": there.unit, "groups": there.group_count},
        "shared": made.shared,
        "methods": methods,
        "not_adapted": [{"name": name, "reason": reason} for name, reason in made.not_adapted.items()],
        "failed": [{"name": name, "labels": labels, "error": error} for (name, labels), error in failed],
    }


def _point(
    outside: Place, inside: Place, point: Point, plain: Point, home: Mapping[Run, Point], name: str
) -> dict[str, Any]:
    """A point of a report: outside and inside, each with its change against not adapting."""
    own, is_plain = home[name, point.labels], point.labels == 0
    return {
        "labels": point.labels,
        **outside.entry(point),
        "trainings": point.values,
        "counts_training": bool(outside.trainings(point)),
        "change": None if is_plain else outside.difference(plain, point),
        "inside": inside.entry(own) | {"change": None if is_plain else inside.difference(home[name, 0], own)},
    }
