"""How much each training image weighs in a loss: by its class, or by its source within its class.

Torch is not imported here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thoraclip.dtypes import Floats, Ints

__all__ = ["LARGEST_WEIGHT", "class_weights", "image_weights", "source_weights"]

LARGEST_WEIGHT = 10.0
"""Of an image, in means, when sources are balanced: a source of four images would rule otherwise."""


def class_weights(targets: Ints, classes: int, kind: str) -> Floats:
    """f64[C]: ones for `none`; N / (C n_c) for `balanced` (King & Zeng 2001, as in scikit-learn)."""
    if kind == "none":
        return np.ones(classes)
    counts = np.bincount(targets, minlength=classes)
    return len(targets) / (classes * np.maximum(counts, 1))


def image_weights(targets: Ints, classes: int, kind: str, sources: Ints | None = None) -> Floats:
    """f64[N]: `class_weights` of each image's class, or `source_weights` for `source`.

    Args:
        targets: i64[N], 0..C-1.
        classes: C.
        kind: none, balanced or source.
        sources: i64[N], the source of each image; read for `source` alone.
    """
    if kind == "source":
        if sources is None:
            raise ValueError("class_weight = 'source' needs the source of each image")
        return source_weights(targets, sources)
    return np.asarray(class_weights(targets, classes, kind)[targets])


def source_weights(targets: Ints, sources: Ints) -> Floats:
    """f64[N], of mean 1: the classes weigh the same in total, and within a class its sources do; no image weighs more
    than `LARGEST_WEIGHT`.

    What a class or a source of few images cannot take is shared equally by the other classes, or by the other sources
    of the class.

    Args:
        targets: i64[N], the class of each image.
        sources: i64[N], its source; -1 (unknown) is one more source.
    """
    weights = np.zeros(len(targets))
    _, target, counts = np.unique(targets, return_inverse=True, return_counts=True)
    for number, total in enumerate(_shares(len(targets), LARGEST_WEIGHT * counts)):
        rows = np.flatnonzero(target == number)
        _, source, images = np.unique(sources[rows], return_inverse=True, return_counts=True)
        weights[rows] = (_shares(total, LARGEST_WEIGHT * images) / images)[source]
    return weights


def _shares(total: float, most: npt.NDArray[np.floating]) -> Floats:
    """f64[K], summing to `total`: equal shares, but for those that can take less; `most` f64[K] sums to more."""
    shares, order = np.zeros(len(most)), np.argsort(most, kind="stable")
    for place, number in enumerate(order):
        shares[number] = min(most[number], total / (len(order) - place))
        total -= shares[number]
    return shares
