"""Layouts list everything they see: a row, or a line that says why not. They open no picture."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thoraclip.data.layouts import LAYOUTS, Listing, detect_layout, find_layout
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging.listing import walk
from thoraclip.imaging.names import IMAGES
from thoraclip.spelling import split_name

JOINED = "joined: 1 pictures of the infection tree repeat the lung tree's; one row each"
HEADER = "path,label,view\n"
LUNG, INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"


def put(root: Path, *paths: str, content: bytes | None = None) -> None:
    """Write files; the content of each is its own name unless given."""
    for path in paths:
        assert not Path(path).is_absolute()
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content or Path(path).name.encode())


def found(root: Path, layout: str, **options: Any) -> Listing:
    return find_layout(layout)(root, **options)


def qu_ex(root: Path, lung: str = f"{LUNG}/{LUNG}", first: str = "COVID-19") -> Path:
    """Two splits, three classes, one image each, with lung masks; one infection mask of the COVID image in Train."""
    for number, split in enumerate(("Train", "Test"), start=1):
        for label, name in ((first, f"covid_{number}"), ("Non-COVID", f"non_COVID ({number})"), ("Normal", f"Normal ({number})")):  # fmt: skip
            for part in ("images", "lung masks"):
                put(root / lung, f"{split}/{label}/{part}/{name}.png", content=f"{split}{label}{part}".encode())
    for part in ("images", "lung masks", "infection masks"):
        put(root, f"{INFECTION}/Train/{first}/{part}/covid_1.png", content=f"Train{first}{part}".encode())
    return root


# COVID-QU-Ex


@pytest.mark.parametrize(("lung", "first"), [(f"{LUNG}/{LUNG}", "COVID-19"), (LUNG, "covid"), ("", "COVID19")])
def test_both_trees_join_into_one_row_an_image(tmp_path: Path, lung: str, first: str) -> None:
    """The first folder may be doubled or named itself, and the first class has many names."""
    listing = found(qu_ex(tmp_path, lung, first), "covid-qu-ex")
    rows = sorted(listing.rows, key=lambda row: row["image_id"])
    assert [row["image_id"] for row in rows] == [
        "Test/COVID-19/covid_2.png", "Test/Non-COVID/non_COVID (2).png", "Test/Normal/Normal (2).png",
        "Train/COVID-19/covid_1.png", "Train/Non-COVID/non_COVID (1).png", "Train/Normal/Normal (1).png",
    ]  # fmt: skip
    assert [row["split"] for row in rows] == ["test"] * 3 + ["train"] * 3
    assert [row["label"] for row in rows] == ["COVID-19", "Non-COVID", "Normal"] * 2
    folder = (Path(lung) / "Train" / first).as_posix()
    covid = rows[3]
    assert (covid["path"], covid["lung_mask"]) == (f"{folder}/images/covid_1.png", f"{folder}/lung masks/covid_1.png")
    assert covid["infection_mask"] == f"{INFECTION}/Train/{first}/infection masks/covid_1.png"
    assert [row["infection_mask"] for row in rows].count(None) == 5
    assert listing.notes == [JOINED]
    assert not listing.unknown_folders and not listing.other_files and not listing.set_aside


def test_an_image_of_the_infection_tree_alone_is_a_row(tmp_path: Path) -> None:
    put(qu_ex(tmp_path), f"{INFECTION}/Val/Normal/images/Normal (9).png", f"{INFECTION}/Val/Normal/infection masks/Normal (9).png")  # fmt: skip
    row = next(r for r in found(tmp_path, "covid-qu-ex").rows if r["split"] == "val")
    assert row["path"].startswith(INFECTION) and row["lung_mask"] is None and row["infection_mask"]


def test_same_name_but_other_bytes_are_both_kept(tmp_path: Path) -> None:
    put(qu_ex(tmp_path), f"{INFECTION}/Train/COVID-19/images/covid_1.png", content=b"another picture")
    listing = found(tmp_path, "covid-qu-ex")
    both = [r for r in listing.rows if r["split"] == "train" and r["label"] == "COVID-19"]
    assert [r["image_id"] for r in both] == [r["path"] for r in both]  # the short id would be shared
    assert len({r["path"] for r in both}) == 2
    assert len(listing.notes) == 1
    assert listing.notes[0].startswith("same class and name but another picture: ") and "both kept" in listing.notes[0]


def test_a_split_conflict_is_noted_and_the_lung_tree_wins(tmp_path: Path) -> None:
    infection = f"{INFECTION}/Val/Normal/images/Normal (1).png"
    put(qu_ex(tmp_path), infection, content=b"TrainNormalimages")
    listing = found(tmp_path, "covid-qu-ex")
    lung = f"{LUNG}/{LUNG}/Train/Normal/images/Normal (1).png"
    assert sorted(listing.notes) == [f"in two splits: {lung} (train) and {infection} (val); 'train' kept", JOINED]
    assert len(listing.rows) == 6 and not any(r["split"] == "val" for r in listing.rows)


def test_a_repeat_in_the_lung_tree_is_noted(tmp_path: Path) -> None:
    listing = found(qu_ex(qu_ex(tmp_path, LUNG), f"{LUNG}/{LUNG}"), "covid-qu-ex")
    assert len(listing.rows) == 6
    assert len([n for n in listing.notes if n.startswith("repeated: ") and n.endswith("one row kept")]) == 6


def test_a_missing_mask_is_noted_and_null(tmp_path: Path) -> None:
    mask = f"{LUNG}/Train/Normal/lung masks/Normal (1).png"
    (qu_ex(tmp_path, LUNG) / mask).unlink()
    listing = found(tmp_path, "covid-qu-ex")
    assert sorted(listing.notes) == [JOINED, f"no mask: {mask} is missing"]
    assert next(r for r in listing.rows if r["image_id"] == "Train/Normal/Normal (1).png")["lung_mask"] is None


def test_unknown_folders_and_other_files_are_listed(tmp_path: Path) -> None:
    put(
        qu_ex(tmp_path, LUNG), "extra/a.png", "extra/deep/b.png", "README.txt", f"{LUNG}/Train/Normal/edge maps/x.png",
        f"{LUNG}/Train/Normal/images/Thumbs.db", f"{LUNG}/Train/Tuberculosis/images/t.png", f"{LUNG}/Train/log.txt",
        f"{LUNG}/Train/Normal/images/.hidden.png", f"{LUNG}/Train/Normal/beside.png", f"{LUNG}/Train/Normal/images/sub/y.png",
    )  # fmt: skip
    listing = found(tmp_path, "covid-qu-ex")
    assert sorted(listing.unknown_folders) == [
        (f"{LUNG}/Train/Normal/edge maps", 1), (f"{LUNG}/Train/Normal/images/sub", 1), (f"{LUNG}/Train/Tuberculosis", 1),
        ("extra", 2),
    ]  # fmt: skip
    assert sorted(listing.other_files) == [f"{LUNG}/Train/log.txt", "README.txt"]
    assert listing.set_aside == [(f"{LUNG}/Train/Normal/beside.png", "outside the folders 'images'")]
    images = f"{LUNG}/Train/Normal/images"
    assert listing.system_files == [(f"{images}/.hidden.png", 1), (f"{images}/Thumbs.db", 1)]
    assert len(listing.rows) == 6


# folders

OUTSIDE = "outside any class folder"
FOLDERS: dict[str, tuple[list[str], dict[str, tuple[str, str | None]], Listing]] = {
    "classes": (
        ["B class/deep/2.PNG", "A/1.jpg", "A/3.jpeg", "A/4.dcm", "A/notes.txt", "A/.thumbs/1.png"],
        {"A/1.jpg": ("A", None), "A/3.jpeg": ("A", None), "A/4.dcm": ("A", None),
         "B class/deep/2.PNG": ("B class", None)},
        Listing(Path("/"), other_files=["A/notes.txt"], system_files=[("A/.thumbs", 1)]),
    ),
    "classes below splits": (
        ["Train/A/1.png", "training/B/2.png", "valid/A/3.png", "TEST/B/4.png", "test_set/A/7.png", "extra/A/5.png", "extra/6.txt"],
        {"TEST/B/4.png": ("B", "test"), "Train/A/1.png": ("A", "train"), "training/B/2.png": ("B", "train"),
         "test_set/A/7.png": ("A", "test"), "valid/A/3.png": ("A", "val")},
        Listing(Path("/"), unknown_folders=[("extra", 2)]),
    ),
    "one folder with a split's name is a class": (
        ["test/1.png", "control/2.png"], {"control/2.png": ("control", None), "test/1.png": ("test", None)},
        Listing(Path("/"), notes=["class 'test' bears the name of a split, and no other folder does"]),
    ),
    "splits below the classes": (
        ["A/Train/p1/1.png", "A/test/2.png", "B/valid/3.png", "B/test_set/4.png", "B/masks/3.png"],
        {"A/Train/p1/1.png": ("A", "train"), "A/test/2.png": ("A", "test"), "B/test_set/4.png": ("B", "test"), "B/valid/3.png": ("B", "val")},
        Listing(Path("/"), unknown_folders=[("B/masks", 1)]),
    ),
    "splits below a part of the classes": (
        ["A/train/1.png", "A/test/2.png", "B/3.png"],
        {"A/test/2.png": ("A", None), "A/train/1.png": ("A", None), "B/3.png": ("B", None)},
        Listing(Path("/"), notes=[
            "no split is taken from 2 folders below the classes, first A/test, as B has none; sort its images into train, val and test, "
            "or give a table with a column split (--csv TABLE.csv)"
        ]),
    ),
    "loose files": (
        ["train/A/1.png", "test/A/2.png", "train/loose.png", "top.png", "list.csv"],
        {"test/A/2.png": ("A", "test"), "train/A/1.png": ("A", "train")},
        Listing(Path("/"), set_aside=[("top.png", OUTSIDE), ("train/loose.png", OUTSIDE)], other_files=["list.csv"]),
    ),
    "masks within classes, as in the COVID-19 Radiography Database, and beside them": (
        ["A/images/1.png", "A/masks/1.png", "A/masks/l/1.png", "B/images/1.png", "B/masks/1.png", "lung_masks/1.png"],
        {"A/images/1.png": ("A", None), "B/images/1.png": ("B", None)},
        Listing(Path("/"), unknown_folders=[("A/masks", 2), ("B/masks", 1), ("lung_masks", 1)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_every_file_of_class_folders_is_a_row_or_listed(tmp_path: Path, name: str) -> None:
    paths, rows, others = FOLDERS[name]
    put(tmp_path, *paths)
    listing = found(tmp_path, "folders")
    assert {row["path"]: (row["label"], row["split"]) for row in listing.rows} == rows
    assert all(row["image_id"] == row["path"] for row in listing.rows)
    listing.rows.clear()
    assert listing == others


def test_pipes_and_dangling_links_are_told(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "B/2.png")
    (tmp_path / "A" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "B" / "pipe.png")
    os.mkfifo(tmp_path / "B" / "pipe")
    listing = found(tmp_path, "folders")
    assert [row["path"] for row in listing.rows] == ["A/1.png", "A/gone.png", "B/2.png", "B/pipe.png"]
    assert listing.set_aside == [("B/pipe", "a pipe")]


EMPTY = "class 'Normal' holds no"


@pytest.mark.parametrize(
    ("layout", "path", "error", "message"),
    [
        ("covid-qu-ex", "Train/Normal/images/1.txt", ManifestError, f"Train/Normal/images: {EMPTY} picture; add some"),
        ("covid-qu-ex", "Normal/a.png", InputError, r"no COVID-QU-Ex folder \(<class>/images\).*--layout folders"),
        ("folders", "Normal/a.txt", ManifestError, f"Normal: {EMPTY} PNG, JPEG or DICOM picture; add some or remove"),
    ],
)
def test_an_empty_class_or_another_layout_is_refused(
    tmp_path: Path, layout: str, path: str, error: type[Exception], message: str
) -> None:
    put(tmp_path, path, "other/b.png")
    with pytest.raises(error, match=message):
        found(tmp_path, layout)


def test_dicom_files_without_an_ending_are_pictures(tmp_path: Path) -> None:
    put(tmp_path, "1.2.840.113619", "IM0001", "x.bin", content=b"\0" * 128 + b"DICM")
    put(tmp_path, "README", "1.2.3", content=b"text")
    assert [Path(one.path).name for one in walk(tmp_path) if one.kind == IMAGES] == [
        "1.2.840.113619",
        "IM0001",
        "x.bin",
    ]


# csv


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "table.csv").write_bytes(text.encode(encoding))
    return root / "table.csv"


def from_csv(root: Path, text: str, **columns: Any) -> Listing:
    return found(root, "csv", csv_file=table(root, text), columns=columns)


def test_columns_of_any_name_feed_the_manifest(tmp_path: Path) -> None:
    put(tmp_path, "m/1.png")
    text = "file,dx,who,set,proj,gender,years,origin,mask,hospital\n1.png, A ,p1,Training,PA,Male,045Y,web,m/1.png,H\n2.png,B,-,valid,P.-A.,X,,,m/2.png,\n"
    listing = from_csv(
        tmp_path, text, path="file", label="dx", patient="who", split="set", view="proj", sex="gender",
        age_years="years", source="origin", lung_mask="mask",
    )  # fmt: skip
    assert listing.rows == [
        {"hospital": "H", "path": "1.png", "image_id": "1.png", "label": "A", "split": "train", "patient": "p1", "view": "PA",
         "sex": "M", "age_years": 45.0, "source": "web", "lung_mask": "m/1.png"},
        {"hospital": None, "path": "2.png", "image_id": "2.png", "label": "B", "split": "val", "patient": None, "view": "PA",
         "sex": "X", "age_years": None, "source": None, "lung_mask": None},
    ]  # fmt: skip
    assert listing.notes == [
        f"no mask: m/2.png is missing ({tmp_path / 'table.csv'}:3)",
        "columns taken: path from 'file', label from 'dx', split from 'set', patient from 'who', source from 'origin', "
        "view from 'proj', sex from 'gender', age_years from 'years', lung_mask from 'mask'; kept as text: 'hospital'",
        f"sex 'X' is kept as it is written; write M, F or O ({tmp_path / 'table.csv'}:3)",
    ]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("\ufeffpath,label,patient,image_id\n1.png,A,p,x\n", {"image_id": "x", "patient": "p"}),
        ("path,label,patient_id,age,sex\n1.png,A,p,45,f\n", {"patient": "p", "age_years": 45.0, "sex": "F"}),
        ("path,label,view\n1.png,A\n", {"view": None}),
        ("path,label,view\n1.png,A,PA,,\n", {"view": "PA"}),
    ],
)
def test_columns_of_our_name_or_a_common_one_are_taken(tmp_path: Path, text: str, row: dict[str, Any]) -> None:
    """In a row that may be short, or end in commas."""
    usual = {"path": "1.png", "image_id": "1.png", "label": "A", "split": None, "age_years": None}
    assert from_csv(tmp_path, text).rows == [usual | row]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("age_years,Sex", ["taken: sex from 'Sex'"]),
        ("Alter,Geschlecht,note", ["kept as text: 'Alter', 'Geschlecht', 'note'", "if they are meant, add --age-column Alter --sex-column Geschlecht"]),
        ("Patient ID,Patient Age,PatientSex_DICOM,View Position", ["kept as text: 'Patient ID', 'Patient Age', 'PatientSex_DICOM', 'View Position'",
         "if they are meant, add --patient-column 'Patient ID' --age-column 'Patient Age' --sex-column PatientSex_DICOM --view-column 'View Position'"]),
        ("age,Alter", ["taken: age_years from 'age'", "kept as text: 'Alter'"]),
        (",".join(f"c{n}" for n in range(12)), [f"kept as text: {', '.join(repr(f'c{n}') for n in range(10))} and 2 more"]),
    ],
)  # fmt: skip
def test_it_is_said_which_columns_are_taken_and_which_are_text(tmp_path: Path, names: str, said: list[str]) -> None:
    """What is said to be typed takes the columns."""
    text = f"path,label,{names}\n1.png,A\n"
    assert from_csv(tmp_path, text).notes[1:] == [f"columns {'; '.join(said)}"]
    words = shlex.split(said[-1].partition(" add ")[2])
    options = {word[2:].removesuffix("-column").replace("age", "age_years"): name for word, name in batched(words)}
    assert not options or "add --" not in from_csv(tmp_path, text, **options).notes[-1]


def batched(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def test_other_columns_are_kept_and_never_take_a_manifest_columns_place(tmp_path: Path) -> None:
    text = "path,label,patient,patient_id,sha256,fold,width,note\n1.png,A,old,p1,abc,3,512,x\n"
    row = from_csv(tmp_path, text, patient="patient_id").rows[0]
    assert row["patient"] == "p1" and row["csv_patient"] == "old" and row["note"] == "x"
    assert (row["csv_sha256"], row["csv_fold"], row["csv_width"]) == ("abc", "3", "512")
    assert not {"sha256", "fold", "width"} & set(row)


def test_words_ages_and_splits(tmp_path: Path) -> None:
    """Each of them is one that is known, or null."""
    words = ("", " ", "NA", "nan", "None", "unknown", "N/A", "null")
    lines = [f"{number}.png,{word},{word}\n" for number, word in enumerate(words)]
    rows = from_csv(tmp_path, "path,label,patient\n" + "".join(lines)).rows
    assert [(row["label"], row["patient"]) for row in rows] == [(None, None)] * len(words)
    ages = {"045Y": 45, "45": 45, "0": 0, "007": 7, "61.5": 61.5, "90y": 90, "130": 130, "006M": 0.5}
    ages |= dict.fromkeys(("old", "-3", "131", "1000", "45-50"))
    listing = from_csv(tmp_path, "path,label,age_years\n" + "".join(f"{text}.png,A,{text}\n" for text in ages))
    assert [row["age_years"] for row in listing.rows] == list(ages.values())
    assert listing.notes == [
        f"age '{text}' is not a number of years; taken as unknown ({tmp_path / 'table.csv'}:{line})"
        for line, (text, years) in enumerate(ages.items(), start=2)
        if years is None
    ]
    splits = {"Train": "train", "tr": "train", "valid": "val", "dev": "val", "Testing": "test", " test ": "test"}
    splits |= dict.fromkeys(("holdout", ""))
    assert {word: split_name(word) for word in splits} == splits and split_name(None) is None


def test_paths_become_relative_and_a_row_without_one_is_set_aside(tmp_path: Path) -> None:
    listing = from_csv(tmp_path, f"path,label\n,A\n{tmp_path.resolve()}/a b/1.png,B\n")
    assert listing.set_aside == [(f"{tmp_path / 'table.csv'}:2", "no path in this row")]
    assert [(row["path"], row["image_id"]) for row in listing.rows] == [("a b/1.png", "a b/1.png")]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("path,label\n1.png,A|B\n", {}, "table.csv:2: label 'A|B' names several classes; keep one per image"),
        ("path,label\n1.png,A\n2.png,B b\n3.png,B b; A\n", {}, "table.csv:4: label 'B b; A' names several classes"),
        ("path,label,split\n1.png,A,later\n", {}, "table.csv:2: split 'later' is unknown; use train, val or test"),
        (
            "path,label,note\n1.png,A,x, y\n",
            {},
            "table.csv:2: more cells than columns (4 in 3), from 'y' on; put quotes around",
        ),
        ("path,label\n/elsewhere/1.png,A\n", {}, "table.csv:2: path '/elsewhere/1.png' lies outside"),
        ("path,label\n../1.png,a\n", {}, "table.csv:2: path '../1.png' leads out of"),
        ("file,label\n1.png,a\n", {}, "no column 'path'; known: file, label; give --path-column NAME"),
        (HEADER, {"path": "pth"}, "no column 'pth'; did you mean 'path'?; give --path-column NAME"),
        (HEADER, {"patient": "w"}, "no column 'w'; known: label, path, view; give --patient-column NAME"),
        (HEADER, {"age_years": "age"}, "no column 'age'; known: label, path, view; give --age-column NAME"),
        (HEADER, {"lung_mask": "msk"}, "; give --mask-column NAME"),
        (HEADER, {"infection_mask": "msk"}, "; give --infection-mask-column NAME"),
    ],
)
def test_a_wrong_row_or_column_is_refused(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError if "column '" in message or "-column" in message else ManifestError) as caught:
        from_csv(tmp_path, text, **columns)
    assert message in str(caught.value)


def test_a_table_that_is_not_given_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout 'csv' needs the table: --csv FILE"):
        found(tmp_path, "csv")
    with pytest.raises(InputError, match=r"none\.csv: no such CSV file"):
        found(tmp_path, "csv", csv_file=tmp_path / "none.csv")
    for text, message in (("", r"table\.csv: the file is empty"), ("path,label\n", r"table\.csv: no rows below")):
        with pytest.raises(ManifestError, match=message):
            from_csv(tmp_path, text)


# all of them


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path, layout: str) -> None:
    csv_file = table(tmp_path, "path,label\n")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        found(tmp_path / "nowhere", layout, csv_file=csv_file)
    with pytest.raises(InputError, match=r"table\.csv: not a folder"):
        found(csv_file, layout, csv_file=csv_file)


def test_the_layout_is_found_out(tmp_path: Path) -> None:
    assert detect_layout(qu_ex(tmp_path / "q")) == "covid-qu-ex"
    put(tmp_path / "f", "A/1.png", "A/masks/1.png")
    assert detect_layout(tmp_path / "f") == "folders"
    with pytest.raises(InputError, match="no such folder"):
        detect_layout(tmp_path / "none")
    with pytest.raises(ConfigError, match="unknown layout 'folder'; did you mean 'folders'"):
        find_layout("folder")


@pytest.mark.parametrize("layout", ["covid-qu-ex", "folders"])
def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    qu_ex(qu_ex(tmp_path, LUNG), f"{LUNG}/{LUNG}")
    put(tmp_path, *(f"{LUNG}/Train/{name}" for name in ("b.txt", "a.txt", "z/1.png", "y/1.png")))
    put(tmp_path, f"{INFECTION}/Train/COVID-19/images/covid_1.png", content=b"another picture")

    def reordered(original: Callable[..., Iterator[Path]], *, reverse: bool) -> Callable[..., Iterator[Path]]:
        return lambda self, *a, **k: iter(sorted(original(self, *a, **k), reverse=reverse))

    seen = []
    for reverse in (False, True):
        with monkeypatch.context() as patch:
            for name in ("iterdir", "glob", "rglob"):
                patch.setattr(Path, name, reordered(getattr(Path, name), reverse=reverse))
            seen.append(found(tmp_path, layout))
    assert seen[0] == seen[1] and len(seen[0].rows) > 6
