"""The 24 images of these tests, made once; tests that change a picture take `own_manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import save_checkpoint, save_classifier
from tests.conftest import write_class_folder

from thoraclip.data.index import index
from thoraclip.data.splits import split_folds, split_fractions
from thoraclip.methods import running
from thoraclip.methods.training import folds
from thoraclip.tables.manifest import Manifest


def make_manifest(folder: Path) -> Manifest:
    """24 rows, eight a class, two images a patient, three folds."""
    found = index(write_class_folder(folder), layout="folders").manifest
    patients = [f"p{row // 2:02d}" for row in range(len(found))]
    return split_folds(found.with_columns(patient=patients), folds=3, seed=0)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """In three folds; shared, so its pictures stay as they are."""
    return make_manifest(tmp_path_factory.mktemp("pictures") / "images")


@pytest.fixture
def own_manifest(tmp_path: Path) -> Manifest:
    """The same, with pictures of its own."""
    return make_manifest(tmp_path / "images")


@pytest.fixture(scope="session")
def split_manifest(manifest: Manifest) -> Manifest:
    """The 24 images with a train/val/test split in place of folds."""
    return split_fractions(manifest, fractions=(0.5, 0.25, 0.25), seed=0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings for all runs on these images."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of a few thousand random weights: `dual` is DINOv2 + BERT."""
    root = tmp_path_factory.mktemp("models")
    made = {kind: save_classifier(kind, root / kind) for kind in ("resnet", "vit")}
    made |= {"clip": save_checkpoint("clip", root / "clip"), "dual": save_checkpoint("vision-text-dual-encoder", root / "dual")}  # fmt: skip
    return {kind: str(folder) for kind, folder in made.items()}


def draw_plainly(patch: pytest.MonkeyPatch) -> None:
    """Figures as the text of what they are drawn from, and no model card: they cost more than such a training."""

    def figure(rows: Any, **given: Any) -> str:
        return f"<svg>{[sorted(row.items()) for row in rows]} {given}</svg>"

    patch.setattr(folds, "training_figure", figure)
    patch.setattr(running, "write_model_card", lambda *_: None)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `draw_plainly`."""
    draw_plainly(monkeypatch)
