"""What stands in a folder besides images: linked, left by a system, badly named, nested, or not named by a table."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples
from tests.imaging.test_listing import counts
from tests.imaging.test_names import FOREIGN, LITTER, READ

from thoraclip.data.index import IndexResult, index, write_index_report
from thoraclip.data.layouts import detect_layout, find_layout, list_images
from thoraclip.delimited import name_finder
from thoraclip.errors import InputError, ManifestError
from thoraclip.imaging.listing import walk


def draw(root: Path, *names: str) -> Path:
    """Images, each with pixels of its own."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as stream:
            Image.fromarray(np.roll(np.diag(np.arange(16, dtype=np.uint8) * 16), number, 1)).save(stream, "PNG")
    return root


def reported(result: IndexResult, file: Path) -> dict[str, list[dict[str, object]]]:
    """`index.json` as another program reads it."""
    write_index_report(file, result)
    content: dict[str, list[dict[str, object]]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_every_file_of_a_folder_is_in_the_manifest_or_in_the_report(tmp_path: Path) -> None:
    root = draw(tmp_path / "r", "A/1.png", "A/2.png", "B/1.png", "A/a\x1b[2J\n.png", "B/lung masks/1.png", "loose.png")
    draw(root, *(f"A/{name}/x.png" for name in ("@eaDir", ".thumbnails", "__MACOSX")), os.fsdecode(b"B/\xff.png"))
    draw(tmp_path, "far/3.png", "far/deep/4.png")
    for name, content in {
        "A/t.tif": FOREIGN["TIFF"],
        "B/list.csv": b"",
        "B/x.png": b"text",
        "A/IM1": READ["dicom"],
    }.items():
        (root / name).write_bytes(content)
    for name, target in {"A/far": "../../far", "B/far": "../../far", "B/up": "..", "B/gone": "no"}.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "A" / "pipe")
    result = index(root, layout="folders")
    report = reported(result, tmp_path / "i.json")
    assert result.manifest.column("path") == [
        "A/1.png", "A/2.png", "A/IM1", "A/a\x1b[2J\n.png", "A/far/3.png", "A/far/deep/4.png", "B/1.png",
    ]  # fmt: skip
    assert {str(entry["path"]): entry["reason"] for entry in report["set_aside"]} == {
        "A/pipe": "a pipe", "A/t.tif": "TIFF is not read; convert it to PNG", "B/far": "a link to a folder that is listed already",
        "B/gone": "a link that leads to no file (No such file or directory)", "B/up": "a link to a folder that is listed already",
        "B/x.png": "not a PNG, JPEG or DICOM picture", "loose.png": "outside any class folder",
        "B/\\udcff.png": "its name is not UTF-8, and a manifest holds UTF-8; rename the file or the folder",
    }  # fmt: skip
    assert report["unknown_folders"] == [{"path": "B/lung masks", "files": 1}] and report["other_files"] == [
        "B/list.csv"
    ]
    assert [(entry["path"], entry["files"]) for entry in report["system_files"]] == [
        ("A/.thumbnails", 1), ("A/@eaDir", 1), ("A/__MACOSX", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("name", LITTER)
@pytest.mark.parametrize("layout", ["folders", "covid-qu-ex"])
def test_what_a_system_leaves_is_no_class_and_is_listed(tmp_path: Path, name: str, layout: str) -> None:
    inner = "/images" if layout == "covid-qu-ex" else ""
    root = draw(tmp_path, f"COVID{inner}/1.png", f"Normal{inner}/1.png")
    places = [name, f"COVID/{name}", f"COVID{inner}/{name}"]
    draw(root, *(f"{place}/x.png" for place in places))
    listing = find_layout(layout)(root)
    assert {row["path"] for row in listing.rows} == {f"COVID{inner}/1.png", f"Normal{inner}/1.png"}
    assert sorted(listing.system_files) == sorted({(place, 1) for place in places})
    assert listing.unknown_folders == listing.set_aside == []


@pytest.mark.parametrize("above", ["", "archive/", "archive/data set/x/"])
def test_class_folders_in_sole_folders_are_found(tmp_path: Path, above: str) -> None:
    root = draw(tmp_path, *(f"{above}{split}/{label}/p/1.png" for split in ("train", "test") for label in "AB"))
    draw(root, "__MACOSX/x.png")
    (root / "README.md").touch()
    listing = find_layout("folders")(root)
    assert {(row["label"], row["split"]) for row in listing.rows} == {(a, s) for a in "AB" for s in ("train", "test")}
    assert len(listing.notes) == bool(above) and listing.other_files == ["README.md"]


def test_a_sole_class_is_never_split_into_its_patients_and_sites_with_the_same_classes_are_asked_about(
    tmp_path: Path,
) -> None:
    one = draw(tmp_path / "1", "A/p1/1.png", "A/p2/1.png", "A/2.png")
    assert {row["label"] for row in find_layout("folders")(one).rows} == {"A"}
    for number, patients in enumerate(
        [("p1", "p2"), ("0001", "0002", "17"), ("1.2.840.1", "1.2.840.2"), ("a3f", "9bc")]
    ):
        sole = draw(tmp_path / f"sole{number}", *(f"A/{patient}/1.png" for patient in patients))
        with pytest.raises(
            ManifestError, match=f"classes or patients.*: thoraclip index {sole}/A --out manifest.parquet; "
        ):
            find_layout("folders")(sole)
        assert {row["label"] for row in find_layout("folders")(sole / "A").rows} == set(patients)
    empty = draw(tmp_path / "2", "A/p1/1.png", "A/p2/1.png")
    (empty / "B").mkdir()
    with pytest.raises(ManifestError, match="class 'B' holds no PNG"):
        find_layout("folders")(empty)
    sites = draw(tmp_path / "3", *(f"{site}/{label}/1.png" for site in ("s1", "s2") for label in "AB"))
    (note,) = find_layout("folders")(sites).notes
    assert "holds the folders A, B; " in note and f"thoraclip index {sites}/s1 --out manifest.parquet" in note


def test_covid_qu_ex_lists_masks_without_image_and_the_copies_of_the_other_tree(tmp_path: Path) -> None:
    lung = [f"archive/Lung/Train/Normal/{part}/1.png" for part in ("images", "lung masks")]
    root = draw(tmp_path, *lung, "archive/Lung/Train/Normal/lung masks/9.png", "archive/Lung/Train/COVID/images/1.png")
    again = [path.replace("Lung", "Infection", 1) for path in lung]
    for path, copy in zip(lung, again, strict=True):
        (root / copy).parent.mkdir(parents=True, exist_ok=True)
        (root / copy).write_bytes((root / path).read_bytes())
    assert detect_layout(root) == "covid-qu-ex"
    listing = find_layout("covid-qu-ex")(root)
    assert listing.repeated_files == list(zip(again, lung, strict=True))
    assert listing.set_aside == [("archive/Lung/Train/Normal/lung masks/9.png", "a mask without an image of its name")]
    assert counts(listing) == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it holds nothing; name the images' folder: thoraclip index FOLDER --out manifest.parquet"),
        ([".git/x", "Thumbs.db"], r"it holds hidden files and files of the system: 2, first \.git; name"),
        (["Normal/Thumbs.db"], r"class 'Normal' holds no PNG.*\(mv .*r/Normal .*r-Normal\); it holds hidden.*: 1, first Normal/T"),
        (["lung masks/1.png"], "it holds masks: 1, first lung masks; name"),
        (["1.png", "2.png"], r"2 are set aside, first 1\.png: outside any.*: thoraclip index \S+/r --csv TABLE\.csv --out man"),
        ([os.fsdecode(b"A/\xff.png")], r"class 'A' holds no .*whose names are not UTF-8.*: 1, first A/\\udcff\.png"),
    ],
)  # fmt: skip
def test_a_folder_without_class_folders_says_what_was_seen_and_what_to_type(
    tmp_path: Path, names: list[str], message: str
) -> None:
    draw(tmp_path / "r", *names).mkdir(exist_ok=True)
    with pytest.raises((InputError, ManifestError), match=message) as caught:
        list_images(tmp_path / "r", layout="folders")
    assert "\n" not in str(caught.value)


@given(
    st.binary(min_size=1, max_size=6).filter(lambda name: not {*b"/\0"} & {*name} and not name.startswith((b".", b"-")))
)
@examples(20)
def test_the_command_for_an_empty_class_works_whatever_its_name(name: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "r")
        for label in (os.fsdecode(name) + "#", "other"):
            (root / label).mkdir(parents=True)
        (root / "other" / "1.png").touch()
        with pytest.raises(ManifestError) as caught:
            find_layout("folders")(root)
        command = str(caught.value).partition("(mv ")[2].rpartition("); it holds")[0]
        subprocess.run(["bash", "-c", f"mv {command}"], check=True)
        assert [*root.iterdir()] == [root / "other"] and (Path(folder) / f"r-{os.fsdecode(name)}#").is_dir()


def test_no_name_breaks_a_message(tmp_path: Path) -> None:
    for name in ("a\nb\x1b[2J\u202e", os.fsdecode(b"\xff\n")):
        (tmp_path / name / "c\rd").mkdir(parents=True)
        with pytest.raises((InputError, ManifestError)) as caught:
            list_images(tmp_path / name, layout="folders")
        assert str(caught.value).isascii() and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_closed_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path, "A/1.png", "A/closed/2.png", "B/1.png")
    scan = os.scandir

    def guarded(folder: str) -> object:
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = find_layout("folders")(tmp_path)
    assert (
        listing.set_aside == [("A/closed", "the folder cannot be read (Permission denied)")] and len(listing.rows) == 2
    )


# tables


@examples(40)
@given(name=st.text(alphabet="aé\u0301ü\u0308한ﬁÅ", min_size=1, max_size=4), forms=st.permutations(["NFC", "NFD"]))
def test_a_name_is_found_in_the_other_form(
    tmp_path_factory: pytest.TempPathFactory, name: str, forms: list[str]
) -> None:
    disk, asked = (unicodedata.normalize(form, name) for form in forms)
    root = draw(tmp_path_factory.mktemp("r"), f"{disk}/{disk}.png", "e/x.png")
    find = name_finder(root)
    assert find(f"{asked}/{asked}.png") == f"{disk}/{disk}.png" and find("e/x.png") == "e/x.png"
    assert find(f"{asked}/ä.png") == f"{asked}/ä.png"
    if disk != asked:
        draw(root, f"{asked}/x.png")
        assert name_finder(root)(f"{asked}/{asked}.png") == f"{asked}/{asked}.png"  # not there: its folder is


def test_a_table_finds_names_of_the_other_form_and_what_it_does_not_name_is_counted(tmp_path: Path) -> None:
    disk = [unicodedata.normalize("NFD", f"Müller/ä{number}.png") for number in (1, 2, 3)]
    root = draw(
        tmp_path,
        *disk,
        "masks/ä1.png",
        "masks/2.png",
        "B/1.png",
        "B/.x/9.png",
        "B/2.png",
        "top.png",
        ".x/3.png",
        ".x/4.png",
    )
    (root / "t.csv").write_text(
        "path,label,mask\nMüller/ä1.png,A,masks/ä1.png\nMüller/ä2.png,B,\n./B//1.png,B,\n.x/3.png,A,\n",
        encoding="utf-8",
    )
    listing = find_layout("csv")(root, csv_file=root / "t.csv")
    assert [row["path"] for row in listing.rows] == [*disk[:2], "B/1.png", ".x/3.png"]
    assert [row["image_id"] for row in listing.rows][:2] == ["Müller/ä1.png", "Müller/ä2.png"]
    assert listing.rows[0]["lung_mask"] == "masks/ä1.png" and listing.notes == ["columns taken: lung_mask from 'mask'"]
    folder = disk[0].partition("/")[0]
    assert sorted(listing.not_in_table) == sorted([(".", 1), ("B", 1), (folder, 1), ("masks", 1)])
    assert sorted(listing.system_files) == [(".x", 1), ("B/.x", 1)]
    assert counts(listing) + 1 == sum(one.files for one in walk(root))  # the table itself
