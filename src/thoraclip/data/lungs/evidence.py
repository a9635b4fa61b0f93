"""What in a radiograph speaks for lung: bars cut off, local contrast evened out, ribs and wires taken away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

__all__ = ["SIDE", "Evidence", "find_evidence", "places"]

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Points = npt.NDArray[np.float64]

SIDE = 128
"""Pixels along each side of the square at which everything is worked out."""
_FLAT, _WHITE, _INNER, _MOST = 14, 180, (10, 90), 0.35
"""A line belongs to a bar where what lies between the two percentiles spans fewer grey levels, or is all brighter: collimators
show white, and seldom evenly. No more than the last share of a side is cut off at once."""
_REACH = 0.17
"""Standard deviation, as a share of the side, of the Gaussian that tells what is dark for its neighbourhood."""
_FLOOR = 0.03
"""Added to the local standard deviation, of a picture in 0..1, so that noise in flat regions stays small."""
_RIB = 9
"""An opening this high, in pixels of `SIDE`, takes away what is bright and thinner: ribs, collar bones, wires."""
_MIDDLE, _SOFT = 0.2, 0.2
"""Local contrast at which a pixel is as dark as not, and the scale of the logistic curve about it."""
_LEAST = 4
"""Grey levels between the 1st and the 99th percentile below which a picture is blank."""


@dataclass(frozen=True)
class Evidence:
    """A picture as the outline sees it.

    Args:
        contrast: f32[S, S], local contrast with all its detail, bright above 0.
        smooth: f32[S, S], the same without ribs.
        dark: f32[S, S + 1], row by row the sum of darkness (0 bright to 1 dark) left of each column.
        table: f64[S + 1, S + 1], the sum of darkness above and left of each corner.
        box: left, top, right and bottom of what is no bar, as shares of the picture.
        is_blank: True where there is no contrast to speak of.
    """

    contrast: Floats
    smooth: Floats
    dark: Floats
    table: npt.NDArray[np.float64]
    box: tuple[float, float, float, float]
    is_blank: bool


def find_evidence(pixels: Grey) -> Evidence:
    """The evidence in u8[H, W], for a picture of any size."""
    image = Image.fromarray(pixels)
    box = _without_bars(_reduce(image, (0.0, 0.0, 1.0, 1.0)))
    values, span = _stretch(ndimage.median_filter(_reduce(image, box), 3))
    contrast = _even_out(values)
    smooth = ndimage.grey_opening(contrast, (_RIB, 1))
    dark = 1 / (1 + np.exp((smooth - _MIDDLE) / _SOFT))
    sums = np.zeros((SIDE, SIDE + 1), np.float32)
    np.cumsum(dark, axis=1, out=sums[:, 1:])
    return Evidence(
        contrast=ndimage.gaussian_filter(contrast, 1.0), smooth=ndimage.gaussian_filter(smooth, 1.0), dark=sums,
        table=np.pad(np.cumsum(sums, axis=0, dtype=np.float64), ((1, 0), (0, 0))), box=box, is_blank=span < _LEAST,
    )  # fmt: skip


def _reduce(image: Image.Image, box: tuple[float, float, float, float]) -> Floats:
    """f32[S, S] of a part of the picture, averaged; a smaller picture is enlarged."""
    width, height = image.size
    part = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box=part), np.float32)


def _stretch(values: Floats) -> tuple[Floats, float]:
    """(values in 0..1 between their 1st and 99th percentile, distance of these in grey levels)."""
    low, high = np.percentile(values, [1, 99])
    span = float(high - low)
    return np.clip((values - low) / max(span, 1e-3), 0, 1), span


def _without_bars(values: Floats) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what lies between bars of one grey level, as shares; a bar may lie within another."""
    levels, _ = _stretch(values)
    top, bottom, left, right = 0, SIDE, 0, SIDE
    for _ in range(2):
        above, below = _bars(levels[top:bottom, left:right])
        top, bottom = top + above, bottom - below
        before, after = _bars(levels[top:bottom, left:right].T)
        left, right = left + before, right - after
    return left / SIDE, top / SIDE, right / SIDE, bottom / SIDE


def _bars(lines: Floats) -> tuple[int, int]:
    low, high = np.percentile(lines, _INNER, axis=1)
    bar = (255 * (high - low) < _FLAT) | (255 * low > _WHITE)
    if bar.all():
        return 0, 0
    most = int(_MOST * len(lines))
    return min(int(bar.argmin()), most), min(int(bar[::-1].argmin()), most)


def _even_out(values: Floats) -> Floats:
    """Distance from the local mean in local standard deviations."""
    mean, square = (
        ndimage.gaussian_filter(v, _REACH * SIDE, mode="nearest", truncate=2.5) for v in (values, values**2)
    )
    spread: Floats = np.sqrt(np.maximum(square - mean * mean, 0))
    return np.asarray((values - mean) / (spread + _FLOOR))


def places(points: Points) -> Places:
    """Index into a flattened [S, S] of points f64[..., (x, y)] in shares of the side; beyond the rim, the rim's."""
    x, y = (np.clip(points[..., axis] * SIDE - 0.5, 0, SIDE - 1).astype(np.intp) for axis in (0, 1))
    return np.asarray(y * SIDE + x)
