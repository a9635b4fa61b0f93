"""Where the lungs are in a frontal chest radiograph: one fixed outline, drawn after anatomy, not learnt from data.

It is placed where an image is darker inside it than around it, or where lungs usually lie. `data.lungs` has the lung
region of every image of an audit.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from thoraclip.dtypes import Floats, Greys, Masks, Singles
from thoraclip.errors import ImageError

__all__ = ["estimate_lungs", "lung_box", "usual_lungs"]


LEAST_QUALITY = 0.35
"""An estimate below this quality is implausible: how much darker the lungs are than their rim, in local standard
deviations, 0..1; 0.8 is usual."""
_SIDE = 48  # pixels along each side of the square in which the outline is placed
_NEAR = 0.1  # standard deviation of the Gaussian neighbourhood for the local contrast, as a share of the side
_FLOOR = 0.05
"""Added to the local standard deviation, as a share of that of the whole image, so that flat regions stay near 0."""
_LEAST_SPREAD = 1.0  # standard deviation in grey levels below which an image is blank

_LEVELS = (0.00, 0.05, 0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.86, 0.92, 1.00)
"""Heights within a lung: 0 is the apex, 1 the costophrenic angle."""
_WALL = (0.28, 0.46, 0.57, 0.71, 0.80, 0.86, 0.90, 0.93, 0.95, 0.97, 0.98, 0.99, 1.00)
"""Distance of the lateral wall from the mid-line at each level, as a share of the reach; after textbook anatomy."""
_MEDIAL = {
    -1: (0.22, 0.16, 0.15, 0.15, 0.15, 0.16, 0.17, 0.18, 0.19, 0.20, 0.24, 0.80, 1.00),
    1: (0.22, 0.16, 0.15, 0.15, 0.15, 0.16, 0.18, 0.21, 0.24, 0.28, 0.34, 0.82, 1.00),
}
"""The same of the medial border and the dome of the diaphragm, at the left (-1) and the right (1) of the image.

Most of the heart's shadow counts as lung, as in masks that include the lung behind the heart."""

_USUAL = np.array([0.50, 0.12, 0.85, 0.41])
_SPREAD = np.array([0.06, 0.10, 0.14, 0.08])
"""Where lungs usually lie, and how far each number varies: centre (x of the mid-line), top, bottom (y of apex and
angle) and reach (from the mid-line to the wall), as shares of the image's sides."""
_PRIOR = 0.03  # cost of one squared spread, in local standard deviations of contrast
_AREA_POWER = 0.25
"""The contrast counts times area ** 0.25, because the mean contrast alone prefers outlines that are too small."""
_AXES = (
    np.linspace(0.40, 0.60, 5),
    np.linspace(-0.02, 0.34, 7),
    np.linspace(0.50, 1.04, 10),
    np.linspace(0.24, 0.52, 8),
)
_REFINEMENTS = (0.5, 0.25)  # after the grid, all neighbours at these shares of a grid step are tried


def estimate_lungs(pixels: Greys) -> tuple[Masks, str | None]:
    """Both lung fields of a frontal chest radiograph, opacities inside them included.

    The shape is fixed; four numbers place it: mid-line, top, bottom and reach. The best placement has the brightest rim
    against the darkest inside (a matched filter), less a weak prior. A small opacity hardly moves it.
    Lateral views and turned bodies are not provided for.

    Returns:
        bool[H, W] for `pixels` u8[H, W], and what is implausible about the estimate, in words: then the mask is empty.

    Raises:
        ImageError: not u8[H, W] with at least one pixel.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise ImageError(f"pixels are {pixels.dtype}{list(pixels.shape)}; u8[H, W] with at least one pixel is expected")
    contrast = _local_contrast(pixels)
    if contrast is None:
        return np.zeros(pixels.shape, bool), "the image is blank"
    best, quality = _place(contrast)
    if quality < LEAST_QUALITY:
        reason = f"the lungs are faint: quality {quality:.2f} is below {LEAST_QUALITY}"
        return np.zeros(pixels.shape, bool), reason
    return _draw(best[None], *pixels.shape)[0], None


def lung_box(pixels: Greys, margin: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of both lungs of u8[H, W], in pixels, with a margin (a share of each side of the
    picture); where lungs usually lie where the estimate is implausible."""
    mask, reason = estimate_lungs(pixels)
    height, width = mask.shape
    mask = usual_lungs(height, width) if reason else mask
    if not mask.any():  # a picture of a few pixels
        return 0, 0, width, height
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]].tolist() for axis in (1, 0))
    down, across = round(margin * height), round(margin * width)
    return max(0, left - across), max(0, top - down), min(width, right + 1 + across), min(height, bottom + 1 + down)


def _place(contrast: Floats) -> tuple[Floats, float]:
    """The best placement f64[4], and its quality."""
    tried, weights = _grid()
    best = tried[_scores(contrast, tried, weights).argmax()]
    steps = np.array(list(product((-1, 0, 1), repeat=4))) * [axis[1] - axis[0] for axis in _AXES]
    for share in _REFINEMENTS:
        tried = best + share * steps
        best = tried[_scores(contrast, tried, _weights(tried)).argmax()]
    return best, float(np.clip(_weights(best[None])[0] @ contrast, 0, 1))


def usual_lungs(height: int, width: int) -> Masks:
    """bool[height, width]: where lungs usually lie in an image of this size, whatever it shows."""
    return np.asarray(_draw(_USUAL[None], height, width)[0])


def _local_contrast(pixels: Greys) -> Floats | None:
    """f64[48 * 48]: distance from the local mean in local standard deviations; `None` for a blank image."""
    small = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(small, np.float64)
    if values.std() < _LEAST_SPREAD:
        return None
    at = np.arange(_SIDE)
    near = np.exp(-0.5 * ((at[:, None] - at) / (_NEAR * _SIDE)) ** 2)
    near /= near.sum(axis=1, keepdims=True)
    mean = near @ values @ near.T
    spread = np.sqrt(np.maximum(near @ values**2 @ near.T - mean**2, 0))
    return np.asarray((values - mean) / (spread + _FLOOR * values.std())).ravel()


@cache
def _grid() -> tuple[Floats, Singles]:
    """(placements f64[n, 4], their weights); the same for all images."""
    tried = np.stack([axis.ravel() for axis in np.meshgrid(*_AXES, indexing="ij")], axis=1)
    height = tried[:, 2] - tried[:, 1]
    slim = height / (2 * tried[:, 3])
    tried = tried[(height > 0.3) & (slim > 0.5) & (slim < 1.4)]
    return tried, _weights(tried)


def _scores(contrast: Floats, tried: Floats, weights: Singles) -> Floats:
    """f64[n] of placements f64[n, 4]."""
    area = (weights < 0).mean(axis=1)
    return np.asarray(
        area**_AREA_POWER * (weights @ contrast) - _PRIOR * (((tried - _USUAL) / _SPREAD) ** 2).sum(axis=1)
    )


def _weights(tried: Floats) -> Singles:
    """f32[n, 48 * 48]: their product with the contrast is the mean of a rim one pixel wide, less the mean inside."""
    inside = _draw(tried, _SIDE, _SIDE)
    wide = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    moved = [wide[:, y : y + _SIDE, x : x + _SIDE] for y, x in product(range(3), repeat=2)]
    rim = np.logical_or.reduce(moved) & ~inside
    shares = [part / np.maximum(1, part.sum(axis=(1, 2), keepdims=True, dtype=np.float32)) for part in (rim, inside)]
    return np.asarray(shares[0] - shares[1]).reshape(len(tried), -1)


def _draw(tried: Floats, height: int, width: int) -> Masks:
    """bool[n, height, width]: inside the lungs of placements f64[n, 4]."""
    centre, top, bottom, reach = tried.T[:, :, None, None]
    level = ((np.arange(height) + 0.5)[:, None] / height - top) / (bottom - top)
    across = ((np.arange(width) + 0.5) / width - centre) / reach
    wall = np.abs(across) < np.interp(level, _LEVELS, _WALL)
    beside = [side * across > np.interp(level, _LEVELS, medial) for side, medial in _MEDIAL.items()]
    return np.asarray((level > 0) & (level < 1) & wall & (beside[0] | beside[1]))
