"""Manifest: unknown is null, ids are unique, patients never stand on both sides."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thoraclip.errors import InputError, LeakError, ManifestError, ThoraclipError
from thoraclip.labels import LabelSet
from thoraclip.runs import digest
from thoraclip.tables import codes, store
from thoraclip.tables.manifest import COLUMNS, SPLITS, Manifest, read_manifest, write_manifest
from thoraclip.tables.store import open_table, write_table

FEW = [str(k) for k in range(50)]
"""As many values as a wrong one is compared with."""
check = settings(max_examples=60, deadline=None, derandomize=True)


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


@pytest.mark.parametrize("bits", [-5, 3, 17, 10**9])
def test_a_depth_that_no_image_has_is_refused(bits: int) -> None:
    with pytest.raises(ManifestError, match=f"bits = {bits}: 8 to 16 are expected; index the images again"):
        rows(bits=[12, bits])
    assert rows(bits=[0, 8, 16, None]).bits == [None, 8, 16, None]


def test_an_empty_table_and_a_split_of_another_spelling_are_refused() -> None:
    with pytest.raises(ManifestError, match="no rows"):
        Manifest.from_rows([], Path("/data"))
    with pytest.raises(ManifestError, match="split 'Test' is unknown; did you mean 'test'"):
        rows(split=["train", "Test"])


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(ManifestError, match="no column 'pateint'; did you mean 'patient'"):
        rows(label=["a"]).column("pateint")


def test_take_and_with_columns_return_new_tables() -> None:
    made = rows(label=["a", "b", "c"])
    taken = made.take(np.array([2, 0]))
    assert taken.column("image_id") == ["i2", "i0"] and taken.column("label") == ["c", "a"]
    changed = made.with_columns(label=["x", None, "x"])
    assert changed.column("label") == ["x", None, "x"] and made.column("label") == ["a", "b", "c"]
    assert changed.table.column_names == made.table.column_names
    other = made.with_columns(image_id=["x", "y", "z"], fold=pa.array([0, 1, 2], pa.int64()), ward=pa.array([1, 2, 3]))
    assert other.column("image_id") == ["x", "y", "z"] and other.table.column_names == [*COLUMNS, "ward"]
    assert other.table["fold"].type == pa.int32() and other.column("ward") == ["1", "2", "3"]


def test_columns_by_id_and_classes_in_the_order_that_is_given() -> None:
    assert rows(label=["b", None, "a"]).label_set(["b", "a"]).names == ("b", "a")
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
    table = manifest.table.set_column(6, "fold", pa.array(["x"] * len(manifest)))
    write_table(path, table, kind="manifest", schema=1)
    with pytest.raises(ManifestError, match=r"column 'fold' is string, expected int32 \('x' is no number\)"):
        read_manifest(path)
    write_table(path, manifest.table, kind="manifest", schema=2)
    with pytest.raises(ManifestError, match="schema 2 is newer than 1"):
        read_manifest(path)
    write_table(path, manifest.table, kind="embeddings", schema=1)
    with pytest.raises(ManifestError, match="holds embeddings, not manifest"):
        read_manifest(path)


@st.composite
def tables(draw: st.DrawFn, *, may_be_wrong: bool = True) -> list[dict[str, Any]]:
    """Rows with nulls, repeats, odd letters, leaks and patients under two labels; now and then a repeated or missing id."""
    wrong = draw(st.sampled_from(["", "", "", "", "repeated", "split", "missing"])) if may_be_wrong else ""
    letters = st.text('aé"\\\n\x00𝄞', max_size=3)
    ids: list[Any] = draw(st.lists(letters, min_size=2, max_size=12, unique=wrong != "repeated"))
    splits = draw(st.sampled_from([(None,), SPLITS, (*SPLITS, None)])) if wrong != "split" else ("train", "tets")
    values: dict[str, st.SearchStrategy[Any]] = {
        "label": st.sampled_from(["b", "a", "", "unknown", None]), "patient": st.sampled_from(["p10", "p9", "", None]),
        "split": st.sampled_from(splits),
        "fold": st.sampled_from(draw(st.sampled_from([(None,), (0, 2, 10, None)]))),
        "sha256": st.sampled_from(["x", "y", None]), "view": st.sampled_from(["PA", None]),
        "width": st.sampled_from([1, 2, None]), "age_years": st.sampled_from([40.5, None]),
    }  # fmt: skip
    rows = [{"image_id": i, "path": i} | {name: draw(value) for name, value in values.items()} for i in ids]
    if wrong == "missing":
        rows[-1]["image_id"] = None
    return rows


def in_two(rows: list[dict[str, Any]], column: str) -> dict[str, tuple[str, ...]]:
    values: dict[str, set[str]] = {}
    has_folds = column == "fold" and any(row["fold"] is not None for row in rows)
    for row in rows:
        value = "train" if has_folds and row["fold"] is None and row["split"] == "train" else row[column]
        if row["patient"] is not None and value is not None:
            values.setdefault(row["patient"], set()).add(str(value))
    return {patient: tuple(sorted(found)) for patient, found in sorted(values.items()) if len(found) > 1}


def complaint(rows: list[dict[str, Any]]) -> str:
    """What a manifest of these rows is refused with; empty where it is not."""
    ids = [row["image_id"] for row in rows]
    if None in ids:
        return f"manifest: row {ids.index(None) + 1} has no image_id; every image has one of its own"
    repeated = [i for i, count in Counter(ids).items() if count > 1]
    if repeated:
        return (
            f"manifest: image_id '{repeated[0]}' is repeated ({len(repeated)} such ids); every image has one of its own"
        )
    if any(row["split"] == "tets" for row in rows):
        return "manifest: split 'tets' is unknown; did you mean 'test'?"
    for column in ("split", "fold"):
        shared = in_two(rows, column)
        if shared:
            return (
                f"manifest: patient '{next(iter(shared))}' stands in two {column}s ({len(shared)} such patients); "
                "split again by patient: thoraclip split"
            )
    return ""


@check
@given(tables(), st.integers(1, 5))
def test_every_result_is_that_of_plain_lists(table: list[dict[str, Any]], piece: int) -> None:
    """The oracle goes row by row, and hashes the whole text at once."""
    said = complaint(table)
    if said:
        with pytest.raises(ThoraclipError) as caught:
            Manifest.from_rows(table, Path())
        assert str(caught.value) == said
        assert isinstance(caught.value, LeakError) == ("stands in two" in said)
    if said and "stands in two" not in said:
        return
    made = Manifest.from_rows(table, Path(), may_leak=bool(said))
    made = Manifest(
        pa.concat_tables([made.table.slice(i, piece) for i in range(0, len(made), piece)]), Path(), bool(said)
    )
    listed = {name: [row.get(name) for row in table] for name in COLUMNS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "_ROWS", piece)
        assert made.fingerprint == digest(
            [listed[n] for n in ("image_id", "sha256", "label", "split", "fold", "patient")]
        )
        assert made.content_fingerprint == digest([listed["image_id"], listed["sha256"]])
    assert all(made.patients_in_two(column) == in_two(table, column) for column in ("split", "fold", "label"))
    parts = [
        split if fold is None else f"fold {fold}" for split, fold in zip(listed["split"], listed["fold"], strict=True)
    ]
    cells = Counter(
        zip((label or "unknown" for label in listed["label"]), (p or "no split" for p in parts), strict=True)
    )
    names, counts = made.counts()
    assert made.parts() == parts and set(names) == {part for _, part in cells}
    assert names == [*(s for s in SPLITS if s in names), *sorted(set(names) - set(SPLITS))]
    assert {(label, part): n for label, row in counts.items() for part, n in zip(names, row, strict=True) if n} == cells
    assert list(counts) == sorted(counts)
    found = [label for label in listed["label"] if label is not None]
    labels = LabelSet(("a", "b", "unknown"))
    if "" in found:
        with pytest.raises(ManifestError, match="label '' is not one of the classes"):
            made.targets(labels)
    else:
        assert made.targets(labels).tolist() == [-1 if x is None else labels.index(x) for x in listed["label"]]
    tally = Counter(zip(listed["width"], listed["view"], strict=True))
    assert sorted(made.tally("width", "view"), key=str) == sorted(tally.items(), key=str)
    assert [n for _, n in made.tally("width", "view", most=2)] == [n for _, n in tally.most_common(2)]


@check
@given(
    tables(may_be_wrong=False),
    st.sets(st.sampled_from(["a", "b", None]), min_size=1),
    st.sampled_from([None, 2, "10", (0, 10)]),
    st.integers(1, 5),
)
def test_where_keeps_the_rows_that_hold_one_of_the_values(
    table: list[dict[str, Any]], labels: set[Any], fold: Any, piece: int
) -> None:
    made = Manifest.from_rows(table, Path("/r"), may_leak=True)
    folds = {int(f) for f in fold} if isinstance(fold, tuple) else {fold if fold is None else int(fold)}
    wanted = [row for row in table if row["label"] in labels and row["fold"] in folds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_ROWS", piece)
        if not wanted:
            with pytest.raises(ManifestError, match="no image (whose|has all)"):
                made.where(label=labels, fold=fold)
            return
        found = made.where(label=labels, fold=fold)
    assert found.table.to_pylist() == Manifest.from_rows(wanted, Path(), may_leak=True).table.to_pylist()
    assert found.may_leak and found.root == made.root and found.table.schema == made.table.schema


def test_a_file_is_filtered_while_it_is_read(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ROWS", 5)
    path = tmp_path / "m.parquet"
    write_manifest(path, manifest)
    found = read_manifest(path, where={"fold": [0, 2], "label": "Normal"})
    wanted = manifest.where(fold=[0, 2], label="Normal")
    assert found.table.equals(wanted.table) and found.root == manifest.root and len(found) == 6
    with pytest.raises(ManifestError, match=r"m\.parquet: manifest: no column 'lable'; did you mean 'label'\?"):
        read_manifest(path, where={"lable": "Normal"})
    with pytest.raises(ManifestError, match=r"m\.parquet: manifest: no image whose fold is '7'; known: 0, 1, 2"):
        read_manifest(path, where={"fold": 7})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pateint": "p"}, "no column 'pateint'; did you mean 'patient'?"),
        ({"label": "normal"}, "no image whose label is 'normal'; did you mean 'Normal'?"),
        ({"label": ["x1", None]}, "no image whose label is 'x1' or unknown; known: COVID, Normal"),
        ({"label": []}, "no image whose label is one of no values; name others"),
        ({"label": "COVID", "fold": 1}, "no image has all of these values of label, fold; ask for fewer"),
        ({"fold": "first"}, "fold ['first']: the column holds int32; ask for such values"),
        ({"few": "x"}, f"no image whose few is 'x'; known: {', '.join(sorted(FEW))}"),
        ({"many": "x"}, "no image whose many is 'x'; name others"),
    ],
)
def test_where_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    made = rows(label=["Normal"] + ["COVID"] * 50, fold=[1] + [0] * 50, few=[*FEW, "0"], many=[*FEW, "50"])
    with pytest.raises(ManifestError) as caught:
        made.where(**values)
    assert str(caught.value) == f"manifest: {message}"
    assert made.where().table.equals(made.table)


def test_equal_tables_are_equal_bytes_however_they_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages end where chunks do, so that without care a filtered manifest is other bytes than the same one read."""
    monkeypatch.setattr(store, "_ROWS", 3000)
    many = rows(label=[f"l{k % 7}" if k % 5 else None for k in range(8000)], sha256=[f"{k:01000}" for k in range(8000)])
    cut = [pa.concat_tables([many.table.slice(i, n) for i in range(0, 8000, n)]) for n in (8000, 1111, 17)]
    for number, table in enumerate(cut):
        write_table(tmp_path / f"{number}.parquet", table, kind="k", schema=1)
    assert len({(tmp_path / f"{number}.parquet").read_bytes() for number in range(3)}) == 1
    plain = tmp_path / "plain.parquet"
    with plain.open("wb") as stream:
        table = many.table.replace_schema_metadata(pq.read_schema(tmp_path / "0.parquet").metadata)
        pq.write_table(table, stream, compression="zstd", store_schema=True, row_group_size=3000)
    assert plain.read_bytes() == (tmp_path / "0.parquet").read_bytes()


def test_what_is_read_is_what_was_written_and_equal_columns_are_held_once(tmp_path: Path) -> None:
    made = rows(label=["a", None] * 500)
    made = made.with_columns(path=made.column("image_id"), hospital=made.column("sha256"))
    write_table(tmp_path / "m.parquet", made.table, kind="k", schema=1)
    found = open_table(tmp_path / "m.parquet", kind="k", newest_schema=1).read()
    assert found.equals(made.table) and found.schema == made.table.schema
    places = {name: found[name].chunk(0).buffers()[2].address for name in ("image_id", "path", "sha256", "hospital")}
    assert places["path"] == places["image_id"] != places["sha256"] == places["hospital"]
    write_table(tmp_path / "none.parquet", made.table.slice(0, 0), kind="k", schema=1)
    pq.ParquetWriter(tmp_path / "bare.parquet", made.table.schema).close()
    for name in ("m", "none", "bare"):
        stored = open_table(tmp_path / f"{name}.parquet", kind="k", newest_schema=1, foreign=True)
        assert [part.column_names for part in stored.parts(["path", "label"])] == [["path", "label"]]
    assert open_table(tmp_path / "none.parquet", kind="k", newest_schema=1).read().equals(made.table.slice(0, 0))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([["x"], ["y"]], names=["image_id", "image_id"]), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"not a readable Parquet file \(column 'image_id' stands there twice\)"):
        read_manifest(tmp_path / "m.parquet")


def test_one_picture_that_is_there_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "_ROWS", 2)
    made = Manifest(rows(label=["a"] * 5).table, tmp_path / "gone")
    (tmp_path / "4.png").touch()
    write_manifest(tmp_path / "m.parquet", made)
    assert read_manifest(tmp_path / "m.parquet").root == tmp_path.resolve()
    torn = Manifest(made.table, tmp_path, may_leak=True).with_columns(patient=["p"] * 5, fold=[0, 1, 0, 1, 0])
    write_manifest(tmp_path / "m.parquet", torn)
    (tmp_path / "4.png").unlink()
    with pytest.raises(LeakError, match=r"m\.parquet: manifest: patient 'p' stands in two folds"):
        read_manifest(tmp_path / "m.parquet")  # what is wrong with the table is said first


def test_a_manifest_that_may_not_leak_is_strict_already() -> None:
    made = rows(patient=["p", "p"], split=["train", "train"])
    assert made.strict() is made
    with pytest.raises(LeakError, match="patient 'p' stands in two splits"):
        Manifest(made.table, made.root, may_leak=True).with_columns(split=["train", "test"]).strict()
