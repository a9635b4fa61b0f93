"""As a user: from a vision tower without texts to a bundle; and what compares images with texts says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import save_tower
from tests.conftest import Capture
from tests.methods.conftest import make_manifest

from thoraclip.cli.app import run
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import write_manifest


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    write_manifest(folder / "m.parquet", make_manifest(folder / "images"))
    return folder / "m.parquet"


@pytest.mark.parametrize("kind", ["dinov2_with_registers", "vit_mae", "convnext"])
def test_from_a_tower_to_a_bundle(kind: str, images: Path, tmp_path: Path, capsys: Capture) -> None:
    model, m = str(save_tower(kind, tmp_path / "tower")), str(images)
    out = {name: str(tmp_path / name) for name in ("features", "probe", "bundle", "map.png")}
    assert run(["embed", m, "--model", model, "--out", out["features"]]) == 0
    assert read_embeddings(out["features"]).projected.shape == (24, 0)
    setting = f"embeddings={out['features']}"
    assert run(["probe", m, "--out", out["probe"], "--set", setting, "--set", "l2_steps=2"]) == 0
    assert run(["export", out["probe"], "--manifest", m, "--out", out["bundle"]]) == 0
    picture = str(next((images.parent / "images").rglob("*.png")))
    assert run(["explain", out["probe"], picture, "--manifest", m, "--out", out["map.png"]]) == 0
    assert "smoothgrad" in capsys.readouterr().out
    assert run(["predict", out["bundle"], picture]) == 0


@pytest.mark.parametrize(
    "command", [["zeroshot"], ["finetune"], ["probe", "--set", "features=projected"]], ids=lambda command: command[0]
)
def test_what_needs_texts_is_refused_with_the_reason(
    command: list[str], images: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = save_tower("dinov2", tmp_path / "tower")
    capsys.readouterr()
    out = tmp_path / "run"
    assert run([command[0], str(images), "--out", str(out), "--set", f"model={model}", *command[1:]]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert (
        f"type 'dinov2' has no text tower, and {command[0]} compares images with texts; use a linear probe" in message
    )
    assert not out.exists()


def test_a_tower_without_a_classifier_of_its_own_is_fine_tuned_end_to_end(images: Path, tmp_path: Path) -> None:
    model = save_tower("vit_mae", tmp_path / "tower")
    settings = [f"model={model}", "steps=1", "batch_size=4", "only_folds=[0]", "augmentation=none"]
    asked = [part for setting in settings for part in ("--set", setting)]
    assert run(["baseline", str(images), "--out", str(tmp_path / "run"), *asked]) == 0


def test_from_lora_without_texts_to_a_bundle(images: Path, tmp_path: Path, capsys: Capture) -> None:
    model = save_tower("dinov2", tmp_path / "tower")
    settings = [f"model={model}", "loss=cross_entropy", "lora_blocks=1", "prefix_views=1", "steps=2", "batch_size=4",
                "only_folds=[0]", "chunk_size=4", "lora_dropout=0.1"]  # fmt: skip
    asked = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    assert run(["finetune", str(images), "--out", str(out), *asked]) == 0
    assert "first 1 of 2 blocks: 48 images and augmented views x 17 tokens x 16 numbers" in capsys.readouterr().err
    assert (out / "fold-0" / "head.safetensors").is_file() and not list((out / "pixels").glob("tokens-*"))
    assert "by a linear head on the pooled features" in (out / "README.md").read_text()
    assert run(["export", str(out), "--manifest", str(images), "--out", str(tmp_path / "bundle")]) == 0
    picture = str(next((images.parent / "images").rglob("*.png")))
    assert run(["explain", str(out), picture, "--manifest", str(images), "--out", str(tmp_path / "map.png")]) == 0
    assert run(["predict", str(tmp_path / "bundle"), picture]) == 0
    capsys.readouterr()
    refused = ["finetune", str(images), "--out", str(tmp_path / "none"), *asked, "--set", "lora_blocks=3"]
    assert run(refused) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "has 2 blocks; take at most 2" in message and not (tmp_path / "none").exists()
