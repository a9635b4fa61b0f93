"""A Parquet file that is none of ours is refused in one line, by its header and by the types of its columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thoraclip.errors import InputError, ManifestError, ThoraclipError
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import read_manifest
from thoraclip.tables.predictions import read_predictions
from thoraclip.tables.store import open_table

MANIFEST: dict[str, Any] = {"image_id": ["a", "b"], "path": ["a.png", "b.png"], "label": ["x", "y"]}
PREDICTIONS: dict[str, Any] = {
    "image_id": ["a", "b"],
    "label": ["x", "y"],
    "score_x": [0.5, 0.5],
    "score_y": [0.5, 0.5],
}
COLUMNS = {
    "whole numbers": pa.array([1, 2]), "lists": pa.array([["a"], ["b"]]), "tables": pa.array([{"a": 1}, {"a": 2}]),
    "bytes": pa.array([b"\xff", b"a"]), "nothing": pa.nulls(2), "maps": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
    "codes": pa.array(["a", "b"]).dictionary_encode(), "times": pa.array([1, 2], pa.timestamp("s")),
    "NaN": pa.array([1.5, float("nan")]), "NUL": pa.array(["a\0", "b"]), "lines": pa.array(["a\nb", "b"]),
}  # fmt: skip


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "null",
        '"x"',
        "1",
        "[" * 100_000,
        "NaN",
        "",
        "{",
        '{"kind": "k", "schema": 1}',
        '{"kind": "k", "schema": "1", "meta": {}}',
        '{"kind": "k", "schema": 0, "meta": {}}',
        '{"kind": "k", "schema": 1, "meta": []}',
        '{"kind": ["k"], "schema": 1, "meta": {}}',
        '{"kind": "k", "kind": "k"}',
    ],
    ids=lambda header: header[:40],
)
def test_a_header_that_is_none(header: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(MANIFEST).replace_schema_metadata({b"thoraclip": header.encode()}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: .*; (write it again|name a file of k)$") as caught:
        open_table(tmp_path / "m.parquet", kind="k", newest_schema=1)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("kind", ["manifest", "predictions"])
def test_a_column_of_any_type_is_read_or_refused(kind: str, column: pa.Array, tmp_path: Path) -> None:
    good, read = {"manifest": (MANIFEST, read_manifest), "predictions": (PREDICTIONS, read_predictions)}[kind]
    header = json.dumps({"kind": kind, "schema": 1, "meta": {"labels": ["x", "y"]}})
    for name in good:
        table = pa.table(good | {name: column}).replace_schema_metadata({b"thoraclip": header.encode()})
        pq.write_table(table, tmp_path / "m.parquet")
        try:
            read(tmp_path / "m.parquet")  # type: ignore[operator]
        except ThoraclipError as error:
            assert str(error)


@pytest.mark.parametrize("read", [read_manifest, read_embeddings, read_captions, read_predictions])
@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "", "none"])
def test_a_path_that_cannot_be_is_one_kind_of_error(read: Callable[[str], object], path: str) -> None:
    with pytest.raises(InputError):
        read(path)
