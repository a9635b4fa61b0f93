"""Features and scores of the images of an export, by the original and by the exported model, with one progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.bundle.parity import compare_answers, compare_scores
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.bundle.thumbnails import SIDE, Thumbnails, draw_rows
from thoraclip.data.batches import grey_batches
from thoraclip.data.splits import independent_groups
from thoraclip.imaging import Preprocess
from thoraclip.models.classifiers import Original
from thoraclip.runs import Progress

__all__ = ["ModelSession"]

Greys = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Look = Callable[[Greys], tuple[Features, Floats]]

_BATCH = 32
_EQUAL_ON = 256
"""Test images, spread over all, on which fp32 must equal fp32."""
_SCALES_FROM = 128
"""Validation images that fix the scales of static int8."""


class ModelSession:
    """Draws the images of one export, at most `images` of each split, and runs models over them."""

    def __init__(self, original: Original, *, images: int, seed: int, progress: Progress | None, is_int8: bool) -> None:
        self.original, self.seed, self._progress = original, seed, progress
        self.targets = original.manifest.targets(original.predictions.labels)
        self.train, self.val, self.test = (
            rows
            if len(rows) <= images
            else np.sort(np.random.default_rng([seed, salt]).choice(rows, images, replace=False))
            for salt, rows in enumerate((original.train, original.val, original.test))
        )
        self._equal_on = _spread(original.test, _EQUAL_ON)
        self._alike_on = np.concatenate([original.test, *(rows for _, rows in original.alike)])
        self._done = 0
        self._total = 2 * len(self._equal_on) + len(self.train) + len(self.val) + len(self.test)
        self._total += 2 * len(self._alike_on) if is_int8 else 0

    def look(self, ask: Look, rows: Rows) -> tuple[Features, Floats]:
        """(features f32[R, D], scores f64[R, C]) of some rows of the manifest."""
        parts = []
        for greys in self._greys(rows, self.original.classifier.preprocess):
            parts.append(ask(greys))
            self._done += len(greys)
            if self._progress:
                self._progress(self._done, self._total)
        return np.concatenate([features for features, _ in parts]), np.concatenate([scores for _, scores in parts])

    def for_scales(self) -> Greys:
        """u8[N, S, S]: validation pictures that fix the scales of static int8."""
        rows = _spread(self.original.val, _SCALES_FROM)
        return np.concatenate([*self._greys(rows, self.original.classifier.preprocess)])

    def thumbnails(self, features: Features, count: int) -> Thumbnails:
        """Some of the training pictures, whose features f32[T, D] are known."""
        patients = self.original.manifest.column("patient")
        chosen = draw_rows(self.targets[self.train], [patients[row] for row in self.train], count=count, seed=self.seed)
        rows, names = self.train[chosen], self.original.predictions.labels.names
        small = replace(self.original.classifier.preprocess, size=SIDE, geometry="pad", short_side=None)
        unit = features[chosen] / np.maximum(np.linalg.norm(features[chosen], axis=1, keepdims=True), 1e-12)
        labels = [names[target] for target in self.targets[rows]]
        return Thumbnails(np.concatenate([*self._greys(rows, small)]), labels, unit)

    def _greys(self, rows: Rows, spec: Preprocess) -> Iterator[Greys]:
        for _, greys in grey_batches(self.original.manifest.take(rows), spec, batch_size=_BATCH):
            yield greys

    def equality(self, runtime: BundleClassifier) -> dict[str, Any]:
        """fp32 against fp32, see `parity.compare_scores`."""
        return compare_scores(*(self.look(m.look, self._equal_on)[1] for m in (self.original.classifier, runtime)))

    def alikeness(self, runtime: BundleClassifier) -> dict[str, Any]:
        """int8 against the original, see `parity.compare_answers`.

        The images are its own test images, and those of other folds by their own heads on the same features.
        """
        before, after = (self.look(m.look, self._alike_on) for m in (self.original.classifier, runtime))
        groups = np.unique(independent_groups(self.original.manifest.take(self._alike_on)), return_inverse=True)[1]
        target = self.targets[self._alike_on]
        own, others = self._by_own_heads(*before), self._by_own_heads(*after)
        return compare_answers(own, others, target, groups.astype(np.int64), seed=self.seed)

    def _by_own_heads(self, features: Features, scores: Floats) -> Floats:
        """f64[N, C]: each image by the head of the fold that held it out."""
        start, own = len(self.original.test), scores.copy()
        for head, rows in self.original.alike:
            own[start : start + len(rows)] = head.predict(features[start : start + len(rows)])
            start += len(rows)
        return own


def _spread(rows: Rows, most: int) -> Rows:
    """No more than `most` of the rows, evenly over all."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]
