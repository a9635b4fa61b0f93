"""As a user: a run, its bundle, predictions, a map; and what goes wrong."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.bundle.conftest import Workshop, workshop
from tests.bundle.test_scoring import HEAD
from tests.conftest import Capture, draw_picture, files

from thoraclip.cli.app import run
from thoraclip.methods.running import run_method
from thoraclip.methods.trivial import Config

__all__ = ["workshop"]


def test_from_a_run_to_predictions_and_a_map(workshop: Workshop, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "bundle"
    assert run(["export", str(workshop.run("probe")), "--out", str(out), "--int8"]) == 0
    told = capsys.readouterr()
    assert "fp32 against the original" in told.out and "int8: change of accuracy" in told.out
    assert "Research use only, not for diagnosis" in told.out and "the same in eight bits" in told.err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(3):
        Image.fromarray(draw_picture(48, 40, seed=seed)).save(pictures / f"{seed}.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert run(["predict", str(out), str(pictures), "--out", str(tmp_path / "p.csv")]) == 0
    assert "Research use only, not for diagnosis" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(rows[0]) == HEAD
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    assert run(["explain", str(out), str(pictures / "0.png"), "--out", str(tmp_path / "map.png")]) == 0
    told = capsys.readouterr()
    assert "occlusion" in told.out and "bundle: probe on vision-text-dual-encoder, int8" in told.out
    found = json.loads(Image.open(tmp_path / "map.png").text["thoraclip"])  # type: ignore[attr-defined]
    assert found["predicted"] == rows[0]["label"]
    assert found["scores"][rows[0]["label"]] == pytest.approx(float(rows[0][f"score_{rows[0]['label']}"]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "BUNDLE", "PICTURE", "--out", "x.png", "--fold", "1"], "a bundle holds one classifier; leave --fold out"),
        (["explain", "BUNDLE", "PICTURE", "--out", "x.png", "--method", "integrated"], "needs the network"),
        (["explain", "BUNDLE", "PICTURE", "--out", "x.png", "--class", "Norml"], "did you mean 'Normal'"),
        (["audit", "BUNDLE", "--out", "a"], "name a manifest with --manifest"),
        (["export", "BUNDLE", "--out", "b"], "no run there"),
        (["export", "RUN", "--out", "b", "--fold", "2"], "has no such fold"),
        (["export", "RUN", "--out", "PICTURE"], "is a file, and a folder is to be written"),
        (["export", "TRIVIAL", "--out", "b"], "keeps no classifier of pictures; name a run of zeroshot"),
        (["predict", "RUN", "PICTURE"], "no bundle there; name a folder that `thoraclip export RUN"),
        (["predict", "CHANGED", "PICTURE"], "its content is not the one that the bundle was made with"),
        (["predict", "TORN", "PICTURE"], "model.onnx: is missing from the bundle"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line(
    workshop: Workshop, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_picture(48, 40)).save(tmp_path / "picture.png")
    places = {"BUNDLE": workshop.bundle("probe"), "PICTURE": tmp_path / "picture.png", "RUN": workshop.run("probe")}
    if "TRIVIAL" in arguments:
        run_method("trivial", Config(), workshop.manifest, workshop.root / "runs" / "trivial")
        places["TRIVIAL"] = workshop.root / "runs" / "trivial"
    for name in {"CHANGED", "TORN"} & set(arguments):
        places[name] = Path(shutil.copytree(workshop.bundle("probe"), tmp_path / name.lower()))
        model = places[name] / "model.onnx"
        if name == "TORN":
            model.unlink()
        else:
            model.write_bytes(model.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    before = files(tmp_path)
    assert run([str(places.get(word, word)) for word in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert files(tmp_path) == before
