"""What a picture loses, or has evened out, before a network sees it: remedies against shortcuts, by name.

A remedy belongs to `Preprocess`, so training, audit, bundle and page see the same pixels. Several are joined by `+` and
done from left to right: first all that crop, on the decoded picture, then all that change grey levels, on the resized
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats, Greys, Ints
from thoraclip.imaging.lungs import estimate_lungs, lung_box, usual_lungs

__all__ = ["NONE", "REMEDIES", "Box", "Remedy", "cropped", "crops", "kept_box", "remedied"]

NONE = "none"
Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels; right and bottom are outside."""

_CUT = 0.1  # of each side, by `centre`
_MARGIN = 0.05  # of each side, around the box of `lungs`
_TAILS = 0.02  # of the pixels, at each end, that `stretch` makes black or white
_TILES, _CLIP = 8, 2.0  # of `clahe`: tiles along a side; largest count of a grey level, in those of an even histogram
_MEAN, _SPREAD = 128, 64  # of the normal distribution of grey levels that `match` brings every picture to


@dataclass(frozen=True)
class Remedy:
    """One entry of `REMEDIES`: what it does, and the function that does it."""

    does: str
    box: Callable[[Greys], Box] | None = None  # u8[H, W] -> the part that is kept
    grey: Callable[[Greys], Greys] | None = None  # u8[H, W] -> u8[H, W]


def _centre(pixels: Greys) -> Box:
    height, width = pixels.shape
    return round(_CUT * width), round(_CUT * height), width - round(_CUT * width), height - round(_CUT * height)


def _lungs(pixels: Greys) -> Box:
    return lung_box(pixels, _MARGIN)


def _lungs_only(pixels: Greys) -> Greys:
    mask, reason = estimate_lungs(pixels)
    return np.where(usual_lungs(*pixels.shape) if reason else mask, pixels, 0).astype(np.uint8)


def _by_table(table: Callable[[Ints], Floats]) -> Callable[[Greys], Greys]:
    """A change of grey levels by a table, f64[256] in 0..255, of the counts i64[256] of the levels."""

    def change(pixels: Greys) -> Greys:
        levels = table(np.bincount(pixels.ravel(), minlength=256))
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[pixels]

    return change


def _middle_ranks(counts: Ints) -> Floats:
    """f64[256] in 0..1: the share of darker pixels, and half of those of the level itself."""
    return np.asarray((np.cumsum(counts) - counts / 2) / counts.sum())


def _stretched(counts: Ints) -> Floats:
    below = np.cumsum(counts) / counts.sum()
    low, high = int(np.searchsorted(below, _TAILS)), int(np.searchsorted(below, 1 - _TAILS))
    return (np.arange(256.0) - low) * 255 / max(high - low, 1)


def _equalised(counts: Ints) -> Floats:
    return 255 * _middle_ranks(counts)


def _matched(counts: Ints) -> Floats:
    from statistics import NormalDist

    ranks = np.clip(_middle_ranks(counts), 1e-4, 1 - 1e-4)
    return np.array([NormalDist(_MEAN, _SPREAD).inv_cdf(rank) for rank in ranks])


def _clahe(pixels: Greys) -> Greys:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994, Graphics Gems IV, pages 474-485).

    Each of 8 x 8 tiles has a table of its own, of its histogram cut off at twice the even count; a pixel takes the
    value between those of the four nearest tiles' centres."""
    height, width = pixels.shape
    rows, columns = (np.linspace(0, side, _TILES + 1).round().astype(int) for side in (height, width))
    tables = np.empty((_TILES, _TILES, 256))
    for i, j in np.ndindex(_TILES, _TILES):
        top, left = min(rows[i], height - 1), min(columns[j], width - 1)  # a side of fewer pixels than tiles
        tile = pixels[top : max(rows[i + 1], top + 1), left : max(columns[j + 1], left + 1)]
        counts = np.bincount(tile.ravel(), minlength=256).astype(np.float64)
        limit = _CLIP * tile.size / 256
        counts = np.minimum(counts, limit) + np.maximum(counts - limit, 0).sum() / 256
        tables[i, j] = _equalised(counts)
    down, across = (_between(side) for side in (height, width))
    mixed = np.zeros((height, width))
    for i, share_down in zip(down[0], down[1], strict=True):
        for j, share_across in zip(across[0], across[1], strict=True):
            mixed += share_down[:, None] * share_across * tables[i[:, None], j, pixels]
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _between(side: int) -> tuple[list[Ints], list[Floats]]:
    """Of every pixel along a side the tiles before and after it, and the share of each."""
    place = np.clip((np.arange(side) + 0.5) * _TILES / side - 0.5, 0, _TILES - 1)
    first = np.minimum(place.astype(np.int64), _TILES - 2)
    share = place - first
    return [first, first + 1], [1 - share, share]


REMEDIES: Mapping[str, Remedy] = {
    "centre": Remedy("the outer tenth of each side is cut off: borders, markers, burned-in text", box=_centre),
    "lungs": Remedy("only the box around both lungs is kept, and a margin of a twentieth", box=_lungs),
    "lungs-only": Remedy("black outside the lungs, whose outline is estimated", grey=_lungs_only),
    "stretch": Remedy("the darkest and brightest 2 % become black and white: exposure", grey=_by_table(_stretched)),
    "equalise": Remedy("every grey level becomes equally common: exposure and contrast", grey=_by_table(_equalised)),
    "clahe": Remedy("contrast is made equal in each of 8 x 8 tiles (CLAHE, clip limit 2)", grey=_clahe),
    "match": Remedy("grey levels get one distribution, normal of mean 128 and spread 64", grey=_by_table(_matched)),
}
"""Name -> remedy; the setting `remedy` takes these names, joined by `+`, or `none`."""


def _steps(remedy: str) -> list[Remedy]:
    return [] if remedy == NONE else [REMEDIES[name] for name in remedy.split("+")]


def crops(remedy: str) -> bool:
    """True where a part of the picture is cut off."""
    return any(step.box for step in _steps(remedy))


def kept_box(pixels: Greys, remedy: str) -> Box:
    """The part of a decoded picture u8[H, W] that a remedy keeps; all of it where none crops."""
    left, top, right, bottom = 0, 0, pixels.shape[1], pixels.shape[0]
    for step in _steps(remedy):
        if step.box:
            inner = step.box(pixels[top:bottom, left:right])
            left, top, right, bottom = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    return left, top, right, bottom


def cropped(pixels: Greys, remedy: str) -> Greys:
    """The part of a decoded picture u8[H, W] that a remedy keeps."""
    left, top, right, bottom = kept_box(pixels, remedy)
    return pixels[top:bottom, left:right]


def remedied(pixels: Greys, remedy: str) -> Greys:
    """A picture u8[H, W] with the grey levels that a remedy gives it."""
    for step in _steps(remedy):
        if step.grey:
            pixels = step.grey(pixels)
    return pixels
