"""How well a heat map points at what is known to be there, and how much the score hangs on what it points at.

Masks come from people (or from the drawing of a phantom), curves from `benchmarks.explanations`; no model is seen here.
None of the measures shows that a map is right: a map may point at a lesion that the network does not use.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thoraclip.errors import MismatchError
from thoraclip.evaluation.intervals import Estimate, estimate

__all__ = [
    "POINTING_TOLERANCE",
    "curve_area",
    "mass_share",
    "mean_with_interval",
    "points_at",
    "rank_correlation",
    "ratio_with_interval",
]

Heat = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

POINTING_TOLERANCE = 15 / 500
"""Share of the longer side: the 15 pixels of Zhang et al. on VOC pictures, whose longer side is 500."""


def points_at(heat: Heat, mask: Mask, *, tolerance: float = POINTING_TOLERANCE) -> bool:
    """The pointing game (Zhang et al. 2016, arXiv:1608.00507, section 4.1): is the hottest pixel in the mask, or near
    it?

    Args:
        heat: f[H, W]; of several hottest pixels the first in reading order counts. A flat map points at nothing.
        mask: bool[H, W], with a pixel set.
        tolerance: allowed distance to the mask's nearest pixel, as a share of the longer side.

    Raises:
        MismatchError: map and mask differ in shape.
    """
    _require_same_shape(heat, mask)
    if np.ptp(heat) == 0:
        return False
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    rows, columns = np.nonzero(mask)
    distance = np.hypot(rows - row, columns - column).min(initial=np.inf)
    return bool(distance <= tolerance * max(heat.shape))


def mass_share(heat: Heat, mask: Mask) -> float:
    """Share of the map's mass that lies in the mask; a map without mass has none there: 0.

    A map that knows nothing gets the mask's share of the area, on average.

    Raises:
        MismatchError: map and mask differ in shape.
    """
    _require_same_shape(heat, mask)
    total = float(heat.sum(dtype=np.float64))
    return float(heat[mask].sum(dtype=np.float64)) / total if total > 0 else 0.0


def curve_area(curve: Floats) -> float:
    """Area under a deletion or insertion curve, f64[K + 1] at equal steps over [0, 1], by trapezoids.

    Deletion: less is better; insertion: more (Petsiuk et al. 2018, arXiv:1806.07421, section 4.2).
    """
    return float(((curve[1:] + curve[:-1]) / 2).mean())


def rank_correlation(a: Heat, b: Heat) -> float:
    """Spearman's rank correlation of two maps over their pixels, ties at their mean rank; 0 where one of them is flat.

    Between the map of a network and that of its randomised twin it is what the sanity check of Adebayo et al. 2018
    (arXiv:1810.03292) looks at: near 1, the map does not depend on what was learnt.

    Raises:
        MismatchError: the maps differ in shape.
    """
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    _require_same_shape(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def mean_with_interval(values: Floats, *, is_share: bool = False, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean over images with its 95 % bootstrap interval.

    Args:
        values: f64[N], one per image.
        is_share: True for hits (0 or 1): they get the interval of a share.
        resamples: of the images.
        seed: of the resampling.
    """
    drawn = _draws(len(values), resamples, seed)
    replicates = values[drawn].mean(axis=1) if len(values) > 1 else None
    bounds = (0.0, 1.0) if is_share else (-np.inf, np.inf)
    return estimate(float(values.mean()), replicates, clusters=len(values), bounds=bounds)


def ratio_with_interval(above: Floats, below: Floats, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """sum(above) / sum(below) over images, such as mass in the mask over the mask's area, with its 95 % bootstrap
    interval.

    Args:
        above, below: f64[N], of the same images; `below` positive.
        resamples, seed: as in `mean_with_interval`.
    """
    drawn = _draws(len(above), resamples, seed)
    replicates = above[drawn].sum(axis=1) / below[drawn].sum(axis=1) if len(above) > 1 else None
    value = float(above.sum() / below.sum())
    return estimate(value, replicates, clusters=len(above), bounds=(0.0, np.inf))


def _draws(count: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, count, size=(resamples, count))


def _require_same_shape(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> None:
    if a.shape != b.shape:
        raise MismatchError(f"map {list(a.shape)} and {list(b.shape)}: both must have the same height and width")
