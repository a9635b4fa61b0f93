"""Vision towers: their features are what Transformers' own classes give, whatever stands behind the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import SIDE, TOWERS, save_tower

from thoraclip.errors import ModelError
from thoraclip.imaging import normalise
from thoraclip.models.architectures import ARCHITECTURES
from thoraclip.models.dual_encoder import load_dual_encoder, load_vision_encoder
from thoraclip.models.frozen import FrozenEncoder

GREYS = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
WITH_HEAD = ("vit", "dinov2", "vit_msn", "beit", "convnext", "resnet", "swin", "mobilenet_v2")
"""Of which Transformers has an image classifier."""


def _features(folder: Path, **given: Any) -> npt.NDArray[np.float32]:
    return load_vision_encoder(folder, precision="fp32", **given).encode_greys(GREYS)[0]


def test_every_tower_in_the_registry_is_tried_here() -> None:
    assert set(TOWERS) == {name for name, one in ARCHITECTURES.items() if not one.has_text}


@pytest.mark.parametrize("model_type", [name for name in TOWERS if name not in ("siglip2_vision_model", "vit_mae")])
def test_features_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = save_tower(model_type, tmp_path)
    encoder = load_vision_encoder(folder, precision="fp32")
    pooled, projected = encoder.encode_greys(GREYS, check=True)
    pixels = torch.from_numpy(normalise(GREYS, encoder.preprocess))
    with torch.inference_mode():
        output = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels)
    reads_cls = model_type in ("vit", "deit", "vit_msn")
    expected = output.last_hidden_state[:, 0] if reads_cls else output.pooler_output.flatten(1)
    np.testing.assert_allclose(pooled, expected.numpy(), atol=1e-5)
    assert projected.shape == (3, 0)
    assert np.isfinite(pooled).all()


def test_siglip_2_tower_equals_that_of_its_dual_encoder(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Siglip2Model

    dual = checkpoints["siglip2"]
    Siglip2Model.from_pretrained(dual).vision_model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((dual / "preprocessor_config.json").read_bytes())
    alone, both = load_vision_encoder(tmp_path, precision="fp32"), load_vision_encoder(dual, precision="fp32")
    np.testing.assert_allclose(alone.encode_greys(GREYS)[0], both.encode_greys(GREYS)[0], atol=1e-6)


def test_mae_sees_all_patches_in_their_order(tmp_path: Path) -> None:
    """With mask_ratio 0.75, as the file says, a feature would be of a quarter of the image, another one each time."""
    from transformers import ViTMAEModel

    folder = save_tower("vit_mae", tmp_path)
    encoder = load_vision_encoder(folder, precision="fp32")
    made = encoder.encode_greys(GREYS)[0]
    np.testing.assert_array_equal(made, encoder.encode_greys(GREYS)[0])
    model = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    with torch.inference_mode():
        output = model(torch.from_numpy(normalise(GREYS, encoder.preprocess)))
    np.testing.assert_allclose(made, output.last_hidden_state[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("model_type", WITH_HEAD)
def test_a_head_of_another_task_is_left_out(model_type: str, tmp_path: Path) -> None:
    folder = save_tower(model_type, tmp_path / "head", with_head=True)
    encoder = load_vision_encoder(folder, precision="fp32")
    bare = tmp_path / "bare"
    encoder.model.save_pretrained(bare)
    (bare / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    np.testing.assert_allclose(encoder.encode_greys(GREYS)[0], _features(bare), atol=1e-6)


def test_other_weights_besides_are_refused(tmp_path: Path) -> None:
    folder = save_tower("dinov2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"adapter.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not part of the architecture, first 'adapter.weight'"):
        load_vision_encoder(folder)


@pytest.mark.parametrize("model_type", ["vit", "dinov2", "clip_vision_model", "vit_mae", "siglip_vision_model"])
def test_images_of_another_side_than_in_training(model_type: str, tmp_path: Path) -> None:
    folder = save_tower(model_type, tmp_path)
    processor = folder / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace(f": {SIDE}", ": 48"))
    encoder = load_vision_encoder(folder, precision="fp32")
    pooled, _ = encoder.encode_greys(np.full((1, 48, 48), 100, np.uint8))
    assert pooled.shape == (1, 16) and np.isfinite(pooled).all()


@pytest.mark.parametrize("model_type", ["dinov2", "vit", "convnext"])
def test_prepared_for_bf16_it_gives_nearly_the_same(model_type: str, tmp_path: Path) -> None:
    folder = save_tower(model_type, tmp_path)
    frozen = FrozenEncoder.of(load_vision_encoder(folder, precision="bf16"))
    exact = _features(folder)
    assert np.abs(frozen.encode_greys(GREYS)[0] - exact).max() < 0.03 * np.abs(exact).max()


def test_where_texts_are_needed_a_tower_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = save_tower("dinov2", tmp_path)
    with pytest.raises(ModelError, match=r"type 'dinov2' has no text tower, and zeroshot compares images with texts"):
        load_vision_encoder(folder, needs_text="zeroshot")
    with pytest.raises(ModelError, match="has no text tower"):
        load_dual_encoder(folder)
