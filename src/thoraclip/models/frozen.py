"""An encoder for inference only, its vision tower prepared once for the fastest arithmetic of its precision.

In fp32 the tower is as it is, or another runtime than PyTorch computes it (`runtimes`). In bf16 it is copied, and in
the copy
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.dtypes import Greys, Singles
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.models.files import description
from thoraclip.models.grey import fold_grey
from thoraclip.models.runtimes import TORCH, Compute
from thoraclip.models.vision_encoder import VisionEncoder, unit

__all__ = ["FrozenEncoder"]

_MIDDLE = 128  # the grey level that a folded patch embedding takes as 0
_QUICK_GELU = 1.702


@dataclass(frozen=True)
class FrozenEncoder(VisionEncoder):
    """An encoder whose weights no one changes any more; grey images go through the prepared tower."""

    runtime: str = TORCH  # see `by_runtime`
    compute: Compute | None = None

    @staticmethod
    def of(encoder: VisionEncoder) -> FrozenEncoder:
        """The same encoder, from now on only read."""
        kind = FrozenDualEncoder if isinstance(encoder, DualEncoder) else FrozenEncoder
        return kind(**{field.name: getattr(encoder, field.name) for field in fields(encoder)})

    def by_runtime(self, name: str, compute: Compute | None) -> FrozenEncoder:
        """The same, its grey images computed by a runtime of `RUNTIMES` from what `write_onnx` wrote, or elsewhere."""
        return replace(self, runtime=name, compute=compute)

    def write_onnx(self, path: Path) -> None:
        """Write the tower in fp32 as an ONNX file: grey bytes to pooled and, where there are any, projected
        features."""
        from thoraclip.models.onnx_files import write_outputs  # with onnx

        write_outputs(_Features(self._copy()), self.preprocess, path)

    def encode_greys(self, greys: Greys, *, check: bool = False) -> tuple[Singles, Singles]:
        """See `VisionEncoder`."""
        if self.compute is None:
            return super().encode_greys(greys, check=check)
        if check:
            self.check(greys)
        pooled, *projected = self.compute(greys)
        return pooled, projected[0] if projected else pooled[:, :0]

    @property
    def description(self) -> dict[str, str]:
        """See `VisionEncoder`; in bf16 with the number of the rules by which it computes."""
        return description(self.fingerprint, self.precision)

    @property
    def arithmetic(self) -> str:
        """How the vision tower computes, in words."""
        if self.runtime != TORCH:
            return f"{self.precision} on {self.device.type} by {self.runtime}"
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
        steps, copied = ["weights cast once"], self._copy()
        if is_folded := fold_grey(copied.tower, self.preprocess, features=copied.image_features, zero=_MIDDLE):
            steps.append("grey folded into the patch embedding")
        if _quick_gelu_as_silu(copied.tower):
            steps.append("QuickGELU as SiLU")
        for module in copied.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
        return copied, is_folded, steps

    def _copy(self) -> FrozenEncoder:
        """With weights of its own, and no text tower."""
        unused = [self.model.text_model] if "text" in self.towers else []
        return replace(self, model=copy.deepcopy(self.model, {id(part): None for part in unused}))


class _Features(nn.Module):
    """f32[B, 3, S, S] -> pooled f32[B, D] and, where P > 0, projected f32[B, P], unit vectors."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        super().__init__()
        self.model, self._encoder = encoder.model, encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        pooled, projected = self._encoder.image_features(pixels)
        return (pooled, unit(projected)) if projected.shape[1] else (pooled,)


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
