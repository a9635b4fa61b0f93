"""The captioner says what plain Transformers says, and the same of a picture whatever stands beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import SIDE, save_blip
from tests.conftest import draw_picture
from tests.models.conftest import changed
from transformers import AutoTokenizer, BlipForConditionalGeneration

from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging import normalise
from thoraclip.models import captioner as module
from thoraclip.models.captioner import Captioner, load_captioner
from thoraclip.models.checkpoint import Checkpoint

PROMPT = "a chest x-ray of"
GREYS = np.stack([draw_picture(SIDE, SIDE, seed=i, patch=0.2 * (i % 3)) for i in range(9)])


@pytest.fixture(scope="module")
def blip(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["blip"]


def load(folder: Path | str, **settings: Any) -> Captioner:
    return load_captioner(str(folder), **{"precision": "fp32", "device": "cpu", "max_new_tokens": 12} | settings)


@pytest.fixture(scope="module")
def captioner(blip: Path) -> Captioner:
    return load(blip)


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_texts_equal_transformers_called_by_hand(prompt: str, blip: Path) -> None:
    ours = load(blip, prompt=prompt)
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    tokenizer = AutoTokenizer.from_pretrained(blip)
    inputs = tokenizer([prompt] * len(GREYS), return_tensors="pt", return_token_type_ids=False) if prompt else {}
    pixels = torch.from_numpy(normalise(GREYS, ours.preprocess))
    tokens = model.generate(pixels, **inputs, max_new_tokens=12, do_sample=False, num_beams=1)
    expected = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    found = ours.caption(GREYS, check=True)
    assert found == expected
    assert len(set(found)) > 6, "different pictures must give different texts"
    assert all(text.startswith("a chest x - ray of") == bool(prompt) for text in found)


def test_a_text_depends_on_its_own_picture_alone(captioner: Captioner) -> None:
    together = captioner.caption(GREYS)
    for rows in ([4], [8, 0], [3, 3, 1], [6, 5, 2, 7, 0, 1, 4]):
        assert captioner.caption(GREYS[rows]) == [together[row] for row in rows]


def test_neither_the_models_own_habits_nor_the_global_generator_change_the_texts(
    blip: Path, captioner: Captioner, tmp_path: Path
) -> None:
    expected, other = captioner.caption(GREYS), changed(blip, tmp_path / "sampling")
    habits = '{"do_sample": true, "num_beams": 3, "max_new_tokens": 2, "max_length": 3}'
    (other / "generation_config.json").write_text(habits, encoding="utf-8")
    sampling = load(other)
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        assert sampling.caption(GREYS) == expected
        assert torch.equal(before, torch.get_rng_state())


def test_bf16_writes_texts_too(blip: Path) -> None:
    rough = load(blip, precision="bf16")
    assert len(set(rough.caption(GREYS))) > 6
    assert rough.origin["precision"] == "bf16"


def test_a_larger_picture_is_read_with_interpolated_positions(blip: Path, tmp_path: Path) -> None:
    larger = changed(blip, tmp_path / "larger", preprocessor_config={"size": {"height": 48, "width": 48}})
    assert load(larger).caption(draw_picture(48, 48)[None])[0]


def test_the_origin_says_what_wrote(blip: Path, captioner: Captioner, tmp_path: Path) -> None:
    assert captioner.origin == {
        "captioner": "blip", "model": "blip", "revision": None, "precision": "fp32", "prompt": "", "max_new_tokens": 12,
        "weights": captioner.origin["weights"], "preprocess": captioner.preprocess.as_dict(),
    }  # fmt: skip
    assert (captioner.preprocess.size, captioner.preprocess.geometry) == (SIDE, "squash")
    assert load(shutil.copytree(blip, tmp_path / "elsewhere" / "blip")).origin == captioner.origin
    assert load(save_blip(tmp_path / "other", seed=1)).origin["weights"] != captioner.origin["weights"]


def test_a_model_of_the_hub_is_known_by_its_revision(
    blip: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = type(captioner.model.config).from_pretrained(blip)
    config._commit_hash = "89b09ea1789f"
    monkeypatch.setattr(module, "find_checkpoint", lambda name: Checkpoint(name, str(blip), False, config))
    monkeypatch.setattr("thoraclip.models.network.read_preprocess", lambda _, geometry, remedy: captioner.preprocess)
    origin = load("Salesforce/blip-image-captioning-base").origin
    assert (origin["model"], origin["revision"]) == ("Salesforce/blip-image-captioning-base", "89b09ea1789f")


def test_a_silent_model_gives_empty_texts(tmp_path: Path) -> None:
    assert load(save_blip(tmp_path / "silent", silent=True)).caption(GREYS[:2]) == ["", ""]


def test_the_gate_looks_at_what_enters(captioner: Captioner) -> None:
    with pytest.raises(ImageError, match="every picture is blank"):
        captioner.caption(np.full((2, SIDE, SIDE), 90, np.uint8), check=True)


@pytest.mark.parametrize(("prompt", "begun"), [("", 1), (PROMPT, 7)])
def test_no_more_tokens_than_the_model_has_places_for(prompt: str, begun: int, blip: Path) -> None:
    most = 48 - begun
    message = f"max_new_tokens = {most + 1}: with the {begun} tokens before them more than the 48 .* {most} or fewer"
    with pytest.raises(ConfigError, match=message):
        load(blip, max_new_tokens=most + 1, prompt=prompt)
    assert len(load(blip, max_new_tokens=most, prompt=prompt).caption(GREYS)) == 9
