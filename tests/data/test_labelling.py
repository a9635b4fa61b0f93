"""Classes of folders and tables: merged where that is safe, else a question with the command that answers it."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import draw_picture, examples

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.layouts import Listing, find_layout
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError
from thoraclip.spelling import LabelMap
from thoraclip.study.images import External
from thoraclip.tables.manifest import Manifest, read_manifest

PNG = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]


def images(root: Path, paths: list[str]) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_picture(16, 16, seed=number)).save(root / path)
    return root


def table(root: Path, *labels: str, header: str = "path,label") -> Path:
    (root / "t.csv").write_text("\n".join([header, *(f"{p},{label}" for p, label in zip(PNG, labels, strict=False))]))
    return root / "t.csv"


def counts(manifest: Manifest) -> dict[str | None, int]:
    return {label: number for (label,), number in manifest.tally("label")}


def from_table(root: Path, *labels: str, **options: Any) -> Manifest:
    return index(images(root, PNG), layout="csv", csv_file=table(root, *labels), **options).manifest


def test_class_folders_that_look_alike_are_one_class(tmp_path: Path) -> None:
    folders = ["covid", "covid ", "covid\u00a0", "co\u200bvid", "é", "e\u0301"]
    done = index(images(tmp_path, [f"{name}/1.png" for name in folders]), layout="folders")
    assert counts(done.manifest) == {"covid": 4, "é": 2}
    (note,) = [note for note in done.notes if "tidied" in note]
    assert note.startswith("labels: spaces, invisible characters, accents tidied in 4 rows, first ")


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_the_command_that_is_said_answers_the_question(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "r", tmp_path / "m.parquet"
    images(root, ["COVID/1.png", "COVID/2.png", "Covid/3.png", "ok/4.png", *PNG])
    words = ["index", str(root), "--out", str(out)]
    if layout == "csv":
        words += ["--csv", str(table(root, "COVID", "COVID", "Covid", "ok"))]
    else:
        for path in PNG:
            (root / path).unlink()
        (root / "a").rmdir(), (root / "b").rmdir()
    assert run(words) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert "one class or several? 'COVID' (2), 'Covid' (1) images; add to thoraclip index: " in said
    assert '--label-map "Covid=COVID" (or, to keep a class apart: --label-map "Covid=Covid")' in said
    assert len(said.splitlines()) == 1
    for answer, classes in {
        ("Covid=COVID",): {"COVID": 3, "ok": 1},
        ("Covid=Covid",): {"COVID": 2, "Covid": 1, "ok": 1},
        ("Covid=", "COVID=sick"): {"sick": 2, "ok": 1, None: 1},
    }.items():
        assert run([*words, *(word for text in answer for word in ("--label-map", text))]) == 0
        manifest = read_manifest(out)
        assert counts(manifest) == classes
        assert manifest.label_set().names == tuple(sorted(set(classes) - {None}))  # type: ignore[type-var]


@pytest.mark.parametrize("label", ["A|B", "nan", "NULL", "n\u200ba"])
def test_a_class_that_a_table_cannot_name_is_refused(tmp_path: Path, label: str) -> None:
    """Predictions are read again from CSV, where these are several labels, or none."""
    root = images(tmp_path, [f"{label}/1.png", "B/2.png", "C/3.png"])
    with pytest.raises(ManifestError, match="stands for (several classes|no label) in tables; rename it") as caught:
        index(root, layout="folders")
    (typed,) = re.findall(r"--label-map '(.*)'", str(caught.value))
    assert counts(index(root, layout="folders", label_map=LabelMap(typed)).manifest) == {"B": 1, "C": 1, None: 1}
    with pytest.raises(ManifestError, match="in tables"):
        index(images(tmp_path / "r", ["B/2.png", "C/3.png"]), layout="folders", label_map=LabelMap({"B": label}))


def test_names_with_equals_signs_are_answered_in_python(tmp_path: Path) -> None:
    root = images(tmp_path, ["a=b/1.png", "A=B/2.png", "A=B/3.png", "c/4.png"])
    with pytest.raises(ManifestError, match="in Python: thoraclip.index") as caught:
        index(root, layout="folders")
    renamed = ast.literal_eval(str(caught.value).rpartition("label_map=")[2].rstrip(")"))
    assert counts(index(root, layout="folders", label_map=LabelMap(renamed)).manifest) == {"A=B": 3, "c": 1}


def test_what_was_renamed_is_noted(tmp_path: Path) -> None:
    options = {"layout": "csv", "csv_file": table(images(tmp_path, PNG), "x", "x", "y", "z")}
    done = index(tmp_path, **options, label_map=LabelMap({"x": "y", "z": "", "y": "v"}))  # type: ignore[arg-type]
    assert counts(done.manifest) == {"y": 2, "v": 1, None: 1}
    assert done.notes == ["label 'x' -> 'y' in 2 rows", "label 'y' -> 'v' in 1 rows", "label 'z' -> unknown in 1 rows"]
    with pytest.raises(ConfigError, match="--label-map: no image has the label 'w'; known: x, y, z"):
        index(tmp_path, **options, label_map=LabelMap(["w=y"]))  # type: ignore[arg-type]


def test_a_class_without_training_images_is_noted(tmp_path: Path) -> None:
    done = index(images(tmp_path, ["train/a/1.png", "train/b/2.png", "val/c/3.png", "test/c/4.png"]), layout="folders")
    assert done.notes == [
        "class 'c' has images in val and test and none in train; split again before training: thoraclip split"
    ]


def test_the_labels_of_an_external_set_answer_for_it(tmp_path: Path) -> None:
    root = images(tmp_path / "r", ["COVID/1.png", "Covid/2.png", "ok/3.png"])
    named = External(name="x", folder=str(root), labels=(("COVID", "sick"), ("Covid", "sick"), ("ok", "ok")))
    assert len(named.list_images()) == 3 and len(named.read(tmp_path, None)[0]) == 3
    with pytest.raises(ManifestError, match="one class or several"):
        External(name="x", folder=str(root)).list_images()


# rows of a table


def listing(root: Path, text: str) -> Listing:
    (root / "t.csv").write_text(text)
    return find_layout("csv")(root, csv_file=root / "t.csv")


def test_a_repeated_row_is_read_once_and_noted(tmp_path: Path) -> None:
    found = listing(tmp_path, "path,label,age\n1.png,A,40\n2.png,B,\n./1.png, A,40\n1.png,A,40\n")
    assert [row["path"] for row in found.rows] == ["1.png", "2.png"]
    assert found.notes[:-1] == [f"{tmp_path / 't.csv'}:{line}: repeats line 2; read once" for line in (4, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,A\n\n1.png,B\n", ":4: image_id '1.png' is repeated: label is 'A' and 'B' in lines 2 and 4"),
        ("path,label,image_id\n1.png,A,x\n1.png,A,y\n", ":3: path '1.png' is repeated: image_id is 'x' and 'y' in lines"),
        ("path,label,age\n1.png,A,4\n1.png,A,\n", ":3: image_id '1.png' is repeated: age_years is '4.0' and nothing in"),
        ("path,label,patient\n1.png,A,12\n2.png,B,12.0\n", ":3: patient '12.0' may be patient '12' of line 2; write one"),
        ("path,label,age\n1.png,A,4\n2.png\n", ":3: the row ends before its label"),
        ('path,label\n1.png,"A\n2.png"\n', ":2: label 'A\\n2.png' holds a line break; a quote is missing"),
        ("path,label,fold,csv_fold\n1.png,A,1,2\n", ": column 'csv_fold' is kept under that name, which 'fold' takes"),
        ("path,label\n", ": no rows below the column names"),
    ],
)  # fmt: skip
def test_rows_that_contradict_each_other_are_refused_with_both_lines(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        listing(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 't.csv'}{message}")


def test_columns_that_differ_by_case_are_found_and_ages_have_decimal_commas(tmp_path: Path) -> None:
    (row,) = listing(tmp_path, "PATH;Label;AGE;Patient_ID\na\\1.png;A;40,5;\u200b12 \u00a0\n").rows
    assert (row["path"], row["label"], row["age_years"], row["patient"]) == ("a/1.png", "A", 40.5, "12")


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 999),
    st.sampled_from(["00{}", "{}.0", "{},0", "{}.", " {}", "'{}", "+0{}"]),
    st.sampled_from(["", "p", "P-"]),
)
def test_one_patient_written_in_two_ways_is_refused(tmp_path: Path, number: int, way: str, before: str) -> None:
    other = way.format(number) if not before else f" {before.swapcase()}{number} "
    text = f"path;label;patient\n1.png;A;{before}{number}\n2.png;B;{other}\n"
    if other.strip() in (f"{before}{number}", f"+0{number}"):
        assert len(listing(tmp_path, text).rows) == 2
    else:
        with pytest.raises(ManifestError, match=":3: patient '.*' may be patient '.*' of line 2"):
            listing(tmp_path, text)


def test_views_are_in_capitals_and_ages_have_units(tmp_path: Path) -> None:
    ages = ["45 years", "045Y", "006M", "26 weeks", "45 yo", "45.", "<1", "90+", "2 X", "200 y"]
    rows = "".join(
        f"{n}.png;A;{age};{view}\n" for n, (age, view) in enumerate(zip(ages, ["pa", "PA"] * 5, strict=True))
    )
    found = listing(tmp_path, "path;label;age;view\n" + rows)
    assert [row["age_years"] for row in found.rows] == [45, 45, 0.5, 0.5, 45, 45, None, None, None, None]
    assert {row["view"] for row in found.rows} == {"PA"} and len(found.notes) == 5


def test_a_path_of_another_machine_is_refused_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such file; give paths below ROOT"):
        listing(tmp_path, "path,label\n/nowhere/of/mine/1.png,A\n")
    (tmp_path / "inner").mkdir()
    with pytest.raises(ManifestError, match="give the folder above it as ROOT"):
        listing(tmp_path / "inner", f"path,label\n{images(tmp_path, ['1.png']) / '1.png'},A\n")


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.sampled_from(",;\t|"))
def test_a_damaged_table_gives_rows_or_one_line(tmp_path: Path, seed: int, encoding: str, separator: str) -> None:
    rng = random.Random(seed)
    rows = [f"{n}.png,{rng.choice(['A', 'Größe'])},p{n},train,40,m/{n}.png" for n in range(5)]
    text = "\r\n".join(["path,label,patient,split,age,mask", *rows]).replace(",", separator)
    content = bytearray(text.encode(encoding))
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(content))
        content[place : place + rng.randrange(4)] = rng.choice(
            [b"", b'"', b"\n", b"\0", rng.randbytes(2), b"C:\\", b"|"]
        )
    (tmp_path / "t.csv").write_bytes(content)
    try:
        found = find_layout("csv")(tmp_path, csv_file=tmp_path / "t.csv")
        assert all(row["path"] and "image_id" in row for row in found.rows)
    except ThoraclipError as error:
        assert len(str(error).splitlines()) == 1
