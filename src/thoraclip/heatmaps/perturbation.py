"""A heat map from scores alone: parts of a picture are blurred away. It takes any `Predictor`, and needs no torch."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from thoraclip.dtypes import Floats, Greys, Singles
from thoraclip.imaging import normalise
from thoraclip.imaging.preprocessing import resize
from thoraclip.predictor import Predictor

__all__ = ["blurred", "log_odds", "occlusion", "resized"]


_BATCH = 32
_TINY = 1e-12
_BLUR_SHARE = 1 / 8
"""Deviation of the blur over the side: lesions and ribs are gone, the bright and dark of the chest stays."""
_PATCH_SHARE = 1 / 7


def log_odds(scores: npt.NDArray[np.floating], class_index: int) -> Floats:
    """Scores f[B, C] -> f64[B]: log p_c - log(1 - p_c), in -27.7..27.7; probabilities below 1e-12 count as 1e-12.

    The rest is summed over the other classes, so that no digit of a sure answer is lost.
    """
    exact = np.asarray(scores, np.float64)
    others = np.delete(exact, class_index, axis=1).sum(axis=1)
    return np.asarray(np.log(np.maximum(exact[:, class_index], _TINY)) - np.log(np.maximum(others, _TINY)))


def blurred(grey: Greys) -> Greys:
    """u8[S, S] -> u8[S, S]: what stands in for a part that is taken away."""
    radius = _BLUR_SHARE * grey.shape[0]
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(radius)))


def resized(heat: npt.NDArray[np.floating], height: int, width: int) -> Singles:
    """f[h, w] -> f32[height, width], bilinear."""
    image = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    return np.asarray(resize(image, (width, height), Image.Resampling.BILINEAR))


def occlusion(predictor: Predictor, grey: Greys, class_index: int, *, seed: int = 0) -> Singles:
    """How much the log-odds of the class fall when a patch is blurred away (Zeiler & Fergus 2014, arXiv:1311.2901).

    Patches of a seventh of the side slide by half of theirs, over the borders too. A pixel gets the mean fall over the
    patches that cover it, weighted by how near their centres are (bilinear), so that the map has no steps. The picture
    is scored about 250 times. `seed` is not used. Returns f32[S, S] in nats, negative where the patch speaks against
    the class.
    """
    side, fill = grey.shape[0], blurred(grey)
    patch = max(1, round(_PATCH_SHARE * side))
    stride = max(1, patch // 2)
    starts = range(stride - patch, side, stride)
    spans = [slice(max(0, start), start + patch) for start in starts]
    boxes = [(slice(0), slice(0)), *product(spans, spans)]  # the first one takes nothing away

    def predict(chosen: list[tuple[slice, slice]]) -> Singles:
        pictures = np.repeat(grey[None], len(chosen), axis=0)
        for picture, box in zip(pictures, chosen, strict=True):
            picture[box] = fill[box]
        return predictor.predict(normalise(pictures, predictor.preprocess))

    found = np.concatenate([predict(boxes[first : first + _BATCH]) for first in range(0, len(boxes), _BATCH)])
    scores = log_odds(found, class_index)
    falls = (scores[0] - scores[1:]).reshape(len(starts), len(starts))
    middles = np.array(starts) + (patch - 1) / 2
    nearness = np.maximum(0.0, 1 - np.abs(np.arange(side)[:, None] - middles) / (patch / 2))  # [side, patches]
    nearness /= nearness.sum(axis=1, keepdims=True)
    return np.asarray(nearness @ falls @ nearness.T, np.float32)
