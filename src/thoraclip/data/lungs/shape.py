"""The mean outline of two lung fields and its fit to a picture.

A lung is six numbers: `centre` (x of the mid-line), `top`, `bottom` (y of apex and costophrenic angle), `reach` (from the
mid-line to the lateral wall), `inner` and `heart` (how far the medial border stands off, all along and beside the heart),
in shares of the side. Both lungs are first sought together, over a grid, then each adapts by itself.

A fit is good where the picture is brighter just outside the outline than just inside (a matched contour, as in active
shape models; Cootes et al. 1995, doi:10.1006/cviu.1995.1004), and where outline and dark region coincide (Dice).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from thoraclip.data.lungs.evidence import SIDE, Evidence, places

__all__ = ["adapt", "balance", "normals", "outlines", "search"]

Params = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]
Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
Spans = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]

_LATERAL = (
    (0.22, 0.06), (0.30, 0.01), (0.42, 0.00), (0.55, 0.03), (0.66, 0.10), (0.76, 0.21), (0.84, 0.34), (0.90, 0.49),
    (0.95, 0.65), (0.985, 0.82), (1.0, 1.0),
)  # fmt: skip
_TEMPLATES = {
    -1: np.array([
        *_LATERAL, (0.90, 0.93), (0.77, 0.87), (0.62, 0.84), (0.45, 0.84), (0.28, 0.87), (0.21, 0.87), (0.20, 0.74),
        (0.19, 0.60), (0.20, 0.45), (0.18, 0.30), (0.18, 0.16),
    ]),
    1: np.array([
        *_LATERAL, (0.90, 0.94), (0.80, 0.90), (0.70, 0.88), (0.58, 0.89), (0.48, 0.90), (0.43, 0.83), (0.37, 0.73),
        (0.28, 0.60), (0.20, 0.46), (0.17, 0.30), (0.18, 0.16),
    ]),
}  # fmt: skip
"""Outlines of the lung at the picture's left (-1) and right (1): distance from the mid-line over `reach`, height over that of
the lung; drawn after textbook anatomy: apex, lateral wall, costophrenic angle, dome, cardiac and mediastinal border."""
_PART = np.repeat([0, 1, 2, 3], [4, 6, 6, 6])
_WEIGHTS = 1 / (4 * np.bincount(_PART)[_PART])
"""Apex, lateral wall, base and medial border count alike."""
_MEAN, _SPREAD = np.array([0.50, 0.12, 0.80, 0.43]), np.array([0.06, 0.10, 0.14, 0.08])
"""Where lungs lie in a radiograph: a weak prior on the first four numbers."""
_PRIOR = 0.02
"""Weight of a squared distance from where a number is expected, in its spreads."""
_OVERLAP = 2.0
"""Weight of the overlap with what is dark, against that of the contour."""
_WIDE, _CLOSE = 0.045, 0.03
"""Distance across the outline at which brightness is compared, while searching and while adapting."""
_OWN_SPREAD = np.array([0.02, 0.04, 0.07, 0.04, 0.06, 0.10])
"""How far the numbers of one lung lie from the common ones."""
_STEPS = np.linspace(-2.5, 2.5, 15)
_ORDER = (3, 2, 1, 4, 5)
"""Numbers that adapt, one after the other, and the steps that each tries, in its spreads; the mid-line stays."""
_SHRINKING = np.array([1, 1, 4, 4, 1, 1])
"""One lung alone seldom ends higher or further in than both together; where it seems to, an opacity hides its border."""
_LEVELS = (np.arange(20) + 0.5) / 20
"""Heights within a lung, 0 apex to 1 base, at which the inside is summed up."""
_ABOVE, _BELOW, _BESIDE = 0.10, 0.30, 1.06
"""The dark region that must be explained reaches so far beyond the outline; further out there is air."""


def _spans_of(template: Points) -> Points:
    """f64[20, 2]: where the outline begins and ends at each level, seen from the mid-line."""
    sheet = Image.new("L", (400, 400))
    ImageDraw.Draw(sheet).polygon([(380 * u, 399 * v) for u, v in template], fill=255)
    rows = np.asarray(sheet)[(400 * _LEVELS).astype(int)] > 0
    return np.stack([rows.argmax(axis=1), 399 - rows[:, ::-1].argmax(axis=1)], axis=1) / 380


_SPANS = {side: _spans_of(template) for side, template in _TEMPLATES.items()}


def _bend(u: Points, v: Points, params: Params) -> Points:
    """Push the medial border outwards: f64[n, K] from f64[K] and params f64[n, 6]."""
    push = params[:, 4:5] + params[:, 5:6] * np.clip((v - 0.35) / 0.4, 0, 1)
    return np.asarray(u + push * (1 - u))


def outlines(params: Params, side: int) -> Points:
    """f64[n, 22, (x, y)] of params f64[n, 6]; side -1 is the picture's left."""
    template = _TEMPLATES[side]
    x = params[:, :1] + side * params[:, 3:4] * _bend(template[:, 0], template[:, 1], params)
    y = params[:, 1:2] + (params[:, 2:3] - params[:, 1:2]) * template[:, 1]
    return np.stack([x, y], axis=-1)


def normals(points: Points, side: int) -> Points:
    """Unit vectors f64[..., K, 2] that point out of closed outlines f64[..., K, 2]."""
    along = side * (np.roll(points, -1, axis=-2) - np.roll(points, 1, axis=-2))
    out = np.stack([along[..., 1], -along[..., 0]], axis=-1)
    return np.asarray(out / (np.sqrt((out * out).sum(axis=-1, keepdims=True)) + 1e-9))


def _pairs(params: Params, side: int, distance: float) -> Pairs:
    """Places just outside and just inside the outlines, each i[n, 22]."""
    points = outlines(params, side)
    out = distance * normals(points, side)
    return places(points + out), places(points - out)


def _spans(params: Params, side: int) -> Spans:
    """(row, first column, column after the last) of every level of every outline, each i[n, 20]."""
    near, far = (params[:, :1] + side * params[:, 3:4] * _bend(u, _LEVELS, params) for u in _SPANS[side].T)
    y = params[:, 1:2] + (params[:, 2:3] - params[:, 1:2]) * _LEVELS
    rows = np.clip((y * SIDE).astype(np.intp), 0, SIDE - 1)
    return rows, _column(np.minimum(near, far)), _column(np.maximum(near, far))


def _column(x: Points) -> npt.NDArray[np.intp]:
    return np.clip(np.rint(x * SIDE), 0, SIDE).astype(np.intp)


def _inside(evidence: Evidence, params: Params, spans: Spans) -> tuple[Numbers, Numbers]:
    """(darkness inside, area), each f[n], as shares of the square."""
    rows, first, last = spans
    scale = (params[:, 2] - params[:, 1]) / (len(_LEVELS) * SIDE)
    dark = evidence.dark
    return scale * (dark[rows, last] - dark[rows, first]).sum(axis=1), scale * (last - first).sum(axis=1)


def _around(evidence: Evidence, params: Params, sides: tuple[int, ...]) -> Numbers:
    """f[n]: darkness in the box around the lungs, which the outline ought to hold all of."""
    centre, top, bottom, reach = params[:, :4].T
    ends = [centre, *(centre + side * _BESIDE * reach for side in sides)]
    left, right = _column(np.minimum.reduce(ends)), _column(np.maximum.reduce(ends))
    upper, lower = _column(top - _ABOVE), _column(bottom + _BELOW)
    table = evidence.table
    return (table[lower, right] - table[upper, right] - table[lower, left] + table[upper, left]) / SIDE**2


@cache
def _grid() -> tuple[Params, Numbers, dict[int, Pairs], dict[int, Spans]]:
    """Every place and size that is tried, with its prior and where to look in the picture; the same for all pictures."""
    axes = (
        np.linspace(0.38, 0.62, 7),
        np.linspace(-0.05, 0.35, 9),
        np.linspace(0.48, 1.08, 11),
        np.linspace(0.24, 0.54, 9),
    )
    found = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    height = found[:, 2] - found[:, 1]
    slim = height / (2 * found[:, 3])
    found = found[(height > 0.3) & (slim > 0.5) & (slim < 1.4)]
    prior = -_PRIOR * (((found - _MEAN) / _SPREAD) ** 2).sum(axis=1)
    params = np.concatenate([found, np.zeros((len(found), 2))], axis=1)
    pairs = {side: _pairs(params, side, _WIDE) for side in (-1, 1)}
    return params, prior, pairs, {side: _spans(params, side) for side in (-1, 1)}


def _contour(evidence: Evidence, pairs: Pairs) -> Numbers:
    """f[n] in -1..1: how much brighter it is outside."""
    outside, inside = (evidence.smooth.ravel()[at] for at in pairs)
    return np.asarray(np.tanh(outside - inside) @ _WEIGHTS)


def search(evidence: Evidence) -> Params:
    """f64[6]: both lungs with one set of numbers, the best of the grid."""
    params, prior, pairs, spans = _grid()
    contour = sum(_contour(evidence, pairs[side]) for side in (-1, 1))
    (dark_left, left), (dark_right, right) = (_inside(evidence, params, spans[side]) for side in (-1, 1))
    overlap = 2 * (dark_left + dark_right) / (left + right + _around(evidence, params, (-1, 1)))
    best: Params = params[int(np.argmax(prior + contour / 2 + _OVERLAP * overlap))]
    return best


def adapt(evidence: Evidence, start: Params, side: int) -> Params:
    """f64[6]: one lung's own numbers, one coordinate at a time, held near the common ones."""

    def score(params: Params) -> Numbers:
        dark, area = _inside(evidence, params, _spans(params, side))
        overlap = 2 * dark / (area + _around(evidence, params, (side,)) + 1e-6)
        off = ((params - start) / _OWN_SPREAD) ** 2
        held = (off * np.where(params < start, _SHRINKING, 1)).sum(axis=1)
        return np.asarray(_contour(evidence, _pairs(params, side, _CLOSE)) + _OVERLAP * overlap - _PRIOR * held)

    best = start
    for number in _ORDER * 2:
        tried = np.repeat(best[None], len(_STEPS), axis=0)
        tried[:, number] = start[number] + _STEPS * _OWN_SPREAD[number]
        best = tried[int(np.argmax(score(tried)))]
    return best


def balance(left: Params, right: Params) -> tuple[Params, Params]:
    """Both lungs' numbers, each taken halfway to the higher apex, the lower base and the farther wall of the two.

    Lungs are of like size, and what makes one of them look smaller is mostly an opacity.
    """
    outer = np.array([min(left[1], right[1]), max(left[2], right[2]), max(left[3], right[3])])
    found = np.stack([left, right])
    found[:, 1:4] = (found[:, 1:4] + outer) / 2
    return found[0], found[1]
