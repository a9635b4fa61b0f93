"""Manifest: unknown is null, ids are unique, patients never stand on both sides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from thoraclip.errors import InputError, LeakError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import COLUMNS, Manifest, read_manifest, write_manifest
from thoraclip.tables.store import write_table


def rows(**columns: list[Any]) -> Manifest:
    n = len(next(iter(columns.values())))
    base = [{"image_id": f"i{k}", "path": f"{k}.png", "sha256": f"{k}" * 4} for k in range(n)]
    return Manifest.from_rows(
        [row | {name: values[k] for name, values in columns.items()} for k, row in enumerate(base)], Path("/data")
    )


def test_absent_columns_are_null_and_extra_ones_are_kept_last() -> None:
    made = rows(label=["a", None], hospital=["x", None], age_years=[45, None])
    assert made.table.column_names == [*COLUMNS, "hospital"]
    assert [made.table.schema.field(n).type for n in COLUMNS] == list(COLUMNS.values())
    assert made.column("patient") == [None, None] and made.column("hospital") == ["x", None]
    assert made.column("age_years") == [45.0, None]
    assert made.paths() == [Path("/data/0.png"), Path("/data/1.png")]


def test_unknown_labels_have_no_class() -> None:
    made = rows(label=["b", None, "a"])
    labels = made.label_set()
    assert labels.names == ("a", "b")
    assert made.targets(labels).tolist() == [1, -1, 0]
    assert made.label_set(["b", "a"]).names == ("b", "a")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "a"], [], r"classes \['a'\]: a classifier needs two classes"),
        ([None, None], [], r"classes \[\]: a classifier needs two classes"),
        (["a", "b"], ["a", "c"], "class 'c' has no image"),
        (["Normal", "COVID"], ["Normal", "Covids"], "class 'Covids' has no image; did you mean 'COVID'"),
        (["a", "b", "c"], ["a", "b"], "label 'c' is not one of the classes"),
    ],
)
def test_classes_and_labels_must_agree(labels: list[Any], classes: list[str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        rows(label=labels).label_set(classes)


def test_a_label_outside_the_classes_has_no_index() -> None:
    with pytest.raises(ManifestError, match="label 'c' is not one of the classes"):
        rows(label=["a", "c"]).targets(LabelSet(("a", "b")))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": ["x", "y", "x"]}, r"image_id 'x' is repeated \(1 such ids\)"),
        ({"image_id": ["x", None]}, "row 2 has no image_id"),
        ({"split": ["train", "tset"]}, "split 'tset' is unknown; did you mean 'test'"),
        ({"split": ["train", "Test"]}, "split 'Test' is unknown; did you mean 'test'"),
    ],
)
def test_a_wrong_table_is_refused_with_the_value(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        rows(**columns)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ManifestError, match="no rows"):
        Manifest.from_rows([], Path("/data"))


@pytest.mark.parametrize("column", ["split", "fold"])
def test_a_patient_on_both_sides_is_a_leak(column: str) -> None:
    parts = {"split": ["train", "test", "test", None], "fold": [0, 1, 1, None]}[column]
    with pytest.raises(LeakError, match=f"patient 'p1' stands in two {column}s \\(1 such patients\\)"):
        rows(patient=["p1", "p1", "p2", "p2"], **{column: parts})
    rows(patient=["p1", "p2", "p2", "p1"], **{column: parts})  # a part that is unknown is no second side
    rows(patient=[None, None, None, None], **{column: parts})


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(ManifestError, match="no column 'pateint'; did you mean 'patient'"):
        rows(label=["a"]).column("pateint")


@pytest.mark.parametrize(
    ("column", "value"),
    [("image_id", "z"), ("sha256", "0" * 64), ("label", "b"), ("split", "test"), ("fold", 1), ("patient", "p9")],
)
def test_the_fingerprint_changes_with_every_column_that_matters(column: str, value: Any) -> None:
    made = rows(label=["a", "a"], split=["train", "train"], fold=[0, 0], patient=["p", "q"])
    changed = made.with_columns(**{column: [value, made.column(column)[1]]})
    assert changed.fingerprint != made.fingerprint
    assert (changed.content_fingerprint != made.content_fingerprint) == (column in {"image_id", "sha256"})


def test_the_fingerprint_does_not_change_with_other_columns_or_the_place() -> None:
    made = rows(label=["a", "b"])
    same = made.with_columns(path=["x", "y"], view=["PA", None], hospital=["x", "y"])
    assert same.fingerprint == made.fingerprint
    assert Manifest(made.table, Path("/elsewhere")).fingerprint == made.fingerprint
    assert made.take(np.array([1, 0])).fingerprint != made.fingerprint


def test_take_and_with_columns_return_new_tables() -> None:
    made = rows(label=["a", "b", "c"])
    taken = made.take(np.array([2, 0]))
    assert taken.column("image_id") == ["i2", "i0"] and taken.column("label") == ["c", "a"]
    changed = made.with_columns(label=["x", None, "x"])
    assert changed.column("label") == ["x", None, "x"] and made.column("label") == ["a", "b", "c"]
    assert changed.table.column_names == made.table.column_names


def test_columns_by_id() -> None:
    made = rows(label=["a", None])
    assert made.by_id("label") == {"i0": "a", "i1": None}
    assert made.paths_by_id() == {"i0": Path("/data/0.png"), "i1": Path("/data/1.png")}


def test_round_trip_and_the_same_bytes_each_time(manifest: Manifest, tmp_path: Path) -> None:
    manifest = manifest.with_columns(hospital=["x"] * len(manifest))
    for name in ("a.parquet", "b.parquet"):
        write_manifest(tmp_path / name, manifest)
    found = read_manifest(tmp_path / "a.parquet")
    assert found.table.equals(manifest.table) and found.root == manifest.root
    assert found.fingerprint == manifest.fingerprint
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_pictures_that_moved_with_the_manifest_are_found(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(manifest.root / "m.parquet", manifest)
    (manifest.root).rename(tmp_path / "moved")
    found = read_manifest(tmp_path / "moved" / "m.parquet")
    assert found.root == (tmp_path / "moved").resolve() and found.paths()[0].is_file()


def test_nothing_but_parquet_is_overwritten(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label")
    with pytest.raises(InputError, match=r"labels\.csv: a manifest is a Parquet file; name it labels\.parquet"):
        write_manifest(tmp_path / "labels.csv", manifest)
    assert (tmp_path / "labels.csv").read_text() == "path,label"
    with pytest.raises(InputError, match=r"a CSV table is no manifest yet; make one: thoraclip index ROOT --csv"):
        read_manifest(tmp_path / "labels.csv")


def test_pictures_in_neither_place_are_an_error(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    shutil.rmtree(manifest.root)
    with pytest.raises(InputError) as caught:
        read_manifest(tmp_path / "m.parquet")
    assert f"its pictures are neither under {manifest.root} nor beside the manifest" in str(caught.value)


def test_a_file_that_is_no_manifest_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.parquet: no such manifest file"):
        read_manifest(tmp_path / "none.parquet")
    path = tmp_path / "m.parquet"
    write_table(path, manifest.table.drop_columns(["view"]), kind="manifest", schema=1)
    with pytest.raises(ManifestError, match="column 'view' is missing; write the manifest with: thoraclip index"):
        read_manifest(path)
    table = manifest.table.set_column(6, "fold", pa.array(["0"] * len(manifest)))
    write_table(path, table, kind="manifest", schema=1)
    with pytest.raises(ManifestError, match="column 'fold' is string, expected int32"):
        read_manifest(path)
    write_table(path, manifest.table, kind="manifest", schema=2)
    with pytest.raises(ManifestError, match="schema 2 is newer than 1"):
        read_manifest(path)
    write_table(path, manifest.table, kind="embeddings", schema=1)
    with pytest.raises(ManifestError, match="holds embeddings, not manifest"):
        read_manifest(path)


def test_a_leak_in_a_file_is_told_with_the_file(manifest: Manifest, tmp_path: Path) -> None:
    folds = [0, 1, *manifest.column("fold")[2:]]  # rows 0 and 1 are one patient
    table = manifest.table.set_column(6, "fold", pa.array(folds, pa.int32()))
    write_table(tmp_path / "m.parquet", table, kind="manifest", schema=1, meta={"root": str(manifest.root)})
    with pytest.raises(LeakError, match=r"m\.parquet: manifest: patient 'p00' stands in two folds"):
        read_manifest(tmp_path / "m.parquet")
