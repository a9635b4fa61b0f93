"""The two halves of a vision tower give what the whole tower gives, in every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.checkpoints import FAMILIES, TOWERS, save_checkpoint, save_tower
from torch import Tensor

from thoraclip.errors import ConfigError
from thoraclip.models.dual_encoder import load_vision_encoder
from thoraclip.models.lora import LoraSettings, TunableEncoder, add_lora
from thoraclip.models.prefix import FrozenPrefix

STAGES = {"dinov3_convnext", "swin", "swinv2", "convnext", "convnextv2"}
NO_LINEAR = {"resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet"}
CHAINS = tuple(name for name in TOWERS if name not in STAGES | NO_LINEAR)
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {family: save_checkpoint(family, root / family) for family in FAMILIES}
    return made | {name: save_tower(name, root / name) for name in TOWERS if name != "efficientnet"}


def tune(model: Path, *, checkpointing: bool = False) -> TunableEncoder:
    """LoRA in the last block of the vision tower, as after some steps, with a mask."""
    encoder = load_vision_encoder(str(model), precision="fp32")
    settings = LoraSettings(lora_blocks=1, towers="vision", projections="freeze", lora_dropout=0.3)
    tuned = add_lora(encoder, settings, seed=1, checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(2)
    for parameter in tuned.encoder_parameters.values():
        parameter.data.normal_(std=0.1, generator=generator)
    tuned.vision_key.use(5, torch.arange(3))
    return tuned


def gradients(tuned: TunableEncoder, features: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(features[0].square().sum() + features[1].sum(), list(tuned.encoder_parameters.values()))
    return dict(zip(tuned.encoder_parameters, found, strict=True))


@pytest.mark.parametrize("name", [*CHAINS, *FAMILIES])
def test_tokens_and_what_follows_are_the_tower(name: str, models: dict[str, Path]) -> None:
    """Features and gradients, also where layers are computed again; and the tower is whole afterwards."""
    tuned = tune(models[name])
    assert {n.split(".lora_")[0].split(".")[-1] for n in tuned.encoder_parameters} <= {
        "q_proj", "v_proj", "fc1", "fc2", "up_proj", "down_proj",
    }  # fmt: skip
    prefix = FrozenPrefix.of(tuned.encoder, 1)
    assert prefix is not None and (len(prefix.blocks), prefix.count) == (2, 1)
    expected = tuned.encoder.image_features(PIXELS)
    tokens = prefix.tokens(PIXELS)
    assert not tokens.requires_grad and tokens.shape[::2] == (3, 16)
    found = prefix.image_features(tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    again = prefix.image_features(tokens[[2, 0, 1]])
    tuned.vision_key.use(5, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(prefix.image_features(tokens[[2, 0, 1]])[0], expected[0][[2, 0, 1]], atol=1e-5, rtol=0)
    assert not torch.allclose(again[0], expected[0][[2, 0, 1]], atol=1e-5), "the masks are in force"
    wanted = gradients(tuned, expected)
    recomputing = tune(models[name], checkpointing=True)
    half = FrozenPrefix.of(recomputing.encoder, 1)
    assert half is not None
    for own, features in ((tuned, found), (recomputing, half.image_features(tokens))):
        for parameter, gradient in gradients(own, features).items():
            torch.testing.assert_close(gradient, wanted[parameter], atol=1e-6, rtol=1e-5)
    tuned.clear_masks()
    assert "forward" not in vars(prefix.blocks[0])


def test_without_a_frozen_block_there_is_no_prefix(models: dict[str, Path]) -> None:
    encoder = load_vision_encoder(str(models["dinov2"]), precision="fp32")
    assert FrozenPrefix.of(encoder, 0) is None and FrozenPrefix.of(encoder, 2) is None
    with pytest.raises(ConfigError, match="lora_blocks = 3: the vision tower of '.*dinov2' has 2 blocks; take at most"):
        FrozenPrefix.of(encoder, 3)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_tower_of_stages_is_refused(name: str, models: dict[str, Path]) -> None:
    encoder = load_vision_encoder(str(models[name]), precision="fp32")
    with pytest.raises(ConfigError, match="is no single chain of transformer blocks; leave lora_blocks out"):
        FrozenPrefix.of(encoder, 1)
