"""The model types that give image features, with their traits; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thoraclip.errors import ModelError, did_you_mean
from thoraclip.models.files import OPEN_CLIP_TYPE

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]


@dataclass(frozen=True)
class Architecture:
    """Traits of one model type."""

    padding: str = ""  # of short texts, as its text tower was trained; empty without a text tower
    aligned: bool = True  # False: both towers may come from elsewhere, never trained to share a space
    patchified: bool = False  # the vision tower takes patches, not images (SigLIP 2 NaFlex)
    # the image feature is the first token after the last norm; else the output that Transformers calls the pooler's
    reads_cls: bool = False
    masks_patches: bool = False  # the vision tower leaves patches out, drawn at random, unless it is told not to (MAE)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the Transformers class

    @property
    def has_text(self) -> bool:
        """True for a dual encoder."""
        return bool(self.padding)


_CLS_ALONE = Architecture(reads_cls=True, options={"add_pooling_layer": False})
"""Of checkpoints in which the pooler is often missing, or was trained for something else."""
_POOLED = (
    *("beit", "clip_vision_model", "convnext", "convnextv2", "dinov2", "dinov2_with_registers"),
    *("dinov3_convnext", "dinov3_vit", "efficientnet", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet"),
    *("siglip_vision_model", "swin", "swinv2"),
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "clip": Architecture("longest"),
    OPEN_CLIP_TYPE: Architecture("longest"),
    "siglip": Architecture("max_length"),
    "siglip2": Architecture("max_length", patchified=True),
    "vision-text-dual-encoder": Architecture("longest", aligned=False),
    **dict.fromkeys(_POOLED, Architecture()),
    "siglip2_vision_model": Architecture(patchified=True),
    "deit": _CLS_ALONE,
    "vit": _CLS_ALONE,
    "vit_mae": Architecture(reads_cls=True, masks_patches=True),
    "vit_msn": Architecture(reads_cls=True),
}
"""`model_type` of a config.json -> traits."""


def find_architecture(model_type: str, model: str, *, needs_text: str = "") -> Architecture:
    """The traits of the model type in a configuration.

    `needs_text` says what compares images with texts, for the message; empty where nothing does. Raises ModelError for
    an unknown type, or one without a text tower where texts are needed.
    """
    known = {name: one for name, one in ARCHITECTURES.items() if one.has_text or not needs_text}
    if model_type in known:
        return known[model_type]
    if model_type in ARCHITECTURES:
        raise ModelError(
            f"model '{model}': type '{model_type}' has no text tower, and {needs_text} compares images with texts; use "
            "a linear probe, finetune with loss = cross_entropy or supcon, or a model of type: " + ", ".join(known)
        )
    kinds = "a dual encoder" if needs_text else "a dual encoder, nor a vision tower that gives image features"
    raise ModelError(f"model '{model}': type '{model_type}' is not {kinds}{did_you_mean(model_type, known)}")
