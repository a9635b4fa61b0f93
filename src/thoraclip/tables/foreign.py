"""Tables with our columns whose types are another writer's: pandas' categories and floats, Polars' large strings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.delimited import NO_VALUE, UNKNOWN, number
from thoraclip.errors import ManifestError, first_line
from thoraclip.spelling import tidy, tidy_note
from thoraclip.tables.columns import COLUMNS, IDENTITY, SCHEMA, table_digest
from thoraclip.tables.store import StoredTable, open_table

__all__ = ["as_type", "open_manifest", "read_fingerprint", "tidied"]

_EXACT = 2.0**53  # larger floats are not whole numbers that anybody wrote
_UNTIDY = r"[^!-~ ]|^ | $|  "  # no other text is changed by `tidy`
_ELSE = {"image_id": "path"}
_NAMES, _PATHS = ("label", "patient"), ("image_id", "path")


@dataclass(frozen=True)
class ForeignTable(StoredTable):
    """A manifest's rows in our types, with tidy labels and patients.

    A table without our header needs the column `path` alone; without `image_id` that is the path, and texts such as
    `nan` are null.

    Raises:
        ManifestError: a column is missing, or holds what is no value of its type.
    """

    _held: frozenset[str] = frozenset()
    _untidy: dict[str, Counter[str]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        names = self.schema.names
        for name in ("path",) if self.is_foreign else COLUMNS:
            if name not in names:
                said = f"column '{name}' is missing; write the manifest with: thoraclip index"
                raise ManifestError(f"{self.path}: {said}")
        extra = [self.schema.field(name) for name in names if name not in COLUMNS]
        object.__setattr__(self, "schema", pa.schema([*COLUMNS.items(), *extra]))
        object.__setattr__(self, "_held", frozenset(names))

    @property
    def notes(self) -> list[str]:
        """A line for each column that had untidy values in the last pass over all columns."""
        return [tidy_note(f"{self.path}: {name}", counts) for name, counts in sorted(self._untidy.items()) if counts]

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """As `StoredTable.parts`, in our types."""
        names = self.schema.names if columns is None else list(columns)
        sources = {name: name if name in self._held else _ELSE.get(name) for name in names}
        read = sorted({source for source in sources.values() if source is not None}) or ["path"]
        self._untidy.clear()
        for part in super().parts(read):
            yield pa.table({name: self._column(part, name, source) for name, source in sources.items()})

    def _column(self, part: pa.Table, name: str, source: str | None) -> pa.ChunkedArray:
        kind = COLUMNS.get(name)
        if source is None:
            return pa.chunked_array([pa.nulls(len(part), kind)])
        if kind is None:
            return part[source]
        try:
            column = as_type(part[source], kind)
        except (pa.ArrowException, ValueError) as error:
            said = f"column '{name}' is {part[source].type}, expected {kind} ({first_line(error)})"
            raise ManifestError(f"{self.path}: {said}; mend it") from error
        if self.is_foreign and pa.types.is_string(kind) and name not in _PATHS:
            marks = sorted(UNKNOWN if name == "label" else NO_VALUE)
            unknown = pc.is_in(pc.utf8_lower(column), value_set=pa.array(marks))
            column = pc.if_else(unknown, pa.scalar(None, kind), column)
        return tidied(column, self._untidy.setdefault(name, Counter())) if name in _NAMES else column


def open_manifest(path: Path) -> ForeignTable:
    """A manifest file, whoever wrote it; raises InputError or ManifestError where it is none."""
    stored = open_table(path, kind="manifest", newest_schema=SCHEMA, foreign=True)
    return ForeignTable(**vars(stored))


def read_fingerprint(path: Path) -> str:
    """`Manifest.fingerprint` of a file, wherever its images are; raises as `open_manifest` does."""
    stored = open_manifest(path)
    columns = [*IDENTITY, *({"bits"} & set(stored.schema.names))]
    return table_digest(pa.concat_tables(stored.parts(columns)))


def tidied(column: pa.ChunkedArray, counts: Counter[str]) -> pa.ChunkedArray:
    """A column of text with every value tidy (nothing left: null); adds untidy value -> rows to `counts`."""
    distinct = column.unique()
    untidy = distinct.filter(pc.match_substring_regex(distinct, _UNTIDY)).to_pylist()
    new = {value: tidy(value) or None for value in untidy if tidy(value) != value}
    if not new:
        return column
    place = pc.index_in(column, value_set=pa.array(list(new), pa.string()))
    for found in pc.value_counts(place.drop_null()).to_pylist():
        counts[list(new)[found["values"]]] += found["counts"]
    return pc.if_else(place.is_valid(), pa.array(list(new.values()), pa.string()).take(place), column)


def as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as text, i32 or f32, by values that mean the same; NaN is null. Raises ArrowException or ValueError."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_string(kind):
        return _as_text(column)
    if _is_text(column.type):
        return pa.chunked_array(
            [pa.array([_as_number(text) for text in column.cast(pa.string()).to_pylist()], pa.float64())]
        ).cast(kind, safe=pa.types.is_integer(kind))
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return column.cast(kind, safe=pa.types.is_integer(kind))
    raise ValueError("numbers are needed")


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64())
        if pc.any(pc.greater_equal(pc.abs(values), _EXACT)).as_py():
            raise ValueError("numbers with more digits than a float holds")
        column = values.cast(pa.int64())  # raises for a fraction
    if _is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    raise ValueError("text is needed")


def _as_number(text: str | None) -> float | None:
    if text is None or text.strip().lower() in UNKNOWN:
        return None
    value = number(text.strip())
    if value is None:
        raise ValueError(f"'{text}' is no number")
    return value
