"""Every family loads through the real code and gives what Transformers gives when called by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.checkpoints import FAMILIES, SIDE, TINY, save_checkpoint
from transformers import AutoModel, AutoTokenizer

from thoraclip.errors import ConfigError, InputError, ModelError
from thoraclip.imaging import Preprocess, normalise, preprocess
from thoraclip.models.dual_encoder import load_dual_encoder, resolve_precision


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save_checkpoint(family, root / family) for family in FAMILIES}


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    spec = Preprocess(size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))
    return np.stack([preprocess(rng.integers(0, 256, (40, 50), dtype=np.uint8), spec) for _ in range(5)])


def reference_inputs(family: str, pixels: np.ndarray) -> dict[str, torch.Tensor]:
    """What each family's own processor hands to the vision tower; SigLIP 2 gets patches, cut by a slow loop."""
    if family != "siglip2":
        return {"pixel_values": torch.from_numpy(pixels)}
    patches = [
        [
            image[:, r : r + 8, c : c + 8].transpose(1, 2, 0).ravel()
            for r in range(0, SIDE, 8)
            for c in range(0, SIDE, 8)
        ]
        for image in pixels
    ]
    return {
        "pixel_values": torch.from_numpy(np.array(patches)),
        "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * len(pixels)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_grey_is_expanded_at_the_door_to_the_very_same_bits(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load_dual_encoder(str(checkpoints[family]), precision="fp32", device="cpu")
    greys = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(3, SIDE, SIDE)  # every level stands in it
    expected = normalise(greys, encoder.preprocess)
    assert encoder.expand(greys).numpy().tobytes() == expected.tobytes()
    assert encoder.expand(torch.from_numpy(greys)).numpy().tobytes() == expected.tobytes()
    for a, b in zip(encoder.encode_greys(greys, check=True), encoder.encode_images(expected), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_the_model_called_by_hand(family: str, checkpoints: dict[str, Path], pixels: np.ndarray) -> None:
    encoder = load_dual_encoder(str(checkpoints[family]), precision="fp32", device="cpu")
    pooled, projected = encoder.encode_images(pixels)
    model = AutoModel.from_pretrained(checkpoints[family]).eval()
    with torch.inference_mode():
        expected = model.get_image_features(**reference_inputs(family, pixels)).pooler_output.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(projected, expected, atol=1e-6)
    assert pooled.dtype == projected.dtype == np.float32
    assert pooled.shape == (5, 16)
    assert np.abs(np.diff(pooled, axis=0)).max() > 1e-4, "different pictures must give different features"


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_equal_the_model_called_by_hand(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = load_dual_encoder(str(checkpoints[family]), precision="fp32", device="cpu")
    texts = [
        "AP chest X-ray.",
        "PA chest X-ray of a slim patient, well exposed, with ECG leads and a pacemaker and a tube.",
    ]
    padding = "max_length" if family.startswith("siglip") else True
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        expected = (
            AutoModel.from_pretrained(checkpoints[family]).eval().get_text_features(**tokens).pooler_output.numpy()
        )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_preprocessing_is_read_from_the_checkpoint(family: str, checkpoints: dict[str, Path]) -> None:
    spec = load_dual_encoder(str(checkpoints[family]), geometry="pad").preprocess
    assert (spec.size, spec.geometry, spec.mean, spec.std) == (SIDE, "pad", (0.5, 0.4, 0.3), (0.25, 0.3, 0.2))


def test_pooled_is_the_vision_tower_before_projection(checkpoints: dict[str, Path], pixels: np.ndarray) -> None:
    encoder = load_dual_encoder(str(checkpoints["clip"]), precision="fp32", device="cpu")
    model = AutoModel.from_pretrained(checkpoints["clip"]).eval()
    with torch.inference_mode():
        expected = model.vision_model(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
    np.testing.assert_allclose(encoder.encode_images(pixels)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_projection.weight": None}, r"1 weights are missing, first 'visual_projection.weight'"),
        ({"stray.weight": torch.zeros(2)}, r"not part of the architecture, first 'stray.weight'"),
        ({"visual_projection.weight": torch.zeros(3, 3)}, "visual_projection.weight|shape"),
    ],
)
def test_incomplete_weights_are_an_error(
    change: dict[str, torch.Tensor | None], message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(checkpoints["clip"], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors") | change
    save_file({k: v for k, v in weights.items() if v is not None}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_dual_encoder(str(broken))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("model.safetensors", "safetensors"),
        ("preprocessor_config.json", "preprocessor_config.json is missing"),
        ("config.json", "no readable config.json"),
    ],
)
def test_incomplete_folders_are_an_error(
    removed: str, message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(checkpoints["clip"], tmp_path / "broken"))
    (broken / removed).unlink()
    with pytest.raises(ModelError, match=message):
        load_dual_encoder(str(broken))


def test_another_model_type_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(checkpoints["clip"], tmp_path / "bert"))
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(ModelError, match="type 'bert' is not a dual encoder"):
        load_dual_encoder(str(other))


@pytest.mark.parametrize(
    ("name", "message"), [("tiny-clop", "did you mean 'tiny-clip'"), ("./nowhere/at/all", "no such folder")]
)
def test_unknown_models_are_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_dual_encoder(name)


def test_unknown_geometry_and_precision_are_named(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="unknown geometry 'sqash'; did you mean 'squash'"):
        load_dual_encoder(str(checkpoints["clip"]), geometry="sqash")
    with pytest.raises(ConfigError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        resolve_precision("bf61", torch.device("cpu"))


def test_bf16_stays_close_to_fp32(checkpoints: dict[str, Path], pixels: np.ndarray) -> None:
    exact = load_dual_encoder(str(checkpoints["clip"]), precision="fp32", device="cpu").encode_images(pixels)[1]
    rough = load_dual_encoder(str(checkpoints["clip"]), precision="bf16", device="cpu").encode_images(pixels)[1]
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_a_peft_adapter_is_merged(checkpoints: dict[str, Path], pixels: np.ndarray, tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(checkpoints["clip"]).eval()
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = tuned.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    stock = load_dual_encoder(str(checkpoints["clip"]), precision="fp32", device="cpu")
    adapted = load_dual_encoder(
        str(checkpoints["clip"]), adapter=str(tmp_path / "adapter"), precision="fp32", device="cpu"
    )
    np.testing.assert_allclose(adapted.encode_images(pixels)[1], expected, atol=1e-5)
    assert np.abs(stock.encode_images(pixels)[1] - expected).max() > 1e-3
    assert stock.fingerprint != adapted.fingerprint


def test_an_adapter_of_another_model_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    other = AutoModel.from_pretrained(checkpoints["vision-text-dual-encoder"])
    get_peft_model(other, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit model"):
        load_dual_encoder(str(checkpoints["clip"]), adapter=str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="nothing': no adapter_config.json there"):
        load_dual_encoder(str(checkpoints["clip"]), adapter=str(tmp_path / "nothing"))


def test_an_adapter_that_fits_in_part_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """SigLIP's layers bear CLIP's names; what its pooling head has besides would be lost without a word."""
    other = AutoModel.from_pretrained(checkpoints["siglip"])
    get_peft_model(other, LoraConfig(r=2, target_modules=["fc1"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"2 tensors without a counterpart, first '.*vision_model.head.mlp.fc1"):
        load_dual_encoder(str(checkpoints["clip"]), adapter=str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ("adapter_config.json", InputError, "no adapter_config.json there; name a PEFT adapter folder"),
        ("adapter_model.safetensors", ModelError, "does not fit model .*adapter_model.safetensors"),
    ],
)
def test_an_incomplete_adapter_is_refused(
    removed: str, error: type[Exception], message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    base = AutoModel.from_pretrained(checkpoints["clip"])
    get_peft_model(base, LoraConfig(r=2, target_modules=["fc1"])).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / removed).unlink()
    with pytest.raises(error, match=message):
        load_dual_encoder(str(checkpoints["clip"]), adapter=str(tmp_path / "adapter"))


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
