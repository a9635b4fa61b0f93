"""Sums over the weighted rows of R resamples, from which every metric of the resamples follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thoraclip.dtypes import Floats

__all__ = ["Weighted", "mean_of_known", "ratio"]


@dataclass(frozen=True)
class Weighted:
    """One table in R resamples of C classes.

    Args:
        cells: f64[R, C, C] weighted confusion matrices, rows true, columns predicted.
        areas: f64[2, R, C] when it is called: area under the ROC curve of each class against the rest, and average
            precision, sum_k (recall_k - recall_{k-1}) precision_k over the thresholds; NaN where they do not exist.
        losses: f64[3, R] when it is called: weighted means of log loss and Brier score, and calibration error.
    """

    cells: Floats
    areas: Callable[[], Floats]
    losses: Callable[[], Floats]

    @cached_property
    def hit(self) -> Floats:
        """f64[R, C]: weight of the right answers of each class."""
        return np.asarray(np.einsum("rcc->rc", self.cells))

    @cached_property
    def true(self) -> Floats:
        """f64[R, C]: weight of each true class."""
        return np.asarray(self.cells.sum(axis=2))

    @cached_property
    def predicted(self) -> Floats:
        """f64[R, C]: weight of each predicted class."""
        return np.asarray(self.cells.sum(axis=1))

    @cached_property
    def total(self) -> Floats:
        """f64[R, 1]: weight of all rows."""
        return np.asarray(self.cells.sum(axis=(1, 2))[:, None])

    @cached_property
    def precision(self) -> Floats:
        """f64[R, C], 0 for a class that is never predicted."""
        return ratio(self.hit, self.predicted)

    @cached_property
    def recall(self) -> Floats:
        """f64[R, C], 0 for a class without images."""
        return ratio(self.hit, self.true)

    @cached_property
    def f1(self) -> Floats:
        """f64[R, C]."""
        return ratio(2 * self.hit, self.true + self.predicted)

    def of_present(self, values: Floats) -> Floats:
        """f64[R, C] values, NaN where a class has no image."""
        return np.where(self.true > 0, values, np.nan)

    def macro(self, values: Floats) -> Floats:
        """f64[R]: mean of f64[R, C] values over the classes that have images."""
        return mean_of_known(self.of_present(values))

    def by_images(self, values: Floats) -> Floats:
        """f64[R]: mean of f64[R, C] values over the classes, weighted by their images."""
        return np.asarray((values * self.true).sum(axis=1) / self.total[:, 0])

    @property
    def mcc(self) -> Floats:
        """f64[R]: Matthews correlation (Gorodkin 2004), 0 for a constant prediction."""
        total = self.total[:, 0]
        covariance = self.hit.sum(axis=1) * total - (self.true * self.predicted).sum(axis=1)
        spread = (total**2 - (self.predicted**2).sum(axis=1)) * (total**2 - (self.true**2).sum(axis=1))
        return ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))

    @property
    def specificity(self) -> Floats:
        """f64[R, C], NaN where every image is of the class."""
        others = self.total - self.true
        return ratio(others - self.predicted + self.hit, others, np.nan)


def ratio(above: Floats, below: Floats, empty: float = 0.0) -> Floats:
    """above / below, and `empty` where below is 0."""
    out: Floats = np.full(np.broadcast(above, below).shape, empty)
    np.divide(above, below, out=out, where=below > 0)
    return out


def mean_of_known(values: Floats) -> Floats:
    """f64[R, C] -> f64[R]: mean over the classes that are not NaN; NaN where none is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64), np.nan)
