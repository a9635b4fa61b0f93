"""Layouts list everything they see: a row, or a line that says why not. They open no picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thoraclip.data.layouts import LAYOUTS, CsvColumns, Listing, detect_layout, find_layout, split_name
from thoraclip.data.layouts.csv import find_csv
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging import is_image_name

JOINED = "joined: 1 pictures of the infection tree repeat the lung tree's; one row each"
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


@pytest.mark.parametrize("lung", [f"{LUNG}/{LUNG}", LUNG, ""])
def test_first_folder_doubled_or_not_or_named_itself(tmp_path: Path, lung: str) -> None:
    listing = found(qu_ex(tmp_path, lung), "covid-qu-ex")
    assert [row["image_id"] for row in listing.rows] == [
        "Test/COVID-19/covid_2.png", "Test/Non-COVID/non_COVID (2).png", "Test/Normal/Normal (2).png",
        "Train/COVID-19/covid_1.png", "Train/Non-COVID/non_COVID (1).png", "Train/Normal/Normal (1).png",
    ]  # fmt: skip
    assert [row["split"] for row in listing.rows] == ["test"] * 3 + ["train"] * 3
    assert not listing.unknown_folders and not listing.other_files and not listing.set_aside


def test_the_infection_tree_joins_into_one_row_an_image(tmp_path: Path) -> None:
    listing = found(qu_ex(tmp_path), "covid-qu-ex")
    covid = next(row for row in listing.rows if row["image_id"] == "Train/COVID-19/covid_1.png")
    assert covid["path"] == f"{LUNG}/{LUNG}/Train/COVID-19/images/covid_1.png"
    assert covid["lung_mask"] == f"{LUNG}/{LUNG}/Train/COVID-19/lung masks/covid_1.png"
    assert covid["infection_mask"] == f"{INFECTION}/Train/COVID-19/infection masks/covid_1.png"
    assert [row["infection_mask"] for row in listing.rows].count(None) == 5
    assert listing.notes == [JOINED]


@pytest.mark.parametrize("alias", ["covid", "COVID19"])
def test_the_first_class_has_many_names(tmp_path: Path, alias: str) -> None:
    listing = found(qu_ex(tmp_path, first=alias), "covid-qu-ex")
    assert sorted({row["label"] for row in listing.rows}) == ["COVID-19", "Non-COVID", "Normal"]


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
    put(qu_ex(tmp_path), f"{INFECTION}/Val/Normal/images/Normal (1).png", content=b"TrainNormalimages")
    listing = found(tmp_path, "covid-qu-ex")
    lung, infection = (
        f"{LUNG}/{LUNG}/Train/Normal/images/Normal (1).png",
        f"{INFECTION}/Val/Normal/images/Normal (1).png",
    )
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
    assert sorted(listing.other_files) == [
        f"{LUNG}/Train/Normal/beside.png",
        f"{LUNG}/Train/Normal/images/Thumbs.db",
        f"{LUNG}/Train/log.txt",
        "README.txt",
    ]
    assert len(listing.rows) == 6


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    image = qu_ex(tmp_path, LUNG) / LUNG / "Train" / "Normal" / "images" / "Normal (1).png"
    image.rename(image.with_suffix(".txt"))
    with pytest.raises(ManifestError, match=r"Train/Normal/images: class 'Normal' holds no picture"):
        found(tmp_path, "covid-qu-ex")


def test_a_folder_that_is_not_covid_qu_ex_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "Normal/a.png")
    with pytest.raises(InputError, match=r"no COVID-QU-Ex folder \(<class>/images\).*--layout folders"):
        found(tmp_path, "covid-qu-ex")


# folders


def test_class_folders_without_splits(tmp_path: Path) -> None:
    put(tmp_path, "B class/deep/2.PNG", "A/1.jpg", "A/3.jpeg", "A/4.dcm", "A/notes.txt")
    listing = found(tmp_path, "folders")
    assert [(r["image_id"], r["label"], r["split"]) for r in listing.rows] == [
        ("A/1.jpg", "A", None), ("A/3.jpeg", "A", None), ("A/4.dcm", "A", None), ("B class/deep/2.PNG", "B class", None),
    ]  # fmt: skip
    assert listing.other_files == ["A/notes.txt"]


def test_class_folders_below_splits(tmp_path: Path) -> None:
    put(tmp_path, "Train/A/1.png", "training/B/2.png", "valid/A/3.png", "TEST/B/4.png", "extra/A/5.png", "extra/6.txt")
    listing = found(tmp_path, "folders")
    assert {r["path"]: (r["label"], r["split"]) for r in listing.rows} == {
        "Train/A/1.png": ("A", "train"), "training/B/2.png": ("B", "train"), "valid/A/3.png": ("A", "val"), "TEST/B/4.png": ("B", "test"),
    }  # fmt: skip
    assert listing.unknown_folders == [("extra", 2)]


def test_one_folder_with_a_splits_name_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "test/1.png", "control/2.png")
    assert {r["label"] for r in found(tmp_path, "folders").rows} == {"test", "control"}


def test_loose_files_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "train/A/1.png", "test/A/2.png", "train/loose.png", "top.png", "list.csv")
    outside = "outside any class folder"
    listing = found(tmp_path, "folders")
    assert listing.set_aside == [("top.png", outside), ("train/loose.png", outside)]
    assert listing.other_files == ["list.csv"]


def test_masks_inside_a_class_are_no_pictures_of_it(tmp_path: Path) -> None:
    """As in the COVID-19 Radiography Database."""
    for label in ("COVID", "Normal"):
        for part in ("images", "masks", "masks/left"):
            put(tmp_path, f"{label}/{part}/1.png")
    listing = find_layout("folders")(tmp_path)
    assert [row["path"] for row in listing.rows] == ["COVID/images/1.png", "Normal/images/1.png"]
    assert listing.unknown_folders == [("COVID/masks", 2), ("Normal/masks", 2)]


def test_masks_are_no_class_and_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "B/2.png", "lung_masks/1.png", "A/.thumbs/1.png")
    listing = found(tmp_path, "folders")
    assert [row["path"] for row in listing.rows] == ["A/1.png", "B/2.png"]
    assert listing.unknown_folders == [("lung_masks", 1)]


def test_pipes_and_dangling_links_are_told(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "B/2.png")
    (tmp_path / "A" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "B" / "pipe.png")
    os.mkfifo(tmp_path / "B" / "pipe")
    listing = found(tmp_path, "folders")
    assert [row["path"] for row in listing.rows] == ["A/1.png", "A/gone.png", "B/2.png", "B/pipe.png"]
    assert listing.other_files == ["B/pipe"]


def test_common_names_of_columns_are_taken_and_values_put_in_order(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "t.csv").write_text(
        "path,label,patient_id,age,sex\n1.png,a,p1,45,Male\n2.png,b,p2,900,f\n3.png,b,p3,,X\n"
    )
    listing = find_csv(tmp_path, csv_file=tmp_path / "t.csv")
    assert [(r["patient"], r["age_years"], r["sex"]) for r in listing.rows] == [
        ("p1", 45.0, "M"), ("p2", None, "F"), ("p3", None, "X"),
    ]  # fmt: skip
    assert any("age '900' is not a number of years" in note for note in listing.notes)
    (tmp_path / "t.csv").write_text("path,label\n../1.png,a\n")
    with pytest.raises(ManifestError, match=r"t\.csv:2: path '\.\./1\.png' leads out of"):
        find_csv(tmp_path, csv_file=tmp_path / "t.csv")


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "B/readme.txt")
    with pytest.raises(ManifestError, match="B: class 'B' holds no PNG, JPEG or DICOM picture; add some or remove"):
        found(tmp_path, "folders")


def test_dicom_files_without_an_ending_are_pictures(tmp_path: Path) -> None:
    put(tmp_path, "1.2.840.113619", "IM0001", "x.bin", content=b"\0" * 128 + b"DICM")
    put(tmp_path, "README", "1.2.3", content=b"text")
    assert [is_image_name(tmp_path / n) for n in ("1.2.840.113619", "IM0001", "x.bin", "README", "1.2.3")] == [
        True, True, False, False, False,
    ]  # fmt: skip


# csv


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "table.csv").write_bytes(text.encode(encoding))
    return root / "table.csv"


def from_csv(root: Path, text: str, **columns: Any) -> Listing:
    return found(root, "csv", csv_file=table(root, text), columns=CsvColumns(**columns) if columns else None)


def test_columns_of_any_name_feed_the_manifest(tmp_path: Path) -> None:
    put(tmp_path, "m/1.png")
    text = "file,dx,who,set,proj,gender,years,origin,mask,hospital\n1.png, A ,p1,Training,PA,F,045Y,web,m/1.png,H\n2.png,B,,valid,,,,,m/2.png,\n"
    listing = from_csv(
        tmp_path, text, path="file", label="dx", patient="who", split="set", view="proj", sex="gender",
        age_years="years", source="origin", lung_mask="mask",
    )  # fmt: skip
    assert listing.rows == [
        {"hospital": "H", "path": "1.png", "image_id": "1.png", "label": "A", "split": "train", "patient": "p1", "view": "PA",
         "sex": "F", "age_years": 45.0, "source": "web", "lung_mask": "m/1.png"},
        {"hospital": None, "path": "2.png", "image_id": "2.png", "label": "B", "split": "val", "patient": None, "view": None,
         "sex": None, "age_years": None, "source": None, "lung_mask": None},
    ]  # fmt: skip
    assert listing.notes == [f"no mask: m/2.png is missing ({tmp_path / 'table.csv'}:3)"]


def test_columns_that_bear_the_manifests_names_are_taken(tmp_path: Path) -> None:
    row = from_csv(tmp_path, "\ufeffpath,label,patient,image_id\n1.png,A,p,x\n").rows[0]
    assert (row["patient"], row["image_id"], row["label"]) == ("p", "x", "A")


def test_other_columns_are_kept_and_never_take_a_manifest_columns_place(tmp_path: Path) -> None:
    text = "path,label,patient,patient_id,sha256,fold,width,note\n1.png,A,old,p1,abc,3,512,x\n"
    row = from_csv(tmp_path, text, patient="patient_id").rows[0]
    assert row["patient"] == "p1" and row["csv_patient"] == "old" and row["note"] == "x"
    assert (row["csv_sha256"], row["csv_fold"], row["csv_width"]) == ("abc", "3", "512")
    assert not {"sha256", "fold", "width"} & set(row)


def test_unknown_words_are_null(tmp_path: Path) -> None:
    for word in ("", " ", "NA", "nan", "None", "unknown", "N/A", "null"):
        row = from_csv(tmp_path, f"path,label,patient\n1.png,{word},{word}\n").rows[0]
        assert row["label"] is None and row["patient"] is None, word


def test_ages(tmp_path: Path) -> None:
    ages = {"045Y": 45, "45": 45, "0": 0, "007": 7, "61.5": 61.5, "90y": 90, "100": 100}
    listing = from_csv(tmp_path, "path,label,age_years\n" + "".join(f"{text}.png,A,{text}\n" for text in ages))
    assert [row["age_years"] for row in listing.rows] == list(ages.values()) and not listing.notes
    wrong = ("006M", "old", "-3", "1000", "45-50")
    listing = from_csv(tmp_path, "path,label,age_years\n" + "".join(f"{text}.png,A,{text}\n" for text in wrong))
    assert {row["age_years"] for row in listing.rows} == {None}
    assert listing.notes == [
        f"age '{text}' is not a number of years; taken as unknown ({tmp_path / 'table.csv'}:{line})"
        for line, text in enumerate(wrong, start=2)
    ]


def test_split_words() -> None:
    words = {"Train": "train", "tr": "train", "valid": "val", "dev": "val", "Testing": "test", " test ": "test"}
    assert {word: split_name(word) for word in words} == words
    assert [split_name(word) for word in ("holdout", "", None)] == [None] * 3


def test_absolute_paths_become_relative_or_are_refused(tmp_path: Path) -> None:
    row = from_csv(tmp_path, f"path,label\n{tmp_path.resolve()}/a b/1.png,A\n").rows[0]
    assert row["path"] == row["image_id"] == "a b/1.png"
    with pytest.raises(ManifestError, match=r"table\.csv:2: path '/elsewhere/1\.png' lies outside"):
        from_csv(tmp_path, "path,label\n/elsewhere/1.png,A\n")


def test_a_row_without_a_path_is_set_aside(tmp_path: Path) -> None:
    listing = from_csv(tmp_path, "path,label\n,A\n1.png,B\n")
    assert listing.set_aside == [(f"{tmp_path / 'table.csv'}:2", "no path in this row")] and len(listing.rows) == 1


def test_short_rows_are_unknown_and_trailing_commas_are_nothing(tmp_path: Path) -> None:
    rows = from_csv(tmp_path, "path,label,view\n1.png,A\n2.png,B,PA,,\n").rows
    assert [(r["view"], set(r) - {"path", "image_id", "label", "split", "age_years", "view"}) for r in rows] == [
        (None, set()), ("PA", set()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n1.png,A|B\n", "table.csv:2: label 'A|B' names several classes; only single-label data"),
        ("path,label,split\n1.png,A,later\n", "table.csv:2: split 'later' is unknown; use train, val or test"),
        (
            "path,label,note\n1.png,A,x, y\n",
            "table.csv:2: more cells than columns, from ' y' on; put quotes around commas",
        ),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        from_csv(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["path,label\n1.png,é\n", "chemin,étiquette\n1.png,A\n"])
def test_a_table_in_another_encoding_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ManifestError, match=r"table\.csv: not a readable CSV file"):
        found(tmp_path, "csv", csv_file=table(tmp_path, text, "latin-1"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": "pth"}, "no column 'pth' for 'path'; did you mean 'path'? (--path-column NAME)"),
        ({"patient": "who"}, "no column 'who' for 'patient'; known: label, path, view (--patient-column NAME)"),
        ({"age_years": "age"}, "for 'age_years'; known: label, path, view (--age-column NAME)"),
        ({"lung_mask": "msk"}, "(--mask-column NAME)"),
        ({"infection_mask": "msk"}, "(--infection-mask-column NAME)"),
    ],
)
def test_a_named_column_that_is_not_there(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_csv(tmp_path, "path,label,view\n1.png,A,PA\n", **columns)
    assert message in str(caught.value)


def test_a_table_that_is_not_given_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout 'csv' needs the table: --csv FILE"):
        found(tmp_path, "csv")
    with pytest.raises(InputError, match=r"none\.csv: no such CSV file"):
        found(tmp_path, "csv", csv_file=tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="no column 'path'"):
        from_csv(tmp_path, "")


# all of them


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path, layout: str) -> None:
    csv_file = table(tmp_path, "path,label\n")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        found(tmp_path / "nowhere", layout, csv_file=csv_file)
    with pytest.raises(InputError, match=r"table\.csv: not a folder"):
        found(csv_file, layout, csv_file=csv_file)


def test_an_unknown_layout_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown layout 'folder'; did you mean 'folders'"):
        find_layout("folder")


def test_the_layout_is_found_out(tmp_path: Path) -> None:
    assert detect_layout(qu_ex(tmp_path / "q")) == "covid-qu-ex"
    put(tmp_path / "f", "A/1.png")
    assert detect_layout(tmp_path / "f") == "folders"
    with pytest.raises(InputError, match="no such folder"):
        detect_layout(tmp_path / "none")


@pytest.mark.parametrize("layout", ["covid-qu-ex", "folders"])
def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    qu_ex(qu_ex(tmp_path, LUNG), f"{LUNG}/{LUNG}")
    put(tmp_path, f"{LUNG}/Train/b.txt", f"{LUNG}/Train/a.txt", f"{LUNG}/Train/z/1.png", f"{LUNG}/Train/y/1.png")
    put(tmp_path, f"{INFECTION}/Train/COVID-19/images/covid_1.png", content=b"another picture")

    def reordered(original: Callable[..., Iterator[Path]], *, reverse: bool) -> Callable[..., Iterator[Path]]:
        return lambda self, *a: iter(sorted(original(self, *a), reverse=reverse))

    seen = []
    for reverse in (False, True):
        with monkeypatch.context() as patch:
            for name in ("iterdir", "glob", "rglob"):
                patch.setattr(Path, name, reordered(getattr(Path, name), reverse=reverse))
            seen.append(found(tmp_path, layout))
    assert seen[0] == seen[1] and len(seen[0].rows) > 6


def test_any_name_of_file_and_class(tmp_path: Path) -> None:
    names = ["肺 炎 (1).png", "ñandú é.png", "a'b\"c.png", "100%.png", "#1 & co.png"]
    put(tmp_path, *(f"Class ü/{name}" for name in names), "Normal/1.png")
    rows = found(tmp_path, "folders").rows
    assert {(row["label"], row["path"]) for row in rows[:-1]} == {("Class ü", f"Class ü/{name}") for name in names}
    quoted = [name.replace('"', '""') for name in names]
    listing = from_csv(tmp_path, "path,label\n" + "".join(f'"Class ü/{name}",Class ü\n' for name in quoted))
    assert [row["path"] for row in listing.rows] == [f"Class ü/{name}" for name in names]
