"""The accuracy of the group, source by class, in which a method does worst, and its gap to the average accuracy
(Sagawa et al. 2020, "Distributionally Robust Neural Networks for Group Shifts", ICLR): a classifier that goes by the
source is right on average, and wrong where a class comes from an unusual source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thoraclip.dtypes import Ints, Masks
from thoraclip.proportions import LEVEL, patient_share

__all__ = ["worst_group"]


def worst_group(
    correct: Masks, target: Ints, sources: Sequence[str | None], patients: Ints, classes: Sequence[str], *, fewest: int
) -> dict[str, Any] | None:
    """The worst group of those with `fewest` patients or more; `None` where these are of fewer than two sources.

    The worst is chosen by looking, so its own interval would lie too low. All K groups and the average have
    simultaneous intervals, each of level 1 - 0.05 / (K + 1) (Bonferroni), by patient. Where all of them hold, which is
    in 95 % or more, the smallest true accuracy lies between the smallest lower and the smallest upper end, and the gap
    between the ends of the average minus those.

    Args:
        correct: bool[N], whether the answer is right.
        target: i64[N], the class of each image.
        sources: of each image; `None` where it is unknown.
        patients: i64[N], whose image it is.

    Returns:
        `groups` (their number), `source`, `class`, `images`, `patients`, `accuracy` (`value, low, high`), `average`
        (accuracy of the images of all these groups), and `gap` (`value, low, high`): average minus accuracy, 0 or more.
    """
    names = np.array([source or "" for source in sources])
    found = []
    for source in sorted({source for source in sources if source}):
        for c, name in enumerate(classes):
            rows = (names == source) & (target == c)
            owners = len(np.unique(patients[rows]))
            if owners >= fewest:
                found.append((float(correct[rows].mean()), source, name, rows, owners))
    if len({source for _, source, *_ in found}) < 2:
        return None
    level = 1 - (1 - LEVEL) / (len(found) + 1)
    ends = [patient_share(correct[rows], patients[rows], level) for _, _, _, rows, _ in found]
    low, high = (min(of_groups) for of_groups in zip(*ends, strict=True))
    every = np.any([rows for _, _, _, rows, _ in found], axis=0)
    average = float(correct[every].mean())
    average_low, average_high = patient_share(correct[every], patients[every], level)
    value, source, name, rows, owners = min(found, key=lambda group: group[:3])
    return {
        "groups": len(found),
        "source": source,
        "class": name,
        "images": int(rows.sum()),
        "patients": owners,
        "accuracy": {"value": value, "low": low, "high": high},
        "average": average,
        "gap": {"value": average - value, "low": max(0.0, average_low - high), "high": average_high - low},
    }
