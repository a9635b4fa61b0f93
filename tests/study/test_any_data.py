"""Anyone's data through the whole study: classes of any number and spelling, and data that cannot be used."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tests.checkpoints import save_checkpoint, save_classifier
from tests.conftest import draw_picture, files

from thoraclip.cli.app import run
from thoraclip.tables.predictions import read_predictions

TWO = ("no", "yes <b>&{x}%_#$")
FIVE = ("COVID-19 (PCR+)", "Ödem, beidseits", "肺炎", "1", "True")
METHODS = """
[[methods]]
name = "trivial"
kind = "trivial"
max_iter = 10
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "probe"
kind = "probe"
[[methods]]
name = "text-informed"
kind = "probe"
solver = "lp++"
features = "projected"
[[methods]]
name = "LoRA"
kind = "finetune"
steps = 6
batch_size = 8
chunk_size = 4
validate_every = 2
checkpoint_minutes = 0.001
then = "probe"
[[methods]]
name = "network"
kind = "baseline"
model = "NETWORK"
steps = 6
batch_size = 8
chunk_size = 4
validate_every = 2
checkpoint_minutes = 0.001
"""


def write_images(
    root: Path, classes: Sequence[str], counts: Sequence[int] | None = None, *, same: bool = False
) -> Path:
    """A table of pictures, `path,label,split`: three in five to train, one to choose and one to test on."""
    rows: list[tuple[str, str, str]] = []
    for number, label in enumerate(classes):
        for i in range(counts[number] if counts else 15):
            seed = 0 if same else 100 * number + i
            pixels = draw_picture(40, 40, seed=seed, patch=0.0 if same else 0.8 * number / len(classes))
            Image.fromarray(pixels).save(root / f"{number}-{i}.png")
            rows.append((f"{number}-{i}.png", label, {1: "val", 2: "test"}.get(i % 5, "train")))
    with (root / "images.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return root / "images.csv"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "clip": str(save_checkpoint("clip", root / "clip", seed=10)),
        "vit": str(save_classifier("vit", root / "vit", seed=1)),
    }


def study_file(root: Path, models: dict[str, str], table: Path) -> Path:
    manifest = root / "manifest.parquet"
    assert run(["index", str(root), "--layout", "csv", "--csv", str(table), "--out", str(manifest)]) == 0
    text = METHODS.replace('"NETWORK"', json.dumps(models["vit"]))
    head = f'manifest = "manifest.parquet"\nmodel = {json.dumps(models["clip"])}\nresamples = 200\nprecision = "fp32"\n'
    (root / "study.toml").write_text(head + text, encoding="utf-8")
    return root / "study.toml"


@pytest.mark.parametrize("classes", [TWO, FIVE], ids=["two", "five"])
def test_classes_of_any_number_and_spelling(classes: tuple[str, ...], models: dict[str, str], tmp_path: Path) -> None:
    (root := tmp_path / "images").mkdir()
    out = tmp_path / "out"
    assert run(["study", str(study_file(root, models, write_images(root, classes))), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
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
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>&{x}" not in page
    tex = (out / "report.tex").read_text(encoding="utf-8")
    assert tex.count("\\begin{tab") == tex.count("\\end{tab") > 0


def test_a_study_killed_at_three_random_moments_is_that_of_an_undisturbed_one(
    models: dict[str, str], tmp_path: Path
) -> None:
    (root := tmp_path / "images").mkdir()
    file, out = study_file(root, models, write_images(root, ("a", "b", "c"))), tmp_path / "out"
    command = [sys.executable, "-m", "thoraclip", "study", str(file), "--out", str(out)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert start().wait() == 0
    duration, whole = time.monotonic() - began, files(out)
    shutil.rmtree(out)
    kills, rng = 0, random.Random(7)
    while kills < 3:
        process = start()
        try:
            process.wait(timeout=rng.uniform(0.3, 0.8) * duration)
            shutil.rmtree(out)  # it ended before the kill: from the beginning again
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert start().wait() == 0
    assert files(out) == whole


class TestDataThatCannotBeUsed:
    """Every row that cannot be computed says why; the others are there."""

    def study(self, root: Path, models: dict[str, str], table: Path) -> tuple[int, dict[str, str], dict[str, Any]]:
        """(exit code, name -> error of each failed row, the report)."""
        out = root.parent / "out"
        code = run(["study", str(study_file(root, models, table)), "--out", str(out)])
        path = out / "report.json"
        report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"failed": [], "methods": []}
        return code, {row["name"]: row["error"] for row in report["failed"]}, report

    def without(self, table: Path, label: str, split: str) -> Path:
        with table.open(encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if (row["label"], row["split"]) != (label, split)]
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["path", "label", "split"])
            writer.writeheader()
            writer.writerows(rows)
        return table

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_class_missing_where_it_is_learnt_or_chosen(
        self, split: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (root := tmp_path / "images").mkdir()
        table = self.without(write_images(root, ("a", "b", "c")), "b", split)
        code, failed, report = self.study(root, models, table)
        what = "training" if split == "train" else "validation"
        assert set(failed) == {"trivial", "probe", "text-informed", "LoRA", "LoRA, then probe", "network"}
        for name in set(failed) - {"LoRA, then probe"}:
            assert f"class 'b' has no {what} image" in failed[name], name
        assert code == 1
        assert [row["name"] for row in report["methods"]] == ["zero-shot", "majority"]

    def test_a_class_missing_from_the_test_images(self, models: dict[str, str], tmp_path: Path) -> None:
        (root := tmp_path / "images").mkdir()
        code, failed, report = self.study(root, models, self.without(write_images(root, ("a", "b", "c")), "b", "test"))
        assert (code, failed) == (0, {})
        assert "b" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
        assert all(np.isfinite(row["metrics"]["macro_f1"]["value"]) for row in report["methods"])

    def test_a_class_of_one_image(self, models: dict[str, str], tmp_path: Path) -> None:
        (root := tmp_path / "images").mkdir()
        code, failed, _ = self.study(root, models, write_images(root, ("a", "b", "c"), [15, 15, 1]))
        assert code == 1
        assert "class 'c' has no validation image" in failed["probe"]

    def test_pictures_that_are_all_equal(self, models: dict[str, str], tmp_path: Path) -> None:
        (root := tmp_path / "images").mkdir()
        _, failed, report = self.study(root, models, write_images(root, ("a", "b", "c"), same=True))
        assert set(failed) <= {"trivial", "probe", "text-informed", "LoRA", "LoRA, then probe", "network"}
        for row in report["methods"]:
            assert row["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3), row["name"]

    def test_weights_that_are_not_numbers(self, models: dict[str, str], tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        (root := tmp_path / "images").mkdir()
        spoilt = {}
        for name, folder in models.items():
            spoilt[name] = str(shutil.copytree(folder, tmp_path / name))
            weights = load_file(Path(spoilt[name]) / "model.safetensors")
            key = next(k for k in sorted(weights) if "layernorm" in k.lower() or "layer_norm" in k.lower())
            weights[key][0] = float("nan")
            save_file(weights, Path(spoilt[name]) / "model.safetensors", {"format": "pt"})
        code, failed, report = self.study(root, spoilt, write_images(root, ("a", "b", "c")))
        assert code == 1
        assert {row["name"] for row in report["methods"]} == {"trivial", "majority"}
        for name in ("zero-shot", "probe", "text-informed", "LoRA", "network"):
            assert "nan" in failed[name].lower() or "finite" in failed[name], (name, failed[name])
