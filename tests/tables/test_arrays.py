"""Folders of arrays hold the same bytes however often the work is killed; columns as integers, against loops."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples, files

from thoraclip.data.batches import PIXELS
from thoraclip.errors import InputError
from thoraclip.tables import arrays
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, is_valid
from thoraclip.tables.codes import codes, conflicting, ranks
from thoraclip.tables.embeddings import EMBEDDINGS
from thoraclip.tables.manifest import Manifest

KIND = ArrayKind(name="things", arrays={"a": ("float32", 2), "b": ("uint8", 1)}, schema=1, remedy="thoraclip things")
ROWS = 7
MANIFEST = Manifest.from_rows([{"image_id": f"i{k}", "sha256": f"{k}"} for k in range(ROWS)], Path())
ARRAYS: dict[str, Any] = {"a": np.arange(3.0 * ROWS).reshape(ROWS, 3), "b": np.arange(ROWS)}


def fill(folder: Path, block: int, *, most: int = ROWS, token: str = "t", finish: bool = True) -> int:
    """Write some blocks and perhaps the end, as a process that may be killed; returns the rows found at the start."""
    writer = ArrayWriter(folder, KIND, total=ROWS, token=token)
    start = writer.rows
    for row in range(start, min(ROWS, start + most), block):
        writer.append({name: values[row : row + block] for name, values in ARRAYS.items()})
    if finish and writer.rows == ROWS:
        found = writer.finish(MANIFEST, facts={"made": "here"}, fingerprint="f")
        assert all((found.arrays[name] == values).all() for name, values in ARRAYS.items()) and found.facts == {
            "made": "here"
        }
    return start


@examples(20)
@given(st.integers(1, 3), st.lists(st.integers(0, 4), max_size=4), st.booleans())
def test_the_same_bytes_however_often_it_is_killed(block: int, kills: list[int], renamed: bool) -> None:
    """Also where it is killed between the renaming of the arrays and the end mark."""
    with tempfile.TemporaryDirectory() as name:
        whole, often = Path(name, "whole"), Path(name, "often")
        fill(whole, block)
        done = 0
        for blocks in kills:
            assert fill(often, block, most=blocks * block, finish=False) == done
            done = min(ROWS, done + blocks * block)
        if renamed and done == ROWS:
            for array in KIND.arrays:
                (often / f"{array}.npy.part").rename(often / f"{array}.npy")
        assert fill(often, block) == done
        assert files(often) == files(whole)
        assert sorted(files(whole)) == ["a.npy", "b.npy", "index.parquet", "things.json"] and is_valid(whole, KIND, "f")


def test_rows_of_other_work_or_without_their_arrays_are_thrown_away(tmp_path: Path) -> None:
    fill(tmp_path, 2, most=4, finish=False)
    (tmp_path / "b.npy.part").rename(tmp_path / "away")
    assert fill(tmp_path, 2, most=0) == 0, "one of two arrays is gone"
    (tmp_path / "away").rename(tmp_path / "b.npy.part")
    assert fill(tmp_path, 2, most=0) == 4
    assert fill(tmp_path, 2, most=0, token="other") == 0
    (tmp_path / ".x.part").touch()
    fill(tmp_path, 2)
    assert is_valid(tmp_path, KIND, "f") and (tmp_path / ".x.part").exists(), "not ours"
    fill(tmp_path, 2, most=2)
    assert not is_valid(tmp_path, KIND, "f"), "begun anew"
    for text in ("{", "[]", '{"token": "t"}', '{"token": "t", "rows": []}'):
        (tmp_path / "progress.json").write_text(text)
        assert fill(tmp_path, 2, most=0) == 0


@pytest.mark.parametrize("name", ["take_room", "open_memmap"])
def test_a_full_disk_is_told_before_the_first_row_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        assert name == "open_memmap" or given[1] == (tmp_path / "a.npy.part").stat().st_size > 4 * 3 * ROWS
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(arrays, name, full)
    with pytest.raises(InputError, match=r"a\.npy\.part: cannot be written .*make room on that disk"):
        fill(tmp_path, 2)
    assert files(tmp_path) == {}


@examples(60)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=9))
def test_conflicting_rows_are_those_of_a_key_with_two_values(rows: list[tuple[int, int]]) -> None:
    key, value = (np.array([row[k] for row in rows], dtype=np.int64) for k in (0, 1))
    key = np.unique(key, return_inverse=True)[1] - int((key < 0).any())  # dense, as ranks are
    known = [(int(k), int(v)) for k, v in zip(key, value, strict=True) if k >= 0 and v >= 0]
    expected = [(k, v) in known and len({w for j, w in known if j == k}) > 1 for k, v in zip(key, value, strict=True)]
    assert conflicting(key, value).tolist() == expected
    assert conflicting(np.where(key < 0, key, 7 * key + 5), value).tolist() == expected, "keys of a larger table"


def test_columns_as_integers() -> None:
    column = pa.chunked_array([["b", None], ["a", "b"]], pa.string())
    assert ranks(column).tolist() == [1, -1, 0, 1]
    number, values = codes(column)
    assert (number.tolist(), values) == ([0, -1, 1, 0], ["b", "a"])
    for empty in (pa.chunked_array([], pa.string()), pa.chunked_array([[]], pa.string())):
        assert [len(part) for part in (*codes(empty), ranks(empty))] == [0, 0, 0]


def test_the_numbers_of_the_formats_are_those_of_the_files_that_people_have() -> None:
    assert (PIXELS.schema, EMBEDDINGS.schema) == (1, 1)
