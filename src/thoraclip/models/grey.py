"""Networks that take grey levels as they are: normalisation and the three equal channels folded into the patch
embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thoraclip.imaging import Preprocess

__all__ = ["fold_grey"]


class _Patches(nn.Linear):
    """A convolution of one channel whose kernel is its stride, as one product over all patches: f32[B, 1, H, W] ->
    f32[B, D, h, w].

    Args:
        convolution: that it takes the place of.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__(convolution.kernel_size[0] * convolution.kernel_size[1], convolution.out_channels)
        self._rows, self._columns = convolution.kernel_size
        self.weight = nn.Parameter(convolution.weight.flatten(1))
        self.bias = nn.Parameter(convolution.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class; what is left over at the right and below is left out, as by the convolution."""
        h, w = pixels.shape[-2] // self._rows, pixels.shape[-1] // self._columns
        whole = pixels[:, 0, : h * self._rows, : w * self._columns]
        patches = (
            whole.reshape(-1, h, self._rows, w, self._columns).transpose(2, 3).reshape(-1, h * w, self.in_features)
        )
        told: Tensor = super().forward(patches)
        return told.transpose(1, 2).reshape(-1, self.out_features, h, w)


@torch.no_grad()
def fold_grey(network: nn.Module, spec: Preprocess, *, zero: int = 0) -> bool:
    """Let the patch embedding take grey levels 0..255 in one channel, the normalisation folded into its weights.

    With the same grey g in all channels, sum_c W_c (g / 255 - mean_c) / std_c + b is linear in g: one channel of
    weights W = sum_c W_c / (255 std_c) and a bias b - sum_c sum W_c mean_c / std_c. Exact but for rounding where every
    weight always meets a pixel, so not where the picture is padded: a padded zero is no grey level.

    Args:
        network: changed in place. Its first convolution of three channels, or, where patches are cut out before, its
            first linear layer on them, is the patch embedding.
        spec: the normalisation.
        zero: grey level that will be handed over as 0, the others relative to it; `zero` sum W goes into the bias.

    Returns:
        False, and nothing changed, where it would not be exact.
    """
    found = next(
        ((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)), (None, None)
    )
    name, old = found
    std, mean = (torch.tensor(values, dtype=torch.float64) for values in (spec.std, spec.mean))
    if isinstance(old, nn.Conv2d) and old.in_channels == 3 and old.groups == 1 and old.padding in ((0, 0), "valid"):
        weight = old.weight.double().cpu()  # [D, 3, p, p]
        std, mean = std[:, None, None], mean[:, None, None]
        size, stride, dilation = old.kernel_size, old.stride, old.dilation
        new: nn.Module = nn.Conv2d(1, old.out_channels, size, stride, dilation=dilation)  # type: ignore[arg-type]
        grey, shift = (weight / std / 255).sum(dim=1, keepdim=True), (weight * mean / std).sum(dim=(1, 2, 3))
    elif isinstance(old, nn.Linear) and old.in_features % 3 == 0 and "patch" in str(name):
        weight = old.weight.double().cpu().reshape(old.out_features, -1, 3)  # [D, p p, 3]: channels run fastest
        new = nn.Linear(weight.shape[1], old.out_features)
        grey, shift = (weight / std / 255).sum(dim=2), (weight * mean / std).sum(dim=(1, 2))
    else:
        return False
    new.weight.copy_(grey)  # type: ignore[operator]
    bias = 0 if old.bias is None else old.bias.double().cpu()
    new.bias.copy_(bias - shift + zero * grey.flatten(1).sum(dim=1))  # type: ignore[operator]
    if isinstance(new, nn.Conv2d) and new.kernel_size == new.stride and new.dilation == (1, 1):
        new = _Patches(new)
    parent = network.get_submodule(str(name).rpartition(".")[0])
    setattr(parent, str(name).rpartition(".")[2], new.to(old.weight.device))
    for module in network.modules():  # some check what they are given
        if getattr(module, "num_channels", None) == 3:
            module.num_channels = 1  # type: ignore[assignment]
    return True
