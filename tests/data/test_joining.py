"""`join`: one manifest of several, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from tests.conftest import Capture, draw_picture

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests a (normal, non_covid), b and c (normal, pneumonia), with pictures in common."""
    root = tmp_path_factory.mktemp("join")
    seeds = {"a": range(8), "b": (0, 1, 2, 23, 24, 25, 26, 27), "c": (23, 40, 41, 42, 43, 44, 45, 46)}
    for name, own in seeds.items():
        other = "non_covid" if name == "a" else "pneumonia"
        for k, seed in enumerate(own):
            folder = root / "sets" / name / ("normal", other)[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(draw_picture(96, 96, seed=seed, patch=0.3))
            if (name, k) == ("b", 2):  # a near copy
                image = image.resize((150, 150), Image.Resampling.BICUBIC)
            image.save(folder / f"{k}.png")
    shutil.copy(root / "sets" / "a" / "non_covid" / "7.png", root / "sets" / "b" / "normal" / "wrong.png")
    for name in seeds:
        manifest = index(root / "sets" / name, layout="folders").manifest
        ids = [f"p{k}" if name != "c" else f"c{k}" for k in range(len(manifest))]
        manifest = manifest.with_columns(patient=ids)
        if name == "b":
            masks = [f"masks/{k}.png" for k in range(len(manifest))]
            ages = [20.0 + k for k in range(len(manifest))]
            manifest = manifest.with_columns(
                lung_mask=masks, age_years=ages, source=["site"] * len(ages), ward=["w"] * len(ages)
            )
        write_manifest(root / f"{name}.parquet", manifest)
    return root


def _join(sets: Path, out: Path, *more: str, names: str = "ab") -> tuple[Manifest, dict[str, Any]]:
    words = ["join", *(str(sets / f"{name}.parquet") for name in names), "--out", str(out), *more]
    assert run(words) == 0
    return read_manifest(out), json.loads(out.with_suffix(".join.json").read_text(encoding="utf-8"))


def test_copies_stay_once_and_contradictions_go(sets: Path, tmp_path: Path, capsys: Capture) -> None:
    joined, content = _join(sets, tmp_path / "m.parquet")
    left = {(row["manifest"], row["path"]): (row["reason"], row["of"]) for row in content["left_out"]}
    assert left == {
        ("b", "b/normal/0.png"): ("identical", "a/normal/0.png"),
        ("b", "b/pneumonia/1.png"): ("identical", "non_covid/1.png"),
        ("b", "b/normal/2.png"): ("near", "a/normal/2.png"),
        ("a", "a/non_covid/7.png"): ("conflict", "normal/wrong.png"),
        ("b", "b/normal/wrong.png"): ("conflict", "non_covid/7.png"),
    }
    assert len(joined) == 8 + 9 - 5 == content["images"]
    assert [part["left_out"] for part in content["manifests"]] == [1, 4]
    assert joined.root == sets.resolve() / "sets" and all(path.is_file() for path in joined.paths())
    rows = {row["path"]: row for row in joined.table.to_pylist()}
    kept, ours = rows["b/normal/6.png"], rows["a/normal/6.png"]
    assert (kept["image_id"], ours["image_id"]) == ("b/normal/6.png", "a/normal/6.png"), "ids that clash"
    assert rows["b/pneumonia/3.png"]["image_id"] == "pneumonia/3.png"
    assert (kept["source"], ours["source"]) == ("site", "a") and (kept["ward"], ours["ward"]) == ("w", None)
    assert kept["lung_mask"].startswith("b/masks/") and ours["lung_mask"] is None
    assert kept["age_years"] >= 20 and ours["age_years"] is None
    assert content["shared_patients"] == 8 and joined.values("split").null_count == len(joined)
    shown = capsys.readouterr().out
    assert "1 as near copies of one" in shown and "--label-map pneumonia=non_covid" in shown
    assert "taken for the same patients: 8" in shown and "There is no split" in shown


def test_on_conflict_first_and_a_label_map(sets: Path, tmp_path: Path, capsys: Capture) -> None:
    more = ("--on-conflict", "first", "--label-map", "pneumonia=non_covid")
    joined, content = _join(sets, tmp_path / "m.parquet", *more)
    assert "is not known" not in capsys.readouterr().out
    assert {*joined.column("label")} == {"normal", "non_covid"}
    assert "a/non_covid/7.png" in joined.column("path") and "b/normal/wrong.png" not in joined.column("path")
    assert sum(row["reason"] == "conflict" for row in content["left_out"]) == 1


def test_a_label_map_can_make_a_contradiction_and_three_are_joined(sets: Path, tmp_path: Path) -> None:
    joined, content = _join(sets, tmp_path / "m.parquet", names="abc")
    conflicts = {row["path"] for row in content["left_out"] if row["reason"] == "conflict"}
    assert conflicts == {"a/non_covid/7.png", "b/normal/wrong.png", "b/pneumonia/3.png", "c/normal/0.png"}
    assert content["images"] == len(joined) == 8 + 9 + 8 - 7


def test_splits_are_kept_where_all_have_them_and_no_patient_stands_in_two(sets: Path, tmp_path: Path) -> None:
    for name in "ac":
        manifest = read_manifest(sets / f"{name}.parquet")
        splits = [("train", "val", "test")[k % 3] for k in range(len(manifest))]
        write_manifest(tmp_path / f"{name}.parquet", manifest.with_columns(split=splits))
    joined, content = _join(tmp_path, tmp_path / "m.parquet", names="ac")
    assert content["splits"]["kept"] and joined.values("split").null_count == 0
    other = read_manifest(tmp_path / "c.parquet").with_columns(patient=["p0"] * 8, split=["test"] * 8)
    write_manifest(tmp_path / "c.parquet", other)
    joined, content = _join(tmp_path, tmp_path / "m.parquet", names="ac")
    assert content["splits"] == {"kept": False, "reason": "a patient would stand in two"}
    assert joined.values("split").null_count == len(joined)


def test_mistakes_are_one_line_before_a_picture_is_read(
    sets: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoraclip.data.joining.inspect", None)
    a, b, out = str(sets / "a.parquet"), str(sets / "b.parquet"), str(tmp_path / "o" / "m.parquet")
    table = read_manifest(a).table
    typed = table.append_column("ward", pa.array(range(len(table)), pa.int64()))
    write_manifest(tmp_path / "typed.parquet", Manifest(typed, sets / "sets" / "a"))
    twin = read_manifest(a).with_columns(label=["Normal"] * len(table))
    write_manifest(tmp_path / "twin.parquet", twin)
    for words, rule in (
        ([a], "one manifest; name two or more"),
        ([a, a], "is named twice"),
        ([a, b, "--label-map", "nromal=x"], "no image has the label 'nromal'; did you mean"),
        ([a, b, "--on-conflict", "frist"], "frist"),
        ([b, str(tmp_path / "typed.parquet")], "column 'ward' holds int64, and in b string"),
        ([a, str(tmp_path / "twin.parquet")], "add to thoraclip join: --label-map"),
    ):
        assert run(["join", *words, "--out", out]) == 2, words
        error = capsys.readouterr().err.splitlines()
        assert rule in error[-1] and len(error) == 1, error
        assert not Path(out).exists()
    copy = tmp_path / "copy.parquet"
    shutil.copy(a, copy)
    assert run(["join", str(copy), b, "--out", str(copy)]) == 2
    assert "is what the command reads" in capsys.readouterr().err
