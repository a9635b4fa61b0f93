"""`thoraclip explain` as a user: the sheet, the numbers, the right fold, and every mistake in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.test_cli import refused
from tests.conftest import Capture, draw_picture, write_class_folder

import thoraclip
from thoraclip.cli.app import run
from thoraclip.errors import ThoraclipError
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest


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
        assert found["note"] == f"fold {fold}, which held this image out"
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


def test_mistakes_are_refused_before_the_classifier_is_loaded(
    study: Path, folds: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thoraclip.methods.predictors.FinishedRun.classifier", lambda *_, **__: pytest.fail("loaded"))
    probe = study / "runs" / "probe"
    for wrong, message in (({"class_name": "Norml"}, "--class: 'Norml'"), ({"method": "cam"}, "--method: unknown")):
        with pytest.raises(ThoraclipError, match=message):
            thoraclip.explain(probe, folds.paths()[0], out=tmp_path / "b.png", **wrong)  # type: ignore[arg-type]
    picture = tmp_path / "a.png"
    picture.write_text("no picture")
    with pytest.raises(ThoraclipError, match=r"a\.png: not a PNG"):
        thoraclip.explain(study / "runs" / "probe", picture, out=tmp_path / "b.png")


def test_the_first_fold_explains_a_strange_picture_with_the_mask_given(study: Path, tmp_path: Path) -> None:
    run, new = study / "runs" / "probe", tmp_path / "new.jpg"
    Image.fromarray(draw_picture(96, 80, seed=77)).save(new, quality=95)
    Image.fromarray((np.arange(96 * 80).reshape(96, 80) < 96 * 20).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    found = thoraclip.explain(run, new, out=tmp_path / "a.png", mask=tmp_path / "mask.png")
    assert found["note"] == "fold 0, the first: the image is in no fold of the run's manifest"
    assert found["lung_area"] == pytest.approx(0.25, abs=0.01)
    estimated = thoraclip.explain(run, new, out=tmp_path / "b.png")
    assert estimated["lungs_from"].startswith(("estimated", "not found: "))
    assert (estimated["lung_area"] is None) == estimated["lungs_from"].startswith("not found")


def test_along_the_way_of_the_readme(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest without folds stands beside the one that the run ran on, and is no reason to take another fold."""
    monkeypatch.chdir(tmp_path)
    write_class_folder(tmp_path / "images")
    model = ["--set", "embeddings=features", "--set", "model=tiny-clip", "--set", "l2_steps=3"]
    for command in (
        ["index", "images", "--out", "manifest.parquet"],
        ["split", "manifest.parquet", "--folds", "5", "--out", "folds.parquet"],
        ["embed", "folds.parquet", "--model", "tiny-clip", "--out", "features"],
        ["probe", "folds.parquet", *model, "--out", "runs/probe"],
    ):
        assert run(command) == 0, capsys.readouterr().err
    assert json.loads(Path("runs/probe/provenance.json").read_text())["manifest_file"] == "../../folds.parquet"
    folds = read_manifest(Path("folds.parquet"))
    image = str(Path("images") / folds.column("path")[folds.column("fold").index(4)])
    explained = ["explain", "runs/probe", image, "--method", "integrated", "--out", "sheet.png"]
    assert run(explained) == 0, capsys.readouterr().err
    assert "fold 4, which held this image out" in capsys.readouterr().out
    assert json.loads(Image.open("sheet.png").text["thoraclip"])["note"] == "fold 4, which held this image out"  # type: ignore[attr-defined]
    Path("sheet.png").unlink()
    assert "probe: ran on another manifest" in refused([*explained, "--manifest", "manifest.parquet"], capsys)
    Path("folds.parquet").rename("mine")
    answer = refused(explained, capsys)
    assert "manifest.parquet: not the manifest that runs/probe ran on; name that one with --manifest" in answer
    Path("manifest.parquet").unlink()
    assert "its manifest is not beside it; name it with --manifest" in refused(explained, capsys)
    assert not Path("sheet.png").exists()
    for options, note in (
        (["--manifest", "mine"], "fold 4, which held this image out"),
        (["--seen"], "fold 0, which may have been trained on this image"),
        (["--manifest", "mine", "--fold", "3"], "fold 3, which was trained or tuned on this image"),
    ):
        assert run([*explained, *options]) == 0, capsys.readouterr().err
        assert note in " ".join(capsys.readouterr().out.split())


def test_what_the_only_classifier_was_trained_on_is_explained_only_on_demand(
    study: Path, folds: Manifest, tmp_path: Path, capsys: Capture
) -> None:
    parts = ["val" if n == 1 else "test" if n == 2 else "train" for n in folds.column("fold")]
    split = folds.with_columns(fold=[None] * len(folds), split=parts)
    write_manifest(tmp_path / "split.parquet", split)
    place = tmp_path / "runs" / "probe"
    thoraclip.probe(tmp_path / "split.parquet", out=place, model="tiny-clip", l2_steps=3)
    for part, used in (("train", "trained on"), ("val", "tuned on"), ("test", "")):
        image, out = split.paths()[parts.index(part)], tmp_path / "a.png"
        command = ["explain", str(place), str(image), "--method", "integrated", "--out", str(out)]
        if used:
            answer = refused(command, capsys)
            assert f"{image}: {place} was {used} this image ({part}); explain one that was held out" in answer
            command.append("--seen")
            assert not out.exists()
        assert run(command) == 0
        note = f"the run's classifier, which {f'was {used} this image' if used else 'held this image out'}"
        assert note in " ".join(capsys.readouterr().out.split())
        out.unlink()


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
