"""Every family loads through the real code and gives what Transformers gives when called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.checkpoints import FAMILIES, SIDE, TINY
from transformers import AutoModel, AutoTokenizer

from thoraclip.errors import InputError, ModelError
from thoraclip.imaging import normalise
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder

GREYS = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE), dtype=np.uint8)


def load(folder: Path, **settings: Any) -> DualEncoder:
    return load_dual_encoder(str(folder), **{"precision": "fp32", "device": "cpu", **settings})


@pytest.fixture
def pixels(checkpoints: dict[str, Path]) -> np.ndarray:
    return normalise(GREYS, load(checkpoints["clip"]).preprocess)


def reference_inputs(family: str, pixels: np.ndarray) -> dict[str, torch.Tensor]:
    """What each family's own processor hands to the vision tower; SigLIP 2 gets patches, cut by a slow loop."""
    if family != "siglip2":
        return {"pixel_values": torch.from_numpy(pixels)}
    corners = [(r, c) for r in range(0, SIDE, 8) for c in range(0, SIDE, 8)]
    patches = [[image[:, r : r + 8, c : c + 8].transpose(1, 2, 0).ravel() for r, c in corners] for image in pixels]
    return {
        "pixel_values": torch.from_numpy(np.array(patches)),
        "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * len(pixels)),
    }


def unit(features: torch.Tensor) -> np.ndarray:
    return (features / features.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_grey_is_expanded_at_the_door_to_the_very_same_bits(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load(checkpoints[family])
    greys = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(3, SIDE, SIDE)  # every level stands in it
    expected = normalise(greys, encoder.preprocess)
    assert encoder.expand(greys).numpy().tobytes() == expected.tobytes()
    assert encoder.expand(torch.from_numpy(greys)).numpy().tobytes() == expected.tobytes()
    for a, b in zip(encoder.encode_greys(greys, check=True), encoder.encode_images(expected), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_the_model_called_by_hand(family: str, checkpoints: dict[str, Path], pixels: np.ndarray) -> None:
    encoder = load(checkpoints[family], geometry="pad")
    pooled, projected = encoder.encode_images(pixels)
    model, inputs = AutoModel.from_pretrained(checkpoints[family]).eval(), reference_inputs(family, pixels)
    texts = [
        "AP chest X-ray.",
        "PA chest X-ray of a slim patient, well exposed, with ECG leads and a pacemaker and a tube.",
    ]
    padding = "max_length" if family.startswith("siglip") else True
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        expected = unit(model.get_image_features(**inputs).pooler_output)
        of_texts = unit(model.get_text_features(**tokens).pooler_output)
        if family != "siglip2":  # before the projection
            tower = model.vision_model(**inputs).pooler_output.numpy()
            np.testing.assert_allclose(pooled, tower, atol=1e-6)
    np.testing.assert_allclose(projected, expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(texts), of_texts, atol=1e-6)
    assert pooled.dtype == projected.dtype == np.float32
    assert pooled.shape == (5, 16)
    assert np.abs(np.diff(pooled, axis=0)).max() > 1e-4, "different pictures must give different features"
    spec = encoder.preprocess
    assert (spec.size, spec.geometry, spec.mean, spec.std) == (SIDE, "pad", (0.5, 0.4, 0.3), (0.25, 0.3, 0.2))


def test_bf16_stays_close_to_fp32(checkpoints: dict[str, Path], pixels: np.ndarray) -> None:
    exact, rough = (load(checkpoints["clip"], precision=p).encode_images(pixels)[1] for p in ("fp32", "bf16"))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


def save_peft(base: Path, folder: Path, **settings: Any) -> Any:
    """A model with an adapter of another program, and the folder that it writes."""
    tuned = get_peft_model(AutoModel.from_pretrained(base).eval(), LoraConfig(r=2, init_lora_weights=False, **settings))
    tuned.save_pretrained(folder)
    return tuned


def test_a_peft_adapter_is_merged(checkpoints: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    tuned = save_peft(checkpoints["clip"], tmp_path, target_modules=["q_proj", "v_proj", "fc1"])
    with torch.inference_mode():
        expected = unit(tuned.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output)
    stock, adapted = load(checkpoints["clip"]), load(checkpoints["clip"], adapter=str(tmp_path))
    np.testing.assert_allclose(adapted.encode_images(pixels)[1], expected, atol=1e-5)
    assert np.abs(stock.encode_images(pixels)[1] - expected).max() > 1e-3
    assert stock.fingerprint != adapted.fingerprint


@pytest.mark.parametrize(
    ("family", "removed", "error", "message"),
    [
        ("vision-text-dual-encoder", "", ModelError, "does not fit model"),
        # SigLIP's layers bear CLIP's names; what its pooling head has besides would be lost without a word
        ("siglip", "", ModelError, r"2 tensors without a counterpart, first '.*vision_model.head.mlp.fc1"),
        ("clip", "adapter_config.json", InputError, "no adapter_config.json there; name a PEFT adapter folder"),
        ("clip", "adapter_model.safetensors", ModelError, "adapter_model.safetensors is not readable"),
    ],
)
def test_an_adapter_that_does_not_fit_or_is_not_whole_is_refused(
    family: str, removed: str, error: type[Exception], message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    save_peft(checkpoints[family], tmp_path, target_modules=["fc1", "query"])
    if removed:
        (tmp_path / removed).unlink()
    with pytest.raises(error, match=message):
        load(checkpoints["clip"], adapter=str(tmp_path))


def test_the_shipped_model_keeps_its_promises() -> None:
    """At most 3.7 M parameters, 128 pixels, 8 MB in the package, and any text encodes."""
    encoder = load_dual_encoder("tiny-clip")
    assert {f.suffix for f in TINY.iterdir()} <= {".json", ".safetensors", ".md"}, "no pickle"
    assert sum(p.numel() for p in encoder.model.parameters()) <= 3_700_000
    assert encoder.preprocess.size == 128
    assert sum(f.stat().st_size for f in TINY.iterdir()) <= 8 * 2**20
    assert load_file(TINY / "model.safetensors")["visual_projection.weight"].dtype == torch.float16
    vectors = encoder.encode_texts(["COVID-19", "pneumonia ünd 肺炎 \N{LUNGS}", "x" * 500])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
