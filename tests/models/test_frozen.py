"""A frozen encoder computes what the plain one does: the same bits in fp32, no further from fp32 than autocast in bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoints import FAMILIES
from torch import nn

from thoraclip.models import frozen
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.frozen import FrozenEncoder

GREYS = np.random.default_rng(0).integers(0, 256, (24, 32, 32), dtype=np.uint8)


def plain(place: Path | str, precision: str) -> DualEncoder:
    return load_dual_encoder(str(place), precision=precision, device="cpu")


def bits(found: tuple[np.ndarray, np.ndarray]) -> list[bytes]:
    return [one.tobytes() for one in found]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square, relative to `other`."""
    return float(np.sqrt(((one - other) ** 2).mean() / (other**2).mean()))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp32_it_is_the_plain_encoder_bit_for_bit(family: str, checkpoints: dict[str, Path]) -> None:
    encoder = plain(checkpoints[family], "fp32")
    ours = FrozenEncoder.of(encoder)
    assert ours.description == encoder.description
    assert bits(ours.encode_greys(GREYS)) == bits(encoder.encode_greys(GREYS))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bf16_it_is_as_near_to_fp32_as_autocast_is(family: str, checkpoints: dict[str, Path]) -> None:
    exact = plain(checkpoints[family], "fp32").encode_greys(GREYS)
    autocast = plain(checkpoints[family], "bf16")
    ours = FrozenEncoder.of(autocast)
    assert ours.description != autocast.description, "its features are not taken for those of other arithmetic"
    for one, usual, true in zip(ours.encode_greys(GREYS), autocast.encode_greys(GREYS), exact, strict=True):
        assert 0 < distance(one, true) < 1.25 * distance(usual, true) + 1e-4
        cosine = (one * true).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(true, axis=1)
        assert cosine.min() > 0.999


def test_cast_weights_alone_change_no_bit(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "fold_grey", lambda *_, **__: False)
    monkeypatch.setattr(frozen, "_quick_gelu_as_silu", lambda _: False)
    encoder = plain(checkpoints["clip"], "bf16")
    ours = FrozenEncoder.of(encoder)
    assert bits(ours.encode_greys(GREYS)) == bits(encoder.encode_greys(GREYS))
    assert ours.arithmetic == "bf16 on cpu, weights cast once, sdpa attention"


def test_quick_gelu_as_silu_is_exact_but_for_rounding(checkpoints: dict[str, Path]) -> None:
    tower = plain(checkpoints["clip"], "fp32").model.vision_model.double()
    pixels = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        before = tower(pixel_values=pixels).pooler_output
        assert frozen._quick_gelu_as_silu(tower)
        after = tower(pixel_values=pixels).pooler_output
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-12)
    assert not frozen._quick_gelu_as_silu(tower), "nothing is left to change"


def test_the_original_stays_as_it_was_and_its_text_tower_is_not_copied(checkpoints: dict[str, Path]) -> None:
    encoder = plain(checkpoints["clip"], "bf16")
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    ours = FrozenEncoder.of(encoder)
    ours.encode_greys(GREYS[:2])
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.state_dict().items())
    assert "grey folded into the patch embedding, QuickGELU as SiLU" in ours.arithmetic
    assert ours._fast[0].model.text_model is None
    copied = [m for m in ours._fast[0].model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {m.weight.dtype for m in copied} == {torch.bfloat16}
    assert ours.encode_texts(["a chest x-ray"]).tobytes() == encoder.encode_texts(["a chest x-ray"]).tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_the_batch_or_the_threads(family: str, checkpoints: dict[str, Path]) -> None:
    """What makes any number of threads, processes and machines give the same files."""
    ours, usual = FrozenEncoder.of(plain(checkpoints[family], "bf16")), torch.get_num_threads()
    whole = ours.encode_greys(GREYS[:8])
    try:
        torch.set_num_threads(1 if usual > 1 else 2)
        again = ours.encode_greys(GREYS[:8])
    finally:
        torch.set_num_threads(usual)
    assert bits(whole) == bits(again)
