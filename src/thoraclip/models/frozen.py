"""A dual encoder for inference only, its vision tower prepared once for the fastest arithmetic of its precision.

In fp32 nothing is changed. In bf16 the tower is copied, and in the copy
    the weights of products are bf16 already, which autocast would make of them in every pass (the same numbers);
    the patch embedding takes grey levels, so that neither three equal channels nor their normalisation are computed
        (`fold_grey`; grey levels less 128 are exact in bf16, normalised ones are not);
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

from thoraclip.imaging import Preprocess
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.models.files import description

__all__ = ["FrozenEncoder", "fold_grey"]

_MIDDLE = 128  # the grey level that a folded patch embedding takes as 0
_QUICK_GELU = 1.702


@dataclass(frozen=True)
class FrozenEncoder(DualEncoder):
    """A `DualEncoder` whose weights no one changes any more; grey images go through the prepared tower."""

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
        return ", ".join((f"{self.precision} on {self.device.type}", *self._fast[2], f"{attention} attention"))

    def _grey_features(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        encoder, is_folded, _ = self._fast
        if not is_folded:
            return encoder.image_features(self.expand(greys))
        return encoder.image_features(greys.to(self.device, non_blocking=True)[:, None].float() - _MIDDLE)

    @cached_property
    def _fast(self) -> tuple[DualEncoder, bool, list[str]]:
        """(encoder around the prepared tower, whether it takes grey levels, what was done in words)."""
        if self.precision != "bf16":
            return self, False, []
        own = copy.deepcopy(self.model, {id(self.model.text_model): None})  # the text tower is not needed in it
        steps = ["weights cast once"]
        if is_folded := fold_grey(own.vision_model, self.preprocess, zero=_MIDDLE):
            steps.append("grey folded into the patch embedding")
        if _quick_gelu_as_silu(own.vision_model):
            steps.append("QuickGELU as SiLU")
        for module in own.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
        return replace(self, model=own), is_folded, steps


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


class _Patches(nn.Linear):
    """A one-channel convolution whose kernel is its stride, as one product over all patches; f32[B, 1, H, W] ->
    f32[B, D, h, w]. What is left over at the right and below is left out, as by the convolution."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution.kernel_size[0] * convolution.kernel_size[1], convolution.out_channels)
        self._rows, self._columns = convolution.kernel_size
        self.weight = nn.Parameter(convolution.weight.flatten(1))
        self.bias = nn.Parameter(convolution.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[-2] // self._rows, pixels.shape[-1] // self._columns
        grid = pixels[:, 0, : h * self._rows, : w * self._columns].reshape(-1, h, self._rows, w, self._columns)
        features: Tensor = super().forward(grid.transpose(2, 3).reshape(-1, h * w, self.in_features))
        return features.transpose(1, 2).reshape(-1, self.out_features, h, w)


@torch.no_grad()
def fold_grey(network: nn.Module, spec: Preprocess, *, zero: int = 0) -> bool:
    """Let the patch embedding take grey levels 0..255 in one channel, the normalisation folded into its weights.

    With the same grey g in all channels, sum_c W_c (g / 255 - mean_c) / std_c + b is linear in g: one channel of
    weights W = sum_c W_c / (255 std_c) and a bias b - sum_c sum W_c mean_c / std_c. Exact but for rounding where every
    weight always meets a pixel, so not where the image is padded: a padded zero is no grey level.

    Args:
        network: changed in place. Its first convolution of three channels, or, where patches are cut out before, its
            first linear layer on them, is the patch embedding.
        spec: the normalisation.
        zero: grey level that is handed over as 0, the others relative to it; `zero` sum W goes into the bias.

    Returns:
        False, and nothing changed, where it would not be exact.
    """
    name, old = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)), ("", None))
    std, mean = (torch.tensor(values, dtype=torch.float64) for values in (spec.std, spec.mean))
    new: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d) and old.in_channels == 3 and old.groups == 1 and old.padding in ((0, 0), "valid"):
        weight = old.weight.double().cpu()  # [D, 3, p, p]
        std, mean = std[:, None, None], mean[:, None, None]
        size, stride, dilation = old.kernel_size, old.stride, old.dilation
        new = nn.Conv2d(1, old.out_channels, size, stride, dilation=dilation)  # type: ignore[arg-type]
        grey, shift = (weight / std / 255).sum(dim=1, keepdim=True), (weight * mean / std).sum(dim=(1, 2, 3))
    elif isinstance(old, nn.Linear) and old.in_features % 3 == 0 and "patch" in name:
        weight = old.weight.double().cpu().reshape(old.out_features, -1, 3)  # [D, p p, 3]: channels run fastest
        new = nn.Linear(weight.shape[1], old.out_features)
        grey, shift = (weight / std / 255).sum(dim=2), (weight * mean / std).sum(dim=(1, 2))
    else:
        return False
    new.weight.copy_(grey)
    bias = 0 if old.bias is None else old.bias.double().cpu()
    new.bias.copy_(bias - shift + zero * grey.flatten(1).sum(dim=1))  # type: ignore[union-attr]
    if isinstance(new, nn.Conv2d) and new.kernel_size == new.stride and new.dilation == (1, 1):
        new = _Patches(new)
    network.set_submodule(name, new.to(old.weight.device))
    for module in network.modules():  # some check what they are given
        if getattr(module, "num_channels", None) == 3:
            module.num_channels = 1  # type: ignore[assignment]
    return True
