"""Grey levels in one channel for three normalised ones: the normalisation folded into a network's first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thoraclip.imaging import Preprocess, normalise

__all__ = ["fold_grey"]

_ROUNDING = 1e-5
"""Largest difference of the first layer's outputs, relative to the largest of them, that is rounding."""


@torch.no_grad()
def fold_grey(
    network: nn.Module, spec: Preprocess, *, features: Callable[[Tensor], Any] | None = None, zero: int = 0
) -> bool:
    """Let the first layer take grey levels 0..255 in one channel, the normalisation folded into its weights.

    With the same grey g in all channels, sum_c W_c (g / 255 - mean_c) / std_c + b is linear in g: one channel of
    weights W = sum_c W_c / (255 std_c) and a bias b - sum_c sum W_c mean_c / std_c. Whether that is exact depends on
    what the network does with its pixels before and beside that layer: a padded zero, for one, is no grey level. So a
    random image goes through the network before and after: the layer's outputs must stay the same but for rounding, and
    with the old ones in their place all that follows must stay the same to the last bit, so nothing else reads pixels.

    Args:
        network: changed in place. Its first convolution or linear layer is the candidate: a
            convolution of three channels, or a linear layer on patches in which the channels run fastest.
        spec: the normalisation, and the size of the image.
        features: what is computed of pixels f32[1, channels, size, size] by the network; default: the network itself.
        zero: grey level that is handed over as 0, the others relative to it; `zero` sum W goes into the bias.

    Returns:
        False, and nothing changed, where it would not be exact.
    """
    name, old = next(((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)), ("", None))
    new = _folded(old, spec, zero) if name and old is not None else None
    if new is None or old is None:
        return False
    features = features or network
    training = [module for module in network.modules() if module.training]
    network.eval()
    shape, generator = (1, spec.size, spec.size), torch.Generator().manual_seed(0)
    greys = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    outputs = list[Tensor]()  # of the old layer, in the order of its calls
    with torch.autocast(old.weight.device.type, enabled=False):
        with old.register_forward_hook(lambda _, __, output: outputs.append(output)):
            expected = tree_leaves(features(torch.from_numpy(normalise(greys.numpy(), spec)).to(old.weight)))
        network.set_submodule(name, new)
        counting = [module for module in network.modules() if getattr(module, "num_channels", None) == 3]
        for module in counting:  # some check what they are given
            module.num_channels = 1  # type: ignore[assignment]
        found = _found(features, greys[:, None].to(old.weight) - zero, new, outputs)
    is_exact = found is not None and len(found) == len(expected) and all(map(_equal, found, expected))
    if not is_exact:
        network.set_submodule(name, old)
        for module in counting:
            module.num_channels = 3  # type: ignore[assignment]
    for module in training:
        module.training = True
    return is_exact


def _found(
    features: Callable[[Tensor], Any], pixels: Tensor, new: nn.Module, outputs: Sequence[Tensor]
) -> list[Any] | None:
    """What a network computes after the new layer, whose outputs are exchanged for those of the old one; `None` where
    they differ by more than rounding."""
    left = list(outputs)

    def exchange(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        own = left.pop(0)
        largest = own.double().abs().max()
        if output.shape != own.shape or not (output.double() - own.double()).abs().max() <= _ROUNDING * largest:
            raise ValueError("other outputs, or not finite")
        return own

    try:
        with new.register_forward_hook(exchange):
            found = tree_leaves(features(pixels))
    except Exception:  # of `exchange`, and whatever a network raises that cannot take one channel
        return None
    return None if left or not outputs else found


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else bool(one == other)


def _folded(old: nn.Conv2d | nn.Linear, spec: Preprocess, zero: int) -> nn.Module | None:
    """The layer for one channel; `None` where there is none."""
    std, mean = (torch.tensor(values, dtype=torch.float64) for values in (spec.std, spec.mean))
    new: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d) and old.in_channels == 3 and old.groups == 1:
        weight = old.weight.double().cpu()  # [D, 3, p, p]
        std, mean = std[:, None, None], mean[:, None, None]
        given: Any = {name: getattr(old, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        new = nn.Conv2d(1, old.out_channels, old.kernel_size, **given)  # type: ignore[arg-type]
        grey, shift = (weight / std / 255).sum(dim=1, keepdim=True), (weight * mean / std).sum(dim=(1, 2, 3))
    elif isinstance(old, nn.Linear) and old.in_features % 3 == 0:
        weight = old.weight.double().cpu().reshape(old.out_features, -1, 3)  # [D, p p, 3]: channels run fastest
        new = nn.Linear(weight.shape[1], old.out_features)
        grey, shift = (weight / std / 255).sum(dim=2), (weight * mean / std).sum(dim=(1, 2))
    else:
        return None
    new = new.to(old.weight.dtype)
    new.weight.copy_(grey)
    bias = 0 if old.bias is None else old.bias.double().cpu()
    new.bias.copy_(bias - shift + zero * grey.flatten(1).sum(dim=1))  # type: ignore[union-attr]
    is_patches = isinstance(new, nn.Conv2d) and new.kernel_size == new.stride and new.dilation == (1, 1)
    if is_patches and new.padding in ((0, 0), "valid"):
        new = _Patches(new)  # type: ignore[arg-type]
    return new.to(old.weight.device)


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
