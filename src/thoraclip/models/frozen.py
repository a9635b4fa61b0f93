"""An encoder for inference only, its vision tower prepared once for the fastest arithmetic of its precision.

In fp32 nothing is changed. In bf16 the tower is copied, and in the copy
    the weights of products are bf16 already, which autocast would make of them in every pass (the same numbers);
    the patch embedding takes grey levels, so that neither three equal channels nor their normalisation are computed
        (`grey.fold_grey`; grey levels less 128 are exact in bf16, normalised ones are not);
    QuickGELU x sigmoid(1.702 x) is SiLU: with y = 1.702 x from the layer before, the layer after takes SiLU(y) / 1.702.
The last two are equal in exact arithmetic and differ in the rounding of bf16 alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.models.files import description
from thoraclip.models.grey import fold_grey
from thoraclip.models.vision_encoder import VisionEncoder

__all__ = ["FrozenEncoder"]

_MIDDLE = 128  # the grey level that a folded patch embedding takes as 0
_QUICK_GELU = 1.702


@dataclass(frozen=True)
class FrozenEncoder(VisionEncoder):
    """An encoder whose weights no one changes any more; grey images go through the prepared tower."""

    @staticmethod
    def of(encoder: VisionEncoder) -> FrozenEncoder:
        """The same encoder, from now on only read."""
        kind = FrozenDualEncoder if isinstance(encoder, DualEncoder) else FrozenEncoder
        return kind(**{field.name: getattr(encoder, field.name) for field in fields(encoder)})

    @property
    def description(self) -> dict[str, str]:
        """See `VisionEncoder`; in bf16 with the number of the rules by which it computes."""
        return description(self.fingerprint, self.precision)

    @property
    def arithmetic(self) -> str:
        """How the vision tower computes, in words."""
        attention = getattr(self.tower.config, "_attn_implementation", None) or "eager"
        return ", ".join((f"{self.precision} on {self.device.type}", *self._fast[2], f"{attention} attention"))

    def _grey_features(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        encoder, is_folded, _ = self._fast
        if not is_folded:
            return encoder.image_features(self.expand(greys))
        return encoder.image_features(greys.to(self.device, non_blocking=True)[:, None].float() - _MIDDLE)

    @cached_property
    def _fast(self) -> tuple[VisionEncoder, bool, list[str]]:
        """(encoder around the prepared tower, whether it takes grey levels, what was done in words)."""
        if self.precision != "bf16":
            return self, False, []
        unused = [self.model.text_model] if "text" in self.towers else []
        own = copy.deepcopy(self.model, {id(part): None for part in unused})
        steps = ["weights cast once"]
        copied = replace(self, model=own)
        if is_folded := fold_grey(copied.tower, self.preprocess, features=copied.image_features, zero=_MIDDLE):
            steps.append("grey folded into the patch embedding")
        if _quick_gelu_as_silu(copied.tower):
            steps.append("QuickGELU as SiLU")
        for module in own.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
        return copied, is_folded, steps


@dataclass(frozen=True)
class FrozenDualEncoder(FrozenEncoder, DualEncoder):
    """A `FrozenEncoder` with its text tower."""


@torch.no_grad()
def _quick_gelu_as_silu(tower: nn.Module) -> bool:
    """Change every two-layer perceptron with QuickGELU; True where there was one."""
    from transformers.activations import QuickGELUActivation

    blocks: list[Any] = [
        m for m in tower.modules() if isinstance(getattr(m, "activation_fn", None), QuickGELUActivation)
    ]
    for block in blocks:
        block.fc1.weight *= _QUICK_GELU
        block.fc1.bias *= _QUICK_GELU
        block.fc2.weight /= _QUICK_GELU
        block.activation_fn = nn.SiLU()
    return bool(blocks)
