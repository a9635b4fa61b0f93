"""The estimate of both lung fields, and what makes it implausible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.data.lungs.contour import trace
from thoraclip.data.lungs.evidence import Evidence, find_evidence
from thoraclip.data.lungs.shape import adapt, balance, outlines, search
from thoraclip.errors import ImageError

__all__ = ["LEAST_QUALITY", "LungEstimate", "estimate_lungs", "oddities"]

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

LEAST_QUALITY = 0.27
"""Below it the outline is a guess. Of 300 radiographs drawn at random, with and without pneumonia, 19 lay below, 14 of them
outlined wrongly; of the 53 next above, three reached too far up."""
AREA = (0.05, 0.70)
"""Share of the picture that two lungs can take."""
LEAST_RATIO = 0.30
"""Area of the smaller lung over that of the larger one."""
MIDDLE = (0.20, 0.80)
"""Where the middle of both lungs can lie, as a share of the width and of the height."""
_SPECK = 0.01
"""Parts smaller than this share of the picture are no lung."""
_RING = 7
"""Width of the ring around a lung, in pixels of 128."""
_WHOLE = (0.0, 0.0, 1.0, 1.0)
_LOOK = 128
"""Longer side at which a mask is looked at."""


@dataclass(frozen=True)
class LungEstimate:
    """Both lung fields, estimated.

    Args:
        mask: bool[H, W], of the picture's own size; also where the estimate is implausible.
        quality: 0..1, how clearly the lungs stand out; 0.5 is usual. The lesser of two numbers: the mean along the border of
            the fainter lung of tanh(d), d the step across it in local standard deviations; and how much darker both lungs
            are than a ring around them, darkness from 0 to 1.
        reasons: what is implausible about it, each in words; empty for a plausible one.
    """

    mask: Mask
    quality: float
    reasons: tuple[str, ...]

    @property
    def is_plausible(self) -> bool:
        """True where nothing speaks against it."""
        return not self.reasons


def estimate_lungs(pixels: Grey) -> LungEstimate:
    """Both lung fields of a frontal chest radiograph, opacities inside them included; no trained part.

    A mean outline is fitted to what is dark for its neighbourhood and to the brighter rim around it, each lung adapts, and
    its border is traced by dynamic programming; see `shape` and `contour`. Heart and mediastinum are left out, the lung
    behind the heart with them. Dense opacities at the rim of a lung are partly taken for the wall, so the outline itself can
    tell a class: of phantoms with the densest ones, 72 % (COVID-19), 84 % (Non-COVID) and 95 % (Normal) of the lungs are
    covered, of those with the faintest ones 95 % in each class. Lateral views and turned bodies are not provided for; what
    is implausible says so.

    Args:
        pixels: u8[H, W], any size.

    Raises:
        ImageError: not u8[H, W] with at least one pixel.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise ImageError(f"pixels are {pixels.dtype}{list(pixels.shape)}; u8[H, W] with at least one pixel is expected")
    evidence = find_evidence(pixels)
    if evidence.is_blank:
        return LungEstimate(np.zeros(pixels.shape, bool), 0.0, ("the picture is blank",))
    common = search(evidence)
    borders, sharpness = [], []
    lungs = balance(*(adapt(evidence, common, side) for side in (-1, 1)))
    for side, own in zip((-1, 1), lungs, strict=True):
        border, sharp = trace(evidence, outlines(own[None], side)[0], side)
        borders.append(border)
        sharpness.append(sharp)
    mask = _fill(borders, evidence.box, pixels.shape)
    quality = min(1.0, max(0.0, min(*sharpness, _separation(evidence, borders))))
    faint = [f"the lungs are faint: quality {quality:.2f} is below {LEAST_QUALITY}"] if quality < LEAST_QUALITY else []
    return LungEstimate(mask, quality, (*faint, *oddities(mask)))


def _separation(evidence: Evidence, borders: list[Points]) -> float:
    """How much darker the lungs are than the ring around each, -1..1, mean of both; -1 where one has no inside."""
    dark = np.diff(evidence.dark, axis=1)
    lungs = [_fill([border], _WHOLE, dark.shape) for border in borders]
    apart = ndimage.binary_dilation(lungs[0] | lungs[1])
    found = []
    for lung in lungs:
        ring = ndimage.binary_dilation(lung, iterations=_RING) & ~apart
        if not lung.any() or not ring.any():
            return -1.0
        found.append(dark[lung].mean() - dark[ring].mean())
    return float(np.mean(found))


def _fill(borders: list[Points], box: tuple[float, float, float, float], shape: tuple[int, ...]) -> Mask:
    """bool[H, W] of what lies within the borders, whose points are shares of the box."""
    (left, top, right, bottom), (height, width) = box, shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for border in borders:
        points = (border * [right - left, bottom - top] + [left, top]) * [width, height] - 0.5
        pen.polygon([(x, y) for x, y in points.tolist()], fill=255)
    return np.asarray(sheet) > 0


def oddities(mask: Mask) -> tuple[str, ...]:
    """What speaks against a mask bool[H, W] being two lungs in a frontal radiograph, in words; empty where nothing does."""
    small = _reduce(mask)
    area = float(small.mean())
    if not AREA[0] <= area <= AREA[1]:
        return (f"{100 * area:.1f} % of the picture is lung; expected {100 * AREA[0]:.0f} to {100 * AREA[1]:.0f} %",)
    parts, count = ndimage.label(small)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(sizes >= _SPECK * small.size) + 1
    if len(large) != 2:
        return (f"{len(large)} parts in place of two lungs",)
    found = []
    ratio = sizes[large - 1].min() / sizes[large - 1].max()
    if ratio < LEAST_RATIO:
        found.append(f"one lung is {ratio:.2f} of the other; expected {LEAST_RATIO:.2f} or more")
    centres = np.array(ndimage.center_of_mass(small, parts, large)) / small.shape
    (y, x), (down, across) = centres.mean(axis=0), np.abs(centres[1] - centres[0])
    if across * small.shape[1] <= down * small.shape[0]:
        found.append("the two parts do not lie side by side")
    if not (MIDDLE[0] <= x <= MIDDLE[1] and MIDDLE[0] <= y <= MIDDLE[1]):
        found.append(f"the lungs' middle lies at {x:.2f} of the width and {y:.2f} of the height, too near the edge")
    return tuple(found)


def _reduce(mask: Mask) -> Mask:
    """The mask with a longer side of at most 128 pixels."""
    scale = _LOOK / max(mask.shape)
    if scale >= 1:
        return mask
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
