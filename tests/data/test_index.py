"""Index: every picture is read once, nothing is dropped without a line, and the order of reading does not matter."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.imaging.files import dicom

from thoraclip.data import index as module
from thoraclip.data.index import index, local_salt, pseudonym, write_index_report
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.errors import ConfigError, InputError, LeakError, ManifestError
from thoraclip.imaging import decode, perceptual_hash
from thoraclip.tables.manifest import read_manifest, write_manifest


def test_the_facts_of_every_picture_batch_by_batch(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 5)
    calls: list[tuple[int, int]] = []
    manifest = index(class_folder, layout="folders", progress=lambda *at: calls.append(at)).manifest
    assert calls == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    monkeypatch.undo()
    assert manifest.table.equals(index(class_folder, layout="folders").manifest.table)
    assert len(manifest) == 24 and manifest.root == class_folder.resolve()
    assert manifest.column("image_id") == sorted(manifest.column("image_id"))
    assert manifest.label_set().names == ("COVID-19", "Non-COVID", "Normal")
    for row, path in enumerate(manifest.paths()):
        assert manifest.column("sha256")[row] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest.column("phash")[row] == perceptual_hash(decode(path).pixels)
        assert manifest.column("label")[row] == path.parent.name
    for name, value in {"width": 40, "height": 48, "mode": "L", "format": "PNG", "split": None, "fold": None}.items():
        assert set(manifest.column(name)) == {value}


def test_a_table_names_pictures_and_columns_of_its_own(class_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = "path,label,age_years,hospital\nNormal/0.png,A,045Y,X\nCOVID-19/0.png,B,,\nNormal/none.png,A,,\n"
    table.write_text(rows)
    result = index(class_folder, layout="csv", csv_file=table)
    assert result.set_aside == [("Normal/none.png", "cannot be read (No such file or directory)")]
    manifest = result.manifest
    assert [manifest.column(name) for name in ("label", "hospital", "age_years")] == [
        ["B", "A"],
        [None, "X"],
        [None, 45],
    ]
    table.write_text(rows + "Normal/0.png,B,,\n")
    with pytest.raises(
        ManifestError,
        match=r"t\.csv:5: image_id 'Normal/0.png' is repeated: hospital is 'X' and nothing in lines 2 and 5",
    ):
        index(class_folder, layout="csv", csv_file=table)


@pytest.mark.parametrize("given", [{"csv_file": Path("t.csv")}, {"columns": {"path": "path", "patient": "Patient"}}])
@pytest.mark.parametrize("layout", ["folders", "covid-qu-ex"])
def test_a_table_that_the_layout_does_not_read_is_refused(
    class_folder: Path, layout: str, given: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"layout '{layout}' reads no table|column 'Patient' is of a table"):
        index(class_folder, layout=layout, **given)


@pytest.mark.parametrize(
    ("last", "labels", "splits"), [("A,train", False, False), ("A,test", False, True), ("B,train", True, False)]
)
def test_every_one_of_three_repeats_counts(
    class_folder: Path, tmp_path: Path, last: str, labels: bool, splits: bool
) -> None:
    for name in ("Normal/1.png", "Normal/2.png"):
        shutil.copy(class_folder / "Normal/0.png", class_folder / name)
    (tmp_path / "t.csv").write_text(
        f"path,label,split\nNormal/0.png,A,train\nNormal/1.png,A,train\nNormal/2.png,{last}\nCOVID-19/0.png,B,train\n"
    )
    (group,) = index(class_folder, layout="csv", csv_file=tmp_path / "t.csv").repeats
    assert group["image_ids"] == ["Normal/0.png", "Normal/1.png", "Normal/2.png"]
    assert (group["labels_differ"], group["splits_differ"]) == (labels, splits)


def test_a_class_of_a_table_without_a_picture_is_named_by_its_line(class_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("path,label,age\nNormal/0.png,A,\nCOVID-19/0.png,B,\nTotal,4,\n")
    with pytest.raises(ManifestError) as caught:
        index(class_folder, layout="csv", csv_file=file)
    assert str(caught.value).startswith(f"{file}:4: class '4' holds no readable picture; replace its files or remove ")
    assert "or its rows; first Total: " in str(caught.value)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], InputError, "no PNG, JPEG or DICOM picture for layout 'folders'"),
        (["A/1.png", "B/1.png"], InputError, "none of 2 pictures can be read, first A/1.png: not a PNG"),
        (["loose.png"], InputError, r"1 are set aside, first loose\.png: outside any class folder; give every class"),
        (["A/1.png", "B/ok.png"], ManifestError, "class 'A' holds no readable picture; replace its files or remove"),
        (["B/ok.png", "ok.png"], ManifestError, "the only class is 'B'; a classifier needs two classes or more; add"),
        (["a/A/ok.png", "a/B/ok.png", "ok.png"], ManifestError, "if A, B are the classes: thoraclip index .*/a --out"),
    ],
)
def test_a_folder_that_is_no_task_is_refused(
    tmp_path: Path, names: list[str], error: type[Exception], message: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no picture")
        if "ok" in name:
            Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / name)
    with pytest.raises(error, match=message):
        index(tmp_path, layout="folders", facts=tmp_path / "facts.jsonl")
    assert (
        error is not ManifestError or "class '" in message or not (tmp_path / "facts.jsonl").exists()
    )  # nothing was read


def test_the_order_in_which_threads_finish_does_not_matter(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (class_folder / "Normal" / "3.png").write_text("no picture")
    plain = index(class_folder, layout="folders")
    read, last_first = module._read, threading.Event()

    def held_up(path: Path, *given: object) -> object:
        if path.name == "0.png" and path.parent.name == "COVID-19":
            last_first.wait(timeout=60)  # the first picture is read after the second
        elif path.name == "1.png":
            last_first.set()
        return read(path, *given)

    monkeypatch.setattr("thoraclip.threads.os.cpu_count", lambda: 4)
    monkeypatch.setattr(module, "_read", held_up)
    again = index(class_folder, layout="folders")
    assert again.manifest.table.equals(plain.manifest.table)
    assert again.manifest.fingerprint == plain.manifest.fingerprint and again.set_aside == plain.set_aside


def test_the_report_holds_all_that_is_not_in_the_manifest(class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "Normal" / "0.png").write_bytes(b"")
    (class_folder / "Normal" / "3.png").write_text("text")
    cut = class_folder / "Normal" / "2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (class_folder / "loose.png").write_bytes(b"")
    (class_folder / "Normal" / "notes.txt").write_text("x")
    shutil.copy(class_folder / "Normal" / "1.png", class_folder / "Normal" / "twice.png")
    write_index_report(tmp_path / "r.json", index(class_folder, layout="folders"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["images"] == 22 and report["labels"] == {"COVID-19": 8, "Non-COVID": 8, "Normal": 6}
    reasons = {entry["path"]: entry["reason"] for entry in report["set_aside"]}
    assert list(reasons) == ["Normal/0.png", "Normal/2.png", "Normal/3.png", "loose.png"]
    assert reasons.pop("Normal/2.png").startswith("damaged picture (")
    told = ["the file is empty", "not a PNG, JPEG or DICOM picture", "outside any class folder"]
    assert list(reasons.values()) == told
    assert report["other_files"] == ["Normal/notes.txt"] and len(report["repeats"]) == 1
    assert report["splits"] == {"None": 22} and report["unknown_folders"] == report["notes"] == []


# DICOM and what is read again


def radiograph(path: Path, **tags: Any) -> None:
    """A DICOM file with a picture of its own and the given elements."""
    pixels = np.random.default_rng(len(path.name)).integers(0, 4096, (16, 12), dtype=np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom(pixels, bits=12, **tags))


@pytest.fixture
def dicoms(tmp_path: Path) -> Path:
    for number, name in enumerate(("salt", "one", "two")):
        (tmp_path / name).write_text(f"{number:064x}")
    root = tmp_path / "dicoms"
    radiograph(root / "train" / "A" / "1.dcm", PatientID="Jane Roe", Modality="CR", ViewPosition="PA", PatientSex="F",
               PatientAge="063Y", BodyPartExamined="CHEST")  # fmt: skip
    radiograph(root / "test" / "A" / "22.dcm", PatientID="Jane Roe", Modality="DX", PatientAge="006M")
    radiograph(root / "test" / "B" / "333.dcm", PatientID="other", Modality="CR")
    radiograph(root / "train" / "B" / "4444.dcm", Modality="CR")
    radiograph(root / "train" / "B" / "ct.dcm", Modality="CT")
    return root


def test_a_dicom_header_fills_the_manifest_and_the_id_is_hashed(dicoms: Path, tmp_path: Path) -> None:
    facts = tmp_path / "f.jsonl"
    result = index(dicoms, layout="folders", salt=tmp_path / "salt", facts=facts)
    rows = {row["path"]: row for row in result.manifest.table.to_pylist()}
    jane, again, other, nobody = (
        rows[p] for p in ("train/A/1.dcm", "test/A/22.dcm", "test/B/333.dcm", "train/B/4444.dcm")
    )
    assert (jane["view"], jane["sex"], jane["age_years"], jane["body_part"]) == ("PA", "F", 63.0, "CHEST")
    assert again["age_years"] == 0.5 and again["view"] is None and again["sex"] is None
    assert jane["patient"] == again["patient"] == pseudonym("Jane Roe", local_salt(tmp_path / "salt"))
    assert other["patient"] != jane["patient"] and nobody["patient"] is None
    assert result.set_aside == [("train/B/ct.dcm", "DICOM modality 'CT'; a radiograph (CR, DX or RG) is expected")]
    assert "Roe" not in facts.read_text() and "Roe" not in str(result)
    assert local_salt(tmp_path / "salt").hex() not in facts.read_text()


def test_a_leaky_split_is_indexed_so_that_it_can_be_told_and_mended(dicoms: Path, tmp_path: Path) -> None:
    manifest = index(dicoms, layout="folders", salt=tmp_path / "salt").manifest
    assert list(manifest.patients_in_two("split").values()) == [("test", "train")]
    write_manifest(tmp_path / "m.parquet", manifest)
    with pytest.raises(LeakError, match="stands in two splits .*split again by patient: thoraclip split"):
        read_manifest(tmp_path / "m.parquet")
    leaky = read_manifest(tmp_path / "m.parquet", may_leak=True)
    assert leaky.column("patient") == manifest.column("patient")
    with pytest.raises(LeakError):
        leaky.strict()


def test_the_table_wins_over_the_header(dicoms: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "path,label,patient,sex,view\ntrain/A/1.dcm,a,p1,,AP\ntest/A/22.dcm,a,,,\ntest/B/333.dcm,b,p3,M,\n"
    )
    found = index(dicoms, layout="csv", csv_file=tmp_path / "t.csv", salt=tmp_path / "salt").manifest
    rows = {row["path"]: row for row in found.table.to_pylist()}
    assert (rows["train/A/1.dcm"]["patient"], rows["train/A/1.dcm"]["view"]) == ("p1", "AP")
    assert rows["train/A/1.dcm"]["sex"] == "F" and rows["test/B/333.dcm"]["sex"] == "M"
    assert rows["test/A/22.dcm"]["patient"].startswith("dicom-")


def test_no_secret_is_made_where_no_patient_is_named(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    index(class_folder, layout="folders")
    assert not (tmp_path / "home").exists()


def test_another_secret_hashes_the_ids_anew(dicoms: Path, tmp_path: Path) -> None:
    facts = tmp_path / "f.jsonl"
    first = index(dicoms, layout="folders", salt=tmp_path / "one", facts=facts)
    second = index(dicoms, layout="folders", salt=tmp_path / "two", facts=facts)
    assert (first.read, second.read) == (5, 3), "only the files that name a patient are read again"
    assert set(first.manifest.column("patient")) & set(second.manifest.column("patient")) == {None}
    assert index(dicoms, layout="folders", salt=tmp_path / "two", facts=facts).read == 0


def test_a_second_index_reads_only_what_changed(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (class_folder / "Normal" / "broken.png").write_text("no picture")
    first = index(class_folder, layout="folders", facts=tmp_path / "f")
    assert first.read == 25
    opened: list[str] = []
    original = module.read_bytes
    monkeypatch.setattr(module, "read_bytes", lambda path: (opened.append(path.name), original(path))[1])
    second = index(class_folder, layout="folders", facts=tmp_path / "f")
    assert opened == [] and second.read == 0
    assert second.manifest.table.equals(first.manifest.table) and second.set_aside == first.set_aside
    Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(class_folder / "Normal" / "5.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(class_folder / "Normal" / "broken.png")
    third = index(class_folder, layout="folders", facts=tmp_path / "f")
    assert sorted(opened) == ["5.png", "broken.png"] and third.set_aside == []
    assert third.manifest.table.equals(index(class_folder, layout="folders").manifest.table)


def test_copies_in_the_infection_tree_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_phantoms(tmp_path / "p", PhantomConfig(images=9, size=64, infection_fraction=1.0)).root
    first = index(root, layout="covid-qu-ex", facts=tmp_path / "f")
    assert len(first.manifest) == 9 and any(note.startswith("joined: 9 ") for note in first.notes)
    monkeypatch.setattr(module, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    monkeypatch.setattr("thoraclip.data.facts.read_bytes", lambda path: pytest.fail(f"{path} is hashed again"))
    assert index(root, layout="covid-qu-ex", facts=tmp_path / "f").read == 0
