"""Check: planted leaks, copies and contradictions are found and said; a clean set passes; nothing is lost on the way."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import draw_picture, examples, files
from typer.testing import CliRunner

from thoraclip.cli.app import app
from thoraclip.data import check as package
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
from thoraclip.data.duplicates import DuplicatePair
from thoraclip.data.index import index
from thoraclip.data.splits import independent_groups, split_folds
from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.tables.manifest import Manifest, write_manifest

pytestmark = pytest.mark.usefixtures("small_forest")


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """One of each seed: body, ribs of its own and noise, 160 x 160."""
    rng = np.random.default_rng(seed)
    grey = draw_picture(160, 160, seed=seed).astype(float)
    y, x = np.mgrid[:160, :160] / 160
    for _ in range(14):
        cx, cy, sx, sy = rng.uniform(0.1, 0.9, 2).tolist() + rng.uniform(0.02, 0.12, 2).tolist()
        grey += rng.uniform(-60, 60) * np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))
    return np.clip(grey * 0.8 + 20, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures in train and test of three classes; copies: one identical, one recompressed, both across the split."""
    root = tmp_path_factory.mktemp("check") / "images"
    seed = 0
    for split, n in (("train", 8), ("test", 4)):
        for label in ("covid", "normal", "pneumonia"):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(picture(seed)).save(root / split / label / f"{i}.png")
                seed += 1
    (root / "test" / "covid" / "3.png").write_bytes((root / "train" / "covid" / "0.png").read_bytes())
    again = Image.open(root / "train" / "normal" / "1.png").resize((120, 120), Image.Resampling.BICUBIC)
    again.save(root / "test" / "pneumonia" / "3.jpg", quality=70)
    (root / "test" / "pneumonia" / "3.png").unlink()
    return root


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    found = index(root, layout="folders").manifest
    patients = [f"p{row // 2:02d}-{split}" for row, split in enumerate(found.column("split"))]
    return found.with_columns(patient=patients)


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


def test_counts_sizes_modes_and_formats(content: dict[str, Any]) -> None:
    assert content["counts"] == {
        "parts": ["train", "test"], "classes": {"covid": [8, 4], "normal": [8, 4], "pneumonia": [8, 4]},
    }  # fmt: skip
    assert content["tallies"]["size"]["pneumonia"] == {"160 x 160": 11, "120 x 120": 1}
    assert content["tallies"]["format"] == {
        "covid": {"PNG": 12}, "normal": {"PNG": 12}, "pneumonia": {"PNG": 11, "JPEG": 1},
    }  # fmt: skip
    assert content["tallies"]["mode"]["covid"] == {"L": 12}
    assert content["images"] == 36 and content["unreadable"] == []


def test_the_differences_are_measured_for_every_column(content: dict[str, Any]) -> None:
    names = [row["name"] for row in content["differences"]]
    assert names[0] == "all of these together"
    assert set(names) == {names[0], *MEASURED, "age_years", "view", "sex", "source", "format", "mode"}
    row = next(row for row in content["differences"] if row["name"] == "megapixels")
    assert row["per_class"]["covid"] == {"n": 12, **dict.fromkeys(("median", "q1", "q3"), pytest.approx(0.0256))}


def test_patients_in_two_parts_and_under_two_labels(manifest: Manifest) -> None:
    patients = manifest.column("patient")
    first_train = manifest.column("split").index("train")
    torn = Manifest(manifest.table, manifest.root, may_leak=True)
    torn = torn.with_columns(patient=["same" if row in (0, first_train) else p for row, p in enumerate(patients)])
    found = check(torn, None)
    assert found["patients"]["in_two_splits"] == [{"patient": "same", "values": ["test", "train"], "images": 2}]
    assert found["leaks"][0] == (
        "1 patient in two parts of the split, first 'same' (test, train); split again by patient: thoraclip split"
    )
    with_labels = manifest.with_columns(patient=["p"] * 12 + [None] * 24, split=[None] * 36)
    found = check(with_labels, None)
    assert found["patients"]["under_two_labels"] == [
        {"patient": "p", "values": ["covid", "normal", "pneumonia"], "images": 12}
    ]
    assert found["patients"]["images_of_unknown_patients"] == 24
    assert found["leaks"] == [], "without a split nothing leaks"


def test_a_clean_set_has_no_leak_and_hostile_names_stay_text(manifest: Manifest, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|`*"
    clean = manifest.take(
        np.array([row for row, i in enumerate(manifest.column("image_id")) if "test/" not in i or "/3." not in i])
    )
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


def test_copies_stay_together_in_a_split(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path)
    joined = read_clusters(manifest, tmp_path)
    assert joined.table.equals(duplicate_clusters(manifest, tmp_path / "work").table)
    cluster = joined.by_id("duplicate_cluster")
    assert {i: c for i, c in cluster.items() if c} == {
        "test/covid/3.png": "test/covid/3.png", "train/covid/0.png": "test/covid/3.png",
        "test/pneumonia/3.jpg": "test/pneumonia/3.jpg", "train/normal/1.png": "test/pneumonia/3.jpg",
    }  # fmt: skip
    for seed in range(5):
        fold = split_folds(joined, folds=3, seed=seed).by_id("fold")
        assert fold["test/pneumonia/3.jpg"] == fold["train/normal/1.png"]
        assert fold["test/covid/3.png"] == fold["train/covid/0.png"]
    plain = dict(zip(manifest.column("image_id"), independent_groups(manifest), strict=True))
    assert plain["test/covid/3.png"] == plain["train/covid/0.png"], "identical files need no check"
    assert plain["test/pneumonia/3.jpg"] != plain["train/normal/1.png"]


def test_a_check_of_other_images_is_refused(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path)
    with pytest.raises(MismatchError, match=r"check\.json: made on other images than this manifest's"):
        read_clusters(manifest.take(np.arange(30)), tmp_path)
    with pytest.raises(InputError, match=r"no check\.json there; make it with: thoraclip check"):
        read_check(tmp_path / "nowhere", manifest)
    (tmp_path / "check.json").write_text("{}")
    with pytest.raises(ManifestError, match="not a check"):
        read_check(tmp_path, manifest)
    (tmp_path / "check.json").write_text(json.dumps(content | {"schema": 9}))
    with pytest.raises(ManifestError, match="schema 9 is newer than 1; upgrade thoraclip"):
        read_check(tmp_path, manifest)


def copied(manifest: Manifest, root: Path) -> Manifest:
    """The same images elsewhere, so that a test may break them."""
    for path, target in zip(manifest.paths(), manifest.column("path"), strict=True):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / target).write_bytes(path.read_bytes())
    return Manifest(manifest.table, root)


def test_pictures_that_cannot_be_used_are_listed_and_the_rest_goes_on(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = copied(manifest, tmp_path / "mine")
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
    original = package.find_duplicates

    def count(thumbnails: npt.NDArray[np.uint8], *rest: Any, **options: Any) -> Any:
        searched.append(len(thumbnails))
        return original(thumbnails, *rest, **options)

    monkeypatch.setattr(package, "find_duplicates", count)
    assert check(manifest, tmp_path) == first and searched == []
    check(manifest.take(np.arange(30)), tmp_path)
    assert searched == [30]
    (tmp_path / "pairs.json").write_text("{")
    check(manifest.take(np.arange(30)), tmp_path)
    assert searched == [30, 30]


def test_the_pages(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path)
    stored = json.loads((tmp_path / "check.json").read_text())
    assert stored == json.loads(json.dumps(content)) and stored["schema"] == 1
    page, text = ((tmp_path / name).read_text() for name in ("check.html", "check.md"))
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


def test_the_same_check_gives_the_same_bytes(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    write_check(content, manifest, tmp_path / "one")
    write_check(check(manifest, tmp_path / "work"), manifest, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_unlabelled_pictures_are_checked_too(manifest: Manifest, tmp_path: Path) -> None:
    bare = manifest.with_columns(label=[None] * 36, patient=[None] * 36)
    found = check(bare, tmp_path)
    assert found["differences"] == [] and len(found["duplicates"]["pairs"]) == 2
    assert "36 images without a label; they are neither trained on nor judged" in found["warnings"]
    assert any(w.startswith("patients are not known") for w in found["warnings"])
    write_check(found, bare, tmp_path / "out")


def test_a_file_in_place_of_the_folder_is_refused(manifest: Manifest, content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, and a folder is to be written"):
        write_check(content, manifest, tmp_path / "file")


def without_pictures(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The same table where no picture is, checked and written."""
    found = Manifest(manifest.table, Path("/nowhere"), may_leak=True)
    content = check(found, None)
    write_check(content, found, folder)
    return content


def test_the_table_alone_is_checked_without_a_picture(
    manifest: Manifest, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoraclip.data.check.page.decode", lambda path: pytest.fail(f"{path} was opened"))
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
    found = without_pictures(clean, tmp_path)
    assert found["leaks"] == [] and found["duplicates"] == {"pairs": [], "groups": []}
    page, text = ((tmp_path / name).read_text() for name in ("check.html", "check.md"))
    for shown in (page, text):
        assert "No leak found: no known patient and no file stands on both sides of the split." in shown
        assert "No file stands there twice." in shown


def test_near_duplicates_are_not_taken_from_a_check_that_did_not_look(manifest: Manifest, tmp_path: Path) -> None:
    without_pictures(manifest, tmp_path)
    with pytest.raises(
        MismatchError, match="a check of the table alone, which knows no near duplicates .* without --no-pic"
    ):
        read_clusters(manifest, tmp_path)
    assert read_check(tmp_path, manifest)["pictures"] is False


def test_the_command_without_pictures(manifest: Manifest, tmp_path: Path) -> None:
    command = [str(tmp_path / "m.parquet"), "--no-pictures", "--out", str(tmp_path / "out")]
    write_manifest(tmp_path / "m.parquet", copied(manifest, tmp_path / "images"))
    for file in (tmp_path / "images").rglob("*.*g"):
        file.write_bytes(b"no picture")
    for strict, code in ((["--strict"], 1), ([], 0)):
        done = CliRunner().invoke(app, ["check", *command, *strict])
        assert done.exit_code == code
        assert "leak: 1 picture in two parts of the split" in done.output
        assert "warning: no picture was looked at" in done.output
    assert json.loads((tmp_path / "out" / "check.json").read_text())["unreadable"] == []


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
    assert len(cut["leaks"]) == 2 and cut["leaks"][0] == whole["leaks"][0]
    assert [line.partition(", first")[0] for line in cut["leaks"] + cut["warnings"]] == [
        line.partition(", first")[0] for line in whole["leaks"] + whole["warnings"]
    ], "every number is that of the whole"
    for name in ("in_two_splits", "under_two_labels"):
        assert cut["patients"][name][:6] == whole["patients"][name][:6]
        assert cut["patients"]["in_all"][name] == len(whole["patients"][name]) > 6
    pairs, groups = cut["duplicates"]["pairs"], whole["duplicates"]["groups"]
    assert all(pair in whole["duplicates"]["pairs"] for pair in pairs) and 3 <= len(pairs) < 6
    assert all(any(set(pair["image_id"]) <= set(g["image_id"]) and g["across_part"] for g in groups) for pair in pairs)
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


@examples(60)
@given(st.lists(st.sampled_from([None, "", "a", "b", "c", "d"]), min_size=1, max_size=12))
def test_identical_files_are_those_of_a_dictionary(contents: list[str | None]) -> None:
    groups: dict[str, list[int]] = {}
    for row, sha in enumerate(contents):
        if sha:
            groups.setdefault(sha, []).append(row)
    wanted = [DuplicatePair(group[0], other, "identical") for group in groups.values() for other in group[1:]]
    table = Manifest.from_rows([{"image_id": f"{k}", "sha256": sha} for k, sha in enumerate(contents)], Path())
    pairs, in_all = findings.identical(table)
    assert sorted(pairs, key=lambda pair: (pair.first, pair.second)) == sorted(
        wanted, key=lambda p: (p.first, p.second)
    )
    assert in_all == {}


def test_body_parts_are_counted_in_the_order_of_the_images(manifest: Manifest, tmp_path: Path) -> None:
    parts = ["CHEST", None, "HAND", "FOOT", "HAND", "LUNG"] * 6
    found = without_pictures(manifest.with_columns(body_part=parts), tmp_path)
    assert "18 images of another body part than the chest, first 'HAND'" in found["warnings"]


@pytest.mark.parametrize(
    ("name", "values", "crosses"),
    [
        ("split", ["train", "train", "test"], "part"),
        ("split", [None, "train", "test"], "part"),
        ("fold", [0, 0, 1], "part"),
        ("label", ["a", "a", "b"], "label"),
        ("patient", ["p", None, "q"], "patient"),
    ],
)
def test_every_one_of_three_identical_files_counts(name: str, values: list[Any], crosses: str) -> None:
    """Not the first two, and not only what the first one of them is known to be."""
    same = {"split": "train", "label": "a", "patient": "p"} | ({"split": None} if name == "fold" else {})
    rows = [
        {"image_id": f"i{k}", "path": f"{k}", "sha256": "s"} | same | {name: value} for k, value in enumerate(values)
    ]
    found = check(Manifest.from_rows(rows, Path(), may_leak=True), None)
    (group,) = found["duplicates"]["groups"]
    assert group["image_id"] == ["i0", "i1", "i2"]
    assert {key: group[f"across_{key}"] for key in ("part", "label", "patient")} == {
        key: key == crosses for key in ("part", "label", "patient")
    }
    assert sum("in two parts of the split (3 images)" in line for line in found["leaks"]) == (crosses == "part")
    for key in ("label", "patient"):
        assert any(line.startswith(f"1 picture under two {key}s") for line in found["warnings"]) == (crosses == key)
    table = Manifest.from_rows(rows, Path(), may_leak=True)
    content = np.zeros(3, dtype=np.int64)
    assert findings._across(table, np.arange(3), content, crosses).tolist() == [True] * 3
