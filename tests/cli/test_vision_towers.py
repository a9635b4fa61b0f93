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
