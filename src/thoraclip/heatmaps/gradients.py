"""Heat maps from the inside of a network: its gradients, its last feature map, its attention. Always in fp32.

What is explained is the log-odds of the class, z_c - log(sum of exp(z_k), k != c), and not its logit alone: adding a
number to every logit changes no probability, and must change no map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor, nn

from thoraclip.errors import ConfigError
from thoraclip.heatmaps.perturbation import blurred, resized
from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import Classifier

__all__ = ["attention", "grad_cam", "grey_gradient", "hires_cam", "integrated_gradients", "smoothgrad"]

Grey = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]

_SAMPLES = 16
"""Pictures whose gradients are averaged."""
_NOISE = 0.1
"""Standard deviation of SmoothGrad's noise over the range of the greys."""
_SMOOTHING_SHARE = 1 / 32
"""Pixel gradients flicker from pixel to pixel; they are read at the scale of a patch."""


def grey_gradient(classifier: Classifier, units: Tensor, class_index: int) -> Tensor:
    """Gradient of the log-odds of a class with respect to the greys.

    Args:
        classifier: any with `logits`.
        units: f32[B, S, S], greys over 255.
        class_index: of the class.

    Returns:
        f32[B, S, S], in nats for a step from black to white.
    """
    leaf = units.detach().clone().requires_grad_()
    total = _log_odds(_in_fp32(classifier), leaf, class_index).sum()
    return torch.autograd.grad(total, leaf)[0]


def smoothgrad(classifier: Classifier, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """Gradient times input, averaged over 16 noisy copies (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825).

    The input is what blurring takes away from the picture, so that a flat region has no say whatever its grey; noise of a
    tenth of the greys' range. Smoothed at the scale of a patch.

    Args:
        classifier: any with `logits`.
        grey: u8[S, S], made by its `preprocess`.
        class_index: of the class.
        seed: of the noise.

    Returns:
        f32[S, S]; negative where it speaks against the class.
    """
    unit, fill = _unit(classifier, grey), _unit(classifier, blurred(grey))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_SAMPLES, *grey.shape, generator=generator).to(unit.device)
    noisy = unit + _NOISE * (unit.max() - unit.min()) * noise
    return _smooth(grey_gradient(classifier, noisy, class_index).mean(dim=0) * (unit - fill))


def integrated_gradients(classifier: Classifier, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """Integrated gradients from the blurred picture to the picture (Sundararajan, Taly & Yan 2017, arXiv:1703.01365, eq. 3).

    The integral is taken at the midpoints of 16 equal steps, so that its sum is the difference of the log-odds up to the
    error of that rule. Smoothed at the scale of a patch.

    Args, Returns: as in `smoothgrad`; `seed` is not used.
    """
    unit, fill = _unit(classifier, grey), _unit(classifier, blurred(grey))
    shares = ((torch.arange(_SAMPLES, device=unit.device) + 0.5) / _SAMPLES)[:, None, None]
    path = fill + shares * (unit - fill)
    return _smooth(grey_gradient(classifier, path, class_index).mean(dim=0) * (unit - fill))


def grad_cam(classifier: Classifier, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1 and 2): channels weighted by their mean gradient.

    The feature map is the last one with more than one place; of a Transformer the patch tokens as the attention of its last
    block gets them: behind it those of a class token's network have no gradient, and before the block's layer norm, which
    no scale changes, a token times its gradient is zero.

    Args, Returns: as in `smoothgrad`; `seed` is not used.

    Raises:
        ConfigError: the network has neither.
    """
    features, gradient = _feature_map(classifier, grey, class_index)
    return resized((features * gradient.mean(dim=(1, 2), keepdim=True)).sum(dim=0).cpu().numpy(), *grey.shape)


def hires_cam(classifier: Classifier, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """HiResCAM (Draelos & Carin 2020, arXiv:2011.08891): features times their gradient, place by place.

    The feature map is that of `grad_cam`. Args, Returns and Raises: as there.
    """
    features, gradient = _feature_map(classifier, grey, class_index)
    return resized((features * gradient).sum(dim=0).cpu().numpy(), *grey.shape)


def attention(classifier: Classifier, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """Relevance through the attention maps, weighted by their gradients (Chefer, Gur & Wolf 2021, arXiv:2103.15679, eqs. 5, 6).

        R = I;  per block:  R <- R + mean over heads of (dy/dA * A)^+  R

    The map is the row of the token that the head reads. Where it reads several (attention pooling, as SigLIP's), their
    rows are summed by the positive part of token times gradient, which for a single token is the paper's row.

    Args, Returns: as in `smoothgrad`; never negative; `seed` is not used.

    Raises:
        ConfigError: the network has no attention over the whole picture.
    """
    seen = _forward(classifier, grey, class_index)
    if not seen.weights:
        raise ConfigError(f"method 'attention': {_name(classifier)} has no attention; take grad-cam or occlusion")
    count = seen.weights[-1].shape[-1]
    last = next((tokens for tokens in reversed(seen.tokens) if tokens.shape[1] == count), None)
    if last is None or any(weights.shape[0] != 1 or weights.shape[-1] != count for weights in seen.weights):
        raise ConfigError(
            f"method 'attention': {_name(classifier)} attends within windows, not over the whole picture; "
            "take grad-cam or occlusion"
        )
    *gradients, of_tokens = torch.autograd.grad(seen.target, [*seen.weights, last])
    relevance = torch.eye(count, device=last.device)
    for weights, gradient in zip(seen.weights, gradients, strict=True):
        relevance = relevance + (weights * gradient)[0].clamp(min=0).mean(dim=0) @ relevance
    row = _read_tokens(last[0], of_tokens[0]) @ relevance
    return resized(_grid(row[:, None], classifier)[0].detach().cpu().numpy(), *grey.shape)


def _read_tokens(tokens: Tensor, gradient: Tensor) -> Tensor:
    """f32[N]: how much the head reads of each token; one token alone counts 1."""
    read = gradient.abs().sum(dim=1) > 0
    if int(read.sum()) == 1:
        return read.float()
    return (tokens * gradient).sum(dim=1).clamp(min=0)


@dataclass(frozen=True)
class _Seen:
    """What one forward pass showed; lists are in the order of the pass.

    Args:
        target: log-odds of the class, scalar.
        weights: attention probabilities f32[B, heads, N, N]; empty without attention.
        attended: tokens f32[B, N, D] as the last attention got them.
        tokens: all f32[1, N, D] with more than one token.
        maps: all f32[1, C, h, w] with more than one place.
    """

    target: Tensor
    weights: list[Tensor]
    attended: Tensor | None
    tokens: list[Tensor]
    maps: list[Tensor]


def _forward(classifier: Classifier, grey: Grey, class_index: int) -> _Seen:
    """Run the picture once with a gradient and keep what the modules took and gave."""
    classifier = _in_fp32(classifier)
    calls: list[tuple[Any, Any]] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], found: Any) -> None:
        calls.append((next(iter((*given, *named.values())), None), found))

    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in classifier.network.modules()]
    try:
        with _eager_attention(classifier.network):
            units = _unit(classifier, grey)[None].requires_grad_()
            target = _log_odds(classifier, units, class_index)[0]
    finally:
        for hook in hooks:
            hook.remove()
    attending = {id(found[1]): (given, found[1]) for given, found in calls if _is_attention(found)}
    tensors = [found for _, found in calls if isinstance(found, Tensor) and len(found) == 1]
    return _Seen(
        target=target,
        weights=[weights for _, weights in attending.values()],
        attended=next((given for given, _ in reversed(attending.values())), None),
        tokens=[found for found in tensors if found.dim() == 3 and found.shape[1] > 1],
        maps=[found for found in tensors if found.dim() == 4 and min(found.shape[2:]) > 1],
    )


def _is_attention(found: Any) -> bool:
    """True for (tokens, probabilities [B, heads, N, N])."""
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Tensor):
        return False
    return found[1].dim() == 4 and found[1].shape[-1] == found[1].shape[-2]


def _feature_map(classifier: Classifier, grey: Grey, class_index: int) -> tuple[Tensor, Tensor]:
    """(features, gradient of the log-odds), each f32[C, h, w]."""
    seen = _forward(classifier, grey, class_index)
    if seen.attended is not None:
        tokens = seen.attended if len(seen.attended) == 1 else seen.tokens[-1]  # windows stand in the batch
        (gradient,) = torch.autograd.grad(seen.target, tokens)
        return _grid(tokens[0].detach(), classifier), _grid(gradient[0], classifier)
    if not seen.maps:
        raise ConfigError(f"{_name(classifier)} has no feature map; take occlusion")
    (gradient,) = torch.autograd.grad(seen.target, seen.maps[-1])
    return seen.maps[-1][0].detach(), gradient[0]


def _grid(tokens: Tensor, classifier: Classifier) -> Tensor:
    """f32[N, D] -> f32[D, g, g]: the patches; class and register tokens stand before them."""
    side = isqrt(len(tokens))
    if side < 2:
        raise ConfigError(f"{_name(classifier)} has {len(tokens)} tokens: no map of patches; take occlusion")
    return tokens[len(tokens) - side**2 :].reshape(side, side, -1).permute(2, 0, 1)


def _log_odds(classifier: Classifier, units: Tensor, class_index: int) -> Tensor:
    """f32[B, S, S] greys over 255 -> f32[B], with gradient."""
    mean, std = (
        torch.tensor(v, device=units.device)[:, None, None]
        for v in (classifier.preprocess.mean, classifier.preprocess.std)
    )
    logits = classifier.logits((units[:, None] - mean) / std)
    others = torch.arange(logits.shape[1], device=logits.device) != class_index
    return logits[:, class_index] - logits[:, others].logsumexp(dim=1)


def _in_fp32(classifier: Classifier) -> Classifier:
    """Gradients of bf16 have two digits; an encoder's logits are fp32 as they are."""
    return replace(classifier, precision="fp32") if isinstance(classifier, Backbone) else classifier


def _unit(classifier: Classifier, grey: Grey) -> Tensor:
    """u8[S, S] -> f32[S, S], greys over 255, on the device."""
    device = next(classifier.network.parameters()).device
    return torch.from_numpy(grey.astype(np.float32) / 255).to(device)


def _smooth(heat: Tensor) -> Heat:
    return np.asarray(gaussian_filter(heat.cpu().numpy(), _SMOOTHING_SHARE * len(heat)), np.float32)


def _name(classifier: Classifier) -> str:
    return str(type(classifier.network).__name__)


@contextmanager
def _eager_attention(network: nn.Module) -> Iterator[None]:
    """Attention probabilities exist only in Transformers' `eager` code; what was set comes back afterwards."""
    found: Iterator[Any] = (getattr(module, "config", None) for module in network.modules())
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
