"""The whole reference study in miniature: the shipped file with tiny models of the same classes, on phantoms in Kaggle's layout."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.checkpoints import save_blip, save_checkpoint, save_classifier

from thoraclip.cli.app import run
from thoraclip.data.phantom import PhantomConfig, write_phantoms

CONFIG = Path(str(files("thoraclip"))).parents[1] / "configs" / "studies" / "covid-qu-ex.toml"
IMAGES = 400
_SMALLER = {
    "seeds = [0, 1, 2]": "seeds = [0]", "batch_size = 1024": "batch_size = 48", "batch_size = 80": "batch_size = 16",
    "chunk_size = 40": "chunk_size = 16", "epochs = 10": "epochs = 3",
    'kind = "finetune"': 'kind = "finetune"\nselect = "last"',
}  # fmt: skip
"""Numbers of the shipped file, and those of the miniature: they change how long it takes, and no row's meaning.

The last adapters are kept: after so few steps the best ones may be those of the start, which are no row of their own.
"""
_SETTINGS = {"resamples": 100, "audit_images": 12, "thumbnails": "false"}
_CLIP = 10
"""A random CLIP that answers with more than one class before any training."""
SIX = {
    "ResNet-18, fine-tuned": 82.56, "ViT-B/16, fine-tuned": 87.51, "CLIP zero-shot, reference prompts": 31.57,
    "CLIP LoRA, InfoNCE, 80": 57.72, "linear classifier, stock CLIP": 87.8, "linear classifier, LoRA-tuned CLIP": 92.44,
}  # fmt: skip


def run_miniature(root: Path) -> Path:
    """The study folder after one run of the command."""
    phantoms = write_phantoms(root / "phantoms", PhantomConfig(images=IMAGES, size=64, seed=3, difficulty=0.0))
    models = {
        "openai/clip-vit-base-patch32": save_checkpoint("clip", root / "clip", seed=_CLIP),
        "Salesforce/blip-image-captioning-base": save_blip(root / "blip", seed=1, talkative=True),
        "microsoft/resnet-18": save_classifier("resnet", root / "resnet", seed=1),
        "google/vit-base-patch16-224": save_classifier("vit", root / "vit", seed=1),
    }
    text = CONFIG.read_text(encoding="utf-8")
    for name, folder in models.items():
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', json.dumps(str(folder)))
    for number, smaller in _SMALLER.items():
        assert number in text
        text = text.replace(number, smaller)
    (root / "study.toml").write_text(text, encoding="utf-8")
    given = [f"--set={name}={value}" for name, value in {**_SETTINGS, "folder": phantoms.root}.items()]
    assert run(["study", str(root / "study.toml"), *given, "--out", str(root / "out")]) == 0
    return root / "out"


def every_row_is_there_and_none_failed(study: Path, report: dict[str, Any]) -> None:
    names = re.findall(r'^\[\[methods\]\]\nname = "(.*)"', CONFIG.read_text(encoding="utf-8"), flags=re.M)
    followers = {f"{name}, then probe" for name in ("CLIP LoRA, UniCL, 1024", "CLIP LoRA, prompt cross-entropy")}
    assert report["failed"] == []
    assert {row["name"] for row in report["methods"]} == {*names, *followers, "majority"}
    assert set(SIX) < set(names)
    for row in report["methods"]:
        assert row["seeds"] in ([], [0]), row["name"]
        accuracy = row["metrics"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def no_two_rows_have_the_same_numbers(study: Path, report: dict[str, Any]) -> None:
    """Twice the same model, or a setting that is not heard, would show here."""
    seen: dict[tuple[Any, ...], str] = {}
    for row in report["methods"]:
        numbers = tuple(row["metrics"][name]["value"] for name in ("auroc", "ece", "log_loss"))
        assert numbers not in seen, (row["name"], seen.get(numbers))
        seen[numbers] = row["name"]


def published_values_stand_beside_the_rows_and_are_marked(study: Path, report: dict[str, Any]) -> None:
    beside = {row["of"]: 100 * row["accuracy"] for row in report["published"] if row["of"]}
    assert beside == pytest.approx(SIX)
    for name in ("report.md", "report.html", "report.tex"):
        text = (study / name).read_text(encoding="utf-8")
        assert "not measured here" in text, name
        assert all(f"{value:g}" in text for value in SIX.values()), name


def training_helped_where_a_network_can_learn(study: Path, report: dict[str, Any]) -> None:
    """Phantoms without difficulty: what was trained is above chance."""
    value = {row["name"]: row["metrics"]["macro_f1"]["value"] for row in report["methods"]}
    assert value["majority"] < 0.2
    assert value["trivial features"] > 0.4
    assert value["linear probe, stock CLIP"] > 0.4


def every_trained_method_has_a_card_and_captions_name_no_class(study: Path, report: dict[str, Any]) -> None:
    trained = {path.parent for path in study.glob("runs/**/predictions.parquet")
               if re.search(r'kind = "(probe|finetune|baseline)"', (path.parent / "config.toml").read_text())}  # fmt: skip
    assert {path.parent for path in study.glob("runs/**/README.md")} == trained
    assert len(trained) == 13
    captions = pq.read_table(study / "captions.parquet")
    assert captions.num_rows == IMAGES and not any(captions.column("with_label").to_pylist())


CHECKS = (
    every_row_is_there_and_none_failed,
    no_two_rows_have_the_same_numbers,
    published_values_stand_beside_the_rows_and_are_marked,
    training_helped_where_a_network_can_learn,
    every_trained_method_has_a_card_and_captions_name_no_class,
)


@pytest.mark.slow
def test_the_whole_reference_study(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """One test, since several workers would run the study once each."""
    study = run_miniature(tmp_path)
    report: dict[str, Any] = json.loads((study / "report.json").read_text(encoding="utf-8"))
    for check in CHECKS:
        with subtests.test(check.__name__):
            check(study, report)
