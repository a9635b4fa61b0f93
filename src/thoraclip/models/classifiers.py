"""The frozen encoder with a linear head that prompts, probes and adapters come to, and the classifier of a finished run
with its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import Backbone
from thoraclip.models.heads import LinearHead
from thoraclip.models.vision_encoder import VisionEncoder
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["Classifier", "EncoderClassifier", "Original"]


@dataclass(frozen=True)
class EncoderClassifier:
    """Features of a vision tower, and a linear head on them; a `Predictor`."""

    encoder: VisionEncoder  # its adapter merged, if it has one
    head: LinearHead  # of C classes, on `features`
    features: str  # `pooled` (before the projection) or `projected` (unit vectors in the space shared with text)

    @property
    def labels(self) -> LabelSet:
        """The classes, in the order of the scores."""
        return self.head.labels

    @property
    def preprocess(self) -> Preprocess:
        """How pixels must be made."""
        return self.encoder.preprocess

    @property
    def network(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.encoder.tower
        return tower

    @property
    def features_key(self) -> tuple[str, ...]:
        """Equal for classifiers whose features are the same numbers."""
        return (self.features, *self.encoder.description.values())

    def expand(self, greys: Greys | Tensor) -> Tensor:
        """u8[B, H, W] -> f32[B, 3, H, W] on the device."""
        return self.encoder.expand(greys)

    def look(self, greys: Greys) -> tuple[Singles, Floats]:
        """u8[B, H, W] -> (features f32[B, D], scores f64[B, C], rows sum to 1)."""
        features = self.encoder.encode_greys(greys)[self.features == "projected"]
        return features, self.head.predict(features)

    def predict(self, pixels: Singles) -> Singles:
        """f32[B, 3, H, W] -> f32[B, C], each row sums to 1."""
        features = self.encoder.encode_images(pixels)[self.features == "projected"]
        return self.head.predict(features).astype(np.float32)

    def logits(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, H, W] -> f32[B, C], with gradient; fp32."""
        pooled, projected = self.encoder.image_features(pixels)
        features = pooled if self.features == "pooled" else nn.functional.normalize(projected, dim=-1)
        mean, scale, weight, bias = self._tensors
        return nn.functional.linear((features.float() - mean) / scale, weight, bias)

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        """Mean, scale, weight and bias of the head on the device."""
        arrays = (self.head.mean, self.head.scale, self.head.weight, self.head.bias)
        return tuple(torch.from_numpy(np.array(array)).to(self.encoder.device) for array in arrays)


Classifier = EncoderClassifier | Backbone
"""A `Looker` whose inside can be asked too: its `network`, and its `logits` of `expand`ed images with a gradient."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """One classifier of a run; its images are i64 rows of the manifest."""

    name: str  # of the run
    kind: str  # of its method
    model: str  # the pretrained model under it, as the user named it
    classifier: Classifier  # in fp32
    manifest: Manifest  # the run's own
    fold: int | None  # the one that this classifier has not seen; `None` of a split
    train: Ints  # what it learned from; the three are disjoint and labelled
    val: Ints  # what was chosen by
    test: Ints  # what it is judged on
    has_learned: bool  # False where nothing was learned from any of these images (zero-shot)
    # scores of the validation images by a classifier that has not learned from them, where this one has (it was fitted
    # again on training and validation images); `None` where this one may be asked
    validation: Predictions | None
    # heads of the run's other folds on the very features of this classifier, and the rows that each held out
    alike: Sequence[tuple[LinearHead, Ints]]
    predictions: Predictions  # of the run
    inputs: Mapping[str, str]  # fingerprints of what it was made from, by name
