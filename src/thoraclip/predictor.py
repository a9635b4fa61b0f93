"""What every classifier can do, whatever made it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from thoraclip.dtypes import Floats, Greys, Singles
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet

__all__ = ["Looker", "Predictor"]


@runtime_checkable
class Predictor(Protocol):
    """Pixels in, one score per class out."""

    @property
    def labels(self) -> LabelSet:
        """The classes, in the order of the scores."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How grey pixels become this predictor's input."""
        ...

    def predict(self, pixels: Singles) -> Singles:
        """f32[B, 3, H, W] made by `preprocess` -> f32[B, C], each row sums to 1."""
        ...


class Looker(Predictor, Protocol):
    """A predictor whose features can be had, too."""

    @property
    def features_key(self) -> tuple[str, ...]:
        """Equal for classifiers whose features are the same numbers."""
        ...

    def look(self, greys: Greys) -> tuple[Singles, Floats]:
        """u8[B, H, W], made by `imaging.fit` -> (features f32[B, D], scores f64[B, C], rows sum to 1)."""
        ...
