"""`thoraclip explain` as a user: the sheet, the numbers, the right fold, and every mistake in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.test_cli import refused
from tests.conftest import Capture, draw_picture, write_class_folder

import thoraclip
from thoraclip.cli.app import run
from thoraclip.tables.manifest import Manifest, read_manifest


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifest.parquet` with three folds and a lung mask for each picture; runs of a probe and of trivial features."""
    root = tmp_path_factory.mktemp("study")
    found = thoraclip.index(write_class_folder(root / "images"), out=root / "all.parquet", layout="folders").manifest
    mask = np.zeros((48, 40), np.uint8)
    mask[8:40, 4:18] = mask[8:40, 22:36] = 255
    Image.fromarray(mask).save(root / "images" / "lungs.png")
    folds = thoraclip.split(
        found.with_columns(lung_mask=["lungs.png"] * len(found)), out=root / "manifest.parquet", folds=3
    )
    (root / "runs").mkdir()
    thoraclip.probe(folds, out=root / "runs" / "probe", model="tiny-clip", l2_steps=3)
    thoraclip.trivial(folds, out=root / "runs" / "trivial", max_iter=5)
    return root


@pytest.fixture(scope="module")
def folds(study: Path) -> Manifest:
    return read_manifest(study / "manifest.parquet")


def explain(study: Path, picture: Path, out: Path, *more: str) -> list[str]:
    return ["explain", str(study / "runs" / "probe"), str(picture), "--out", str(out), *more]


def test_the_fold_that_held_a_picture_out_explains_it(
    study: Path, folds: Manifest, tmp_path: Path, capsys: Capture
) -> None:
    for row in (0, 9, 23):
        picture, fold = folds.paths()[row], folds.column("fold")[row]
        copy = shutil.copy(picture, tmp_path / "renamed.png")
        found = thoraclip.explain(study / "runs" / "probe", copy, out=tmp_path / "a.png")
        assert found["note"] == f"fold {fold}, which held this picture out"
        assert found["lungs_from"] == "given mask"
        assert found["lung_area"] == pytest.approx(2 * 32 * 14 / (48 * 40), abs=0.01)
        assert found["class"] == found["predicted"] == max(found["scores"], key=found["scores"].get)
        assert 0 <= found["evidence_in_lungs"] <= 1
    assert capsys.readouterr() == ("", "")
    options = ["--class", "Normal", "--method", "integrated", "--fold", "2"]
    assert run(explain(study, folds.paths()[0], tmp_path / "b.png", *options)) == 0
    shown = capsys.readouterr().out
    for text in (
        "Normal, probability",
        "integrated",
        "fold 2",
        "evidence in the lungs",
        "given mask",
        "not for diagnosis",
    ):
        assert text in shown, text
    assert "b.png" in shown
    sheet = Image.open(tmp_path / "b.png")
    assert sheet.format == "PNG" and sheet.height == 480 + 24, "48 pixels high, ten times as large"


def test_the_first_fold_explains_a_strange_picture_with_the_mask_given(study: Path, tmp_path: Path) -> None:
    run, new = study / "runs" / "probe", tmp_path / "new.jpg"
    Image.fromarray(draw_picture(96, 80, seed=77)).save(new, quality=95)
    Image.fromarray((np.arange(96 * 80).reshape(96, 80) < 96 * 20).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    found = thoraclip.explain(run, new, out=tmp_path / "a.png", mask=tmp_path / "mask.png")
    assert found["note"] == "fold 0, the first: the picture is in no fold of the run's manifest"
    assert found["lung_area"] == pytest.approx(0.25, abs=0.01)
    estimated = thoraclip.explain(run, new, out=tmp_path / "b.png")
    assert estimated["lungs_from"].startswith(("estimated", "not found: "))
    assert (estimated["lung_area"] is None) == estimated["lungs_from"].startswith("not found")


def test_without_its_manifest_a_run_still_explains(study: Path, folds: Manifest, tmp_path: Path) -> None:
    alone = shutil.copytree(study / "runs" / "probe", tmp_path / "alone" / "far" / "away" / "probe")
    found = thoraclip.explain(alone, folds.paths()[9], out=tmp_path / "a.png", method="integrated")
    assert found["note"].startswith("fold 0, the first")


@pytest.mark.parametrize("case", ["class", "method", "fold", "trivial", "mask", "picture", "gone", "out", "folder"])
def test_a_mistake_is_answered_in_one_line(
    case: str, study: Path, folds: Manifest, tmp_path: Path, capsys: Capture
) -> None:
    first, out = folds.paths()[0], tmp_path / "a.png"
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.zeros((48, 90), np.uint8)).save(tmp_path / "wide.png")
    probe = explain(study, first, out)
    arguments, answer = {
        "class": ([*probe, "--class", "Covid-19"], "--class: 'Covid-19' is not one of the classes; did you mean 'COVID-19'?"),
        "method": ([*probe, "--method", "grad-cam"], "--method: unknown method 'grad-cam'; known: integrated, occlusion, smoothgrad"),
        "fold": ([*probe, "--fold", "7"], "has no such fold; its folds: 0, 1, 2"),
        "trivial": (["explain", str(study / "runs" / "trivial"), str(first), "--out", str(out)], "keeps no classifier"),
        "mask": ([*probe, "--mask", str(tmp_path / "wide.png")], "wide.png: the mask is 90 x 48 pixels and its picture 40 x 48"),
        "picture": (explain(study, tmp_path / "text.png", out), "text.png: not a PNG, JPEG or DICOM picture"),
        "gone": (explain(study, tmp_path / "gone.png", out), "gone.png: cannot be read (No such file or directory)"),
        "out": (explain(study, first, tmp_path / "a.jpg"), "a.jpg: the sheet is a PNG; end the name in .png"),
        "folder": (explain(study, first, tmp_path / "folder.png"), "folder.png: is a folder"),
    }[case]  # fmt: skip
    assert answer in refused(arguments, capsys)
    assert not out.exists()
