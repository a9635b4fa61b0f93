"""Pictures of noise, and a classifier that is read by hand, for the tests of heat maps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))
Grey = npt.NDArray[np.uint8]


class PatchReader:
    """Linear in one patch of the greys and blind to the rest; knows nothing but scores."""

    labels = LABELS

    def __init__(self, side: int, rows: slice, columns: slice) -> None:
        self.preprocess = Preprocess(size=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._patch = (slice(None), 0, rows, columns)

    def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logit = 8 * pixels[self._patch].mean(axis=(1, 2)) - 4
        logits = np.stack([logit, -logit, np.zeros_like(logit)], axis=1)
        powers = np.exp(logits)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def noise(side: int, seed: int = 0) -> Grey:
    return np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8)


def bright(side: int, rows: slice, columns: slice) -> Grey:
    """Dark noise with a bright patch, which blurring takes away."""
    grey = noise(side) // 4
    grey[rows, columns] = 240
    return grey
