"""Training pictures that a bundle may carry, small, so that a person sees what a new one is most like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

__all__ = ["SIDE", "Neighbour", "Thumbnails", "draw_rows"]

SIDE = 128
"""Of a thumbnail, in pixels; black bars make it square."""

Grey = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbour:
    """One of them, beside an image."""

    label: str
    similarity: float  # cosine of the bundle's features of both
    grey: Grey  # u8[S, S]


@dataclass(frozen=True)
class Thumbnails:
    """All that a bundle carries."""

    greys: Grey  # u8[N, S, S]
    labels: Sequence[str]  # class of each
    features: npt.NDArray[np.floating]  # f16 or f32[N, D], of length 1: the bundle's own

    def nearest(self, features: Features, *, count: int) -> list[Neighbour]:
        """The most similar ones to f32[D], the first most of all; of equals, the one that comes first."""
        own = np.asarray(features, np.float64)
        kept = self.features.astype(np.float64)  # f16 is off length 1 by up to 5e-4
        lengths = np.linalg.norm(kept, axis=1) * np.linalg.norm(own)
        # not `@`: BLAS sums some rows in another order, and equal pictures would not tie
        similarity = ((kept * own).sum(axis=1) / np.maximum(lengths, 1e-12)).clip(-1, 1)
        order = np.argsort(-similarity, kind="stable")[:count]
        return [Neighbour(self.labels[row], float(similarity[row]), self.greys[row]) for row in order]


def draw_rows(targets: Rows, patients: Sequence[str | None], *, count: int, seed: int) -> Rows:
    """Which of N labelled pictures are shown: of every class as many as of the others, as far as there are; no patient
    twice while there is another one of the class.

    Args:
        targets: i64[N], class of each.
        patients: of each; images without one count as patients of their own.

    Returns:
        i64[min(count, N)], ascending.
    """
    seen, turns, ranked, drawn = Counter[tuple[int, str]](), Counter[int](), [], []
    for row in np.random.default_rng(seed).permutation(len(targets)):
        label, patient = int(targets[row]), patients[row]
        again = 0
        if patient is not None:
            again, seen[label, patient] = seen[label, patient], seen[label, patient] + 1
        ranked.append((again, label, row))
    for _, label, row in sorted(ranked, key=itemgetter(0)):  # stable: the draw decides among equals
        drawn.append((turns[label], row))
        turns[label] += 1
    return np.sort([row for _, row in sorted(drawn, key=itemgetter(0))[:count]]).astype(np.int64)
