"""Predictions: one row per image, the true label and one score per class; ours or anyone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from thoraclip.errors import InputError, ManifestError, first_line
from thoraclip.labels import LabelSet
from thoraclip.runs import atomic_open
from thoraclip.tables.store import read_table, write_table

__all__ = ["Predictions", "read_predictions", "write_predictions"]

_SCHEMA = 1
_SCORE = "score_"
_SUM_TOLERANCE = 1e-3
"""Scores written with four decimals must pass; a missing class must not."""


@dataclass(frozen=True)
class Predictions:
    """Scores of one method on one set of images.

    Args:
        labels: the classes, in the order of the score columns.
        image_id: N unique ids.
        target: i64[N], index of the true class; -1 where it is unknown.
        scores: f64[N, C], in [0, 1], each row sums to 1.
        split: N names or `None`.
        fold: N numbers or `None`.
        patient: N ids or `None` (an unknown patient is its own group).

    Raises:
        ManifestError: a length differs, an id repeats, a score is not finite or negative, or a row does not sum to 1.
    """

    labels: LabelSet
    image_id: tuple[str, ...]
    target: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    split: tuple[str | None, ...]
    fold: tuple[int | None, ...]
    patient: tuple[str | None, ...]

    def __post_init__(self) -> None:
        n = len(self.image_id)
        for name in ("target", "scores", "split", "fold", "patient"):
            if len(getattr(self, name)) != n:
                raise ManifestError(
                    f"predictions: {len(getattr(self, name))} values of '{name}' for {n} images; give one each"
                )
        if self.scores.shape != (n, len(self.labels)):
            raise ManifestError(f"predictions: scores of shape {self.scores.shape}, expected {(n, len(self.labels))}")
        _check_ids(self.image_id)
        _check_scores(self.scores, self.image_id)

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: npt.NDArray[np.int64]) -> Predictions:
        """The given rows, in the given order, as a new table."""

        def pick(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in rows)

        return Predictions(
            self.labels,
            pick(self.image_id),
            self.target[rows],
            self.scores[rows],
            pick(self.split),
            pick(self.fold),
            pick(self.patient),
        )

    def judged(self) -> Predictions:
        """The rows a report counts: the labelled ones of split `test`; where no row names a split, all labelled ones.

        Raises:
            ManifestError: no such row.
        """
        known = self.target >= 0
        named = any(split is not None for split in self.split)
        in_test = np.array([not named or split == "test" for split in self.split], dtype=bool)
        rows = np.flatnonzero(known & in_test)
        if not len(rows):
            raise ManifestError(
                "predictions: no labelled row in split 'test'; add labels, or leave the split column out"
            )
        return self.take(rows)

    def with_patients(self, patients: Mapping[str, str | None]) -> Predictions:
        """Unknown patients filled in from image id -> patient; a known one is kept."""
        filled = [p if p is not None else patients.get(i) for p, i in zip(self.patient, self.image_id, strict=True)]
        return replace(self, patient=tuple(filled))

    def groups(self) -> npt.NDArray[np.int64]:
        """i64[N]: the patient's number; an image of an unknown patient is a group of its own."""
        seen: dict[str, int] = {}
        keys = [f"p:{p}" if p is not None else f"i:{i}" for p, i in zip(self.patient, self.image_id, strict=True)]
        return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write Parquet (or CSV, by the file's ending): image_id, split, fold, label, score_<class>..., patient."""
    columns: dict[str, pa.Array] = {
        "image_id": pa.array(predictions.image_id, pa.string()),
        "split": pa.array(predictions.split, pa.string()),
        "fold": pa.array(predictions.fold, pa.int32()),
        "label": pa.array([predictions.labels.names[t] if t >= 0 else None for t in predictions.target], pa.string()),
    }
    for column, name in enumerate(predictions.labels.names):
        columns[_SCORE + name] = pa.array(predictions.scores[:, column], pa.float64())
    columns["patient"] = pa.array(predictions.patient, pa.string())
    table = pa.table(columns)
    if path.suffix == ".csv":
        with atomic_open(path) as stream:
            pacsv.write_csv(table, stream)
    else:
        write_table(path, table, kind="predictions", schema=_SCHEMA)


def read_predictions(path: Path) -> Predictions:
    """Read `.parquet` or `.csv`, ours or anyone's.

    Needed columns: `image_id`, `label`, and `score_<class>` for every class; `split`, `fold` and `patient` are
    optional.

    Raises:
        InputError: the file is missing, or neither Parquet nor CSV.
        ManifestError: a column or class is missing, or a score is out of range; see `Predictions`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "predictions.parquet"
    if path.suffix == ".csv":
        table = _read_csv(path)
    elif path.suffix == ".parquet":
        table, _ = read_table(path, kind="predictions", newest_schema=_SCHEMA, foreign=True)
    else:
        raise InputError(f"{path}: predictions end in .parquet or .csv; rename or convert the file")
    try:
        return _from_table(table)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error


def _read_csv(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: no such predictions file; name an existing one (.parquet or .csv)")
    as_text = {name: pa.string() for name in ("image_id", "split", "label", "patient")}
    options = pacsv.ConvertOptions(column_types=as_text, strings_can_be_null=True, quoted_strings_can_be_null=True)
    try:
        return pacsv.read_csv(path, convert_options=options)
    except pa.ArrowException as error:
        raise ManifestError(f"{path}: not a readable CSV file ({first_line(error)}); mend the file") from error


def _from_table(table: pa.Table) -> Predictions:
    names = table.column_names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f"column '{twice}' stands there twice; keep one")
    for needed in ("image_id", "label"):
        if needed not in names:
            raise ManifestError(f"column '{needed}' is missing; found: {', '.join(names)}")
    score_columns = [name for name in names if name.startswith(_SCORE)]
    if len(score_columns) < 2:
        raise ManifestError(
            f"needs a column {_SCORE}<class> for each of two classes or more; found: {', '.join(names)}"
        )
    labels = LabelSet(tuple(name.removeprefix(_SCORE) for name in score_columns))
    given = table["label"].to_pylist()
    missing = sorted({label for label in given if label is not None and label not in labels.names})
    if missing:
        raise ManifestError(
            f"class '{missing[0]}' stands in 'label' but has no column '{_SCORE}{missing[0]}'; add its scores"
        )
    n = table.num_rows
    if n == 0:
        raise ManifestError("no rows; a predictions file holds one row per image")

    def optional(name: str) -> tuple[Any, ...]:
        return tuple(table[name].to_pylist()) if name in names else (None,) * n

    return Predictions(
        labels=labels,
        image_id=_ids(table["image_id"].to_pylist()),
        target=np.array([-1 if label is None else labels.index(label) for label in given], dtype=np.int64),
        scores=np.stack([_numbers(table, name) for name in score_columns], axis=1),
        split=optional("split"),
        fold=_folds(optional("fold")),
        patient=optional("patient"),
    )


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    try:
        # as a list: PyArrow's own conversion of nulls loads pandas where it is installed, 0.3 s
        return np.array(table[name].cast(pa.float64()).to_pylist(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ManifestError(
            f"column '{name}' holds a value that is not a number; scores are numbers in [0, 1]"
        ) from error


def _ids(values: Sequence[Any]) -> tuple[str, ...]:
    if None in values:
        raise ManifestError(f"row {values.index(None) + 1} has no image_id; give each image one")
    return tuple(str(value) for value in values)


def _folds(values: tuple[Any, ...]) -> tuple[int | None, ...]:
    for value in values:
        if value is not None and (not isinstance(value, int | float) or value != value // 1):
            raise ManifestError(f"column 'fold' holds '{value}'; folds are whole numbers")
    return tuple(None if value is None else int(value) for value in values)


def _check_ids(ids: tuple[str, ...]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    repeated = sorted({i for i in ids if i in seen or seen.add(i)})  # type: ignore[func-returns-value]
    raise ManifestError(
        f"image_id '{repeated[0]}' stands in more than one row ({len(repeated)} such ids); one row per image"
    )


def _check_scores(scores: npt.NDArray[np.float64], ids: tuple[str, ...]) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        raise ManifestError(
            f"image '{ids[int(np.argmax(bad))]}': a score is missing or not finite ({int(bad.sum())} such rows)"
        )
    bad = (scores < 0).any(axis=1)
    if bad.any():
        raise ManifestError(
            f"image '{ids[int(np.argmax(bad))]}': a score is negative ({int(bad.sum())} such rows); scores are "
            "probabilities"
        )
    sums = scores.sum(axis=1)
    bad = np.abs(sums - 1) > _SUM_TOLERANCE
    if bad.any():
        row = int(np.argmax(bad))
        raise ManifestError(
            f"image '{ids[row]}': scores sum to {sums[row]:.4g}, not 1 ({int(bad.sum())} such rows); "
            "give probabilities (apply a softmax to logits) and every class"
        )
