"""What is audited, and the images that it is audited on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import grey_batches, pixel_cache
from thoraclip.data.splits import independent_groups
from thoraclip.errors import ManifestError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.predictor import Looker
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["AuditSample", "AuditTarget", "draw_sample", "sample_images"]

Ints = npt.NDArray[np.int64]


class AuditTarget(Protocol):
    """What is audited: a finished run (`FinishedRun`), or a bundle."""

    @property
    def name(self) -> str:
        """Shown."""

    @property
    def kind(self) -> str:
        """Of the method, a name in `METHODS`."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal classifiers."""

    @property
    def is_retrainable(self) -> bool:
        """True where the classifier is a linear probe on frozen features."""

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes, as they occur in this manifest."""

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Ints]]:
        """(fold, i64 rows that its classifier may be judged on)."""

    def classifier(self, fold: int | None, labels: LabelSet) -> Looker:
        """What scores the images of a fold."""

    def own_predictions(self, manifest: Manifest) -> Predictions | None:
        """Its predictions of this manifest, where it ran on it and keeps them."""


@dataclass(frozen=True)
class AuditSample:
    """The N images of an audit."""

    manifest: Manifest  # of these images alone, in the order of the whole one
    classifiers: Sequence[tuple[Looker, Ints]]  # (classifier, i64 rows of the sample that it judges)
    labels: LabelSet
    target: Ints  # i64[N], the class of each
    groups: Ints  # i64[N], images that share a patient or a picture have the same number

    @property
    def parts(self) -> Ints:
        """i64[N]: number of the classifier that judges each image."""
        part = np.full(len(self.target), -1, dtype=np.int64)
        for number, (_, rows) in enumerate(self.classifiers):
            part[rows] = number
        return part


def draw_sample(run: AuditTarget, manifest: Manifest, *, images: int, seed: int) -> AuditSample:
    """Labelled images that the run's classifiers were not trained on; `images` at most, the classes in their shares.

    Args:
        run: what is audited.
        manifest: the run's own, or another one with the same classes.
        images: how many; 0 for all.
        seed: decides which.

    Raises:
        ManifestError: no image to judge, or fewer classes than two.
    """
    labels = run.label_set(manifest)
    targets = manifest.targets(labels)
    parts = list(run.parts(manifest))
    rows = np.sort(np.concatenate([own for _, own in parts]))
    if not len(rows):
        raise ManifestError(
            "manifest: no labelled image that the run may be judged on; name the manifest that it ran on"
        )
    if images and len(rows) > images:
        rng, kept = np.random.default_rng([seed, 0]), []
        for number in range(len(labels)):
            own = rows[targets[rows] == number]
            kept.append(rng.permutation(own)[: max(2, round(images * len(own) / len(rows)))])
        rows = np.sort(np.concatenate(kept))
    if len(np.unique(targets[rows])) < 2:
        raise ManifestError(
            f"manifest: only images of '{labels.names[targets[rows[0]]]}' to judge; two classes are needed"
        )
    taken = manifest.take(rows)
    _, groups = np.unique(independent_groups(taken), return_inverse=True)
    used = [(fold, np.flatnonzero(np.isin(rows, own))) for fold, own in parts]
    classifiers = [(run.classifier(fold, labels), own) for fold, own in used if len(own)]
    return AuditSample(taken, classifiers, labels, targets[rows], groups.astype(np.int64))


def sample_images(
    sample: AuditSample, manifest: Manifest, spec: Preprocess, pixels: Path | None
) -> npt.NDArray[np.uint8]:
    """u8[N, S, S] of the sample, out of the whole manifest's pixel cache where there is a folder for it."""
    if pixels is None:
        return np.concatenate([greys for _, greys in grey_batches(sample.manifest, spec, batch_size=256)])
    row = {image: number for number, image in enumerate(manifest.column("image_id"))}
    rows = np.array([row[image] for image in sample.manifest.column("image_id")], dtype=np.int64)
    return np.array(pixel_cache(manifest, spec, pixels).arrays["pixels"][rows])
