"""The smallest effect that an audit can show, before it runs (from its images) and after (from its tests).

A test is positive where z = (effect - MARGIN) / SE exceeds that of ALPHA / m, the strictest step of Holm's correction
over m tests (see `shortcuts`). An effect of MARGIN + (z_(1 - ALPHA / m) + z_POWER) SE is therefore found with a chance
of POWER (Bloom 1995, "Minimum detectable effects", Evaluation Review 19:547).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats
from thoraclip.evaluation.audit_reading import MARGIN
from thoraclip.evaluation.reading import ALPHA, share
from thoraclip.pages import counted

__all__ = ["BEYOND", "POWER", "largest_error", "power", "smallest_effect"]

BEYOND = 0.10
"""Balanced accuracy beyond MARGIN: what an audit must be able to show, where enough images are there."""
POWER = 0.8
"""Chance with which an effect of the smallest size is found."""


def smallest_effect(error: Floats | float, tests: int) -> Floats:
    """The effect of standard error `error` that one of m `tests`, corrected together, finds with a chance of POWER,
    whatever the others find; see the module."""
    normal = NormalDist()
    return MARGIN + (normal.inv_cdf(1 - ALPHA / tests) + normal.inv_cdf(POWER)) * np.asarray(error)


def largest_error(counts: Floats, squares: Floats) -> Floats:
    """Largest standard error of a balanced accuracy, sqrt(sum_c 1/4 / n_c) / C: a share of n independent answers has a
    variance of 1/4 / n at most. So has a fall from one accuracy to another, where the two answers differ in being right
    on a quarter of the images at most.

    Where patients have several images, n is Kish's effective number (1965, "Survey Sampling", sec. 8.2), as if all
    images of a patient had the same answer: n_c = (sum of images)^2 / sum of squares.

    Args:
        counts: f64[..., C], images of each class.
        squares: f64[..., C], sum over patients of their images of each class, squared.

    Returns:
        f64[...], infinite where a class has no image.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.where(counts > 0, 0.25 * squares / counts**2, np.inf)
    return np.asarray(np.sqrt(variance.sum(axis=-1)) / counts.shape[-1])


def power(tests: Sequence[Mapping[str, Any]], *, images: int, groups: int, available: int) -> dict[str, Any]:
    """What the tests of the classifier could have shown, by the spread that they had; and how to show more.

    Of rows of `shortcuts.with_verdicts`, the images that were looked at, the independent groups among them, and all
    images that the classifier has not seen: `effect` (the largest of the tests' smallest effects; `None` where no test
    can tell), `beyond` (less MARGIN), `power`, `tests`, `images`, `groups`, `available`, `words`.
    """
    own = [t for t in tests if t["asks"] == "classifier"]
    errors = [t["error"] for t in own if not (t["is_constant"] or t["is_small"] or t["doubt"])]
    effect = float(smallest_effect(max(errors), len(own))) if errors else None
    seen = f"{counted(images, 'image')} of {counted(groups, 'independent group')} were looked at"
    shown = (
        "no test of the classifier can tell, whatever the effect"
        if effect is None
        else f"an effect of {share(effect)} points ({share(effect - MARGIN)} beyond the {100 * MARGIN:.0f} that are "
        "not called reliance), in any test of the classifier that can tell, would have been found with a chance of "
        f"{100 * POWER:.0f} %"
    )
    more = (
        f"Raise `images` (`audit_images` in a study) to show smaller ones: {available:,} are there, `all` takes them."
        if images < available
        else "There are no more images that the classifier has not seen."
    )
    row = {"effect": effect, "beyond": None if effect is None else effect - MARGIN, "power": POWER, "tests": len(own)}
    row |= {"images": images, "groups": groups, "available": available}
    return row | {"words": f"{seen}: {shown}. {more}"}
