"""What tells the source of an image, taken out of its features by one linear map (LEACE)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.models.heads import LinearHead

__all__ = ["Eraser", "fit_eraser"]

_RANK = 1e-6  # singular values below this share of the largest one count as 0


@dataclass(frozen=True)
class Eraser:
    """x -> x - (x - mean) A."""

    mean: Floats  # [D]
    change: Floats  # A [D, D]

    def apply(self, features: Singles) -> Singles:
        """f32[N, D] -> f32[N, D], without what was erased."""
        return (features - (features - self.mean) @ self.change).astype(np.float32)

    def folded(self, head: LinearHead) -> LinearHead:
        """A head that was fitted on erased features, as the same classifier of features as they are."""
        weight, bias = head.folded()
        erased = weight @ self.change.T  # [C, D]
        return LinearHead.unscaled(
            head.labels, (weight - erased).astype(np.float32), (bias + erased @ self.mean).astype(np.float32)
        )


def fit_eraser(features: Singles, classes: Ints, concept: Ints) -> Eraser:
    """The map of least change after which, within the classes, no linear classifier tells the concept better than
    chance.

    Belrose et al. 2023 (arXiv:2306.03819, theorem 4.3): x - W^+ P W (x - mean), W the whitening of the features, P the
    orthogonal projection on the columns of W Cov(x, z). Here z are the concept's values, one column each, less their
    mean in each class, and so are the features in Cov(x, z): what differs between sources of one class is erased. What
    differs between classes stays, and with it what tells a source that has one class alone.

    Args:
        features: f32[N, D].
        classes: i64[N].
        concept: i64[N], 0, 1, ..., such as the number of the source.
    """
    x = features.astype(np.float64)
    z = np.eye(int(concept.max()) + 1)[concept]
    mean = x.mean(axis=0)
    within_x, within_z = x.copy(), z.copy()
    for one in np.unique(classes):
        rows = classes == one
        within_x[rows] -= x[rows].mean(axis=0)
        within_z[rows] -= z[rows].mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1]))
    kept = variances > _RANK * max(float(variances.max()), 1e-300)
    scale, basis = np.sqrt(variances[kept]), directions[:, kept]
    whitened = (basis.T @ within_x.T @ within_z) / scale[:, None] / len(x)
    left, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
    left = left[:, sizes > _RANK]
    change = (basis * scale) @ left @ left.T @ (basis / scale).T  # W^+ P W
    return Eraser(mean, change.T)
