"""Heat maps and curves from scores alone: parts of a picture are blurred away, and the change of the score is looked
at.

Every function here takes any `Predictor`, of whatever kind; none needs a gradient, or torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from thoraclip.imaging import normalise
from thoraclip.imaging.resizing import resize
from thoraclip.predictor import Predictor

__all__ = ["blurred", "centre", "log_odds", "occlusion", "perturbation_curves", "random_map", "resized"]

Grey = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_BATCH = 32
_TINY = 1e-12
_BLUR_SHARE = 1 / 8
"""Radius of the blur over the side: lesions and ribs are gone, the bright and dark of the chest stays."""
_PATCH_SHARE = 1 / 7


def log_odds(scores: npt.NDArray[np.floating], class_index: int) -> Floats:
    """log p_c - log(1 - p_c), the rest summed over the other classes so that no digit of a sure answer is lost.

    Args:
        scores: f[B, C], rows sum to 1.
        class_index: c.

    Returns:
        f64[B], between -27.7 and 27.7: probabilities below 1e-12 count as 1e-12.
    """
    exact = np.asarray(scores, np.float64)
    others = np.delete(exact, class_index, axis=1).sum(axis=1)
    return np.asarray(np.log(np.maximum(exact[:, class_index], _TINY)) - np.log(np.maximum(others, _TINY)))


def blurred(grey: Grey) -> Grey:
    """u8[S, S] -> u8[S, S]: what stands in for a part that is taken away; Gaussian blur, its deviation an eighth of
    S."""
    radius = _BLUR_SHARE * grey.shape[0]
    return np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(radius)))


def resized(heat: npt.NDArray[np.floating], height: int, width: int) -> Heat:
    """f[h, w] -> f32[height, width], bilinear."""
    image = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    return np.asarray(resize(image, (width, height), Image.Resampling.BILINEAR))


def occlusion(predictor: Predictor, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """How much the log-odds of the class fall when a patch is blurred away (Zeiler & Fergus 2014, arXiv:1311.2901).

    Patches of a seventh of the side slide by half of theirs, over the borders too. A pixel gets the mean fall over the
    patches that cover it, weighted by how near their centres are (bilinear), so that the map has no steps. The picture
    is scored about 250 times.

    Args:
        predictor: any.
        grey: u8[S, S], made by its `preprocess`.
        class_index: of the class.
        seed: not used; here for the registry.

    Returns:
        f32[S, S] in nats; negative where the patch speaks against the class.
    """
    side, fill = grey.shape[0], blurred(grey)
    patch = max(1, round(_PATCH_SHARE * side))
    stride = max(1, patch // 2)
    starts = range(stride - patch, side, stride)
    spans = [slice(max(0, start), start + patch) for start in starts]
    boxes = [(y, x) for y in spans for x in spans]

    def pictures() -> Iterator[Grey]:
        yield grey
        for box in boxes:
            picture = grey.copy()
            picture[box] = fill[box]
            yield picture

    scores = log_odds(_scores(predictor, pictures()), class_index)
    falls = (scores[0] - scores[1:]).reshape(len(starts), len(starts))
    middles = np.array(starts) + (patch - 1) / 2
    nearness = np.maximum(0.0, 1 - np.abs(np.arange(side)[:, None] - middles) / (patch / 2))  # [side, patches]
    nearness /= nearness.sum(axis=1, keepdims=True)
    return np.asarray(nearness @ falls @ nearness.T, np.float32)


def random_map(predictor: Predictor, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """Smooth noise that has seen neither picture nor class: what a method must beat."""
    coarse = np.random.default_rng([seed, int(grey.sum())]).random((8, 8))
    return resized(coarse, *grey.shape)


def centre(predictor: Predictor, grey: Grey, class_index: int, *, seed: int = 0) -> Heat:
    """A Gaussian at the centre, its deviation a quarter of the side: what a method must beat on chests, which are
    centred."""
    side = grey.shape[0]
    along = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 4)) ** 2)
    return np.outer(along, along).astype(np.float32)


def perturbation_curves(
    predictor: Predictor, grey: Grey, heat: Heat, class_index: int, *, steps: int = 16
) -> tuple[Floats, Floats]:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421, section 4.2).

    Deletion blurs the pixels away from the hottest to the coldest, insertion brings them back into the blurred picture
    in the same order. Both stand in for removal by the same blur, where the paper deletes to grey.

    Args:
        predictor, grey, class_index: as in `occlusion`.
        heat: f32[S, S]; equal values are taken in reading order.
        steps: K, equal shares of the pixels.

    Returns:
        The probability of the class after 0, 1, ..., K steps, deletion and insertion, each f64[K + 1].
    """
    fill = blurred(grey)
    order = np.argsort(-heat, axis=None, kind="stable")
    rank = np.empty(heat.size, np.int64)
    rank[order] = np.arange(heat.size)
    limits = np.round(np.linspace(0, heat.size, steps + 1)).astype(np.int64)
    hot = (rank.reshape(heat.shape) < limit for limit in limits)
    pictures = (np.where(mask if kept else ~mask, grey, fill) for mask in hot for kept in (False, True))
    scores = _scores(predictor, pictures)[:, class_index].astype(np.float64)
    return scores[0::2], scores[1::2]


def _scores(predictor: Predictor, pictures: Iterable[Grey]) -> npt.NDArray[np.float32]:
    """f32[N, C], in batches."""
    rows, batch = [], []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == _BATCH:
            rows.append(predictor.predict(normalise(np.stack(batch), predictor.preprocess)))
            batch = []
    if batch:
        rows.append(predictor.predict(normalise(np.stack(batch), predictor.preprocess)))
    return np.concatenate(rows)
