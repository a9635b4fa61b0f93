"""What an image shows besides anatomy: frame, brightness, bars, sharpness, compression, burned-in marks.

Where it differs between the classes, a classifier can score without looking at a lung
(Zech et al. 2018, doi:10.1371/journal.pmed.1002683; DeGrave et al. 2021, doi:10.1038/s42256-021-00338-7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.dtypes import Floats, Greys, Masks

__all__ = ["STATISTICS", "Box", "describe", "find_marks", "without_border"]

Window = tuple[slice, slice]

STATISTICS: Mapping[str, str] = {
    "aspect_ratio": "width over height, above 0",
    "megapixels": "width times height, in millions of pixels",
    "brightness": "mean grey level, 0..255",
    "contrast": "standard deviation of the grey levels, 0..127.5",
    "black": "share of pixels of grey level 2 or less, 0..1",
    "white": "share of pixels of grey level 253 or more, 0..1",
    "border_brightness": "mean grey level of the outer ring (4 % of each side), 0..255",
    "border_contrast": "standard deviation of the grey levels of the outer ring, 0..127.5",
    "bar_top": "bar of one grey level along the top edge, share of the height, 0..1",
    "bar_bottom": "bar of one grey level along the bottom edge, share of the height, 0..1",
    "bar_left": "bar of one grey level along the left edge, share of the width, 0..1",
    "bar_right": "bar of one grey level along the right edge, share of the width, 0..1",
    "corner_brightness": "mean grey level of the four corners (squares of 8 % of the shorter side), 0..255",
    "sharpness": "root mean square of the Laplacian at a shorter side of at most 256 pixels, in grey levels",
    "fine_detail": "Laplacian at the file's own resolution over that at half of it, 0 or more; low where upscaled",
    "grey_levels": "number of distinct grey levels, 1..256",
    "blockiness": "grey steps across the edges of 8 x 8 blocks over steps elsewhere, 0 or more; 1 without JPEG blocks",
    "mark_count": "number of burned-in marks (letters, text, arrows)",
    "mark_area": "share of the picture inside the boxes of burned-in marks, 0..1",
}
"""Name -> what it is, with unit and range; the order of everything that `describe` returns."""

BLACK, WHITE = 2, 253
RING, CORNER = 0.04, 0.08
BAR_TOLERANCE, BAR_SHARE = 6, 0.99
"""A line belongs to a bar where this share of it lies within so many grey levels of the outermost line's median."""
WORKING_SIDE = 256
"""Shorter side, in pixels, at which sharpness and marks are measured; larger pictures are reduced to it."""
_BLOCK = 8
_STEP_LIMIT = 16.0  # grey steps count up to here, so that one bar's edge does not outweigh the blocks

_STROKE, _LONGEST, _MIN_SIDE = 9, 128, 32
"""Of print, in pixels of the reduced picture: strokes are thinner, words no longer; smaller pictures have no marks."""
_SLIM, _DARK = 4.0, 30  # length over breadth of what is but a line; the grey level up to which print counts as black
_CONTRASTS, _EVIDENCE = (32, 60, 110), 75.0
"""Grey levels: by which strokes stand out (print over bone parts from it only at the higher ones), and at which sharp
contrast a mark is as likely as not."""


@dataclass(frozen=True)
class Box:
    """Where something lies in a picture: pixels from the top left corner; `score` 0..1, larger is surer."""

    left: int
    top: int
    width: int
    height: int
    score: float


def describe(pixels: Greys, *, marks: Sequence[Box] | None = None) -> dict[str, float]:
    """The numbers of `STATISTICS`, in their order; all finite for any image u8[H, W] of one pixel or more.

    `marks` are those of `find_marks`, where they are known already.
    """
    height, width = pixels.shape
    image = Image.fromarray(pixels)
    levels = np.array(image.histogram(), dtype=np.float64)
    brightness, contrast = _mean_and_spread(levels)
    across, down = max(1, round(RING * width)), max(1, round(RING * height))
    has_inside = 2 * across < width and 2 * down < height
    inside = image.crop((across, down, width - across, height - down)).histogram() if has_inside else np.zeros(256)
    border_brightness, border_contrast = _mean_and_spread(levels - np.array(inside, dtype=np.float64))
    marks = find_marks(pixels) if marks is None else marks
    top, bottom, left, right = _bars(pixels)
    corner = max(1, round(CORNER * min(pixels.shape)))
    ends = (slice(None, corner), slice(-corner, None))
    values = {
        "aspect_ratio": width / height,
        "megapixels": width * height / 1e6,
        "brightness": brightness,
        "contrast": contrast,
        "black": levels[: BLACK + 1].sum() / levels.sum(),
        "white": levels[WHITE:].sum() / levels.sum(),
        "border_brightness": border_brightness,
        "border_contrast": border_contrast,
        "bar_top": top / height,
        "bar_bottom": bottom / height,
        "bar_left": left / width,
        "bar_right": right / width,
        "corner_brightness": np.mean([pixels[rows, columns].mean() for rows in ends for columns in ends]),
        "sharpness": _laplacian(_reduce(image)),
        "fine_detail": _fine_detail(pixels),
        "grey_levels": float(np.count_nonzero(levels)),
        "blockiness": _blockiness(pixels),
        "mark_count": float(len(marks)),
        "mark_area": sum(box.width * box.height for box in marks) / (width * height),
    }
    return {name: float(values[name]) for name in STATISTICS}


def _mean_and_spread(levels: Floats) -> tuple[float, float]:
    """Mean and standard deviation of the grey levels with the histogram f64[256]."""
    share, grey = levels / levels.sum(), np.arange(256)
    mean = float(share @ grey)
    return mean, math.sqrt(float(share @ (grey - mean) ** 2))


def _bars(pixels: Greys) -> list[int]:
    """Number of the lines, inwards from top, bottom, left and right, that hold the outermost line's grey level."""
    down, across = (max(1, side // WORKING_SIDE) for side in pixels.shape)
    rows, columns = pixels[:, ::across], pixels[::down].T
    widths = []
    for lines in (rows, rows[::-1], columns, columns[::-1]):
        level = round(float(np.median(lines[0])))
        low, high = max(0, level - BAR_TOLERANCE), min(255, level + BAR_TOLERANCE)
        same = ((lines >= low) & (lines <= high)).mean(axis=1) >= BAR_SHARE
        widths.append(int(np.logical_and.accumulate(same).sum()))
    return widths


def without_border(pixels: Greys) -> Greys:
    """The picture without bars of one grey along its edges, also such that lie one inside the other.

    Whole where less than a third of a side would be left: one grey, or a small thing on one grey.
    """
    inner = pixels
    while True:
        (height, width), (top, bottom, left, right) = inner.shape, _bars(inner)
        if not any((top, bottom, left, right)):
            return inner
        if 3 * (height - top - bottom) < len(pixels) or 3 * (width - left - right) < len(pixels.T):
            return pixels
        inner = inner[top : height - bottom, left : width - right]


def _reduce(image: Image.Image) -> Greys:
    """u8[h, w]: the picture with a shorter side of at most `WORKING_SIDE` pixels, averaged."""
    scale = WORKING_SIDE / min(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(image)


def _laplacian(pixels: npt.NDArray[Any]) -> float:
    """Root mean square of the 4-neighbour Laplacian over the inside; 0 where there is no inside."""
    values = pixels.astype(np.float32)
    if min(values.shape) < 3:
        return 0.0
    middle = values[1:-1, 1:-1]
    curve = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * middle
    return math.sqrt(float(np.mean(curve * curve)))


def _fine_detail(pixels: Greys) -> float:
    """Laplacian of the middle 512 x 512 pixels over that of the same reduced to half; 0 for a constant picture."""
    top, left = (max(0, (side - 512) // 2) for side in pixels.shape)
    middle = pixels[top : top + 512, left : left + 512].astype(np.float32)
    height, width = (side // 2 * 2 for side in middle.shape)
    even = middle[:height, :width]
    half = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    coarse = _laplacian(half)
    return _laplacian(middle) / coarse if coarse > 0 else 0.0


def _blockiness(pixels: Greys) -> float:
    """Mean step across the lines of the 8 x 8 grid over the mean step elsewhere, both directions; 1 without steps."""
    edge, other = [], []
    for lines in (grey[:: max(1, len(grey) // WORKING_SIDE)] for grey in (pixels, pixels.T)):
        steps = np.minimum(np.abs(np.diff(lines.astype(np.int16), axis=1)), _STEP_LIMIT).mean(axis=0)
        on_edge = np.arange(1, len(steps) + 1) % _BLOCK == 0
        edge.append(steps[on_edge])
        other.append(steps[~on_edge])
    across, within = np.concatenate(edge), np.concatenate(other)
    if not len(across) or not len(within) or within.mean() == 0:
        return 1.0
    return float(across.mean() / within.mean())


def find_marks(pixels: Greys) -> list[Box]:
    """Burned-in letters, words, arrows and plates: small, sharp strokes that stand out, most of them near the rim.

    A top-hat (Serra 1982, Image Analysis and Mathematical Morphology, ch. 12) keeps strokes thinner than 9 of 256
    pixels. At each contrast, neighbouring strokes make one candidate; `_score` keeps what has the sharp edge and the
    contrast of print. Dark print counts where it is nearly black. A warning, not a proof: electrodes and clips near the
    rim look alike, and faint lead letters over bone are missed.

    Returns:
        Boxes in `pixels` u8[H, W], from top to bottom; none in an image with a side of less than 32 pixels.
    """
    if min(pixels.shape) < _MIN_SIDE:
        return []
    image = _reduce(Image.fromarray(pixels))
    steps = _sliding(image, 3, np.maximum) - _sliding(image, 3, np.minimum)
    marks: list[tuple[Window, float]] = []
    for shown, contrasts in ((image, _CONTRASTS), (255 - image, _CONTRASTS[-1:])):
        strokes = shown - _sliding(_sliding(shown, _STROKE, np.minimum), _STROKE, np.maximum)
        for contrast in contrasts:  # from faint to strong: a word counts whole, unless it touches anatomy as faint
            for window, ink in _candidates(strokes, contrast):
                score = _score(window, ink, strokes, steps)
                black = shown is image or float(np.median(image[window][ink])) <= _DARK
                if score >= 0.5 and black and not any(_overlap(window, other) for other, _ in marks):
                    marks.append((window, score))
    scale = min(pixels.shape) / min(image.shape)
    boxes = []
    for window, score in marks:  # back to the picture's own pixels, rounded outwards
        top, left = (int(part.start * scale) for part in window)
        bottom, right = (min(n, math.ceil(part.stop * scale)) for part, n in zip(window, pixels.shape, strict=True))
        boxes.append(Box(left, top, right - left, bottom - top, score))
    return sorted(boxes, key=lambda box: (box.top, box.left))


def _sliding(pixels: npt.NDArray[Any], size: int, pick: np.ufunc) -> npt.NDArray[Any]:
    """Minimum or maximum of the `size` x `size` pixels (odd) around each, as SciPy's filters, in a tenth of the time:
    of windows of 1, 2, 4, ... pixels, each made of two."""
    for _ in range(2):  # down, then across
        pixels = np.pad(pixels, ((size // 2, size // 2), (0, 0)), mode="edge")
        width = 1
        while width < size:
            step = min(width, size - width)
            pixels, width = pick(pixels[:-step], pixels[step:]), width + step
        pixels = pixels.T
    return pixels


def _candidates(strokes: Greys, contrast: int) -> Iterator[tuple[Window, Masks]]:
    """Groups of strokes that lie within 4 pixels of each other: window, and bool[h, w] of its strokes."""
    ink = strokes >= contrast
    joined, _ = ndimage.label(_sliding(ink, 5, np.maximum), np.ones((3, 3)))
    for number, (rows, columns) in enumerate(ndimage.find_objects(joined), start=1):
        if max(rows.stop - rows.start, columns.stop - columns.start) > _LONGEST + 4:
            continue
        own = (joined[rows, columns] == number) & ink[rows, columns]
        if strokes[rows, columns][own].max() < _EVIDENCE:
            continue
        down, across = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        own = own[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        top, left = rows.start + int(down[0]), columns.start + int(across[0])
        if _is_like_print(own):
            yield (slice(top, top + own.shape[0]), slice(left, left + own.shape[1])), own


def _is_like_print(ink: Masks) -> bool:
    """A letter is 4 to 45 pixels (of 256) and no bare line; longer or slimmer things must be a row of letters."""
    short, long = sorted(ink.shape)
    if short < 4 or long < 6 or not 0.13 <= ink.mean() <= 0.92:
        return False
    spread = np.linalg.eigvalsh(np.cov(np.nonzero(ink)))  # along the main axis and across it
    if long <= 45 and spread[1] <= _SLIM**2 * spread[0]:
        return True
    lengthwise = ink if ink.shape[1] >= ink.shape[0] else ink.T
    letters = (np.diff(lengthwise.astype(np.int8), axis=1, prepend=0) == 1).sum(axis=1).max()
    return bool(short <= 22 and letters >= max(4, long / 12))


def _score(window: Window, ink: Masks, strokes: Greys, steps: Greys) -> float:
    """x / (x + 75), x: contrast in grey levels times edge sharpness squared, less at the edge or far from the rim."""
    contrast = float(np.percentile(strokes[window][ink], 90))
    sharp = min(1.0, float(np.percentile(steps[window][ink], 75)) / contrast)
    (height, width), (rows, columns) = strokes.shape, window
    x, y = (columns.start + columns.stop) / 2 / width, (rows.start + rows.stop) / 2 / height
    on_rim = min(x, 1 - x) < 0.22 or y < 0.16 or y > 0.92
    touches = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
    evidence = contrast * sharp * sharp * (1 if on_rim else 1 / 3) * (0.7 if touches else 1)
    return evidence / (evidence + _EVIDENCE)


def _overlap(window: Window, other: Window) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(window, other, strict=True))
