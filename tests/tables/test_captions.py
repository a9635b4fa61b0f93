"""Captions: read as they were written, joined by id and content, and refused where they belong to other images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.tables.captions import Captions, read_captions, write_captions
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.store import write_table


def table(n: int = 3, **other: Any) -> Captions:
    values: dict[str, Any] = {
        "image_id": tuple(f"i{k}" for k in range(n)),
        "sha256": (None,) * n,
        "text": tuple(f"text {k}" for k in range(n)),
        "with_label": (False,) * n,
        "origin": {"captioner": "me"},
    }
    return Captions(**(values | other))


def captions_of(manifest: Manifest) -> Captions:
    """The text of every image is its id."""
    ids = tuple(manifest.column("image_id"))
    flags = tuple(row % 3 == 0 for row in range(len(ids)))
    return Captions(ids, tuple(manifest.column("sha256")), tuple(f"of {i}" for i in ids), flags, {})


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def texts_for(captions: Captions, manifest: Manifest, rows: Any) -> list[str]:
    return [captions.text[row] for row in captions.rows_for(manifest, rows)]


@st.composite
def captions(draw: st.DrawFn) -> Captions:
    ids = draw(st.lists(words, min_size=1, max_size=6, unique=True))
    n = len(ids)

    def column(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=n, max_size=n)))

    return Captions(
        image_id=tuple(ids),
        sha256=column(st.none() | words),
        text=column(words.filter(lambda w: bool(w.strip()))),
        with_label=column(st.booleans()),
        origin=draw(st.dictionaries(words, st.none() | st.integers(-9, 9) | words, max_size=3)),
    )


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=captions())
def test_what_is_written_is_read_exactly_and_always_the_same_bytes(tmp_path: Path, written: Captions) -> None:
    for name in ("a.parquet", "b.parquet"):
        write_captions(tmp_path / name, written)
    assert read_captions(tmp_path / "a.parquet") == written
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_fingerprint_is_of_what_a_model_learns_from() -> None:
    first = table()
    same = [replace(first, origin={}), replace(first, sha256=("x",) * 3)]
    others = [
        replace(first, image_id=("i0", "i1", "i3")),
        replace(first, text=("text 0", "text 1", "text two")),
        replace(first, with_label=(False, False, True)),
    ]
    assert {c.fingerprint for c in same} == {first.fingerprint}
    assert len({c.fingerprint for c in [first, *others]}) == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n": 0}, "no rows; a captions file holds one row per image"),
        ({"text": ("a", "b")}, "2 values of 'text' for 3 images; give one each"),
        ({"image_id": ("a", "b", "a")}, "image_id 'a' is repeated (1 such ids); one row per image"),
        ({"image_id": ("a", "", "b")}, "row 2 has no image_id; give each image one"),
        ({"image_id": ("a", None, "b")}, "row 2 has no image_id"),
        ({"text": ("a", " \n", "")}, "image 'i1' has an empty text (2 such rows); write one, or leave the row out"),
        ({"text": ("a", "b", None)}, "image 'i2' has an empty text (1 such rows)"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError) as error:
        table(**other)
    assert message in str(error.value)


def test_rows_are_joined_by_id_not_by_position(manifest: Manifest) -> None:
    order = np.random.default_rng(0).permutation(len(manifest))
    shuffled = captions_of(manifest.take(order))
    rows = np.array([5, 0, 23, 5])
    ids = [manifest.column("image_id")[row] for row in rows]
    assert texts_for(shuffled, manifest, rows) == [f"of {i}" for i in ids]
    flags = dict(zip(shuffled.image_id, shuffled.with_label, strict=True))
    assert [shuffled.with_label[row] for row in shuffled.rows_for(manifest, rows)] == [flags[i] for i in ids]
    np.testing.assert_array_equal(order[shuffled.rows_for(manifest, rows)], rows)


def test_a_manifest_that_was_split_anew_is_still_the_same(manifest: Manifest) -> None:
    split = manifest.with_columns(fold=[None] * len(manifest), split=["test"] * len(manifest))
    assert texts_for(captions_of(manifest), split, np.array([1])) == texts_for(
        captions_of(manifest), manifest, np.array([1])
    )


def test_captions_of_other_images_are_refused(manifest: Manifest) -> None:
    part = manifest.take(np.arange(20))
    first = manifest.column("image_id")[20]
    with pytest.raises(MismatchError) as error:
        captions_of(manifest).rows_for(part, np.arange(3))
    assert str(error.value) == (
        f"captions: 4 of 24 are for images that the manifest does not have, first '{first}'; they belong to another "
        "manifest: run thoraclip caption on this one"
    )


def test_captions_of_other_contents_are_refused_where_both_are_known(manifest: Manifest) -> None:
    made, rows = captions_of(manifest), np.arange(3)
    first = manifest.column("image_id")[0]
    changed = manifest.with_columns(sha256=["0" * 64, *manifest.column("sha256")[1:]])
    with pytest.raises(MismatchError, match=f"1 images differ in content from the manifest's, first '{first}'; they"):
        made.rows_for(changed, rows)
    unknown = replace(made, sha256=(None,) * len(made))
    assert texts_for(unknown, changed, rows) == texts_for(made, manifest, rows)
    assert texts_for(made, manifest.with_columns(sha256=[None] * 24), rows) == texts_for(made, manifest, rows)


def test_an_image_without_a_caption_is_refused_when_it_is_wanted(manifest: Manifest) -> None:
    made = captions_of(manifest.take(np.arange(20)))
    assert len(texts_for(made, manifest, np.arange(20))) == 20
    first = manifest.column("image_id")[20]
    with pytest.raises(MismatchError, match=f"2 of 3 images have none, first '{first}'; .*thoraclip caption"):
        made.rows_for(manifest, np.array([0, 20, 21]))


def test_another_kind_of_file_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    path, plain = tmp_path / "p.parquet", pa.table({"image_id": ["a"], "sha256": ["x"], "text": ["t"]})
    pq.write_table(plain, path)
    with pytest.raises(ManifestError, match="holds a table that this package did not write, not captions"):
        read_captions(path)
    write_table(path, plain, kind="captions", schema=1)
    with pytest.raises(ManifestError, match=r"p\.parquet: column 'with_label' is missing; write the captions with"):
        read_captions(path)
    for wrong in (pa.array([1]), pa.array([b"t"]), pa.array([["t"]]), pa.array([None])):
        other = plain.append_column("with_label", pa.array([True])).set_column(2, "text", wrong)
        write_table(path, other, kind="captions", schema=1)
        with pytest.raises(ManifestError, match="column 'text' holds .*, not string; write the captions"):
            read_captions(path)
    whole = plain.append_column("with_label", pa.array([True]))
    write_table(path, whole, kind="captions", schema=1)
    assert read_captions(path) == Captions(("a",), ("x",), ("t",), (True,), {})
    write_table(path, whole, kind="captions", schema=2)
    with pytest.raises(ManifestError, match="schema 2 is newer than 1"):
        read_captions(path)
    write_manifest(tmp_path / "m.parquet", manifest)
    with pytest.raises(ManifestError, match=r"m.parquet: holds manifest, not captions"):
        read_captions(tmp_path / "m.parquet")
    (tmp_path / "c.json").touch()
    with pytest.raises(InputError, match=r"c.json: captions end in .parquet or .csv"):
        read_captions(tmp_path / "c.json")
    for name in ("c.parquet", "c.csv"):
        with pytest.raises(InputError, match="no such captions file"):
            read_captions(tmp_path / name)
    with pytest.raises(InputError, match=r"c.csv: captions are a Parquet file; name it c.parquet"):
        write_captions(tmp_path / "c.csv", table())


@pytest.mark.parametrize(
    "written",
    [
        'image_id,caption\na,"one, two"\nb, padded \n',
        '\ufeffnote,caption,image_id\nx,"one, two",a\ny,padded,b\n',
        'caption,image_id\r\n"one, two",a\r\npadded,b\r\n',
    ],
)
def test_a_csv_of_ones_own_is_read(written: str, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes(written.encode())
    found = read_captions(tmp_path / "c.csv")
    assert found == Captions(
        ("a", "b"), (None, None), ("one, two", "padded"), (False, False), {"captioner": "csv"}
    )  # fmt: skip


def test_a_report_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('image_id,caption\n007,"first ""line""\nsecond"\n')
    found = read_captions(tmp_path / "c.csv")
    assert (found.image_id, found.text) == (("007",), ('first "line"\nsecond',))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "the file is empty"),
        (b"image_id,text\na,b\n", "no column 'caption'; known: image_id, text; name it so"),
        (b"image_id,caption,caption\na,b,c\n", ":1: column 'caption' stands there twice (columns 2 and 3)"),
        (b"image_id,caption\n", "no rows"),
        (b"image_id,caption\na,one, two\n", ":2: more cells than columns (3 in 2), from 'two' on; put quotes around"),
        (b"image_id,caption\na,one\nb\n", "image 'b' has an empty text"),
        (b"image_id,caption\na,one\n,two\n", "row 2 has no image_id"),
        (b"image_id,caption\na,one\na,two\n", "image_id 'a' is repeated"),
        ("image_id,caption\na,Röntgen\nb,Röntgen\n".encode("latin-1") + "ö".encode(), ":2: not UTF-8 (byte 0xf6), but"),
        (b'image_id,caption\na,"open\n', ":2: a quote is opened and never closed"),
    ],
)
def test_a_csv_that_breaks_a_rule_is_refused(written: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(written)
    with pytest.raises(ManifestError) as error:
        read_captions(path)
    assert str(error.value).startswith(f"{path}:")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
