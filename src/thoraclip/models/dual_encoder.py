"""Dual encoders (CLIP, SigLIP, SigLIP 2, vision-text-dual-encoder), and how they and vision towers are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.dtypes import Singles
from thoraclip.imaging.remedies import NONE
from thoraclip.models.architectures import Architecture, find_architecture
from thoraclip.models.checkpoint import (
    find_checkpoint,
    load_adapter,
    load_model,
    load_tokenizer,
    quiet,
    weights_fingerprint,
)
from thoraclip.models.files import Checkpoint
from thoraclip.models.network import network_settings
from thoraclip.models.vision_encoder import VisionEncoder, unit

__all__ = ["DualEncoder", "load_dual_encoder", "load_vision_encoder", "untrained_encoder"]

_HEADS = ("classifier", "cls_classifier", "decoder", "distillation_classifier", "fc", "head", "lm_head", "pooler")
"""Parts of a checkpoint behind its vision tower, which features do not need."""


@dataclass(frozen=True, kw_only=True)
class DualEncoder(VisionEncoder):
    """An image tower and a text tower that share one space."""

    tokenizer: Any = None

    @property
    def towers(self) -> Mapping[str, str]:
        """See `VisionEncoder`."""
        return {"vision": "vision_model.", "text": "text_model."}

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.vision_model

    @property
    def logit_scale(self) -> float:
        """Inverse temperature that multiplies cosines before the softmax (or sigmoid)."""
        return float(self.model.logit_scale.detach().exp())

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """f32[B, 3, H, W] -> (pooled [B, D] before the projection, projected [B, P], not normalised), with gradient."""
        pooled = self.pooled(pixels)
        # SigLIP has no projection: its pooled output is the shared space
        return pooled, getattr(self.model, "visual_projection", nn.Identity())(pooled)

    def text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Tokens [B, L] -> projected [B, P], not normalised, with gradient."""
        features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features

    @property
    def text_length(self) -> int:
        """Tokens at which a text is cut."""
        return int(min(self.tokenizer.model_max_length, self.model.config.text_config.max_position_embeddings))

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts -> tensors [B, L], padded as the text tower was trained and cut at its longest length."""
        given = {"padding": self.architecture.padding, "truncation": True, "max_length": self.text_length}
        tokens = self.tokenizer(list(texts), **given, return_tensors="pt")
        return {name: value.to(self.device) for name, value in tokens.items()}

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Singles:
        """Texts -> f32[N, P], unit vectors; always fp32, since there are few."""
        vectors: Singles = unit(self.text_features(self.tokenize(texts))).cpu().numpy()
        return vectors


def load_dual_encoder(model: str | Path, *, adapter: str | Path = "", **given: Any) -> DualEncoder:
    """`load_vision_encoder` of a model that must have a text tower; raises ModelError where it has none."""
    encoder = load_vision_encoder(model, adapter=adapter, needs_text="a dual encoder", **given)
    assert isinstance(encoder, DualEncoder), "its architecture has a text tower"
    return encoder


def load_vision_encoder(
    model: str | Path,
    *,
    adapter: str | Path = "",
    adapter_scale: float = 1.0,
    geometry: str = "squash",
    remedy: str = NONE,
    precision: str = "auto",
    device: str = "",
    needs_text: str = "",
) -> VisionEncoder:
    """Load a dual encoder or a vision tower; every weight that the architecture has must be in the checkpoint.

    Args:
        model: a Hub id, a local folder in Transformers or open_clip format, or `tiny-clip`.
        adapter: a PEFT adapter folder, merged into the weights; empty for none.
        adapter_scale: share of the adapter, 0..1; see `checkpoint.load_adapter`.
        geometry: `squash`, `crop` or `pad`; replaces the geometry of the checkpoint's own image processor.
        remedy: what is done to a picture against shortcuts, see `imaging.remedies`.
        precision: `fp32`, `bf16`, or `auto` (bf16 where the device computes in it).
        device: as PyTorch names it; empty picks CUDA, then MPS, then the CPU.
        needs_text: what compares images with texts; a vision tower is then refused.

    Raises:
        ModelError: not found, no architecture that gives image features, weights missing or unexpected, adapter of
            another architecture.
        MismatchError: the adapter was trained on other weights.
        ConfigError: unknown geometry, remedy or precision.
    """
    checkpoint = find_checkpoint(str(model))
    architecture = _architecture(checkpoint, needs_text)
    settings = network_settings(checkpoint, geometry, remedy=remedy, precision=precision, device=device)
    heads = () if architecture.has_text else _HEADS
    network = load_model(checkpoint, is_replaced=lambda name: name.split(".")[0] in heads, **architecture.options)
    if adapter:
        network = load_adapter(checkpoint, network, Path(adapter), scale=adapter_scale)
        settings["name"] = f"{model} + adapter"
    settings["fingerprint"] = weights_fingerprint(network)
    if architecture.has_text:
        settings["tokenizer"] = load_tokenizer(checkpoint)
    return _encoder(architecture, network, settings)


def _architecture(checkpoint: Checkpoint, needs_text: str = "") -> Architecture:
    architecture = find_architecture(str(checkpoint.config.model_type), checkpoint.name, needs_text=needs_text)
    if architecture.masks_patches:
        checkpoint.config.mask_ratio = 0.0
    return architecture


def _encoder(architecture: Architecture, network: nn.Module, settings: dict[str, Any]) -> VisionEncoder:
    kind = DualEncoder if architecture.has_text else VisionEncoder
    return kind(model=network.float().eval().to(settings["device"]), architecture=architecture, **settings)


def untrained_encoder(checkpoint: Checkpoint, settings: dict[str, Any]) -> VisionEncoder:
    """The architecture without its tokenizer, weights drawn from PyTorch's global stream; see `network_settings`."""
    from transformers import AutoModel

    architecture = _architecture(checkpoint)
    with quiet():
        network = AutoModel.from_config(checkpoint.config, **architecture.options)
    return _encoder(architecture, network, settings)
