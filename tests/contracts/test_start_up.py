"""A probe on finished features, and the report of it, run without torch and Transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import EncoderConfig, finished_embeddings, load_encoder
from thoraclip.models.files import Checkpoint, description, stored_fingerprint, stored_folder
from thoraclip.models.image_processor import read_preprocess
from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS
from thoraclip.tables.manifest import Manifest

BLOCKED = ("torch", "transformers", "peft", "accelerate", "sklearn")


def write_features(
    folder: Path, manifest: Manifest, *, model: str = "tiny-clip", precision: str = "fp32", geometry: str = "squash"
) -> None:
    """Features that look as if the model had made them."""
    place = stored_folder(model)
    assert place is not None
    numbers = np.random.default_rng(0).normal(size=(len(manifest), 16)).astype(np.float32)
    weights = stored_fingerprint(place)
    assert weights is not None
    spec = read_preprocess(Checkpoint(model, str(place), is_local=True, config=None), geometry=geometry)
    writer = ArrayWriter(folder, EMBEDDINGS, total=len(manifest), token="t")
    writer.append({"pooled": numbers, "projected": numbers})
    writer.finish(
        manifest, facts={"encoder": description(weights, precision), "preprocess": spec.as_dict()}, fingerprint="f"
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of tiny-clip that a test may change."""
    source = stored_folder("tiny-clip")
    assert source is not None
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.mark.usefixtures("manifest_file")
def test_a_probe_on_finished_features_and_its_report_need_no_torch(manifest: Manifest, tmp_path: Path) -> None:
    write_features(tmp_path / "features", manifest)
    code = (
        f"import sys\nfor name in {BLOCKED!r}: sys.modules[name] = None\n"
        "from thoraclip.cli.app import run\n"
        "assert run(['probe', 'm.parquet', '--out', 'run', '--set', 'embeddings=features']) == 0\n"
        "assert not {'matplotlib', 'thoraclip.methods.embed'} & set(sys.modules)\n"
        "assert run(['report', 'run', '--out', 'report', '--resamples', '100']) == 0\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "run" / "details.json").read_text())["chosen"]) == 3, "one for each fold"
    assert (tmp_path / "report" / "report.html").is_file()


def test_file_and_network_have_one_fingerprint_without_what_loading_passes_over(model: Path) -> None:
    before, weights = stored_fingerprint(model), load_file(model / "model.safetensors")
    assert before == load_encoder(EncoderConfig(model=str(model))).fingerprint
    assert stored_fingerprint(model / "nothing") is None
    ids = {"text_model.embeddings.position_ids": np.arange(4)[None]}
    save_file(weights | ids, model / "model.safetensors", metadata={"format": "pt"})
    assert stored_fingerprint(model) == before


def test_finished_features_are_taken_only_from_the_very_model(manifest: Manifest, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    write_features(folder, manifest, model=str(model))
    config = {"model": str(model), "embeddings": str(folder)}
    found = finished_embeddings(EncoderConfig(**config))
    assert found is not None
    assert found.image_id == tuple(manifest.column("image_id"))
    for other in ({"precision": "bf16"}, {"geometry": "pad"}, {"adapter": "some"}, {"embeddings": ""}):
        assert finished_embeddings(EncoderConfig(**config | other)) is None, other
    weights = load_file(model / "model.safetensors")
    name = min(weights, key=lambda one: weights[one].size)
    weights[name] = np.asarray(weights[name] + 1, dtype=weights[name].dtype)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert finished_embeddings(EncoderConfig(**config)) is None, "one number of the weights is another"


def test_finished_features_keep_their_precision_where_none_is_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        write_features(tmp_path / precision, manifest, precision=precision)
        config = EncoderConfig(embeddings=str(tmp_path / precision))
        assert finished_embeddings(config) is not None
        assert cached_embeddings(config, manifest, tmp_path).encoder["precision"] == precision
