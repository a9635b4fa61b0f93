"""Calibration of the predicted class: expected calibration error and the bins of the reliability diagram."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.proportions import wilson

__all__ = ["ECE_BINS", "ece", "equal_mass_bins", "reliability_bins"]

Floats = npt.NDArray[np.float64]

ECE_BINS = 15
"""Number of bins, as in Guo et al. 2017 (arXiv:1706.04599)."""


def equal_mass_bins(confidence: Floats, bins: int = ECE_BINS) -> npt.NDArray[np.int64]:
    """Bin of every image so that bins hold about equally many (Nixon et al. 2019, arXiv:1904.01685, "adaptive").

    bin_i = floor(bins * #{j: confidence_j < confidence_i} / N): equal confidences share a bin, and the order of the
    rows plays no part.

    Args:
        confidence: f64[N], N >= 1.
        bins: at least 1.

    Returns:
        i64[N] in [0, bins); a bin may stay empty.
    """
    below = np.searchsorted(np.sort(confidence), confidence, side="left")
    return np.asarray(below * bins // len(confidence), dtype=np.int64)


def ece(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = ECE_BINS) -> float:
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


def reliability_bins(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Non-empty bins of a reliability diagram in the order of their confidence; arguments as in `ece`.

    Returns:
        Of each bin: `count`, mean `confidence`, `accuracy`, and `low` and `high`, its 95 % Wilson interval.
    """
    member, drawn = equal_mass_bins(confidence, bins), []
    for number in np.unique(member):
        rows = member == number
        count, right = int(rows.sum()), int(correct[rows].sum())
        low, high = wilson(right, count)
        mean = float(confidence[rows].mean())
        drawn.append({"count": count, "confidence": mean, "accuracy": right / count, "low": low, "high": high})
    return drawn
