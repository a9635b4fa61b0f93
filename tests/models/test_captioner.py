"""The captioner says what plain Transformers says, and the same of a picture whatever stands beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.checkpoints import SIDE, save_blip, save_checkpoint
from tests.conftest import draw_picture, examples
from transformers import AutoTokenizer, BlipForConditionalGeneration

from thoraclip.errors import ConfigError, ImageError, ModelError
from thoraclip.imaging import normalise
from thoraclip.models.captioner import Captioner, load_captioner
from thoraclip.models.checkpoint import Checkpoint

PROMPT = "a chest x-ray of"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("checkpoints") / "blip")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return load_captioner(str(folder), precision="fp32", device="cpu", max_new_tokens=12)


@pytest.fixture(scope="module")
def greys() -> np.ndarray:
    return np.stack([draw_picture(SIDE, SIDE, seed=i, patch=0.2 * (i % 3)) for i in range(9)])


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_texts_equal_transformers_called_by_hand(prompt: str, folder: Path, greys: np.ndarray) -> None:
    ours = load_captioner(str(folder), prompt=prompt, max_new_tokens=12, precision="fp32", device="cpu")
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer([prompt] * len(greys), return_tensors="pt", return_token_type_ids=False) if prompt else {}
    pixels = torch.from_numpy(normalise(greys, ours.preprocess))
    tokens = model.generate(pixels, **inputs, max_new_tokens=12, do_sample=False, num_beams=1)
    expected = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    found = ours.caption(greys, check=True)
    assert found == expected
    assert len(set(found)) > 6, "different pictures must give different texts"
    assert all(text.startswith("a chest x - ray of") == bool(prompt) for text in found)


@examples(15)
@given(rows=st.lists(st.integers(0, 8), min_size=1, max_size=7))
def test_a_text_depends_on_its_own_picture_alone(captioner: Captioner, greys: np.ndarray, rows: list[int]) -> None:
    together = captioner.caption(greys)
    assert captioner.caption(greys[rows]) == [together[row] for row in rows]


def test_the_global_generator_is_neither_read_nor_moved(captioner: Captioner, greys: np.ndarray) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = captioner.caption(greys)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert captioner.caption(greys) == first


def test_the_models_own_habits_do_not_change_the_decoding(
    folder: Path, captioner: Captioner, greys: np.ndarray, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "sampling"))
    habits = {"do_sample": True, "num_beams": 3, "max_new_tokens": 2, "max_length": 3}
    (other / "generation_config.json").write_text(json.dumps(habits), encoding="utf-8")
    sampling = load_captioner(str(other), precision="fp32", device="cpu", max_new_tokens=12)
    assert sampling.caption(greys) == captioner.caption(greys)


def test_bf16_writes_texts_too(folder: Path, greys: np.ndarray) -> None:
    rough = load_captioner(str(folder), precision="bf16", device="cpu", max_new_tokens=12)
    assert rough.caption(greys) == rough.caption(greys)
    assert rough.origin["precision"] == "bf16"


def test_a_larger_picture_is_read_with_interpolated_positions(folder: Path, tmp_path: Path) -> None:
    larger = Path(shutil.copytree(folder, tmp_path / "larger"))
    content = json.loads((larger / "preprocessor_config.json").read_text())
    content["size"] = {"height": 48, "width": 48}
    (larger / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    found = load_captioner(str(larger), precision="fp32", device="cpu")
    assert found.caption(draw_picture(48, 48)[None])[0]


def test_the_origin_says_what_wrote(folder: Path, captioner: Captioner, tmp_path: Path) -> None:
    assert {k: v for k, v in captioner.origin.items() if k not in ("weights", "preprocess")} == {
        "captioner": "blip", "model": "blip", "revision": None, "precision": "fp32", "prompt": "", "max_new_tokens": 12,
    }  # fmt: skip
    assert captioner.preprocess.as_dict() == captioner.origin["preprocess"]
    assert (captioner.preprocess.size, captioner.preprocess.geometry) == (SIDE, "squash")
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "blip"))
    assert load_captioner(str(moved), precision="fp32", device="cpu", max_new_tokens=12).origin == captioner.origin
    other = load_captioner(str(save_blip(tmp_path / "other", seed=1)), device="cpu")
    assert other.origin["weights"] != captioner.origin["weights"]


def test_a_model_of_the_hub_is_known_by_its_revision(
    folder: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thoraclip.models import captioner as module

    def found(name: str) -> Checkpoint:
        config = type(captioner.model.config).from_pretrained(folder)
        config._commit_hash = "89b09ea1789f"
        return Checkpoint(name, str(folder), False, config)

    def read(checkpoint: Checkpoint, geometry: str) -> object:
        return captioner.preprocess

    monkeypatch.setattr(module, "find_checkpoint", found)
    monkeypatch.setattr(module, "read_preprocess", read)
    origin = load_captioner("Salesforce/blip-image-captioning-base", device="cpu").origin
    assert (origin["model"], origin["revision"]) == ("Salesforce/blip-image-captioning-base", "89b09ea1789f")


def test_a_silent_model_gives_empty_texts(tmp_path: Path, greys: np.ndarray) -> None:
    silent = load_captioner(str(save_blip(tmp_path / "silent", silent=True)), device="cpu")
    assert silent.caption(greys[:2]) == ["", ""]


def test_the_gate_looks_at_what_enters(captioner: Captioner) -> None:
    with pytest.raises(ImageError, match="every picture is blank"):
        captioner.caption(np.full((2, SIDE, SIDE), 90, np.uint8), check=True)


def test_another_model_is_refused_with_its_type(tmp_path: Path) -> None:
    other = save_checkpoint("siglip", tmp_path / "siglip")
    with pytest.raises(ModelError, match=r"type 'siglip' is no captioner; name a BLIP model, such as Salesforce/blip-"):
        load_captioner(str(other))
    with pytest.raises(ModelError, match="model 'tiny-clip': type 'clip' is no captioner"):
        load_captioner("tiny-clip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_model.post_layernorm.weight": None}, "1 weights are missing, first 'vision_model.post_layernorm.weight'"),
        ({"stray.weight": torch.zeros(2)}, "1 weights are not part of the architecture, first 'stray.weight'"),
        ({"vision_model.post_layernorm.weight": torch.zeros(3)}, "1 weights have another shape, first 'vision_model.post_layernorm.weight'"),
    ],
)  # fmt: skip
def test_incomplete_weights_are_an_error(
    change: dict[str, torch.Tensor | None], message: str, folder: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors") | change
    save_file({k: v for k, v in weights.items() if v is not None}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_captioner(str(broken))


def test_settings_out_of_range_are_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"max_new_tokens = 48: with the 1 tokens before them more than the 48 .* 47 or"
    ):
        load_captioner(str(folder), max_new_tokens=48)
    with pytest.raises(ConfigError, match=r"max_new_tokens = 42: with the 7 tokens .* take 41 or fewer"):
        load_captioner(str(folder), max_new_tokens=42, prompt=PROMPT)
    with pytest.raises(ConfigError, match="unknown precision 'half'"):
        load_captioner(str(folder), precision="half")
    with pytest.raises(ConfigError, match="unknown geometry 'stretch'"):
        load_captioner(str(folder), geometry="stretch")


def test_the_longest_text_fits(folder: Path, greys: np.ndarray) -> None:
    longest = load_captioner(str(folder), max_new_tokens=41, prompt=PROMPT, precision="fp32", device="cpu")
    assert len(longest.caption(greys)) == 9
