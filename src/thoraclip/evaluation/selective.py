"""Selective prediction: how right the answers are when the least confident ones are left to somebody else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["COVERAGES", "accuracy_at", "accuracy_curve", "aurc"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COVERAGES = (0.5, 0.8, 0.9, 1.0)
"""Shares of answered images at which the accuracy has an interval."""


def accuracy_curve(confidence: Floats, correct: Bools) -> Floats:
    """Accuracy of the k most confident answers, for k = 1, ..., N.

    Equally confident images are answered in a random order: the expectation (f64[N]) is given, so the order of rows
    plays no part.
    """
    levels, member = np.unique(-confidence, return_inverse=True)
    share = np.bincount(member, weights=correct, minlength=len(levels)) / np.bincount(member, minlength=len(levels))
    return np.asarray(np.cumsum(share[np.sort(member)]) / np.arange(1, len(correct) + 1), dtype=np.float64)


def aurc(confidence: Floats, correct: Bools) -> float:
    """Area under the risk-coverage curve: mean over k of 1 - accuracy of the k most confident answers.

    Geifman & El-Yaniv 2017 (arXiv:1705.08500), section 2 (the curve), and 2019 (arXiv:1805.08206), section 3 (the
    area). 0 for a classifier that is always right; small also for one that is wrong where it is not sure.
    """
    return float(1 - accuracy_curve(confidence, correct).mean())


def accuracy_at(
    confidence: Floats, correct: Bools, weights: Floats | None = None, *, coverages: Sequence[float] = COVERAGES
) -> Floats:
    """Accuracy of the most confident answers that make up a share of all; the image at the edge counts in part.

    Args:
        confidence, correct: f64[N] and bool[N].
        weights: f64[N, R] of the images in R resamples, each with a positive sum; all alike without them.
        coverages: in (0, 1].

    Returns:
        f64[len(coverages), R]; R is 1 without weights. Equally confident images count as in `accuracy_curve`.
    """
    each = np.ones((len(correct), 1)) if weights is None else weights
    levels, member = np.unique(-confidence, return_inverse=True)
    order = np.argsort(member, kind="stable")
    first = np.searchsorted(member[order], np.arange(len(levels)))
    mass = np.add.reduceat(each[order], first, axis=0)  # [levels, R]
    right = np.add.reduceat((each * correct[:, None])[order], first, axis=0)
    so_far, right_so_far = np.cumsum(mass, axis=0), np.cumsum(right, axis=0)
    columns, accuracy = np.arange(each.shape[1]), []
    for coverage in coverages:
        wanted = coverage * so_far[-1]
        edge = (so_far < wanted * (1 - 1e-12)).sum(axis=0)
        # an empty level is never the edge: the mass before it is then the mass with it
        excess = (so_far[edge, columns] - wanted) / mass[edge, columns]
        accuracy.append((right_so_far[edge, columns] - excess * right[edge, columns]) / wanted)
    return np.stack(accuracy)
