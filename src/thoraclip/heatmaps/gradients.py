"""Heat maps from the gradients of a network. Always in fp32.

What is explained is the log-odds of the class, z_c - log(sum of exp(z_k), k != c), and not its logit alone: adding a
number to every logit changes no probability, and must change no map.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor

from thoraclip.dtypes import Greys, Singles
from thoraclip.heatmaps.perturbation import blurred
from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import Classifier

__all__ = ["grey_gradient", "integrated_gradients", "smoothgrad"]


_SAMPLES = 16
"""Pictures whose gradients are averaged."""
_NOISE = 0.1
"""Standard deviation of SmoothGrad's noise over the range of the greys."""
_SMOOTHING_SHARE = 1 / 32
"""Pixel gradients flicker from pixel to pixel; they are read at the scale of a patch."""


def grey_gradient(classifier: Classifier, units: Tensor, class_index: int) -> Tensor:
    """Greys over 255, f32[B, S, S] -> f32[B, S, S]: gradient of the log-odds, in nats from black to white."""
    if isinstance(classifier, Backbone):  # gradients of bf16 have two digits; an encoder's logits are fp32 as they are
        classifier = replace(classifier, precision="fp32")
    spec, leaf = classifier.preprocess, units.detach().clone().requires_grad_()
    mean, std = (torch.tensor(v, device=units.device)[:, None, None] for v in (spec.mean, spec.std))
    logits = classifier.logits((leaf[:, None] - mean) / std)
    others = torch.arange(logits.shape[1], device=logits.device) != class_index
    log_odds = logits[:, class_index] - logits[:, others].logsumexp(dim=1)
    return torch.autograd.grad(log_odds.sum(), leaf)[0]


def smoothgrad(classifier: Classifier, grey: Greys, class_index: int, *, seed: int = 0) -> Singles:
    """Gradient times input, averaged over 16 noisy copies (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825).

    The input is what blurring takes away from the picture, so that a flat region has no say whatever its grey; noise of
    a tenth of the greys' range. Smoothed at the scale of a patch. `seed` is that of the noise. Returns f32[S, S],
    negative where it speaks against the class.
    """
    unit, fill = _units(classifier, grey)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(_SAMPLES, *grey.shape, generator=generator).to(unit.device)
    noisy = unit + _NOISE * (unit.max() - unit.min()) * noise
    return _smooth(grey_gradient(classifier, noisy, class_index).mean(dim=0) * (unit - fill))


def integrated_gradients(classifier: Classifier, grey: Greys, class_index: int, *, seed: int = 0) -> Singles:
    """Integrated gradients from the blurred picture to the picture (Sundararajan, Taly & Yan 2017, arXiv:1703.01365,
    eq. 3).

    The integral is taken at the midpoints of 16 equal steps, so that its sum is the difference of the log-odds up to
    the error of that rule. Smoothed at the scale of a patch. `seed` is not used. Returns f32[S, S],
    as `smoothgrad`.
    """
    unit, fill = _units(classifier, grey)
    shares = ((torch.arange(_SAMPLES, device=unit.device) + 0.5) / _SAMPLES)[:, None, None]
    path = fill + shares * (unit - fill)
    return _smooth(grey_gradient(classifier, path, class_index).mean(dim=0) * (unit - fill))


def _units(classifier: Classifier, grey: Greys) -> tuple[Tensor, Tensor]:
    """The picture and its blur, u8[S, S] -> f32[S, S], greys over 255, on the device."""
    device = next(classifier.network.parameters()).device
    unit, fill = (torch.from_numpy(g.astype(np.float32) / 255).to(device) for g in (grey, blurred(grey)))
    return unit, fill


def _smooth(heat: Tensor) -> Singles:
    return np.asarray(gaussian_filter(heat.cpu().numpy(), _SMOOTHING_SHARE * len(heat)), np.float32)
