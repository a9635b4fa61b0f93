"""Folding grey into the first layer is exact where nothing is padded, and is not done where it would not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.checkpoints import FAMILIES, save_checkpoint, save_classifier
from torch import nn

from thoraclip.deploy.onnx import GreyClassifier, grey_classifier, write_onnx
from thoraclip.deploy.onnx_runtime import onnxruntime
from thoraclip.errors import ModelError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import LinearHead, Standardiser

LABELS = LabelSet(("a", "b", "c"))
SPEC = Preprocess(size=12, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))
SPEC_32 = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
GREYS = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)


def classifier(model: str, features: str, seed: int = 0) -> EncoderClassifier:
    encoder, rng = load_dual_encoder(model, precision="fp32", device="cpu"), np.random.default_rng(seed)
    width = encoder.encode_greys(GREYS[:1])[features == "projected"].shape[1]
    scale = Standardiser(rng.normal(size=width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32))
    weight = rng.normal(size=(3, width)).astype(np.float32)
    return EncoderClassifier(
        encoder, LinearHead(LABELS, scale, weight, rng.normal(size=3).astype(np.float32)), features
    )


@pytest.mark.parametrize("features", ["pooled", "projected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_grey_and_head_are_folded_exactly_into_every_dual_encoder(tmp_path: Path, family: str, features: str) -> None:
    """CLIP, SigLIP, SigLIP 2 (patches cut out before a linear layer) and DINOv2, whose embeddings pad nothing."""
    original = classifier(str(save_checkpoint(family, tmp_path / family)), features)
    before = {name: value.clone() for name, value in original.encoder.model.state_dict().items()}
    module = grey_classifier(original)
    assert module.is_folded
    with torch.inference_mode():
        folded, scores = (found.numpy() for found in module(torch.from_numpy(GREYS)))
    expected, told = original.look(GREYS)
    assert np.abs(folded - expected).max() < 5e-6 * max(1, np.abs(expected).max())
    assert np.abs(scores - told).max() < 1e-5
    after = original.encoder.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the original stays as it was"


@pytest.mark.parametrize(("kind", "is_folded"), [("vit", True), ("resnet", False)])
def test_of_supervised_networks_the_one_that_pads_is_left_as_it_is(tmp_path: Path, kind: str, is_folded: bool) -> None:
    original = load_backbone(str(save_classifier(kind, tmp_path / kind)), LABELS, precision="fp32", device="cpu")
    side = original.preprocess.size
    greys = np.random.default_rng(1).integers(0, 256, (4, side, side), dtype=np.uint8)
    module = grey_classifier(original)
    assert module.is_folded is is_folded
    with torch.inference_mode():
        features, scores = (found.numpy() for found in module(torch.from_numpy(greys)))
    expected, told = original.look(greys)
    assert np.abs(features - expected).max() < 1e-5 and np.abs(scores - told).max() < 1e-6


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
    sessions = [
        onnxruntime.InferenceSession(str(path), _options(level), providers=["CPUExecutionProvider"])
        for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")
    ]
    maps = Path("/proc/self/maps")
    if maps.is_file():  # Linux
        assert str(beside) not in maps.read_text()
    beside.write_bytes(b"")
    with torch.inference_mode():
        expected, told = (found.numpy() for found in module(torch.from_numpy(GREYS)))
    for session in sessions:
        features, scores = session.run(["features", "scores"], {"greys": GREYS})
        assert np.abs(features - expected).max() < 1e-4 and np.abs(scores - told).max() < 1e-5


def _options(level: str) -> onnxruntime.SessionOptions:
    """As `BundleClassifier` loads models in fp32, or those that were written as they are to be run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return options


def test_a_network_that_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(pixels.numpy().mean(axis=(1, 2, 3))[:, None])

    module = grey_classifier(classifier(str(save_checkpoint("clip", tmp_path / "clip")), "pooled"))
    module.features = Odd()
    with pytest.raises(ModelError, match="the network cannot be written as ONNX"):
        write_onnx(module, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
