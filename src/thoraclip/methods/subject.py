"""What an audit asks of whatever it audits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from thoraclip.labels import LabelSet
from thoraclip.predictor import Looker
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["Subject"]

Ints = npt.NDArray[np.int64]


class Subject(Protocol):
    """What is audited: a finished run (`FinishedRun`), or a bundle."""

    @property
    def name(self) -> str:
        """Shown."""
        ...

    @property
    def kind(self) -> str:
        """Of the method, a name in `METHODS`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal classifiers."""
        ...

    @property
    def is_retrainable(self) -> bool:
        """True where the classifier is a linear probe on frozen features."""
        ...

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes, as they occur in this manifest."""
        ...

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Ints]]:
        """(fold, i64 rows that its classifier may be judged on)."""
        ...

    def classifier(self, fold: int | None, labels: LabelSet) -> Looker:
        """What scores the images of a fold."""
        ...

    def own_predictions(self, manifest: Manifest) -> Predictions | None:
        """Its predictions of this manifest, where it ran on it and keeps them."""
        ...
