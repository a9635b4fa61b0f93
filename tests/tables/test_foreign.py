"""Manifests of other programs are read where every value means one thing, and refused by column otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ManifestError, ThoraclipError
from thoraclip.spelling import tidy
from thoraclip.tables.foreign import as_type
from thoraclip.tables.manifest import COLUMNS, Manifest, read_fingerprint, read_manifest, write_manifest

PATHS = ["a/1.png", "a/2.png", "b/3.png"]


def foreign(folder: Path, **columns: Any) -> Path:
    """A Parquet file without our header, beside its images."""
    for path in PATHS:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    pq.write_table(pa.table({"path": PATHS} | columns), folder / "m.parquet")
    return folder / "m.parquet"


@pytest.mark.parametrize("bits", [[None, 12, 16], [None] * 3, ["12", "", "x"]])
def test_a_file_has_the_fingerprint_of_its_manifest(tmp_path: Path, bits: list[Any]) -> None:
    manifest = read(tmp_path, label=["x", "y", None], bits=bits)
    assert manifest.fingerprint == read_fingerprint(tmp_path / "m.parquet")


def read(folder: Path, **columns: Any) -> Manifest:
    return read_manifest(foreign(folder, **columns))


def test_a_table_of_paths_and_labels_is_a_manifest(tmp_path: Path) -> None:
    manifest = read(tmp_path, label=["x", "y", None], note=["n", None, "m"])
    assert manifest.table.column_names == [*COLUMNS, "note"] and manifest.column("image_id") == PATHS
    assert [field.type for field in manifest.table.schema][:-1] == list(COLUMNS.values())
    assert manifest.column("label") == ["x", "y", None] and manifest.column("sha256") == [None] * 3
    assert manifest.root == tmp_path.resolve()
    assert manifest.fingerprint == read_fingerprint(tmp_path / "m.parquet")
    assert len(read_manifest(tmp_path / "m.parquet", where={"label": "x"})) == 1
    write_manifest(tmp_path / "own.parquet", manifest)
    assert read_manifest(tmp_path / "own.parquet").table.equals(manifest.table)


TYPES: dict[str, tuple[pa.Array, list[Any]]] = {
    "int64": (pa.array([0, 1, None]), ["0", "1", None]),
    "pandas integers with NaN": (pa.array([0.0, 12.0, math.nan]), ["0", "12", None]),
    "category": (pa.array(["x", "y", None]).dictionary_encode(), ["x", "y", None]),
    "category of numbers": (pa.array([3, 4, None]).dictionary_encode(), ["3", "4", None]),
    "large_string": (pa.array(["x", "y", None], pa.large_string()), ["x", "y", None]),
    "string_view": (pa.array(["x", "y", None], pa.string_view()), ["x", "y", None]),
    "binary": (pa.array([b"x", "é".encode(), None]), ["x", "é", None]),
    "large_binary": (pa.array([b"x", b"y", None], pa.large_binary()), ["x", "y", None]),
    "null": (pa.nulls(3), [None] * 3),
    "bool": (pa.array([True, False, None]), ["true", "false", None]),
    "text with NaN": (pa.array(["x", "nan", "None"]), ["x", None, None]),
    "untidy": (pa.array(["x\u00a0", "e\u0301", "\u200b"]), ["x", "é", None]),
}


@pytest.mark.parametrize("name", TYPES)
def test_labels_and_patients_of_any_type_are_text(tmp_path: Path, name: str) -> None:
    given_, read_ = TYPES[name]
    manifest = read(tmp_path, label=given_, patient=given_, note=given_)
    assert manifest.column("label") == manifest.column("patient") == read_
    assert manifest.table["note"].type == given_.type or "category" in name
    assert len(manifest.notes) == (2 if name == "untidy" else 0)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_paths_of_any_type_are_text(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(PATHS).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(PATHS, kind)
    assert read(tmp_path, path=column, label=["x", "y", "y"]).column("path") == PATHS


def test_numbers_are_read_from_floats_and_text(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, fold=[0.0, 1.0, math.nan], age_years=["40,5", "", "7"], width=pa.array([1, 2, 3], pa.uint8())
    )
    assert manifest.column("fold") == [0, 1, None] and manifest.column("age_years") == [40.5, None, 7]
    assert manifest.column("width") == [1, 2, 3]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0.5, 1.0, 2.0]}, "column 'label' is double, expected string (Float value 0.5"),
        ({"label": [1e17, 1.0, 2.0]}, "column 'label' is double, expected string (numbers with more digits than"),
        ({"label": [["x"], ["y"], []]}, "column 'label' is list<element: string>, expected string (text is needed)"),
        ({"label": [b"\xff", b"x", b"y"]}, "column 'label' is binary, expected string (Invalid UTF8"),
        ({"fold": ["a", "b", "c"]}, "column 'fold' is string, expected int32 ('a' is no number)"),
        ({"fold": [0.5, 1.0, 2.0]}, "column 'fold' is double, expected int32 (Float value 0.5"),
        ({"fold": [2**40, 1, 2]}, "column 'fold' is int64, expected int32 (Integer value 1099511627776 not in range"),
        ({"age_years": [True, False, None]}, "column 'age_years' is bool, expected float (numbers are needed)"),
    ],
)  # fmt: skip
def test_what_means_several_things_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = foreign(tmp_path, **columns)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: {message}") and len(str(caught.value).splitlines()) == 1


def test_a_table_without_paths_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": PATHS}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="column 'path' is missing; write the manifest with: thoraclip index"):
        read_manifest(tmp_path / "m.parquet")


VALUES = st.one_of(
    *(st.lists(st.none() | values, min_size=3, max_size=3) for values in (
        st.integers(-5, 2**40), st.floats(), st.text(max_size=4), st.binary(max_size=3), st.booleans(),
        st.lists(st.integers(), max_size=2), st.dates(), st.decimals(allow_nan=False, places=1, min_value=-9, max_value=9),
    ))
)  # fmt: skip


@examples(200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES, name=st.sampled_from(sorted({*COLUMNS} - {"path"})))
def test_any_column_is_read_or_refused_in_one_line(tmp_path: Path, values: list[Any], name: str) -> None:
    try:
        manifest = read(tmp_path, **{name: values})
    except ThoraclipError as error:
        assert len(str(error).splitlines()) == 1
        return
    kept = manifest.column(name)
    for given_, read_ in zip(values, kept, strict=True):
        if isinstance(given_, int | float) and read_ is not None:
            assert read_ == str(given_).lower() or float(read_) == pytest.approx(given_, rel=1e-6)
        if isinstance(given_, str) and isinstance(read_, str):
            assert tidy(read_) == tidy(given_)


def test_columns_of_our_types_are_not_copied() -> None:
    column = pa.chunked_array([["a", "b"]])
    assert as_type(column, pa.string()) is column


def test_classes_that_may_be_one_are_asked_for_unless_they_are_named_or_kept_apart(tmp_path: Path) -> None:
    manifest = read(tmp_path, label=["COVID", "Covid", "Normal"])
    with pytest.raises(ManifestError, match=r"m\.parquet: one class or several\? 'COVID' \(1\), 'Covid' \(1\) images"):
        manifest.label_set()
    assert manifest.label_set(["COVID", "Covid", "Normal"]).names == ("COVID", "Covid", "Normal")
    apart = Manifest(manifest.table, manifest.root, apart=("Covid",))
    write_manifest(tmp_path / "own.parquet", apart)
    kept = read_manifest(tmp_path / "own.parquet")
    for same in (kept, kept.where(label=["COVID", "Covid"]), kept.with_columns(split=["train"] * 3)):
        assert "Covid" in same.label_set().names
