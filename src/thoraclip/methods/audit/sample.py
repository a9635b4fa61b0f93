"""What is audited, and the images that it is audited on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import grey_batches, pixel_cache
from thoraclip.data.splits import independent_groups
from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.errors import ManifestError
from thoraclip.evaluation.audit_power import BEYOND, largest_error, smallest_effect
from thoraclip.evaluation.audit_reading import MARGIN
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.predictor import Looker
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["AuditSample", "AuditTarget", "choose_images", "draw_sample", "sample_images"]


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

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes, as they occur in this manifest."""

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Ints]]:
        """(fold, i64 rows that its classifier may be judged on)."""

    def classifier(self, fold: int | None, labels: LabelSet) -> Looker:
        """What scores the images of a fold."""

    def kept_answers(self, classifier: Any, manifest: Manifest, images: Manifest) -> tuple[Singles, Floats] | None:
        """What its classifier gives for some images of a manifest (see `Looker.look`), where that is kept."""

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
    available: int  # images that could be drawn

    @property
    def parts(self) -> Ints:
        """i64[N]: number of the classifier that judges each image."""
        part = np.full(len(self.target), -1, dtype=np.int64)
        for number, (_, rows) in enumerate(self.classifiers):
            part[rows] = number
        return part


def draw_sample(run: AuditTarget, manifest: Manifest, *, images: int | str, seed: int, tests: int = 1) -> AuditSample:
    """Labelled images that the run's classifiers were not trained on, drawn by patient, see `choose_images`.

    Args:
        run: what is audited.
        manifest: the run's own, or another one with the same classes.
        images: `auto`, `all`, or how many at most.
        seed: decides which.
        tests: that are asked of the classifier.

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
    if len(np.unique(targets[rows])) < 2:
        raise ManifestError(
            f"manifest: only images of '{labels.names[targets[rows[0]]]}' to judge; two classes are needed"
        )
    available, everyone = len(rows), independent_groups(manifest.take(rows))
    if images != "all":
        rows = rows[choose_images(targets[rows], everyone, images, seed=seed, tests=tests)]
    taken = manifest.take(rows)
    _, groups = np.unique(independent_groups(taken), return_inverse=True)
    used = [(fold, np.flatnonzero(np.isin(rows, own))) for fold, own in parts]
    classifiers = [(run.classifier(fold, labels), own) for fold, own in used if len(own)]
    return AuditSample(taken, classifiers, labels, targets[rows], groups.astype(np.int64), available)


def choose_images(target: Ints, patient: npt.ArrayLike, images: int | str, *, seed: int, tests: int) -> Ints:
    """i64 rows of images drawn at random, one of every patient before a second one, the classes in their shares; two of
    each class at least.

    Args:
        target: i64[N], the classes.
        patient: of each image, see `independent_groups`.
        images: how many at most; or `auto`: of the fewest patients by whom each of the tests can show an effect of
            `BEYOND` more than the margin, see `evaluation.audit_power`; all where none can.
        seed: decides which.
        tests: that are corrected together.
    """
    present, code = np.unique(target, return_inverse=True)
    chance = np.random.default_rng([seed, 0]).random(len(target))
    of_patient = np.unique(patient, return_inverse=True)[1] * len(present) + code
    earlier = _rank((chance, of_patient), of_patient)  # images of the same patient and class that were drawn before
    sizes = np.bincount(code)
    place = (_rank((chance, earlier, code), code) + 0.5) / sizes[code]  # in 0..1: all beginnings hold the shares
    order = np.argsort(place, kind="stable")
    if images == "auto":
        one_hot = np.eye(len(present))[code[order]]
        squares = one_hot * (2 * earlier[order] + 1)[:, None]  # the (k + 1)th image adds (k + 1)^2 - k^2
        error = largest_error(np.cumsum(one_hot, axis=0), np.cumsum(squares, axis=0))
        enough = np.flatnonzero(smallest_effect(error, tests) <= MARGIN + BEYOND)
        images = int(enough[0]) + 1 if len(enough) else len(order)
    kept = [order[: int(images)], *(order[code[order] == number][:2] for number in range(len(present)))]
    return np.unique(np.concatenate(kept))


def _rank(keys: tuple[npt.NDArray[Any], ...], group: Ints) -> Ints:
    """i64[N]: place of every row within its group, which is the last of the keys by which rows are sorted."""
    order = np.lexsort(keys)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank


def sample_images(sample: AuditSample, manifest: Manifest, spec: Preprocess, pixels: Path | None) -> Greys:
    """u8[N, S, S] of the sample, out of the whole manifest's pixel cache where there is a folder for it."""
    if pixels is None:
        return np.concatenate([greys for _, greys in grey_batches(sample.manifest, spec, batch_size=256)])
    cached = pixel_cache(manifest, spec, pixels)
    return np.array(cached.arrays["pixels"][cached.rows_for(sample.manifest)])
