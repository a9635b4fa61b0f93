"""From a fitted shape to the lung's own border: the best path along the outline, by dynamic programming."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.data.lungs.evidence import Evidence, places
from thoraclip.data.lungs.shape import normals

__all__ = ["trace"]

Points = npt.NDArray[np.float64]

_POINTS, _OFFSETS = 64, 15
_REACHES = (0.08, 0.05)
"""How far, in shares of the side, the border may lie from the outline, in the first and the second round."""
_ACROSS = 0.02
"""Distance across the border at which brightness is compared."""
_STIFF = 6.0
"""Cost of a step from the innermost to the outermost offset between neighbouring points, squared in between."""
_PULL, _INWARDS = 0.15, 2.0
"""Cost of the farthest offset; inwards it is higher, since an opacity at the border looks like the wall."""
_GROW = 0.016
"""Where brightness changes fastest, the ribs begin; the lung field that readers outline ends so much further out."""


def trace(evidence: Evidence, outline: Points, side: int) -> tuple[Points, float]:
    """(border f64[64, 2], mean contrast across it, -1..1) of one lung.

    The path along the outline, one offset per normal, that is brightest outside against inside and bends least (Amini et
    al. 1990, doi:10.1109/34.57681), twice; then the lateral wall is made convex, so that an opacity beside it stays lung.
    """
    points, sharp = _resample(outline), 0.0
    for number, reach in enumerate(_REACHES):
        if number:
            points = _resample(ndimage.gaussian_filter1d(points, 1.0, axis=0, mode="wrap"))
        points, sharp = _best_path(evidence, points, side, reach)
    points = _make_wall_convex(points, side)
    return points + _GROW * normals(points, side), sharp


def _resample(outline: Points) -> Points:
    """f64[64, 2]: points at equal distances along a closed outline."""
    closed = np.concatenate([outline, outline[:1]])
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    at = np.linspace(0, along[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)


def _best_path(evidence: Evidence, points: Points, side: int, reach: float) -> tuple[Points, float]:
    out = normals(points, side)[:, None]
    offsets = np.linspace(-1, 1, _OFFSETS)
    tried = points[:, None] + reach * offsets[:, None] * out
    across = _ACROSS * out
    values = evidence.contrast.ravel()
    contrast = np.tanh(values[places(tried + across)] - values[places(tried - across)])
    gain = contrast - _PULL * offsets**2 * np.where(offsets < 0, _INWARDS, 1)
    cost = _STIFF * (offsets[:, None] - offsets) ** 2
    chosen = _closed_path(gain, cost)
    rows = np.arange(_POINTS)
    return tried[rows, chosen], float(contrast[rows, chosen].mean())


def _closed_path(gain: npt.NDArray[np.floating], cost: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """i[K]: offset at each of K points, by Viterbi's algorithm once around and half again; the middle of it closes."""
    count = len(gain)
    order = np.arange(count + count // 2) % count
    value, back = gain[0], []
    for k in order[1:]:
        arriving = value[:, None] - cost
        best = arriving.argmax(axis=0)
        back.append(best)
        value = arriving[best, np.arange(gain.shape[1])] + gain[k]
    path = [int(value.argmax())]
    for best in reversed(back):
        path.append(int(best[path[-1]]))
    path.reverse()
    chosen = np.empty(count, np.intp)
    middle = slice(count // 4, count // 4 + count)
    chosen[order[middle]] = path[middle]
    return chosen


def _make_wall_convex(points: Points, side: int) -> Points:
    """The wall from the apex to the costophrenic angle, pushed out to its convex hull; all else as it is."""
    apex = int(points[:, 1].argmin())
    angle = int((points[:, 1] + 0.5 * side * points[:, 0]).argmax())
    wall = (apex + np.arange((angle - apex) % len(points) + 1)) % len(points)
    wall = wall[np.argsort(points[wall, 1], kind="stable")]
    y, x = points[wall, 1], side * points[wall, 0]
    hull: list[int] = []
    for i in range(len(wall)):
        while len(hull) > 1 and _turns_in(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    pushed = points.copy()
    pushed[wall, 0] = side * np.maximum(x, np.interp(y, y[hull], x[hull]))
    return pushed


def _turns_in(x: Points, y: Points, a: int, b: int, c: int) -> bool:
    """True where point b lies on or within the line from a to c."""
    return bool((x[b] - x[a]) * (y[c] - y[a]) <= (x[c] - x[a]) * (y[b] - y[a]))
