"""Put the predictions of all methods on the same images in the same order, joined by id, or refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import ConfigError, ManifestError, MismatchError
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.tables.predictions import Predictions

__all__ = ["Aligned", "align", "in_order"]


@dataclass(frozen=True)
class Aligned:
    """The images that count, sorted by id, and every method's scores on them.

    Args:
        labels: classes in the order of the first method's score columns.
        image_id: N ids, sorted.
        target: i64[N] in [0, C).
        groups: i64[N] in [0, G), the resampling unit; numbered by first appearance.
        unit: `patient` where at least one patient is known, else `image`.
        scored: method -> one table per seed, f64[N, C] each.
        splits: names of the splits among these images; `()` when none is named.
        fold_of: i64[N], the position in `folds` of every image; all 0 where not every image names a fold.
        folds: numbers of the folds among them.
        dropped: rows of the first table that do not count: `unlabelled`, and `other_splits`.
    """

    labels: LabelSet
    image_id: tuple[str, ...]
    target: Ints
    groups: Ints
    unit: str
    scored: Mapping[str, tuple[Scored, ...]]
    splits: tuple[str, ...]
    fold_of: Ints
    folds: tuple[int, ...]
    dropped: Mapping[str, int]

    @property
    def lacking(self) -> dict[str, list[str]]:
        """Fold -> classes that have images, but none in it."""
        found: dict[str, list[str]] = {}
        for place, number in enumerate(self.folds):
            here = set(self.target[self.fold_of == place].tolist())
            classes = [self.labels.names[c] for c in np.unique(self.target).tolist() if c not in here]
            found |= {str(number): classes} if classes and len(self.folds) == int(self.fold_of.max()) + 1 else {}
        return found

    @property
    def group_count(self) -> int:
        """G."""
        return int(self.groups.max()) + 1


def align(methods: Sequence[MethodResult]) -> Aligned:
    """Join the labelled test rows (`Predictions.judged`) of every method that did not fail.

    Raises:
        ConfigError: two methods share a name.
        ManifestError: a method has no labelled row, or its rows leave the classes of the first.
        MismatchError: classes, image ids, true labels or patients differ between two tables.
    """
    names = [method.name for method in methods]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two methods are called '{repeated[0]}'; give every method its own name")
    tables = {m.name: _judged(m) for m in methods if m.predictions}
    (first_name, (first, *_)) = next(iter(tables.items()))
    first = in_order(first, first.labels, sorted(first.image_id))
    scored: dict[str, tuple[Scored, ...]] = {}
    patients: list[str | None] = list(first.patient)
    for name, seeds in tables.items():
        joined = [_joined(name, table, first_name, first) for table in seeds]
        scored[name] = tuple(Scored(first.target, table.scores) for table in joined)
        for table in joined:
            _merge_patients(name, table, patients)
    original = next(m for m in methods if m.name == first_name).predictions[0]
    unlabelled = int((original.target < 0).sum())
    fold_of = np.zeros(len(first)) if None in first.fold else np.unique(np.array(first.fold), return_inverse=True)[1]
    return Aligned(
        labels=first.labels,
        image_id=first.image_id,
        target=first.target,
        groups=replace(first, patient=tuple(patients)).groups(),
        unit="patient" if any(p is not None for p in patients) else "image",
        scored=scored,
        splits=tuple(sorted({s for s in first.split if s is not None})),
        fold_of=fold_of.astype(np.int64),
        folds=tuple(sorted({f for f in first.fold if f is not None})),
        dropped={"unlabelled": unlabelled, "other_splits": len(original) - unlabelled - len(first)},
    )


def _judged(method: MethodResult) -> tuple[Predictions, ...]:
    try:
        return tuple(table.judged() for table in method.predictions)
    except ManifestError as error:
        raise ManifestError(f"method '{method.name}': {error}") from error


def in_order(table: Predictions, labels: LabelSet, ids: Sequence[str]) -> Predictions:
    """The rows of `ids`, in their order, with the score columns in the order of `labels`."""
    row_of = {image_id: row for row, image_id in enumerate(table.image_id)}
    rows = table.take(np.array([row_of[image_id] for image_id in ids], dtype=np.int64))
    columns = [table.labels.index(name) for name in labels.names]
    target = np.argsort(columns)[rows.target]
    return replace(rows, labels=labels, target=target, scores=rows.scores[:, columns])


def _joined(name: str, table: Predictions, first_name: str, first: Predictions) -> Predictions:
    if set(table.labels.names) != set(first.labels.names):
        raise MismatchError(
            f"'{name}' has the classes {sorted(table.labels.names)}, '{first_name}' has {sorted(first.labels.names)}; "
            "compare methods of the same task"
        )
    if differing := sorted(set(table.image_id) ^ set(first.image_id)):
        where = name if differing[0] in table.image_id else first_name
        raise MismatchError(
            f"'{name}' and '{first_name}' are not scored on the same images: {len(differing)} ids differ, "
            f"such as '{differing[0]}' (in '{where}' only); score both on the same images"
        )
    joined = in_order(table, first.labels, first.image_id)
    bad = np.flatnonzero(joined.target != first.target)
    if len(bad):
        row, names = int(bad[0]), first.labels.names
        raise MismatchError(
            f"'{name}' and '{first_name}' disagree on the true class of {len(bad)} images: '{first.image_id[row]}' is "
            f"'{names[joined.target[row]]}' and '{names[first.target[row]]}'; score both on the same manifest"
        )
    return joined


def _merge_patients(name: str, table: Predictions, patients: list[str | None]) -> None:
    """Fill in the patients that an earlier table did not know; refuse a contradiction."""
    for row, (patient, earlier) in enumerate(zip(table.patient, patients, strict=True)):
        if None not in (patient, earlier) and patient != earlier:
            raise MismatchError(
                f"image '{table.image_id[row]}' is of patient '{patient}' in '{name}' and of '{earlier}' in an "
                "earlier table; score all methods on the same manifest"
            )
        patients[row] = earlier if patient is None else patient
