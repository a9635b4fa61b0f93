"""Dual encoders: CLIP, SigLIP, SigLIP 2, vision-text-dual-encoder, and those of open_clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thoraclip.errors import did_you_mean
from thoraclip.imaging import check_pixels
from thoraclip.models.checkpoint import (
    find_checkpoint,
    load_adapter,
    load_model,
    load_tokenizer,
    quiet,
    weights_fingerprint,
)
from thoraclip.models.files import Checkpoint
from thoraclip.models.image_processor import read_preprocess
from thoraclip.models.network import Network, network_settings

__all__ = ["DualEncoder", "is_dual_encoder", "load_dual_encoder", "untrained_dual_encoder"]


@dataclass(frozen=True)
class _Family:
    """Traits of one Transformers model type."""

    padding: str  # of short texts, as its text tower was trained
    patchified: bool = False  # the vision tower takes patches, not images (SigLIP 2 NaFlex)
    aligned: bool = True  # False: both towers may come from elsewhere, never trained to share a space


_FAMILIES: Mapping[str, _Family] = {
    "clip": _Family("longest"),
    "open-clip": _Family("longest"),
    "siglip": _Family("max_length"),
    "siglip2": _Family("max_length", patchified=True),
    "vision-text-dual-encoder": _Family("longest", aligned=False),
}


@dataclass(frozen=True, kw_only=True)
class DualEncoder(Network):
    """An image tower and a text tower that share one space."""

    model: Any  # the Transformers model, in eval mode, fp32
    family: _Family  # traits of the model type
    tokenizer: Any = None
    fingerprint: str = ""  # SHA-256 over all weights, the adapter's included

    @property
    def description(self) -> dict[str, str]:
        """What identifies the features that this encoder makes, wherever its files lie."""
        return {"weights": self.fingerprint, "precision": self.precision}

    @property
    def logit_scale(self) -> float:
        """Inverse temperature that multiplies cosines before the softmax (or sigmoid)."""
        return float(self.model.logit_scale.detach().exp())

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """f32[B, 3, H, W] -> (pooled [B, D] before the projection, projected [B, P], not normalised), with gradient."""
        pooled = self.model.vision_model(**self._vision_inputs(pixels)).pooler_output
        # SigLIP has no projection: its pooled output is the shared space
        return pooled, getattr(self.model, "visual_projection", nn.Identity())(pooled)

    def text_features(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Tokens [B, L] -> projected [B, P], not normalised, with gradient."""
        features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts -> tensors [B, L], padded as the text tower was trained and cut at its longest length."""
        config = self.model.config.text_config
        limit = int(min(self.tokenizer.model_max_length, config.max_position_embeddings))
        tokens = self.tokenizer(
            list(texts), padding=self.family.padding, truncation=True, max_length=limit, return_tensors="pt"
        )
        return {name: value.to(self.device) for name, value in tokens.items()}

    def encode_greys(
        self, greys: npt.NDArray[np.uint8], *, check: bool = False
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """u8[B, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors).

        Args:
            greys: made by `imaging.fit` with this encoder's spec.
            check: look at what enters the model with `imaging.check_pixels`; for the first batch.
        """
        if check:
            check_pixels(self.expand(greys).cpu().numpy(), self.preprocess)
        return self.fetch(self.start(torch.from_numpy(greys)))

    @torch.inference_mode()
    def start(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        """u8[B, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors), which the device may still compute."""
        with self.autocast():
            pooled, projected = self._grey_features(greys)
        return pooled.float(), _unit(projected)

    @staticmethod
    def fetch(features: tuple[Tensor, Tensor]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What `start` returned, as soon as it is computed."""
        return features[0].cpu().numpy(), features[1].cpu().numpy()

    def _grey_features(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_features(self.expand(greys))

    def encode_images(self, pixels: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """f32[B, 3, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors)."""
        with torch.inference_mode(), self.autocast():
            pooled, projected = self.image_features(torch.from_numpy(pixels).to(self.device))
        return self.fetch((pooled.float(), _unit(projected)))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Texts -> f32[N, P], unit vectors; always fp32, since there are few."""
        vectors: npt.NDArray[np.float32] = _unit(self.text_features(self.tokenize(texts))).cpu().numpy()
        return vectors

    def _vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        config = self.model.config.vision_config
        if not self.family.patchified:
            native = getattr(config, "image_size", None)
            resized = native is not None and native != pixels.shape[-1] and config.model_type != "dinov2"
            return {"pixel_values": pixels} | ({"interpolate_pos_encoding": True} if resized else {})
        patch, (batch, channels, height, width) = config.patch_size, pixels.shape
        rows, columns = height // patch, width // patch
        grid = pixels.reshape(batch, channels, rows, patch, columns, patch)
        patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.long, device=pixels.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=pixels.device),
        }


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def load_dual_encoder(
    model: str | Path,
    *,
    adapter: str | Path = "",
    adapter_scale: float = 1.0,
    geometry: str = "squash",
    precision: str = "auto",
    device: str = "",
) -> DualEncoder:
    """Load a dual encoder; every weight that the architecture has must be in the checkpoint, and none besides.

    Args:
        model: a Hub id, a local folder in Transformers or open_clip format, or `tiny-clip`.
        adapter: a PEFT adapter folder, merged into the weights; empty for none.
        adapter_scale: share of the adapter, 0..1; see `checkpoint.load_adapter`.
        geometry: `squash`, `crop` or `pad`; replaces the geometry of the checkpoint's own image processor.
        precision: `fp32`, `bf16`, or `auto` (bf16 where the device computes in it).
        device: as PyTorch names it; empty picks CUDA, then MPS, then the CPU.

    Raises:
        ModelError: not found, not a dual encoder, weights missing or unexpected, adapter of another architecture.
        MismatchError: the adapter was trained on other weights.
        ConfigError: unknown geometry or precision.
    """
    checkpoint = find_checkpoint(str(model))
    if not is_dual_encoder(checkpoint):
        model_type = str(checkpoint.config.model_type)
        raise checkpoint.error(f"type '{model_type}' is not a dual encoder{did_you_mean(model_type, _FAMILIES)}")
    spec = read_preprocess(checkpoint, geometry=geometry)
    settings = network_settings(checkpoint, spec, precision=precision, device=device)
    network = load_model(checkpoint)
    if adapter:
        network = load_adapter(checkpoint, network, Path(adapter), scale=adapter_scale)
        settings["name"] = f"{model} + adapter"
    tokenizer, fingerprint = load_tokenizer(checkpoint), weights_fingerprint(network)
    return _dual_encoder(checkpoint, network, settings, tokenizer=tokenizer, fingerprint=fingerprint)


def _dual_encoder(checkpoint: Checkpoint, network: nn.Module, settings: dict[str, Any], **given: Any) -> DualEncoder:
    model, family = network.float().eval().to(settings["device"]), _FAMILIES[checkpoint.config.model_type]
    return DualEncoder(model=model, family=family, **settings, **given)


def is_dual_encoder(checkpoint: Checkpoint) -> bool:
    """True where `load_dual_encoder` knows the architecture."""
    return str(checkpoint.config.model_type) in _FAMILIES


def untrained_dual_encoder(checkpoint: Checkpoint, settings: dict[str, Any]) -> DualEncoder:
    """The architecture without its tokenizer, weights drawn from PyTorch's global stream; see `network_settings`."""
    from transformers import AutoModel

    with quiet():
        return _dual_encoder(checkpoint, AutoModel.from_config(checkpoint.config), settings)
