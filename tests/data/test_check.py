"""Check: planted leaks, copies and contradictions are found and said; a clean set passes; nothing is lost on the way."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples, files

from thoraclip.cli.app import run
from thoraclip.data.check import (
    check,
    duplicate_clusters,
    findings,
    inspect,
    read_check,
    read_clusters,
    write_check,
)
from thoraclip.data.check import inspection as module
from thoraclip.data.check.inspection import MEASURED
from thoraclip.data.index import index
from thoraclip.data.phantom import draw_phantom
from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.tables.manifest import Manifest, write_manifest

pytestmark = pytest.mark.usefixtures("small_forest")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """36 phantoms in train and test of three classes; two copies across the split: one identical, one recompressed."""
    root = tmp_path_factory.mktemp("check") / "images"
    for label in ("covid", "normal", "pneumonia"):
        for i in range(12):
            file = root / ("train" if i < 8 else "test") / label / f"{i % 8}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            phantom = draw_phantom("Normal", rng=np.random.default_rng([i, len(label)]), size=160)
            Image.fromarray(phantom.pixels).save(file)
    shutil.copy(root / "train" / "covid" / "0.png", root / "test" / "covid" / "3.png")
    again = Image.open(root / "train" / "normal" / "1.png").resize((120, 120), Image.Resampling.BICUBIC)
    again.save(root / "test" / "pneumonia" / "3.jpg", quality=70)
    (root / "test" / "pneumonia" / "3.png").unlink()
    found = index(root, layout="folders").manifest
    return found.with_columns(patient=[f"p{row // 2:02d}-{split}" for row, split in enumerate(found.column("split"))])


@pytest.fixture(scope="module")
def content(manifest: Manifest, small_forest: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check(manifest, tmp_path_factory.mktemp("work"))


def test_copies_across_the_split_are_leaks(content: dict[str, Any]) -> None:
    pairs = content["duplicates"]["pairs"]
    assert [(p["image_id"], p["kind"], p["across_part"], p["across_label"]) for p in pairs] == [
        (["test/pneumonia/3.jpg", "train/normal/1.png"], "near", True, True),
        (["test/covid/3.png", "train/covid/0.png"], "identical", True, False),
    ], "a contradiction of labels stands first"
    assert content["leaks"] == [
        "2 pictures in two parts of the split (4 images), first test/covid/3.png = train/covid/0.png; "
        "keep copies together: thoraclip split MANIFEST --duplicates CHECK_DIR"
    ]
    assert any(w.startswith("1 picture under two labels, first test/pneumonia/3.jpg = ") for w in content["warnings"])
    assert any(w.startswith("2 pictures under two patients") for w in content["warnings"])


def test_the_table_is_counted_and_every_column_measured(content: dict[str, Any]) -> None:
    assert content["images"] == 36 and content["unreadable"] == []
    counted = {label: [8, 4] for label in ("covid", "normal", "pneumonia")}
    assert content["counts"] == {"parts": ["train", "test"], "classes": counted}
    assert content["tallies"]["size"]["pneumonia"] == {"160 x 160": 11, "120 x 120": 1}
    png = {"covid": {"PNG": 12}, "normal": {"PNG": 12}}
    assert content["tallies"]["format"] == png | {"pneumonia": {"PNG": 11, "JPEG": 1}}
    assert content["tallies"]["mode"]["covid"] == {"L": 12}
    marked = content["marks"]["images"]
    assert len(marked) > 9 and marked == sorted(marked, key=lambda row: (-row["area"], row["image_id"]))
    hits = Counter(row["image_id"].split("/")[1] for row in marked)
    assert {label: (m["hits"], m["of"], m["value"]) for label, m in content["marks"]["per_class"].items()} == {
        label: (hits[label], 12, hits[label] / 12) for label in counted
    }
    rows = {row["name"]: row for row in content["differences"]}
    first, *others = rows
    assert first == "all of these together"
    assert set(others) == {*MEASURED, "age_years", "view", "sex", "source", "format", "mode"}
    size = {"n": 12, **dict.fromkeys(("median", "q1", "q3"), pytest.approx(0.0256))}
    assert rows["megapixels"]["per_class"]["covid"] == size


def test_a_clean_set_has_no_leak_and_hostile_names_stay_text(manifest: Manifest, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|`*"
    clean = manifest.take(np.flatnonzero(["test/" not in i or "/3." not in i for i in manifest.column("image_id")]))
    clean = clean.with_columns(
        image_id=[f"{i}{evil}" for i in clean.column("image_id")], patient=[evil, evil, *clean.column("patient")[2:]],
        label=[evil if label == "covid" else label for label in clean.column("label")],
    )  # fmt: skip
    found = check(clean, tmp_path / "work")
    assert found["leaks"] == [] and found["duplicates"] == {"pairs": [], "groups": []}
    write_check(found, clean, tmp_path / "out")
    for name in ("check.html", "check.md"):
        shown = (tmp_path / "out" / name).read_text()
        assert "No leak found" in shown and "<script>" not in shown


def test_images_of_one_picture_get_one_cluster(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path)
    joined = read_clusters(manifest, tmp_path)
    assert joined.table.equals(duplicate_clusters(manifest, tmp_path / "work").table)
    cluster = joined.by_id("duplicate_cluster")
    assert {i: c for i, c in cluster.items() if c} == {
        "test/covid/3.png": "test/covid/3.png", "train/covid/0.png": "test/covid/3.png",
        "test/pneumonia/3.jpg": "test/pneumonia/3.jpg", "train/normal/1.png": "test/pneumonia/3.jpg",
    }  # fmt: skip


def test_a_check_that_does_not_fit_is_refused(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path)
    file = tmp_path / "check.json"
    assert read_check(tmp_path, manifest, whole=True) == read_check(file, manifest) == json.loads(json.dumps(content))
    relabelled = manifest.with_columns(label=["covid", "normal"] * 18)
    read_check(tmp_path, relabelled)
    with pytest.raises(MismatchError, match="made on another split, or other labels or patients"):
        read_check(tmp_path, relabelled, whole=True)
    with pytest.raises(MismatchError, match=r"check\.json: made on other images than this manifest's"):
        read_clusters(manifest.take(np.arange(30)), tmp_path)
    with pytest.raises(InputError, match=r"no check\.json there; make it with: thoraclip check"):
        read_check(tmp_path / "nowhere", manifest)
    with pytest.raises(InputError, match="is a file, and a folder is to be written"):
        write_check(content, manifest, file)
    for schema, message in (
        ("x", "schema = .x.: a whole number of 1 or more is needed"),
        (9, "schema 9 is newer than 1; upgrade thoraclip"),
    ):
        file.write_text(json.dumps(content | {"schema": schema}))
        with pytest.raises(ManifestError, match=message):
            read_check(tmp_path, manifest)
    file.write_text(json.dumps(content | {"pictures": False}))
    with pytest.raises(MismatchError, match="a check of the table alone, which knows no near dup.* without --no-pict"):
        read_clusters(manifest, tmp_path)


def test_pictures_that_cannot_be_used_are_listed_and_the_rest_goes_on(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Manifest(manifest.table, tmp_path / "mine")
    shutil.copytree(manifest.root, mine.root)
    (mine.root / "train/normal/2.png").unlink()
    whole = (mine.root / "train/covid/0.png").read_bytes()
    (mine.root / "train/covid/0.png").write_bytes(b"x")
    found = check(mine, tmp_path / "work")
    reasons = {row["path"]: row["reason"] for row in found["unreadable"]}
    assert set(reasons) == {"train/normal/2.png", "train/covid/0.png"}
    assert re.match(r"cannot be read any more \(No such file", reasons["train/normal/2.png"])
    assert reasons["train/covid/0.png"] == "its content changed since it was indexed; index the folder again"
    assert [p["kind"] for p in found["duplicates"]["pairs"]] == ["near"], "two black thumbnails are no copies"
    assert found["warnings"][0].startswith("2 pictures cannot be used, first train/covid/0.png")
    assert json.dumps(found, allow_nan=False)
    (mine.root / "train/covid/0.png").write_bytes(whole)
    monkeypatch.setattr(findings, "differences", lambda *_, **__: [])
    again = check(mine, tmp_path / "work")
    assert [row["path"] for row in again["unreadable"]] == ["train/normal/2.png"], "a mended picture is measured"
    assert [p["kind"] for p in again["duplicates"]["pairs"]] == ["near", "identical"], "and compared"


def test_a_killed_inspection_goes_on_and_ends_with_the_same_bytes(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 5)
    inspect(manifest, tmp_path / "whole")

    def die(done: int, total: int) -> None:
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect(manifest, tmp_path / "broken", progress=die)
    looked: list[str] = []
    original = module.read_indexed
    monkeypatch.setattr(module, "read_indexed", lambda path, sha: (looked.append(path.name), original(path, sha))[1])
    inspect(manifest, tmp_path / "broken")
    assert len(looked) == 36 - 15
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
    looked.clear()
    inspect(manifest, tmp_path / "broken")
    assert looked == [], "a finished inspection is only read"


def test_a_second_check_searches_for_copies_again_only_where_the_pictures_changed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "differences", lambda *_, **__: [])
    first = check(manifest, tmp_path)
    searched: list[int] = []
    original = module.find_duplicates

    monkeypatch.setattr(
        module, "find_duplicates", lambda t, *a, **k: (searched.append(len(t)), original(t, *a, **k))[1]
    )
    assert check(manifest, tmp_path) == first and searched == []
    check(manifest.take(np.arange(30)), tmp_path)
    assert searched == [30]
    (tmp_path / "pairs.json").write_text("{")
    check(manifest.take(np.arange(30)), tmp_path)
    assert searched == [30, 30]


def test_the_pages(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "check.json").read_text())["schema"] == 1
    page, text = ((tmp_path / "one" / name).read_text() for name in ("check.html", "check.md"))
    for shown in (page, text):
        assert "Research use only, not for diagnosis." in shown
        assert "test/pneumonia/3.jpg" in shown and "border contrast" in shown
        assert "This split leaks" in shown
    assert page.count("data:image/jpeg;base64,") >= 4 and "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert "test / train" in page, "the pair that crosses the split says so"
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for first, second in itertools.pairwise(lines):
        if second.startswith("| ---"):
            assert first.count("|") == second.count("|")
    write_check(check(manifest, tmp_path / "work"), manifest, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two"), "nothing depends on the run"


def test_unlabelled_pictures_are_checked_too(manifest: Manifest, tmp_path: Path) -> None:
    bare = manifest.with_columns(label=[None] * 36, patient=[None] * 36)
    found = check(bare, tmp_path)
    assert found["differences"] == [] and len(found["duplicates"]["pairs"]) == 2
    assert "36 images without a label; they are neither trained on nor judged" in found["warnings"]
    assert any(w.startswith("patients are not known") for w in found["warnings"])
    write_check(found, bare, tmp_path / "out")


def without_pictures(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The same table where no picture is, checked and written."""
    found = Manifest(manifest.table, Path("/nowhere"), may_leak=True)
    content = check(found, None)
    write_check(content, found, folder)
    return content


def test_the_table_alone_is_checked_without_a_picture(
    manifest: Manifest, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "thoraclip.data.check.page.picture_loader", lambda _: lambda path: pytest.fail(f"{path} was opened")
    )
    found = without_pictures(manifest, tmp_path)
    same = ("schema", "manifest", "images", "counts", "tallies", "patients", "provenance")
    assert {name: found[name] for name in same} == {name: content[name] for name in same}
    identical = [pair for pair in content["duplicates"]["pairs"] if pair["kind"] == "identical"]
    assert found["duplicates"]["pairs"] == identical and len(found["duplicates"]["groups"]) == 1
    assert found["pictures"] is False and "pictures" not in content
    assert (found["differences"], found["unreadable"], found["marks"]["images"]) == ([], [], [])
    assert found["leaks"] == [
        "1 picture in two parts of the split (2 images), first test/covid/3.png = train/covid/0.png; "
        "keep copies together: thoraclip split MANIFEST"
    ]
    assert found["warnings"][0] == (
        "no picture was looked at: near duplicates were not searched, nor files that cannot be read, burned-in text and "
        "what tells the classes apart without anatomy"
    )
    assert found["warnings"][1].endswith(
        "(2 images; 1 pair of identical files), first test/covid/3.png = train/covid/0.png"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["check.html", "check.json", "check.md"]
    for name in ("check.html", "check.md"):
        shown = (tmp_path / name).read_text()
        assert "No picture was looked at" in shown and "ear duplicates were not searched" in shown
        assert "test/covid/3.png" in shown and "data:image" not in shown and "can be read." not in shown
        assert shown.count("no picture was looked at") >= 3


def test_a_clean_table_says_what_it_cannot_know(manifest: Manifest, tmp_path: Path) -> None:
    clean = manifest.take(np.flatnonzero([split == "train" for split in manifest.column("split")]))
    parts = ["CHEST", None, "HAND", "FOOT", "HAND", "LUNG"] * 4
    found = without_pictures(clean.with_columns(body_part=parts), tmp_path)
    assert found["leaks"] == [] and found["duplicates"] == {"pairs": [], "groups": []}
    assert "12 images of another body part than the chest, first 'HAND'" in found["warnings"]
    for name in ("check.html", "check.md"):
        shown = (tmp_path / name).read_text()
        assert "No leak found: no known patient and no file stands on both sides of the split." in shown
        assert "No file stands there twice." in shown


def test_the_command_without_pictures(manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "m.parquet", tmp_path / "out"
    shutil.copytree(manifest.root, tmp_path / "images")
    write_manifest(table, Manifest(manifest.table, tmp_path / "images"))
    for file in (tmp_path / "images").rglob("*.*g"):
        file.write_bytes(b"no picture")
    for strict, code in ((["--strict"], 1), ([], 0)):
        assert run(["check", str(table), "--no-pictures", "--out", str(out), *strict]) == code
        shown = "".join(capsys.readouterr())
        assert "leak: 1 picture in two parts of the split" in shown and "warning: no picture was looked at" in shown
    assert json.loads((out / "check.json").read_text())["unreadable"] == []


def many() -> Manifest:
    """96 images of 24 patients, most in several parts and under several labels; many files stand there several times."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "image_id": f"i{k:02d}", "path": f"{k}", "sha256": None if k % 19 == 0 else f"{rng.integers(45)}",
            "label": [None, "a", "b"][rng.integers(3)], "patient": None if k % 7 == 0 else f"p{rng.integers(24):02d}",
            "split": ["train", "test"][rng.integers(8) // 6], "fold": [None, 0][rng.integers(12) // 11], "width": int(rng.integers(1, 9)), "height": 5, "mode": "L",
        }
        for k in range(96)
    ]  # fmt: skip
    return Manifest.from_rows(rows, Path(), may_leak=True)


def test_long_lists_are_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = many()
    whole = without_pictures(table, tmp_path / "whole")
    monkeypatch.setattr(findings, "_MOST", 6)
    cut = without_pictures(table, tmp_path / "cut")
    torn, two = (whole["patients"][name] for name in ("in_two_splits", "under_two_labels"))
    first = f"{torn[0]['patient']}' ({', '.join(torn[0]['values'])})"
    found = f"{len(torn)} patients in two parts of the split, first '{first}; split again by patient: thoraclip split"
    assert len(cut["leaks"]) == 2 and cut["leaks"][0] == whole["leaks"][0] == found
    unknown, images = whole["patients"]["images_of_unknown_patients"], sum(row["images"] for row in two)
    assert f"{unknown} images of unknown patients" in whole["warnings"]
    first = f"{two[0]['patient']}' ({', '.join(two[0]['values'])})"
    assert f"{len(two)} patients under two labels ({images} images), first '{first}" in whole["warnings"]
    assert [line.partition(", first")[0] for line in cut["leaks"] + cut["warnings"]] == [
        line.partition(", first")[0] for line in whole["leaks"] + whole["warnings"]
    ], "every number is that of the whole"
    for name in ("in_two_splits", "under_two_labels"):
        assert cut["patients"][name][:6] == whole["patients"][name][:6]
        assert cut["patients"]["in_all"][name] == len(whole["patients"][name]) > 6
    pairs = cut["duplicates"]["pairs"]
    assert all(pair in whole["duplicates"]["pairs"] for pair in pairs) and 3 <= len(pairs) < 6
    assert "in_all" not in whole["duplicates"] and "in_all" not in whole["patients"]
    for label, sizes in cut["tallies"]["size"].items():
        assert sum(sizes.values()) == sum(whole["tallies"]["size"][label].values()) and list(sizes)[-1] == "all others"
    page = (tmp_path / "cut" / "check.html").read_text()
    number = len(whole["duplicates"]["pairs"])
    assert f"{number} pairs of identical files" in page and f"which lists the first {len(pairs)}" in page
    assert f"{len(whole['patients']['under_two_labels'])} under two labels" in page


@pytest.mark.parametrize("most", [4, 12, 40, 60])
def test_identical_files_across_the_split_are_listed_first(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = many()
    whole = findings.duplicates(table, *findings.identical(table))["groups"]
    monkeypatch.setattr(findings, "_MOST", most)
    ids = table.column("image_id")
    listed = {ids[end] for pair in findings.identical(table)[0] for end in (pair.first, pair.second)}
    keys: dict[bool, list[tuple[bool, bool]]] = {True: [], False: []}
    for group in whole:
        keys[bool(listed.intersection(group["image_id"]))].append((not group["across_part"], not group["across_label"]))
    assert keys[True] and keys[False] and max(keys[True]) <= min(keys[False])


cells = st.tuples(
    *(st.sampled_from([None, *values]) for values in (["", *"stu"], "pqr", "ab", ["train", "test"], [0, 1]))
)


@examples(200)
@given(st.lists(cells, min_size=1))
def test_patients_and_identical_files_are_those_of_a_plain_search(table: list[tuple[Any, ...]]) -> None:
    """Every one of a group counts, not the first two, and not only what the first one is known to be."""
    names = ("sha256", "patient", "label", "split", "fold")
    rows = [{"image_id": f"i{k:03d}"} | dict(zip(names, row, strict=True)) for k, row in enumerate(table)]
    for row in rows:
        row["part"] = row["split"] if row["fold"] is None else f"fold {row['fold']}"
    manifest = Manifest.from_rows(rows, Path(), may_leak=True)

    def groups(name: str) -> dict[str, list[int]]:
        found = sorted({row[name] for row in rows} - {None, ""})
        return {value: [k for k, row in enumerate(rows) if row[name] == value] for value in found}

    has_folds = any(row["fold"] is not None for row in rows)

    def values(own: list[int], name: str) -> list[str]:
        """An image of the training split without a fold is trained on in every fold."""
        found = {str(rows[k][name]) for k in own} - {"None"}
        if name == "fold" and has_folds and any(rows[k]["fold"] is None and rows[k]["split"] == "train" for k in own):
            found.add("train")
        return sorted(found)

    def in_two(name: str) -> list[dict[str, Any]]:
        found = {p: (own, values(own, name)) for p, own in groups("patient").items()}
        return [{"patient": p, "values": v, "images": len(own)} for p, (own, v) in found.items() if len(v) > 1]

    patients = findings.patients(manifest)
    patients.pop("dominating")
    assert patients == {
        "known": len(groups("patient")),
        "images_of_unknown_patients": sum(row["patient"] is None for row in rows),
        "in_two_splits": in_two("split") + in_two("fold"),
        "under_two_labels": in_two("label"),
    }
    copies = sorted(own for own in groups("sha256").values() if len(own) > 1)
    pairs, in_all = findings.identical(manifest)
    assert sorted((p.first, p.second) for p in pairs) == [(own[0], k) for own in copies for k in own[1:]]
    assert in_all == {}
    for own, group in zip(copies, findings.duplicates(manifest, pairs)["groups"], strict=True):
        assert group["image_id"] == [rows[k]["image_id"] for k in own]
        for name in ("part", "label", "patient"):
            assert group[f"across_{name}"] == (len(values(own, name)) > 1)


@examples(200)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.sampled_from(["p", "q", None])), min_size=1, max_size=60
    ),
    st.integers(0, 40),
    st.booleans(),
)
def test_a_part_that_one_patient_fills_is_said(
    rows: list[tuple[str, int, str | None]], many: int, is_fold: bool
) -> None:
    rows = [*rows, *[("a", 0, "p")] * many]
    place = {True: lambda k: {"fold": k}, False: lambda k: {"split": ("test", "train", "val")[k]}}[is_fold]
    images = [
        {"image_id": f"i{k}", "label": label, "patient": patient, **place(part)}
        for k, (label, part, patient) in enumerate(rows)
    ]
    found = findings.patients(Manifest.from_rows(images, Path(), may_leak=True))["dominating"]
    expected = []
    for label, part in sorted({row[:2] for row in rows}):
        own = [row for row in rows if row[:2] == (label, part)]
        every = [row for row in rows if row[0] == label]
        most = max((sum(row[2] == p for row in own) for p in "pq"), default=0)
        rest = len(every) - most
        if most and len(every) > len(own) >= 0.9 * len(every) and (not rest or len(own) - most < 0.9 * rest):
            expected.append((label, len(own), len(every), most))
    assert sorted((r["label"], r["images"], r["of"], r["of_patient"]) for r in found) == sorted(expected)


def test_the_warning_names_the_patient() -> None:
    images = [{"image_id": f"i{k}", "label": "a", "patient": "p", "fold": 0} for k in range(9)]
    images += [{"image_id": f"j{k}", "label": "ab"[k > 0], "patient": f"q{k}", "fold": 1} for k in range(5)]
    content = check(Manifest.from_rows(images, Path()), None)
    assert any(
        "fold 0 holds 9 of the 10 images of class 'a', because 9 are of patient 'p'" in w for w in content["warnings"]
    )
