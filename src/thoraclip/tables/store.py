"""Parquet with a schema number, written whole or not at all and always the same bytes for the same table.

Tables of many millions of rows are read, written and filtered a million rows at a time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from thoraclip.documents import parse_json
from thoraclip.errors import InputError, ManifestError, first_line
from thoraclip.ranges import require_path
from thoraclip.runs import atomic_open, canonical_json
from thoraclip.shapes import check, whole
from thoraclip.shapes import table as table_of

__all__ = [
    "StoredTable", "joined", "kept", "open_table", "require_place", "require_rows", "require_table", "slices",
    "write_table",
]  # fmt: skip

_KEY = b"thoraclip"
_ROWS = 1 << 20  # that are worked on at once, and of a row group of a file


def require_place(path: Path, kind: str) -> None:
    """Raise InputError unless the name ends in `.parquet`, and ManifestError unless what is there is a table of this
    kind too, or empty, as after a power cut."""
    if path.suffix != ".parquet":
        what = "a manifest is" if kind == "manifest" else f"{kind} are"
        raise InputError(f"{path}: {what} a Parquet file; name it {path.stem or kind}.parquet")
    if path.is_file() and path.stat().st_size:
        open_table(path, kind=kind, newest_schema=sys.maxsize)


def require_table(path: Path, kind: str, also: str = "") -> None:
    """Raise InputError unless a file is there whose name ends in `.parquet` or `.csv`; `also`: what else may be."""
    if not path.is_file():
        raise InputError(f"{path}: no such {kind} file; name an existing one (.parquet or .csv){also}")
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{path}: {kind} end in .parquet or .csv; rename or convert the file")


def require_rows(kind: str, table: Any, columns: Sequence[str]) -> None:
    """Raise ManifestError unless `table.image_id` is known and unique, and each column has a value for each image."""
    ids = table.image_id
    for name in columns:
        given = len(getattr(table, name))
        if given != len(ids):
            raise ManifestError(f"{kind}: {given} values of '{name}' for {len(ids)} images; give one each")
    for row, image_id in enumerate(ids, start=1):
        if not image_id:
            raise ManifestError(f"{kind}: row {row} has no image_id; give each image one")
    twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ManifestError(f"{kind}: image_id '{twice[0]}' is repeated ({len(twice)} such ids); one row per image")


def write_table(
    path: Path, table: pa.Table, *, kind: str, schema: int, meta: Mapping[str, object] | None = None
) -> None:
    """Write `table` as Parquet with its kind, schema number and metadata in the file's header."""
    header = {"kind": kind, "schema": schema, "meta": dict(meta or {})}
    table = table.replace_schema_metadata({_KEY: canonical_json(header).encode()})
    with atomic_open(path) as stream, pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        for rows in slices(table):
            writer.write_table(rows.combine_chunks())  # pages end where chunks do: equal tables are to be equal bytes


def slices(table: pa.Table) -> Iterable[pa.Table]:
    """The table, a million rows at a time; an empty one as it is."""
    return (table.slice(start, _ROWS) for start in range(0, max(1, len(table)), _ROWS))


def joined(parts: Iterable[pa.Table]) -> pa.Table:
    """One table of several; columns of equal content (path and id, unknown masks) share their memory."""
    tables = []
    for part in parts:
        columns: list[pa.ChunkedArray] = []
        for column in part.columns:
            columns.append(next((c for c in columns if c.type == column.type and c.equals(column)), column))
        tables.append(pa.Table.from_arrays(columns, schema=part.schema))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class StoredTable:
    """A table in a file, whose rows are read when they are needed."""

    path: Path
    schema: pa.Schema
    rows: int  # their number
    meta: Mapping[str, Any]  # what the header holds beside kind and schema number
    is_foreign: bool = False  # written by another program, without our header

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """A million rows at a time, of all columns or some; raises ManifestError where the file cannot be read."""
        with _reading(self.path), pq.ParquetFile(self.path, pre_buffer=False) as file:  # a buffer is the whole file
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=columns).replace_schema_metadata(None)
            if not file.num_row_groups:
                yield file.read(columns=columns).replace_schema_metadata(None)

    def read(self, *, keep: pa.ChunkedArray | None = None) -> pa.Table:
        """The whole table, or the rows at which `keep`, bool[rows], is true; raises as `parts` does."""
        return joined(self.parts() if keep is None else kept(self.parts(), keep))


def kept(parts: Iterable[pa.Table], keep: pa.ChunkedArray) -> Iterator[pa.Table]:
    """Of the parts of a table the rows at which `keep` is true."""
    start = 0
    for part in parts:
        yield part.filter(keep.slice(start, len(part)))
        start += len(part)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error


def open_table(path: Path, *, kind: str, newest_schema: int, foreign: bool = False) -> StoredTable:
    """Read the header of a table of one kind; `foreign`, or of one without our header, whose columns the caller checks.

    Raises:
        InputError: the file is missing.
        ManifestError: not Parquet, another kind of table, or written by a newer version.
    """
    require_path(kind, path)
    if not path.is_file():
        raise InputError(f"{path}: no such {kind} file; name an existing one (.parquet)")
    with _reading(path), pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise pa.ArrowInvalid(f"column '{twice[0]}' stands there twice")
    written: dict[str, Any] = {"error": ManifestError, "remedy": "write it again"}
    header = parse_json((schema.metadata or {}).get(_KEY, b"{}"), path, **written)
    check(header, table_of(), path, **written)
    if foreign and not header:
        return StoredTable(path, schema, rows, {}, is_foreign=True)
    if header.get("kind") != kind:
        found = header.get("kind") or "a table that this package did not write"
        raise ManifestError(f"{path}: holds {found}, not {kind}; name a file of {kind}")
    check(header, table_of(schema=whole(1), meta=table_of()), path, **written)
    if header["schema"] > newest_schema:
        raise ManifestError(f"{path}: schema {header['schema']} is newer than {newest_schema}; upgrade thoraclip")
    return StoredTable(path, schema, rows, dict(header["meta"]))
