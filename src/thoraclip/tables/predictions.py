"""Predictions: one row per image, the true label and one score per class; ours or anyone's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from thoraclip.delimited import NO_CLASS, NO_VALUE, UNKNOWN, number, read_delimited
from thoraclip.dtypes import Floats, Ints
from thoraclip.errors import InputError, ManifestError, first_line, named
from thoraclip.labels import LabelSet
from thoraclip.ranges import require_path
from thoraclip.runs import atomic_open, fold_file
from thoraclip.spelling import loose, split_name, tidy
from thoraclip.spreadsheets import MARK, protect
from thoraclip.tables.foreign import as_type
from thoraclip.tables.store import open_table, require_rows, require_table, write_table

__all__ = ["VALIDATION", "Predictions", "read_predictions", "read_validation", "write_predictions"]

VALIDATION = "validation.parquet"
"""Name in a run folder of the scores of the validation images; of a held-out fold see `runs.fold_file`."""

_SCHEMA = 1
_SCORE = "score_"
_TEXTS = ("image_id", "label", "split", "fold", "patient")
_SUM_TOLERANCE = 1e-3  # scores written with four decimals pass, a missing class does not


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
    target: Ints
    scores: Floats
    split: tuple[str | None, ...]
    fold: tuple[int | None, ...]
    patient: tuple[str | None, ...]

    def __post_init__(self) -> None:
        require_rows("predictions", self, ("target", "scores", "split", "fold", "patient"))
        shape = (len(self), len(self.labels))
        if self.scores.shape != shape:
            raise ManifestError(f"predictions: scores of shape {self.scores.shape}, expected {shape}")
        remedy = "; give a number for every class"
        self._refuse_scores(~np.isfinite(self.scores).all(axis=1), "a score is missing or not finite", remedy)
        self._refuse_scores((self.scores < 0).any(axis=1), "a score is negative", "; scores are probabilities")
        sums = self.scores.sum(axis=1)
        wrong = np.abs(sums - 1) > _SUM_TOLERANCE
        remedy = "; give probabilities (apply a softmax to logits) and every class"
        self._refuse_scores(wrong, f"scores sum to {next(iter(sums[wrong]), 1):.4g}, not 1", remedy)

    def _refuse_scores(self, wrong: Any, problem: str, remedy: str) -> None:
        if wrong.any():
            image = self.image_id[int(np.argmax(wrong))]
            raise ManifestError(f"image '{image}': {problem} ({int(wrong.sum())} such rows){remedy}")

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: Ints) -> Predictions:
        """The given rows, in the given order, as a new table."""
        columns = ("image_id", "split", "fold", "patient")
        lists: dict[str, Any] = {name: tuple(getattr(self, name)[row] for row in rows) for name in columns}
        return replace(self, target=self.target[rows], scores=self.scores[rows], **lists)

    def judged(self) -> Predictions:
        """The labelled rows of split `test`, or all where no row names a split; ManifestError where there is none."""
        has_split = any(split is not None for split in self.split)
        in_test = np.array([s == "test" or not has_split for s in self.split], dtype=bool)
        rows = np.flatnonzero(in_test & (self.target >= 0))
        if not len(rows):
            remedy = "add labels, or leave the split column out"
            raise ManifestError(f"predictions: no labelled row in split 'test'; {remedy}")
        return self.take(rows)

    def with_patients(self, patients: Mapping[str, str | None]) -> Predictions:
        """Unknown patients filled in from image id -> patient; a known one is kept."""
        filled = [p if p is not None else patients.get(i) for p, i in zip(self.patient, self.image_id, strict=True)]
        return replace(self, patient=tuple(filled))

    def groups(self, seen: dict[str, int] | None = None) -> Ints:
        """i64[N]: the patient's number; an image of an unknown patient is a group of its own.

        Tables that are given the same `seen` number the same patients alike.
        """
        seen = {} if seen is None else seen
        keys = [f"p:{p}" if p is not None else f"i:{i}" for p, i in zip(self.patient, self.image_id, strict=True)]
        return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def write_predictions(path: Path | str, predictions: Predictions, *, spreadsheet_safe: bool = False) -> None:
    """Write Parquet (or CSV, by the file's ending): image_id, split, fold, label, score_<class>..., patient; with
    `spreadsheet_safe`, of CSV alone, without text that a spreadsheet runs (`thoraclip.spreadsheets`)."""
    path = Path(path)
    if spreadsheet_safe and path.suffix != ".csv":
        raise InputError(f"{path}: spreadsheet_safe is for CSV; leave it out, or end the name in .csv")
    names = predictions.labels.names
    table = pa.table(
        {
            "image_id": pa.array(predictions.image_id, pa.string()),
            "split": pa.array(predictions.split, pa.string()),
            "fold": pa.array(predictions.fold, pa.int32()),
            "label": pa.array([names[t] if t >= 0 else None for t in predictions.target], pa.string()),
            **{_SCORE + name: predictions.scores[:, column] for column, name in enumerate(names)},
            "patient": pa.array(predictions.patient, pa.string()),
        }
    )
    if spreadsheet_safe:
        table = _texts(table, protect).append_column(MARK, [["true"] * len(predictions)])
    if path.suffix == ".csv":
        with atomic_open(path) as stream:
            pacsv.write_csv(table, stream)
    else:
        write_table(path, table, kind="predictions", schema=_SCHEMA)


def _texts(table: pa.Table, change: Callable[[str], str]) -> pa.Table:
    """A table whose texts and names of columns are changed."""
    columns = [
        pa.array([None if text is None else change(text) for text in column.to_pylist()], pa.string())
        if pa.types.is_string(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, names=list(map(change, table.column_names)))


def read_predictions(path: Path | str) -> Predictions:
    """Read `.parquet` or `.csv`, ours or anyone's.

    Needed columns: `image_id`, `label`, and `score_<class>` for every class; `split`, `fold` and `patient` are
    optional. With a column `spreadsheet_safe` the apostrophes of `thoraclip.spreadsheets` are taken away.

    Raises:
        InputError: the file is missing, or neither Parquet nor CSV, or the folder of a run that has not ended.
        ManifestError: a column or class is missing, or a score is out of range; see `Predictions`.
    """
    path = Path(path)
    require_path("predictions", path)
    if path.is_dir():
        is_run = (path / "provenance.json").is_file() and not (path / "runs").is_dir()  # as a study has
        if is_run and not (path / "done.json").is_file():
            raise InputError(f"{path}: its run has not ended; run the same command again, or name the file itself")
        path = path / "predictions.parquet"
    require_table(path, "predictions", ", or a run folder")
    try:
        if path.suffix == ".csv":
            return _from_table(_read_csv(path))
        return _from_table(open_table(path, kind="predictions", newest_schema=_SCHEMA, foreign=True).read())
    except ManifestError as error:
        raise ManifestError(named(path, error)) from error


def _read_csv(path: Path) -> pa.Table:
    """The table of a CSV file, with numbers as f64; `_from_table` checks it."""
    source = read_delimited(path)
    ours = {source.column(name) or name: name for name in _TEXTS}
    columns: dict[str, list[Any]] = {ours.get(name, name): [] for name in source.header}
    classes = {name.removeprefix(_SCORE) for name in source.header if name.startswith(_SCORE)}
    lines: dict[str | None, int] = {}
    for row in source:
        for name, cell in row.cells.items():
            column = ours.get(name, name)
            columns[column].append(
                _score(cell, name, row.where) if name.startswith(_SCORE) else _text(column, cell, classes)
            )
        image_id = columns["image_id"][-1] if "image_id" in columns else None
        if image_id and lines.setdefault(image_id, row.line) != row.line:
            where = f"{path}:{row.line}"
            raise ManifestError(f"{where}: image_id '{image_id}' is repeated from line {lines[image_id]}; keep one row")
    kinds = {name: pa.float64() if name.startswith(_SCORE) else pa.string() for name in columns}
    return pa.table({name: pa.array(cells, kinds[name]) for name, cells in columns.items()})


def _score(cell: str | None, column: str, where: str) -> float:
    """A score as written, NaN where it is not known (which is refused for the image)."""
    if cell is None:
        raise ManifestError(f"{where}: the row ends before column '{column}'; give a number for every class")
    value = number(cell)
    if value is None and cell.lower().lstrip("+-") not in (*UNKNOWN, "inf", "infinity"):
        said = f"column '{column}' holds a value that is not a number, '{cell}'"
        raise ManifestError(f"{where}: {said}; scores lie in [0, 1]")
    return float("nan") if value is None else value


def _text(column: str, cell: str | None, classes: Collection[str]) -> str | None:
    """Tidy where it is a label or an id; an unknown one is null, but for a class of that name."""
    unknown = {"label": NO_CLASS, "image_id": {""}}.get(column, NO_VALUE)
    text = tidy(cell or "")
    return None if text.lower() in unknown and not (column == "label" and text in classes) else text


def _from_table(table: pa.Table) -> Predictions:
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"column '{name}' stands there twice; keep one")
    for needed in ("image_id", "label"):
        if needed not in names:
            raise ManifestError(f"column '{needed}' is missing; found: {', '.join(names)}")
    score_columns = [name for name in names if name.startswith(_SCORE)]
    if len(score_columns) < 2:
        raise ManifestError(f"needs a column {_SCORE}<class> for two classes or more; found: {', '.join(names)}")
    labels = LabelSet(tuple(name.removeprefix(_SCORE) for name in score_columns))
    texts = {name: _values(table, name, pa.string(), "text") for name in _TEXTS if name in names and name != "fold"}
    given = texts["label"]
    missing = sorted({label for label in given if label is not None} - {*labels.names})
    if missing:
        like = next((f"write '{name}' there, or " for name in labels.names if loose(name) == loose(missing[0])), "")
        said = f"class '{missing[0]}' stands in 'label' but has no column '{_SCORE}{missing[0]}'"
        raise ManifestError(f"{said}; {like}add it")
    scores = [_values(table, name, pa.float64(), "numbers in [0, 1]") for name in score_columns]
    n = table.num_rows
    if n == 0:
        raise ManifestError("no rows; a predictions file holds one row per image")
    folds = _values(table, "fold", pa.int32(), "whole numbers") if "fold" in names else [None] * n
    return Predictions(
        labels=labels,
        image_id=tuple(value or "" for value in texts["image_id"]),
        target=np.array([-1 if label is None else labels.index(label) for label in given], dtype=np.int64),
        scores=np.ascontiguousarray(np.array(scores, dtype=np.float64).T),
        split=tuple(split_name(split) or split for split in texts.get("split", [None] * n)),
        fold=tuple(folds),
        patient=tuple(texts.get("patient", [None] * n)),
    )


def _values(table: pa.Table, name: str, kind: pa.DataType, rule: str) -> list[Any]:
    """A column in another type, by values that mean the same; raises ManifestError for a column of others."""
    try:  # as a list: PyArrow's own conversion of nulls loads pandas where it is installed, 0.3 s
        return list(as_type(table[name], kind).to_pylist())
    except (pa.ArrowException, ValueError) as error:
        raise ManifestError(f"column '{name}' holds {table[name].type}, not {rule} ({first_line(error)})") from error


def read_validation(run: Path) -> tuple[Predictions, ...]:
    """The validation scores of a run: one table, or one for each fold in their order; `()` where none are kept."""
    whole, prefix = run / VALIDATION, "validation-fold-"
    if whole.is_file():
        return (read_predictions(whole),)
    names = [file.stem.removeprefix(prefix) for file in run.glob(f"{prefix}*.parquet")]
    folds = sorted(int(name) for name in names if name.isdigit())
    return tuple(read_predictions(run / fold_file(VALIDATION, fold)) for fold in folds)
