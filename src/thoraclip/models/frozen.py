"""A dual encoder that is only read from: its vision tower prepared once for the fastest arithmetic of its precision.

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

__all__ = ["FrozenEncoder"]

_MIDDLE = 128
"""Grey level that is 0 at a folded door."""
_QUICK_GELU = 1.702


@dataclass(frozen=True)
class _Fast:
    """A prepared copy of a vision tower.

    Args:
        tower: an encoder around the copy.
        is_folded: it takes grey levels.
        steps: what was done, in words.
    """

    tower: DualEncoder
    is_folded: bool
    steps: tuple[str, ...]


@dataclass(frozen=True)
class FrozenEncoder(DualEncoder):
    """A `DualEncoder` whose weights no one changes any more; grey pictures go through the prepared tower."""

    @classmethod
    def of(cls, encoder: DualEncoder) -> FrozenEncoder:
        """The same encoder, from now on only read."""
        return cls(**{field.name: getattr(encoder, field.name) for field in fields(DualEncoder)})

    @property
    def description(self) -> dict[str, str]:
        """See `DualEncoder`; in bf16 with the number of the rules by which it computes."""
        return description(self.fingerprint, self.precision)

    @property
    def arithmetic(self) -> str:
        """How the vision tower computes, in words."""
        attention = getattr(self.model.config.vision_config, "_attn_implementation", None) or "eager"
        return ", ".join((f"{self.precision} on {self.device.type}", *self._fast.steps, f"{attention} attention"))

    def _grey_features(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        if not self._fast.is_folded:
            return self._fast.tower.image_features(self.expand(greys))
        levels = greys.to(self.device, non_blocking=True)[:, None].float() - _MIDDLE
        return self._fast.tower.image_features(levels)

    @cached_property
    def _fast(self) -> _Fast:
        if self.precision != "bf16":
            return _Fast(self, is_folded=False, steps=())
        text = self.model.text_model
        own = copy.deepcopy(self.model, {id(text): None})  # the text tower is not needed in it
        tower = own.vision_model
        steps = ["weights cast once"]
        is_folded = fold_grey(tower, self.preprocess, zero=_MIDDLE)
        steps += ["grey folded into the patch embedding"] if is_folded else []
        steps += ["QuickGELU as SiLU"] if _quick_gelu_as_silu(tower) else []
        for module in own.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
        return _Fast(replace(self, model=own), is_folded, tuple(steps))


@torch.no_grad()
def _quick_gelu_as_silu(tower: nn.Module) -> bool:
    """Change every two-layer perceptron with QuickGELU; True where there was one."""
    from transformers.activations import QuickGELUActivation

    found: list[Any] = [
        m for m in tower.modules() if isinstance(getattr(m, "activation_fn", None), QuickGELUActivation)
    ]
    for block in found:
        block.fc1.weight *= _QUICK_GELU
        block.fc1.bias *= _QUICK_GELU
        block.fc2.weight /= _QUICK_GELU
        block.activation_fn = nn.SiLU()
    return bool(found)
