"""Anyone's data through the whole study: classes of any number and spelling, and data that cannot be used."""

from __future__ import annotations

import csv
import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.checkpoints import save_classifier
from tests.conftest import draw_picture, files
from tests.forked import start, wait_for
from tests.study.conftest import method, without_pages, write_study

from thoraclip.cli.app import run
from thoraclip.tables.predictions import read_predictions

TWO = ("no", "yes")
FIVE = ("COVID-19 (PCR+)", "Ödem, beidseits", "肺炎", "1", "<b>&{x}%_#$")
FEW_STEPS = {"steps": 4, "batch_size": 8, "chunk_size": 4, "validate_every": 2, "checkpoint_minutes": 0.001}
FAST = method("trivial", max_iter=10) + method("zeroshot", "zero-shot") + method("probe")
FAST += method("probe", "text-informed", solver="lp++", features="projected")
METHODS = FAST + method("finetune", "LoRA", select="last", then="probe", **FEW_STEPS)
METHODS += method("baseline", "network", model="NETWORK", **FEW_STEPS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder of images; the study is written beside it."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def write_images(
    root: Path, classes: Sequence[str], *, same: bool = False, without: tuple[str, str] = ("", "")
) -> Path:
    """A table of pictures, `path,label,split`: three in five to train, one to choose and one to test on.

    Args:
        same: all pictures are equal.
        without: label and split of the rows that are left out.
    """
    rows: list[tuple[str, str, str]] = []
    for number, label in enumerate(classes):
        for i in range(15):
            pixels = draw_picture(
                40, 40, seed=0 if same else 100 * number + i, patch=0.0 if same else 0.8 * number / len(classes)
            )
            Image.fromarray(pixels).save(root / f"{number}-{i}.png")
            rows.append((f"{number}-{i}.png", label, {1: "val", 2: "test"}.get(i % 5, "train")))
    with (root / "images.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *(row for row in rows if row[1:] != without)])
    return root / "images.csv"


@pytest.fixture(scope="module")
def models(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    vit = save_classifier("vit", tmp_path_factory.mktemp("models") / "vit", seed=1)
    return {"clip": str(clip), "vit": str(vit)}


def study_file(root: Path, models: dict[str, str], table: Path, methods: str = METHODS) -> Path:
    manifest = root / "manifest.parquet"
    assert run(["index", str(root), "--layout", "csv", "--csv", str(table), "--out", str(manifest)]) == 0
    head = 'resamples = 100\nprecision = "fp32"\naudit = "none"\n'
    text = head + methods.replace('"NETWORK"', json.dumps(models["vit"]))
    return write_study(root, Path(models["clip"]), text, manifest=manifest)


def command(file: Path, out: Path) -> list[str]:
    return ["study", str(file), "--out", str(out)]


def check_runs(out: Path, classes: Sequence[str]) -> dict[str, Any]:
    """The report, after a look at every table and card."""
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["failed"] == []
    assert {row["name"] for row in report["methods"]} == {
        "trivial", "zero-shot", "probe", "text-informed", "LoRA", "LoRA, then probe", "network", "majority",
    }  # fmt: skip
    for place in sorted((out / "runs").rglob("predictions.parquet")):
        table = read_predictions(place)
        assert set(table.labels.names) == set(classes), place
        assert table.split.count("test") == 3 * len(classes), place
    for card in (out / "runs").rglob("README.md"):
        text = card.read_text(encoding="utf-8")
        ModelCard(text).data.to_dict()
        assert "not for diagnosis" in text
    return report


@pytest.mark.slow
def test_five_classes_of_any_spelling(models: dict[str, str], root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(command(study_file(root, models, write_images(root, FIVE)), out)) == 0
    check_runs(out, FIVE)
    assert "<b>&{x}" not in (out / "report.html").read_text(encoding="utf-8")
    tex = (out / "report.tex").read_text(encoding="utf-8")
    assert tex.count("\\begin{tab") == tex.count("\\end{tab") > 0


def run_without_pages(arguments: list[str]) -> int:
    with without_pages():
        return run(arguments)


@pytest.mark.slow
def test_two_classes_whose_study_is_killed_three_times(models: dict[str, str], root: Path, tmp_path: Path) -> None:
    """Two seeds differ wherever chance has a part, and a study killed at random moments is that of an undisturbed one."""
    file, out = study_file(root, models, write_images(root, TWO), "seeds = [0, 1]\n" + METHODS), tmp_path / "out"
    assert run_without_pages(command(file, out)) == 0
    out.rename(tmp_path / "whole")  # the settings of a run name the folder of its adapters
    by_chance = set()
    for row in check_runs(tmp_path / "whole", TWO)["methods"]:
        if row["seeds"]:
            assert row["seeds"] == [0, 1], row["name"]
            scores = [read_predictions(place).scores.tobytes() for place in runs_of(tmp_path / "whole", row["name"])]
            by_chance |= {row["name"]} if scores[0] != scores[1] else set()
    assert {"LoRA", "LoRA, then probe", "network"} <= by_chance
    rng = random.Random(7)
    for place in ("probe/seed-0/done.json", "lora/seed-0/config.toml", "network/seed-0/config.toml"):
        process = start(run_without_pages, command(file, out))
        wait_for(lambda place=place, process=process: (out / "runs" / place).exists() or process.exitcode is not None)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join()
        assert process.exitcode != 0, "killed before its end"
    assert run_without_pages(command(file, out)) == 0
    assert files(out) == files(tmp_path / "whole")


def runs_of(study: Path, name: str) -> list[Path]:
    slug = {"LoRA, then probe": "lora-then-probe"}.get(name, name.lower())
    return sorted((study / "runs" / slug).glob("seed-*/predictions.parquet"))


def broken_study(
    root: Path, models: dict[str, str], table: Path, methods: str = METHODS, *, drawn: bool = False
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exit code, name -> error of each failed row, and the report: rows that cannot be computed say why, the others are there."""
    out = root.parent / "out"
    code = (run if drawn else run_without_pages)(command(study_file(root, models, table, methods), out))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return code, {row["name"]: row["error"] for row in report["failed"]}, report


@pytest.mark.parametrize(("split", "what"), [("train", "training"), ("val", "validation")])
def test_a_class_missing_where_it_is_learnt(split: str, what: str, models: dict[str, str], root: Path) -> None:
    table = write_images(root, ("a", "b", "c"), without=("b", split))
    code, failed, report = broken_study(root, models, table)
    assert set(failed) == {"trivial", "probe", "text-informed", "LoRA", "LoRA, then probe", "network"}
    for name in set(failed) - {"LoRA, then probe"}:
        assert f"class 'b' has no {what} image" in failed[name], name
    assert code == 1
    assert [row["name"] for row in report["methods"]] == ["zero-shot", "majority"]


@pytest.mark.slow
def test_a_class_missing_from_the_test_images(models: dict[str, str], root: Path) -> None:
    table = write_images(root, ("a", "b", "c"), without=("b", "test"))
    code, failed, report = broken_study(root, models, table, FAST, drawn=True)
    assert (code, failed) == (0, {})
    assert all(np.isfinite(row["metrics"]["macro_f1"]["value"]) for row in report["methods"])


@pytest.mark.slow
def test_pictures_that_are_all_equal(models: dict[str, str], root: Path) -> None:
    _, failed, report = broken_study(root, models, write_images(root, ("a", "b", "c"), same=True))
    assert set(failed) <= {"trivial", "probe", "text-informed", "LoRA", "LoRA, then probe", "network"}
    for row in report["methods"]:
        assert row["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3), row["name"]


def test_weights_that_are_not_numbers(models: dict[str, str], root: Path, tmp_path: Path) -> None:
    spoilt = {}
    for name, folder in models.items():
        spoilt[name] = str(shutil.copytree(folder, tmp_path / name))
        weights = load_file(Path(spoilt[name]) / "model.safetensors")
        key = next(k for k in sorted(weights) if "layernorm" in k.lower() or "layer_norm" in k.lower())
        weights[key][0] = float("nan")
        save_file(weights, Path(spoilt[name]) / "model.safetensors", {"format": "pt"})
    code, failed, report = broken_study(root, spoilt, write_images(root, ("a", "b", "c")))
    assert code == 1
    assert {row["name"] for row in report["methods"]} == {"trivial", "majority"}
    for name in ("zero-shot", "probe", "text-informed", "LoRA", "network"):
        assert "nan" in failed[name].lower() or "finite" in failed[name], (name, failed[name])
