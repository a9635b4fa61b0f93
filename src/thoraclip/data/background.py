"""Features of an image outside its lungs: frame, marks, exposure, grain, the file; and the strokes near its edges.

Unlike the features of `trivial`, which are those of the whole image, nothing here is measured inside the lungs: where
these features name the class, a classifier can do without any finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.data.appearance import WORKING_SIDE, Box, describe, find_marks
from thoraclip.data.views import border, corners, with_margin
from thoraclip.dtypes import Floats, Greys, Masks, Singles

__all__ = ["BACKGROUND", "STROKES", "background_features", "edge_strokes", "file_features", "shown_features"]


BACKGROUND: Mapping[str, str] = {
    "frame": "grey levels of the border and the corners, and bars along the edges",
    "marks": "number, size and place of burned-in letters, arrows and other sharp strokes",
    "exposure": "grey levels outside the lungs",
    "grain": "noise and sharpness outside the lungs",
    "file": "the file's width over height, number of pixels, size in bytes and compression",
}
"""Group of features -> what is in it."""
STROKES = "fine strokes at fixed places of the border and the corners (digits of a date, say)"
"""What is in `edge_strokes`."""

_FRAME = ("border_brightness", "border_contrast", "bar_top", "bar_bottom", "bar_left", "bar_right", "corner_brightness")
_FILE = ("aspect_ratio", "megapixels", "blockiness", "fine_detail")
_CENTRE = 0.12  # of the side: where no lungs are known, they are taken to lie no nearer to an edge
_LEVELS = (2, 10, 25, 50, 75, 90, 98)
_STROKE_SIDE, _STROKE_REACH = 320, 9  # pixels: side to which images are brought, and of the mean around a pixel


def file_features(pixels: Greys, kilobytes: float) -> dict[str, list[float]]:
    """Group -> numbers of what is measured in the file's own pixels u8[H, W], and its size: frame, marks, file."""
    marks = find_marks(pixels)
    measured = describe(pixels, marks=marks)
    return {
        "frame": [measured[name] for name in _FRAME],
        "marks": _of_marks(marks, *pixels.shape),
        "file": [*(measured[name] for name in _FILE), kilobytes, 8e-3 * kilobytes / measured["megapixels"]],
    }


def _of_marks(marks: Sequence[Box], height: int, width: int) -> list[float]:
    """Number, area and widest mark, then the place of the widest: all as shares of the sides; zeros without one."""
    if not marks:
        return [0.0] * 7
    widest = max(marks, key=lambda box: (box.width, box.height))
    area = sum(box.width * box.height for box in marks) / (width * height)
    left = sum(box.left + box.width / 2 < width / 2 for box in marks)
    x, y = (widest.left + widest.width / 2) / width, (widest.top + widest.height / 2) / height
    return [float(len(marks)), area, widest.width / width, widest.height / height, x, y, left / len(marks)]


def shown_features(grey: Greys, lungs: Masks | None) -> dict[str, list[float]]:
    """Group -> numbers of what is measured in what a classifier is shown, u8[S, S]: exposure, grain.

    Without `lungs`, bool[S, S], the middle of the image is left out instead.
    """
    if lungs is None:
        outside = np.ones(grey.shape, dtype=bool)
        outside[tuple(slice(round(_CENTRE * side), side - round(_CENTRE * side)) for side in grey.shape)] = False
    else:
        outside = ~with_margin(lungs)
    values = grey.astype(np.float32)
    seen = values[outside] if outside.any() else values.ravel()
    levels = np.percentile(seen, _LEVELS)
    grain = [_noise(values, outside)]
    scale = max(1, min(grey.shape) // (WORKING_SIDE // 4))
    if scale > 1:
        side = min(grey.shape) // scale
        small, where = (a[: side * scale, : side * scale].reshape((side, scale) * 2) for a in (values, outside))
        grain.append(_noise(small.mean(axis=(1, 3)), np.asarray(where.all(axis=(1, 3)))))
    return {"exposure": [float(seen.mean()), float(seen.std()), *levels.tolist()], "grain": grain}


def edge_strokes(pixels: Greys) -> npt.NDArray[np.int8]:
    """i8[K]: how much brighter each pixel of the border and the corners is than its surroundings, of u8[H, W] brought
    to a square of 320 pixels; the same K places for all images."""
    side = _STROKE_SIDE
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(image, dtype=np.float32)
    local = values - ndimage.uniform_filter(values, _STROKE_REACH)
    where = border(side, side) | corners(side, side)
    return np.asarray(np.clip(np.round(local[where]), -127, 127), dtype=np.int8)


def _noise(values: Singles, where: Masks) -> float:
    """Median absolute response to a kernel that straight edges leave at zero (Immerkaer 1996, CVIU 64:300)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
    response = np.abs(ndimage.convolve(values, kernel, mode="nearest"))
    inside = ndimage.binary_erosion(where & (values > 2) & (values < 253))
    return float(np.median(response[inside])) if inside.any() else 0.0


def background_features(rows: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Floats]:
    """Group -> f64[N, K] from the numbers of N pictures, in the order of `BACKGROUND`."""
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in BACKGROUND if name in rows[0]}
