"""The columns of every manifest, and the digest over those that a result depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from thoraclip.tables.codes import columns_digest

__all__ = ["COLUMNS", "IDENTITY", "OPTIONAL", "SCHEMA", "SPLITS", "depths_of", "table_digest"]

SCHEMA = 1
SPLITS = ("train", "val", "test")
COLUMNS: Mapping[str, pa.DataType] = {
    "image_id": pa.string(),
    "path": pa.string(),
    "sha256": pa.string(),
    "phash": pa.string(),
    "label": pa.string(),
    "split": pa.string(),
    "fold": pa.int32(),
    "patient": pa.string(),
    "source": pa.string(),
    "view": pa.string(),
    "sex": pa.string(),
    "age_years": pa.float32(),
    "lung_mask": pa.string(),
    "infection_mask": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mode": pa.string(),
    "format": pa.string(),
}
"""The columns of every manifest and their types; paths are relative to the manifest's root. Extra columns are kept."""
OPTIONAL: Mapping[str, pa.DataType] = {"bits": pa.int32(), "image_remarks": pa.string()}
"""Columns that stand behind those where an image has a value: depth by which samples of 16 bits are scaled; what was
remarked on the file when it was decoded, sentences joined by `; `."""
IDENTITY = ("image_id", "sha256", "label", "split", "fold", "patient")
"""Everything that a result can depend on, but for the depths."""


def depths_of(table: pa.Table) -> list[int | None]:
    """`Manifest.bits` of any table; manifests of earlier versions have no such column, or one with text of a CSV."""
    if "bits" not in table.column_names or not pa.types.is_integer(table["bits"].type):
        return [None] * len(table)
    return [bits or None for bits in table["bits"].to_pylist()]


def table_digest(table: pa.Table, names: Sequence[str] = IDENTITY) -> str:
    """SHA-256 over some columns, and over the depths where any image has one."""
    return columns_digest(table[name] for name in (*names, *(["bits"] if any(depths_of(table)) else [])))
