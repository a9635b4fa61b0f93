"""Out-of-distribution scores that `thoraclip.posthoc.ood` is compared with.

With f the pooled feature of a picture, z = f / |f|, and larger scores for stranger pictures:

    knn       distance to the k-th nearest of the reference rows: || z - z_(k) ||   (Sun et al. 2022, arXiv:2204.06507)
    relative  min_c (f - m_c)' S^-1 (f - m_c) - (f - m)' T^-1 (f - m)              (Ren et al. 2021, arXiv:2106.09022)

m_c, S: class means and the covariance about them, as in `posthoc.ood`; m and T those of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thoraclip.posthoc.ood import fit_ood, threshold_of

__all__ = ["Fitted", "fit_knn", "fit_relative"]

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A score f32[N, D] -> f64[N], and the threshold above which a picture is called unlike the training images."""

    score: Callable[[Features], Floats]
    threshold: float

    def is_flagged(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """f64[N] -> bool[N]: which scores exceed the threshold."""
        return np.asarray(scores > self.threshold)


def fit_knn(
    features: Features,
    *,
    targets: Targets | None = None,
    held_out: Features | None,
    neighbours: int = 5,
    false_positive_rate: float = 0.01,
    max_rows: int = 2000,
    seed: int = 0,
) -> Fitted:
    """Distance to the nearest neighbours among at most `max_rows` training features, which are drawn by the seed.

    Args:
        features: f32[N, D] of the training images.
        targets: not used.
        held_out: f32[V, D] of validation images, for the threshold. None: it comes from the reference rows, each
            against the others; images of one patient then make it too low.
        neighbours: k.
        false_positive_rate: share of images like the training ones that may be flagged.
        max_rows: reference rows that are kept.
        seed: of their draw.
    """
    kept = np.arange(len(features))
    if len(features) > max_rows:
        kept = np.sort(np.random.default_rng(seed).choice(len(features), max_rows, replace=False))
    rows = _unit(features[kept]).astype(np.float32).astype(np.float64)

    def score(found: Features) -> Floats:
        return _kth(_distances(_unit(found), rows), neighbours)

    if held_out is None:
        near = _distances(rows, rows)
        np.fill_diagonal(near, np.inf)
        return Fitted(score, threshold_of(_kth(near, neighbours), false_positive_rate))
    return Fitted(score, threshold_of(score(held_out), false_positive_rate))


def fit_relative(
    features: Features, *, targets: Targets, held_out: Features, false_positive_rate: float = 0.01
) -> Fitted:
    """The Mahalanobis distance to the nearest class, less that to all classes together; arguments as in `fit_ood`."""
    own = fit_ood(features, targets=targets, held_out=held_out)
    together = fit_ood(features[targets >= 0], held_out=held_out)

    def score(found: Features) -> Floats:
        return own.score(found) - together.score(found)

    return Fitted(score, threshold_of(score(held_out), false_positive_rate))


def _unit(features: Features) -> Floats:
    wide = features.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


def _distances(left: Floats, right: Floats) -> Floats:
    """f64[N, M] of distances between unit vectors."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * (left @ right.T), 0)))


def _kth(distances: Floats, k: int) -> Floats:
    """f64[N]: the k-th smallest of each row."""
    return np.asarray(np.partition(distances, k - 1, axis=1)[:, k - 1])
