"""Folding grey into the first layer is exact where nothing is padded, and is not done where it would not be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tests.checkpoints import FAMILIES, save_checkpoint, save_classifier
from torch import nn

from thoraclip.bundle.onnx import GreyClassifier, grey_classifier, write_onnx
from thoraclip.errors import ModelError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import LinearHead
from thoraclip.models.sessions import onnxruntime

LABELS = LabelSet(("a", "b", "c"))
SPEC_32 = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
GREYS = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)


def classifier(model: str, features: str, seed: int = 0) -> EncoderClassifier:
    encoder, rng = load_dual_encoder(model, precision="fp32", device="cpu"), np.random.default_rng(seed)
    width = encoder.encode_greys(GREYS[:1])[features == "projected"].shape[1]
    mean, scale = rng.normal(size=width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32)
    weight = rng.normal(size=(3, width)).astype(np.float32)
    head = LinearHead(LABELS, mean, scale, weight, rng.normal(size=3).astype(np.float32))
    return EncoderClassifier(encoder, head, features)


@pytest.mark.parametrize(
    ("name", "features"), [*itertools.product(FAMILIES, ("pooled", "projected")), ("vit", ""), ("resnet", "")]
)
def test_grey_and_head_are_folded_exactly_where_nothing_is_padded(tmp_path: Path, name: str, features: str) -> None:
    """CLIP, SigLIP, SigLIP 2 (patches cut out before a linear layer), DINOv2 and ViT; a ResNet, which pads, is left as it is."""
    if features:
        original: Any = classifier(str(save_checkpoint(name, tmp_path / name)), features)
        network = original.encoder.model
    else:
        original = load_backbone(str(save_classifier(name, tmp_path / name)), LABELS, precision="fp32", device="cpu")
        network = original.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    side = original.preprocess.size
    greys = np.random.default_rng(0).integers(0, 256, (4, side, side), dtype=np.uint8)
    module = grey_classifier(original)
    assert module.is_folded is (name != "resnet")
    with torch.inference_mode():
        found, scores = (one.numpy() for one in module(torch.from_numpy(greys)))
    expected, told = original.look(greys)
    assert np.abs(found - expected).max() < 5e-6 * max(1, np.abs(expected).max())
    assert np.abs(scores - told).max() < (1e-5 if features else 1e-6)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the original stays as it was"


def test_the_file_takes_grey_bytes_of_any_number_of_pictures(tmp_path: Path) -> None:
    original = classifier(str(save_checkpoint("clip", tmp_path / "clip")), "pooled")
    write_onnx(grey_classifier(original), tmp_path / "model.onnx")
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    (given_,) = graph.input
    assert given_.name == "greys" and given_.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in given_.type.tensor_type.shape.dim] == ["pictures", 32, 32]
    assert [output.name for output in graph.output] == ["features", "scores"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_large_matrices_lie_beside_the_model_and_are_not_needed_once_it_is_loaded(tmp_path: Path) -> None:
    """So that a bundle may be copied over the one that is served."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(1, 256, 32), nn.Flatten(), nn.Linear(256, 512), nn.LayerNorm(512))
    module = GreyClassifier(tower, nn.Linear(512, 3), SPEC_32, is_folded=True).eval()
    path, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    for _ in range(2):  # written again, it takes the place of what is there
        write_onnx(module, path)
        assert 2**20 < path.stat().st_size < 2**20 + 2**17, "the convolution, which may be used where it lies"
        assert 2**19 <= beside.stat().st_size < 2**19 + 2**16
    sessions, levels = [], onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level  # of fp32, and of what was written as it is to be run
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    maps = Path("/proc/self/maps")
    if maps.is_file():  # Linux
        assert str(beside) not in maps.read_text()
    beside.write_bytes(b"")
    with torch.inference_mode():
        expected, told = (found.numpy() for found in module(torch.from_numpy(GREYS)))
    for session in sessions:
        features, scores = session.run(["features", "scores"], {"greys": GREYS})
        assert np.abs(features - expected).max() < 1e-4 and np.abs(scores - told).max() < 1e-5


def test_a_network_that_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(pixels.numpy().mean(axis=(1, 2, 3))[:, None])

    module = grey_classifier(classifier(str(save_checkpoint("clip", tmp_path / "clip")), "pooled"))
    module.features = Odd()
    with pytest.raises(ModelError, match="the network cannot be written as ONNX"):
        write_onnx(module, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
