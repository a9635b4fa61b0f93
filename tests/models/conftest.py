"""A checkpoint of every kind, made once, and what changes a copy of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import CLASSIFIERS, FAMILIES, save_blip, save_checkpoint, save_classifier, save_segmenter

from thoraclip.labels import LabelSet

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each dual encoder, each classifier, a captioner and a segmenter, by its kind; not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {family: save_checkpoint(family, root / family) for family in FAMILIES}
    made |= {kind: save_classifier(kind, root / kind) for kind in CLASSIFIERS}
    return made | {"blip": save_blip(root / "blip"), "segformer": save_segmenter(root / "segformer")}


def changed(
    folder: Path, out: Path, weights: Mapping[str, torch.Tensor | None] | None = None, **files: Mapping[str, Any]
) -> Path:
    """A copy of a checkpoint with some weights (`None`: left out) and some values of its JSON files, by name, replaced."""
    shutil.copytree(folder, out)
    if weights is not None:
        tensors = load_file(out / "model.safetensors") | weights
        save_file({n: t for n, t in tensors.items() if t is not None}, out / "model.safetensors", {"format": "pt"})
    for name, values in files.items():
        path = out / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return out
