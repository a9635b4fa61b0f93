"""A bundle as the target of an audit: the images of a manifest that it may be judged on, and its classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.errors import ManifestError, MismatchError
from thoraclip.labels import LabelSet

if TYPE_CHECKING:
    from thoraclip.tables.manifest import Manifest

__all__ = ["BundleAuditTarget"]

Rows = npt.NDArray[np.int64]


class BundleAuditTarget:
    """See `methods.audit.sample.AuditTarget`. Linear probes can be trained again for the audit, other methods
    cannot."""

    def __init__(self, opened: BundleClassifier) -> None:
        bundle = opened.bundle
        self.opened, self.name = opened, bundle.folder.resolve().name
        self.kind, self.fingerprint, self.is_retrainable = bundle.kind, bundle.fingerprint, bundle.kind == "probe"

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes; raises ManifestError where the manifest has others."""
        return manifest.label_set(self.opened.labels.names)

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Rows]]:
        """The labelled images that the classifier has not learned from, by the SHA-256 of their files, of split `test`
        where the manifest names splits; raises ManifestError where there is none."""
        usable = np.array([label is not None for label in manifest.column("label")])
        split = np.array([s or "" for s in manifest.column("split")])
        if (split != "").any():
            usable &= split == "test"
        usable &= ~self.opened.bundle.is_trained_on(manifest.column("sha256"))
        if not usable.any():
            what = "labelled image, of split 'test' where it names splits, that the bundle has not learned from"
            raise ManifestError(f"manifest: no {what}")
        yield None, np.flatnonzero(usable)

    def classifier(self, fold: int | None, labels: LabelSet) -> BundleClassifier:
        """The bundle itself."""
        if labels != self.opened.labels:
            own = list(self.opened.labels.names)
            raise MismatchError(f"{self.opened.bundle.folder}: has the classes {own}, not {list(labels.names)}")
        return self.opened

    def own_predictions(self, manifest: Manifest) -> None:
        """A bundle keeps no table of predictions."""
        return
