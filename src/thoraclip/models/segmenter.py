"""A segmentation model that the user supplies, as a finder of lungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Greys, Masks
from thoraclip.imaging import fit
from thoraclip.models.checkpoint import find_checkpoint, load_model, quiet
from thoraclip.models.network import Network, network_settings

__all__ = ["Segmenter", "load_segmenter"]


@dataclass(frozen=True, kw_only=True)
class Segmenter(Network):
    """A semantic segmentation model, of whose classes some are lung; its geometry is `squash`."""

    network: nn.Module  # the Transformers model, in eval mode, fp32
    lung_indices: tuple[int, ...]  # numbers of the model's classes that are lung

    @torch.inference_mode()
    def estimate(self, grey: Greys) -> Masks:
        """Where the most probable class is lung: u8[H, W] -> bool[H, W].

        The scores are brought to the image's size (bilinear) before they are compared, as Transformers does.
        """
        side = self.preprocess.size
        fitted = grey if grey.shape == (side, side) else fit(grey, self.preprocess)
        pixels = self.expand(np.array(fitted)[None])
        with self.autocast():
            scores: Tensor = self.network(pixels).logits
        large = nn.functional.interpolate(scores.float(), size=grey.shape, mode="bilinear", align_corners=False)
        lungs = torch.isin(large.argmax(dim=1), torch.tensor(self.lung_indices, device=self.device))
        return np.asarray(lungs[0].cpu().numpy())


def load_segmenter(model: str, *, precision: str = "auto", device: str = "") -> Segmenter:
    """Load a segmentation model (SegFormer, UperNet, DPT, ...) whole, by Hub id or from a local folder in Transformers
    format; its classes whose name contains `lung` are lung. `precision` and `device` as in `load_vision_encoder`.

    Raises:
        ModelError: not found, no semantic segmentation model, weights missing or unexpected, no class that is lung, or
            nothing but lung.
        ConfigError: unknown precision.
    """
    from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoModelForSemanticSegmentation

    checkpoint = find_checkpoint(model)
    config: Any = checkpoint.config
    with quiet():
        is_known = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    if not is_known:
        raise checkpoint.error(
            f"type '{config.model_type}' is no semantic segmentation model; give one that "
            "AutoModelForSemanticSegmentation loads, such as a SegFormer trained on lungs"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise checkpoint.error(f"takes {config.num_channels} channels; a network of 3 is needed")
    names: Mapping[int, str] = config.id2label
    indices = sorted(index for index, name in names.items() if "lung" in name.lower())
    if not indices:
        raise checkpoint.error(
            f"no class is named after the lung; its classes: {', '.join(sorted(names.values()))}; rename those that "
            "are lung in id2label of its config.json"
        )
    if len(indices) == len(names):
        raise checkpoint.error(f"all {len(names)} classes are lung; a class for all else is needed")
    settings = network_settings(checkpoint, precision=precision, device=device)
    network = load_model(checkpoint, AutoModelForSemanticSegmentation).float().eval().to(settings["device"])
    return Segmenter(network=network, lung_indices=tuple(indices), **settings)
