"""Index: every picture is read once, nothing is dropped without a line, and the order of reading does not matter."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thoraclip.data import index as module
from thoraclip.data.index import index, write_index_report
from thoraclip.data.layouts import CsvColumns
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging import decode, perceptual_hash


def test_the_facts_of_every_picture(class_folder: Path) -> None:
    manifest = index(class_folder, layout="folders").manifest
    assert len(manifest) == 24 and manifest.root == class_folder.resolve()
    assert manifest.column("image_id") == sorted(manifest.column("image_id"))
    assert manifest.label_set().names == ("COVID-19", "Non-COVID", "Normal")
    for row, path in enumerate(manifest.paths()):
        assert manifest.column("sha256")[row] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest.column("phash")[row] == perceptual_hash(decode(path).pixels)
        assert manifest.column("label")[row] == path.parent.name
    for name, value in {"width": 40, "height": 48, "mode": "L", "format": "PNG", "split": None, "fold": None}.items():
        assert set(manifest.column(name)) == {value}


def test_unreadable_pictures_are_set_aside_with_the_reason(class_folder: Path) -> None:
    (class_folder / "Normal" / "0.png").write_bytes(b"")
    (class_folder / "Normal" / "1.png").write_text("text")
    cut = class_folder / "Normal" / "2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    result = index(class_folder, layout="folders")
    assert len(result.manifest) == 21
    assert [path for path, _ in result.set_aside] == ["Normal/0.png", "Normal/1.png", "Normal/2.png"]
    reasons = [reason for _, reason in result.set_aside]
    assert reasons[:2] == ["the file is empty", "not a PNG, JPEG or DICOM picture"]
    assert reasons[2].startswith("damaged picture (")


def test_a_picture_of_a_table_that_is_gone_is_set_aside(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\nNormal/0.png,A\nCOVID-19/0.png,B\nNormal/none.png,A\n")
    result = index(class_folder, layout="csv", csv_file=tmp_path / "t.csv", columns=CsvColumns())
    assert result.set_aside == [("Normal/none.png", "cannot be read (No such file or directory)")]
    assert result.manifest.column("label") == ["B", "A"]


def test_extra_columns_of_a_table_reach_the_manifest(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,age_years,hospital\nNormal/0.png,A,045Y,X\nCOVID-19/0.png,B,,\n")
    manifest = index(class_folder, layout="csv", csv_file=tmp_path / "t.csv").manifest
    assert manifest.column("hospital") == [None, "X"] and manifest.column("age_years") == [None, 45.0]


def test_an_image_listed_twice_is_refused(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\nNormal/0.png,A\nCOVID-19/0.png,B\nNormal/0.png,B\n")
    with pytest.raises(ManifestError, match="image_id 'Normal/0.png' is repeated"):
        index(class_folder, layout="csv", csv_file=tmp_path / "t.csv")


def test_repeats_are_grouped_and_judged(class_folder: Path) -> None:
    shutil.copy(class_folder / "Normal" / "0.png", class_folder / "COVID-19" / "again.png")
    shutil.copy(class_folder / "Normal" / "1.png", class_folder / "Normal" / "twice.png")
    assert index(class_folder, layout="folders").repeats == [
        {"image_ids": ["COVID-19/again.png", "Normal/0.png"], "labels_differ": True, "splits_differ": False},
        {"image_ids": ["Normal/1.png", "Normal/twice.png"], "labels_differ": False, "splits_differ": False},
    ]


def test_a_class_without_a_readable_picture_is_refused(class_folder: Path) -> None:
    for file in (class_folder / "Normal").iterdir():
        file.write_text("no picture")
    with pytest.raises(ManifestError, match="class 'Normal' holds no readable picture; replace its files or remove"):
        index(class_folder, layout="folders")


def test_a_folder_without_readable_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no PNG, JPEG or DICOM picture for layout 'folders'"):
        index(tmp_path, layout="folders")
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "1.png").write_text("x")
    with pytest.raises(InputError, match="none of 1 pictures can be read, first: not a PNG"):
        index(tmp_path, layout="folders")
    with pytest.raises(InputError, match="no such folder"):
        index(tmp_path / "nowhere", layout="folders")
    with pytest.raises(ConfigError, match="unknown layout 'cvs'; did you mean 'csv'"):
        index(tmp_path, layout="cvs")


def test_one_class_is_no_task(class_folder: Path) -> None:
    shutil.rmtree(class_folder / "Normal")
    shutil.rmtree(class_folder / "COVID-19")
    with pytest.raises(ManifestError, match="a classifier needs two classes or more"):
        index(class_folder, layout="folders")


def test_the_order_in_which_threads_finish_does_not_matter(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (class_folder / "Normal" / "3.png").write_text("no picture")
    plain = index(class_folder, layout="folders")
    read, last_first = module._read, threading.Event()

    def held_up(path: Path, pseudonyms: object) -> object:
        if path.name == "0.png" and path.parent.name == "COVID-19":
            last_first.wait(timeout=5)  # the first picture is read after the second
        elif path.name == "1.png":
            last_first.set()
        return read(path, pseudonyms)

    monkeypatch.setattr("thoraclip.data.batches.os.cpu_count", lambda: 4)
    monkeypatch.setattr(module, "_read", held_up)
    again = index(class_folder, layout="folders")
    assert again.manifest.table.equals(plain.manifest.table)
    assert again.manifest.fingerprint == plain.manifest.fingerprint and again.set_aside == plain.set_aside


def test_progress_reaches_the_total(class_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    index(class_folder, layout="folders", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (24, 24) and calls == sorted(set(calls))


def test_names_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    for label, name in (("Ü b", "肺 (1).png"), ("Ü b", "é.jpg"), ("正常", "a b.png")):
        (tmp_path / label).mkdir(exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / name)
    manifest = index(tmp_path, layout="folders").manifest
    assert manifest.column("image_id") == ["Ü b/é.jpg", "Ü b/肺 (1).png", "正常/a b.png"]
    assert all(path.is_file() for path in manifest.paths())


def test_the_report_holds_all_that_is_not_in_the_manifest(class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "Normal" / "0.png").write_bytes(b"")
    (class_folder / "loose.png").write_bytes(b"")
    (class_folder / "Normal" / "notes.txt").write_text("x")
    shutil.copy(class_folder / "Normal" / "1.png", class_folder / "Normal" / "twice.png")
    write_index_report(tmp_path / "r.json", index(class_folder, layout="folders"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["images"] == 24 and report["labels"] == {"COVID-19": 8, "Non-COVID": 8, "Normal": 8}
    assert report["set_aside"] == [
        {"path": "Normal/0.png", "reason": "the file is empty"},
        {"path": "loose.png", "reason": "outside any class folder"},
    ]
    assert report["other_files"] == ["Normal/notes.txt"] and len(report["repeats"]) == 1
    assert report["splits"] == {"None": 24} and report["unknown_folders"] == report["notes"] == []
