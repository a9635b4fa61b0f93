"""Parquet with a schema number, written whole or not at all and always the same bytes for the same table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from thoraclip.errors import InputError, ManifestError, first_line
from thoraclip.runs import atomic_open, canonical_json

__all__ = ["read_table", "require_parquet", "write_table"]

_KEY = b"thoraclip"


def require_parquet(path: Path, what: str) -> None:
    """Raise InputError unless a table may bear this name: nothing but Parquet is overwritten with one.

    Args:
        path: the file.
        what: subject and verb of the message, such as "a manifest is".
    """
    if path.suffix != ".parquet":
        raise InputError(f"{path}: {what} a Parquet file; name it {path.with_suffix('.parquet').name}")


def write_table(
    path: Path, table: pa.Table, *, kind: str, schema: int, meta: Mapping[str, object] | None = None
) -> None:
    """Write `table` as Parquet with its kind, schema number and metadata in the file's header."""
    header = {"kind": kind, "schema": schema, "meta": dict(meta or {})}
    table = table.replace_schema_metadata({_KEY: canonical_json(header).encode()})
    with atomic_open(path) as stream:
        pq.write_table(table, stream, compression="zstd", store_schema=True)


def read_table(
    path: Path, *, kind: str, newest_schema: int, foreign: bool = False
) -> tuple[pa.Table, dict[str, object]]:
    """Read a table of one kind; returns the table and its metadata.

    Args:
        path: the file.
        kind: what it must hold.
        newest_schema: the newest that this version reads.
        foreign: also take a table without our header, whose columns the caller checks.

    Raises:
        InputError: the file is missing.
        ManifestError: not Parquet, another kind of table, or written by a newer version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such {kind} file; name an existing one (.parquet)")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error
    header = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    if foreign and not header:
        return table.replace_schema_metadata(None), {}
    if header.get("kind") != kind:
        found = header.get("kind") or "a table that this package did not write"
        raise ManifestError(f"{path}: holds {found}, not {kind}; name a file of {kind}")
    if int(header["schema"]) > newest_schema:
        raise ManifestError(
            f"{path}: schema {header['schema']} is newer than {newest_schema}, the newest this version reads; "
            "upgrade thoraclip"
        )
    return table.replace_schema_metadata(None), dict(header["meta"])
