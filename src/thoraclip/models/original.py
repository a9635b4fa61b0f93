"""A trained classifier together with the images around it: all that a copy of it is made and judged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.heads import LinearHead
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["Original"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Original:
    """One classifier of a run.

    Args:
        name: of the run.
        kind: of its method.
        model: the pretrained model under it, as the user named it.
        classifier: in fp32.
        manifest: the run's own.
        fold: the one that this classifier has not seen; `None` of a split.
        train, val, test: i64 rows of the manifest, disjoint, labelled: what it learned from, what was chosen by, what
            it is judged on.
        has_learned: False where nothing was learned from any of these images (zero-shot).
        validation: scores of the validation images by a classifier that has not learned from them, where this one has
            (it was fitted again on training and validation images); `None` where this one may be asked.
        alike: heads of the run's other folds on the very features of this classifier, and the i64 rows that each held
            out.
        predictions: of the run.
        inputs: what it was made from, by name: fingerprints.
        folder: of the run.
    """

    name: str
    kind: str
    model: str
    classifier: EncoderClassifier | Backbone
    manifest: Manifest
    fold: int | None
    train: Rows
    val: Rows
    test: Rows
    has_learned: bool
    validation: Predictions | None
    alike: Sequence[tuple[LinearHead, Rows]]
    predictions: Predictions
    inputs: Mapping[str, str]
    folder: Path
