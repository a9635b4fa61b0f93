"""Vision towers that give one feature vector an image: DINOv2, DINOv3, ViT, MAE, SigLIP's, ConvNeXt and their kin."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.dtypes import Greys, Singles
from thoraclip.models.architectures import Architecture
from thoraclip.models.network import Network

__all__ = ["VisionEncoder", "unit"]


@dataclass(frozen=True, kw_only=True)
class VisionEncoder(Network):
    """A vision tower, and how its features are read."""

    model: Any  # the Transformers model, in eval mode, fp32
    architecture: Architecture  # traits of its model type
    fingerprint: str = ""  # SHA-256 over all weights, the adapter's included

    @property
    def towers(self) -> Mapping[str, str]:
        """`vision`, of a dual encoder also `text` -> beginning of the names of its modules in `model`."""
        return {"vision": ""}

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model

    @property
    def description(self) -> dict[str, str]:
        """What identifies the features that this encoder makes, wherever its files lie."""
        return {"weights": self.fingerprint, "precision": self.precision}

    def image_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """f32[B, 3, H, W] -> (pooled [B, D], projected [B, P]), not normalised, with gradient.

        P is 0 for a tower alone: it shares no space with texts.
        """
        pooled = self.pooled(pixels)
        return pooled, pooled[:, :0]

    def pooled(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, H, W] -> [B, D], the tower's output before any projection, with gradient."""
        output = self.tower(**self._vision_inputs(pixels))
        pooled: Tensor = output.last_hidden_state[:, 0] if self.architecture.reads_cls else output.pooler_output
        return pooled.flatten(1)  # of a ResNet [B, D, 1, 1]

    def encode_greys(self, greys: Greys, *, check: bool = False) -> tuple[Singles, Singles]:
        """u8[B, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors).

        `greys` are made by `imaging.fit` with this encoder's spec; `check` those of the first batch.
        """
        if check:
            self.check(greys)
        return self.fetch(self.start(torch.from_numpy(greys)))

    @torch.inference_mode()
    def start(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        """u8[B, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors), which the device may still compute."""
        with self.autocast():
            pooled, projected = self._grey_features(greys)
        return pooled.float(), unit(projected)

    @staticmethod
    def fetch(features: tuple[Tensor, Tensor]) -> tuple[Singles, Singles]:
        """What `start` returned, as soon as it is computed."""
        return features[0].cpu().numpy(), features[1].cpu().numpy()

    def _grey_features(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_features(self.expand(greys))

    def encode_images(self, pixels: Singles) -> tuple[Singles, Singles]:
        """f32[B, 3, H, W] -> (pooled f32[B, D], projected f32[B, P], unit vectors)."""
        with torch.inference_mode(), self.autocast():
            pooled, projected = self.image_features(torch.from_numpy(pixels).to(self.device))
        return self.fetch((pooled.float(), unit(projected)))

    def _vision_inputs(self, pixels: Tensor) -> dict[str, Any]:
        config = self.tower.config
        if self.architecture.patchified:
            return _patches(pixels, config.patch_size)
        inputs: dict[str, Any] = {"pixel_values": pixels}
        side = getattr(config, "image_size", None)
        native = side[0] if isinstance(side, list | tuple) else side
        tower = self.tower.get_base_model() if hasattr(self.tower, "get_base_model") else self.tower  # of PEFT
        takes_any_side = "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters
        if native != pixels.shape[-1] and takes_any_side:
            inputs["interpolate_pos_encoding"] = True
        if self.architecture.masks_patches:  # sorted noise leaves the patches in their order
            count = (pixels.shape[-1] // config.patch_size) ** 2
            inputs["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), count)
        return inputs


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, in fp32."""
    return nn.functional.normalize(features.float(), dim=-1)


def _patches(pixels: Tensor, patch: int) -> dict[str, Any]:
    """What a tower that takes patches is given for f32[B, 3, H, W]."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    grid = pixels.reshape(batch, channels, rows, patch, columns, patch)
    patches = grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=pixels.device),
    }
