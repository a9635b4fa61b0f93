"""Shared fixtures: real material where it is there, and small made-up material that always is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from thoraclip.data.index import index
from thoraclip.data.splits import split_folds
from thoraclip.tables.manifest import Manifest, write_manifest

CLASSES = ("COVID-19", "Non-COVID", "Normal")
PER_CLASS = 8

Grey = npt.NDArray[np.uint8]
Capture = pytest.CaptureFixture[str]

IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE", "quick") == "deep"
"""`make test-all` tries every property on as many examples as it names; `make test` on a quarter of them."""


def examples(count: int, **given: Any) -> Callable[[Any], Any]:
    """Settings of a property test: so many examples in `make test-all`, a quarter, and 5 at least, in `make test`."""
    some = count if IS_DEEP else min(count, max(5, count // 4))
    return hypothesis.settings(max_examples=some, deadline=None, derandomize=True, **given)


hypothesis.settings.register_profile("quick", examples(60))
hypothesis.settings.register_profile("deep", examples(100))
hypothesis.settings.load_profile("deep" if IS_DEEP else "quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: none is left to run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def draw_picture(height: int = 64, width: int = 64, seed: int = 0, lungs: float = 0.25, patch: float = 0.0) -> Grey:
    """u8[H, W]: dark air, a bright trunk, two dark lungs, a bright patch of strength `patch` in one, smooth noise."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    left, right, low = rng.uniform(-0.5, -0.35), rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.4)
    trunk = 0.75 * (np.abs(x) < 0.9)
    for centre in (left, right):
        trunk = np.where(((x - centre) / 0.3) ** 2 + ((y + 0.1) / 0.65) ** 2 < 1, lungs, trunk)
    trunk = trunk + patch * np.exp(-(((x - left) / 0.2) ** 2 + ((y - low) / 0.25) ** 2))
    coarse = Image.fromarray(rng.uniform(-0.1, 0.1, (6, 6)).astype(np.float32))
    noise = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(np.round(255 * (trunk + noise + 0.05)), 0, 255).astype(np.uint8)


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file of a folder, by its path in it."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def write_class_folder(root: Path) -> Path:
    """`root/<class>/<number>.png`: 3 classes of 8 distinct pictures; the patch and the lungs tell the class."""
    for number, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = draw_picture(
                48, 40, seed=100 * number + i, lungs=(0.25, 0.4, 0.15)[number], patch=0.4 - 0.2 * number
            )
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material; the test is skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("THORACLIP_SHARED", default))
    if not folder.is_dir():
        pytest.skip("shared data absent: set THORACLIP_SHARED")
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., Grey]:
    """`picture(height, width, seed, lungs, patch)` -> u8[H, W] that looks like a radiograph from afar."""
    return draw_picture


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """A folder of three classes with eight small pictures each; the same bytes in every test."""
    return write_class_folder(tmp_path / "images")


@pytest.fixture
def manifest(class_folder: Path) -> Manifest:
    """`class_folder` indexed: 24 rows, two images a patient, three folds."""
    found = index(class_folder, layout="folders").manifest
    patients = [f"p{row // 2:02d}" for row in range(len(found))]
    return split_folds(found.with_columns(patient=patients), folds=3, seed=0)


@pytest.fixture
def manifest_file(manifest: Manifest, tmp_path: Path) -> Path:
    """`m.parquet`: `manifest` as a file."""
    write_manifest(tmp_path / "m.parquet", manifest)
    return tmp_path / "m.parquet"
