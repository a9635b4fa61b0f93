"""Real radiographs, indexed once: COVID-QU-Ex's own folders, and covid3-talo with its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thoraclip.data.index import IndexResult, index
from thoraclip.tables.manifest import Manifest


def folder(shared: Path, name: str) -> Path:
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"{name} absent")
    return shared / "data" / name


@pytest.fixture(scope="session")
def covid_qu_ex(shared: Path) -> IndexResult:
    return index(folder(shared, "covid-qu-ex-sample"), layout="covid-qu-ex")


@pytest.fixture(scope="session")
def talo(shared: Path) -> IndexResult:
    columns: dict[str, str | None] = {"path": "rel_path", "source": "source_repo", "lung_mask": "mask_path"}
    columns |= {"patient": "patient_id", "view": "view", "sex": "sex", "age_years": "age"}
    root = folder(shared, "covid3-talo")
    return index(root, layout="csv", csv_file=root / "manifest.csv", columns=columns)


def first_of_each_class(manifest: Manifest, count: int, *, step: int = 1) -> list[int]:
    """Rows of every `step`-th image of each class, so many a class."""
    targets = manifest.targets(manifest.label_set())
    return sorted(int(row) for c in range(3) for row in np.flatnonzero(targets == c)[::step][:count])
