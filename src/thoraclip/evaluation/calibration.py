"""What the score of the predicted class tells: calibration error, reliability bins, and how right the most confident
answers are when the others are left to somebody else (selective prediction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.proportions import patient_share

__all__ = ["COVERAGES", "accuracy_at", "accuracy_curve", "aurc", "ece", "gap_columns", "reliability_bins"]

ECE_BINS = 15
"""Number of bins, as in Guo et al. 2017 (arXiv:1706.04599)."""
COVERAGES = (0.5, 0.8, 0.9, 1.0)
"""Shares of answered images at which the accuracy has an interval."""


def equal_mass_bins(confidence: Floats, bins: int = ECE_BINS) -> Ints:
    """Bin of every image so that bins hold about equally many (Nixon et al. 2019, arXiv:1904.01685, "adaptive").

    bin_i = floor(bins * #{j: confidence_j < confidence_i} / N): equal confidences share a bin, and the order of the
    rows plays no part. Of f64[N], N >= 1: i64[N] in [0, bins); a bin may stay empty.
    """
    below = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(below * bins // len(confidence), dtype=np.int64)


def gap_columns(confidence: Floats, correct: Masks) -> Floats:
    """f64[N, B]: correctness minus confidence of every image, in the column of its bin; 0 in the others."""
    gaps = np.zeros((len(correct), ECE_BINS))
    gaps[np.arange(len(correct)), equal_mass_bins(confidence)] = correct - confidence
    return gaps


def ece(confidence: Floats, correct: Masks, bins: int = ECE_BINS) -> float:
    """Top-label expected calibration error (Naeini et al. 2015, AAAI) over equal-mass bins.

    ECE = sum_b n_b / N * |accuracy_b - confidence_b|, with the mean accuracy and mean confidence of bin b.

    Args:
        confidence: f64[N] in [0, 1], the score of the predicted class.
        correct: bool[N], whether the predicted class is the true one.
        bins: at least 1.

    Returns:
        In [0, 1]; 0 is perfect. The estimate is biased upward: a perfectly calibrated model gets about
        0.8 * sqrt(bins * p (1 - p) / N), not 0.
    """
    gap = np.bincount(equal_mass_bins(confidence, bins), weights=correct - confidence)
    return float(np.abs(gap).sum() / len(confidence))


def reliability_bins(confidence: Floats, correct: Masks, patients: Ints, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Non-empty bins of a reliability diagram in the order of their confidence, arguments as in `ece` and i64[N]
    `patients`: `count`, mean `confidence`, `accuracy`, and `low` and `high`, its 95 % interval by patient."""
    member, drawn = equal_mass_bins(confidence, bins), []
    for rows in (member == number for number in np.unique(member)):
        low, high = patient_share(correct[rows], patients[rows])
        means = {"confidence": float(confidence[rows].mean()), "accuracy": float(correct[rows].mean())}
        drawn.append({"count": int(rows.sum()), **means, "low": low, "high": high})
    return drawn


def accuracy_curve(confidence: Floats, correct: Masks) -> Floats:
    """Accuracy of the k most confident answers, for k = 1, ..., N: f64[N]. Equally confident images are answered in a
    random order: the expectation is given, so the order of rows plays no part."""
    levels, member = np.unique(-confidence, return_inverse=True)
    share = np.bincount(member, weights=correct, minlength=len(levels)) / np.bincount(member, minlength=len(levels))
    return np.asarray(np.cumsum(share[np.sort(member)]) / np.arange(1, len(correct) + 1), dtype=np.float64)


def aurc(confidence: Floats, correct: Masks) -> float:
    """Area under the risk-coverage curve: mean over k of 1 - accuracy of the k most confident answers.

    Geifman & El-Yaniv 2017 (arXiv:1705.08500), section 2 (the curve), and 2019 (arXiv:1805.08206), section 3 (the
    area). 0 for a classifier that is always right; small also for one that is wrong where it is not sure.
    """
    return float(1 - accuracy_curve(confidence, correct).mean())


def accuracy_at(
    confidence: Floats, correct: Masks, weights: Floats | None = None, *, coverages: Sequence[float] = COVERAGES
) -> Floats:
    """Accuracy of the most confident answers that make up a share of all; the image at the edge counts in part.

    Args:
        confidence, correct: f64[N] and bool[N].
        weights: f64[N, R] of the images in R resamples, each with a positive sum; all alike without them.

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
