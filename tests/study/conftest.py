"""What the tests of studies share: images, a small encoder, and studies that draw no pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import save_checkpoint
from tests.conftest import write_class_folder

from thoraclip.config import toml_value
from thoraclip.data.index import index
from thoraclip.data.splits import split_folds
from thoraclip.methods.training import folds
from thoraclip.runs import write_json
from thoraclip.study import running, timing
from thoraclip.tables.manifest import write_manifest


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of 32 pixels that answers with more than one class before any training."""
    return save_checkpoint("clip", tmp_path_factory.mktemp("models") / "clip", seed=10)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to read: `images/`, and `m.parquet` of these 24 images of 12 patients in three folds."""
    folder = tmp_path_factory.mktemp("study")
    found = index(write_class_folder(folder / "images"), layout="folders").manifest
    patients = [f"p{row // 2:02d}" for row in range(len(found))]
    write_manifest(folder / "m.parquet", split_folds(found.with_columns(patient=patients), folds=3, seed=0))
    return folder


def write_study(folder: Path, model: Path, text: str, *, manifest: Path | None = None, name: str = "s.toml") -> Path:
    """A study file of this text, on `m.parquet` beside it unless another manifest is given."""
    place = json.dumps(str(manifest or "m.parquet"))
    (folder / name).write_text(f"model = {json.dumps(str(model))}\nmanifest = {place}\n{text}")
    return folder / name


def method(kind: str, name: str = "", **settings: Any) -> str:
    """A `[[methods]]` table of a study file; its name is its kind unless another is given."""
    values = {"name": name or kind, "kind": kind, **settings}
    return "[[methods]]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


@contextmanager
def without_pages() -> Iterator[None]:
    """Within it, studies write `report.json` alone and no curves: drawing takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "training_figure", lambda *_, **__: "<svg/>")
        patch.setattr(running, "write_report", lambda report, out, **_: write_json(out / "report.json", report))
        yield


@pytest.fixture
def undrawn() -> Iterator[None]:
    with without_pages():
        yield


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run takes every network for one that needs half a second an image, and loads none to time it."""
    monkeypatch.setattr(timing.Timing, "image", lambda *_: 0.5)
