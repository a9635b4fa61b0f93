"""A bundle that predicts: ONNX Runtime, NumPy, Pillow and pydicom, nothing else.

    file or bytes --imaging--> u8[S, S] --model.onnx--> scores --temperature--> calibrated scores
                                              |            +--thresholds--> the classes that cannot be ruled out
                                              +--features --ood------> is it like the training images?

An answer never depends on the pictures beside it: in fp32 one goes through the model per call, in int8 each has scales
of its own. Several threads work side by side.
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thoraclip.bundle.format import MODEL, Bundle
from thoraclip.bundle.session import require_own_data, require_tensors
from thoraclip.bundle.signed_weights import open_signed
from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.errors import ImageError, ManifestError, MismatchError, ParityError, first_line
from thoraclip.imaging import MAX_PIXELS, Preprocess, Radiograph, decode, fit
from thoraclip.labels import LabelSet
from thoraclip.models.sessions import onnxruntime, open_session
from thoraclip.threads import in_order

if TYPE_CHECKING:
    from thoraclip.tables.manifest import Manifest

__all__ = ["UNSIGNED", "BundleAuditTarget", "BundleClassifier", "Prediction"]


SELF_TEST_TOLERANCE = {"fp32": 1e-3, "int8": 0.15}
"""Largest difference of a score that another machine may show. In fp32 only the order of sums differs; in int8 a last
digit can move a number to the next step of its scale, which moves others: as far as quantising did in the first
place."""

TOGETHER = {"fp32": 1, "int8": 4}
"""Pictures in one call of the model. In int8 the products of a picture do not change with what stands beside it, and
reading the weights is what takes the time; in fp32 the last digit would change."""

UNSIGNED = "u8"
"""`weights` of an int8 bundle whose products are exact on every processor; see `eight_bits`. Bundles of earlier
versions do not state it: their weights are signed."""
_FASTER_SIGNED = ("x86_64", "AMD64")
"""Machines on which signed weights were measured to be faster; they take as much memory again while a bundle opens."""
_EXACT_BYTES = "session.x64quantprecision"
"""Makes ONNX Runtime's optimiser (levels extended and all) replace signed weights by unsigned ones."""
_PROBE = base64.b64decode(
    "CAgSCXRob3JhY2xpcDrDAQo8CgVzaGFwZRIGbWF0cml4Ig9Db25zdGFudE9mU2hhcGUqGgoFdmFsdWUqDggBEANCBWVudHJ5SgF/oAEECigKBWJ5"
    "dGVzCgZtYXRyaXgSCHByb2R1Y3RzIg1NYXRNdWxJbnRlZ2VyEgVieXRlcyodCAIQB0IFc2hhcGVKEEAAAAAAAAAAEAAAAAAAAABaFwoFYnl0ZXMS"
    "DgoMCAISCAoCCAEKAghAYhoKCHByb2R1Y3RzEg4KDAgGEggKAggBCgIIEEIECgAQEQ=="
)
"""An ONNX file that multiplies u8[1, 64] by a matrix s8[64, 16] of 127; made by `scripts/make_bytes_probe.py`."""


@dataclass(frozen=True)
class Prediction:
    """What a bundle says of one picture.

    Args:
        label: the class of the highest score.
        scores: class -> calibrated probability; they sum to 1.
        set: the classes that the promise of the prediction sets does not rule out; `None` where the bundle has no such
            sets.
        ood: whether the picture is unlike the training images; `None` where the bundle has no reference.
        ood_score: how unlike; `ood` is whether it exceeds the bundle's threshold.
        features: f32[D] of the picture, by which pictures can be compared.
        remarks: what was remarked when the file was decoded; see `imaging.Radiograph`.
    """

    label: str
    scores: dict[str, float]
    set: tuple[str, ...] | None
    ood: bool | None
    ood_score: float | None
    features: Singles = field(compare=False, repr=False, default_factory=lambda: np.zeros(0, np.float32))
    remarks: tuple[str, ...] = ()


class BundleClassifier:
    """A bundle, ready to answer; a `Predictor`. Several threads may use it at once.

    Args:
        bundle: as read.
        threads: calls of the model at once by `look` and `predict`; 0 for as many as there are cores.
        bits: depth of 16-bit pictures, whatever they say. Without, those that state none have that of the training set.

    Attributes:
        labels: the classes, in the order of the scores.
        preprocess: how pixels must be made.
        features_key: equal for classifiers whose features are the same numbers.
        together: pictures in a call that cost least; see `TOGETHER`.

    Raises:
        MismatchError: this ONNX Runtime cannot load the model, or this processor cannot run it exactly.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0, bits: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the threads take an image each
        row_wise = bundle.facts.get("quantisation") == "row-wise"
        if row_wise:  # written as it is to be run; optimising it takes 0.2 s
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        is_unsigned = bundle.facts.get("weights") == UNSIGNED
        is_exact = bundle.precision == "int8" and has_exact_bytes()
        if bundle.precision == "int8" and not is_unsigned and not is_exact:
            if row_wise:  # the option below is an optimisation, and one that fails where products share a zero point
                raise MismatchError(
                    f"{bundle.folder}: its int8 weights are signed, and this processor cannot multiply signed bytes "
                    "exactly (no VNNI); export the run again with this version"
                )
            options.add_session_config_entry(_EXACT_BYTES, "1")
        model = bundle.file(MODEL)
        require_own_data(bundle)
        try:
            is_faster = is_unsigned and is_exact and platform.machine() in _FASTER_SIGNED
            self._session = (open_signed if is_faster else open_session)(model, options)
        except Exception as error:  # of ONNX Runtime's own kinds, which it does not export
            raise MismatchError(
                f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load it ({first_line(error)}); "
                "upgrade: pip install -U onnxruntime"
            ) from error
        self.bundle, self.labels, self.preprocess, self._threads = bundle, bundle.labels, bundle.preprocess, threads
        self.bits = bits
        self.features_key: tuple[str, ...] = ("bundle", bundle.fingerprint)
        pictures, width = require_tensors(self._session, bundle)
        bundle.require_fit(width)
        self.together = pictures or TOGETHER[bundle.precision]

    def read(self, source: Path | bytes, *, bits: int | None = None, max_pixels: int = MAX_PIXELS) -> Radiograph:
        """Decode a file, or the bytes of one, as the training images were; `bits` of its manifest; see
        `imaging.decode`."""
        return decode(source, bits=self.bits or bits, of_set=self.bundle.bits, max_pixels=max_pixels)

    def classify(self, source: Path | bytes) -> Prediction:
        """Predict a PNG, JPEG or DICOM file, or the bytes of one.

        Raises:
            ImageError: it cannot be decoded, or its shape does not serve; see `imaging.decode` and `imaging.fit`.
        """
        radiograph = self.read(source)
        prediction = self.classify_grey(fit(radiograph.pixels, self.preprocess))
        return replace(prediction, remarks=radiograph.remarks)

    def classify_grey(self, grey: Greys) -> Prediction:
        """Predict u8[S, S], made by `imaging.fit` with `preprocess`."""
        return self.classify_greys(grey[None])[0]

    def classify_greys(self, greys: Greys) -> list[Prediction]:
        """Predict u8[B, S, S] by one call of the model, each as if it were alone; see `classify_grey`."""
        return [self._prediction(features, raw) for features, raw in zip(*self._run(greys), strict=True)]

    def classify_each(
        self, sources: Sequence[Path | bytes], depths: Sequence[int | None] = (), *, max_pixels: int = MAX_PIXELS
    ) -> list[Prediction | ImageError]:
        """Predict some files by one call of the model, each as if it were alone; one that cannot be decoded gets the
        reason. `depths`: those of a manifest."""
        read: list[tuple[str, ...] | ImageError] = []
        greys: list[Greys] = []
        for source, bits in zip(sources, depths or [None] * len(sources), strict=True):
            try:
                radiograph = self.read(source, bits=bits, max_pixels=max_pixels)
                greys.append(fit(radiograph.pixels, self.preprocess))
                read.append(radiograph.remarks)
            except ImageError as error:
                read.append(error)
        answers = iter(self.classify_greys(np.stack(greys)) if greys else ())
        return [one if isinstance(one, ImageError) else replace(next(answers), remarks=one) for one in read]

    def _prediction(self, features: Singles, raw: Floats) -> Prediction:
        """What features f32[D] and the model's own scores f64[C] of an image come to."""
        bundle, names, ood = self.bundle, self.labels.names, self.bundle.ood
        scores = raw if bundle.scaling is None else bundle.scaling.apply(raw[None])[0]
        inside = None if bundle.sets is None else tuple(compress(names, bundle.sets.sets(raw[None])[0]))
        ood_score = None if ood is None else float(ood.score(features[None])[0])
        is_ood = None if ood is None or ood_score is None else ood_score > ood.threshold
        by_class = dict(zip(names, scores.tolist(), strict=True))
        return Prediction(names[int(raw.argmax())], by_class, inside, is_ood, ood_score, features)

    def look(self, greys: Greys) -> tuple[Singles, Floats]:
        """u8[B, S, S] -> (features f32[B, D], the model's own scores f64[B, C], rows sum to 1)."""
        groups = [greys[start : start + self.together] for start in range(0, len(greys), self.together)]
        seen = list(in_order(self._run, groups, workers=self._threads))
        return np.concatenate([features for features, _ in seen]), np.concatenate([scores for _, scores in seen])

    def predict(self, pixels: Singles) -> Singles:
        """f32[B, 3, S, S] made by `preprocess` -> the model's own scores f32[B, C], each row sums to 1.

        Raises:
            ImageError: they were not made so: undoing the normalisation does not give grey levels.
        """
        return self.look(_greys(pixels, self.preprocess))[1].astype(np.float32)

    def _run(self, greys: Greys) -> tuple[Singles, Floats]:
        """(features f32[B, D], scores f64[B, C]) of a few pictures, by one call of the model."""
        features, scores = self._session.run(["features", "scores"], {"greys": greys})
        exact = np.asarray(scores, np.float64)
        return features, exact / exact.sum(axis=1, keepdims=True)

    def self_test(self) -> float:
        """The largest difference of a score to those that the bundle was made with, over its synthetic pictures.

        Raises:
            MismatchError: the model cannot be run, or does not give what it declares.
            ParityError: it exceeds `SELF_TEST_TOLERANCE`: on this machine the model is another one.
        """
        greys, scores = self.bundle.self_test()
        try:
            features, own = self.look(greys)
        except Exception as error:  # as above
            raise MismatchError(
                f"{self.bundle.folder / MODEL}: cannot be run ({first_line(error)}); export the run again"
            ) from error
        if features.shape != (len(greys), self.bundle.width) or own.shape != scores.shape:
            raise MismatchError(
                f"{self.bundle.folder / MODEL}: its features and scores are {list(features.shape)} and "
                f"{list(own.shape)}, not those that it declares; export the run again"
            )
        difference = float(np.abs(own - scores).max())
        allowed = SELF_TEST_TOLERANCE[self.bundle.precision]
        if not difference <= allowed:
            raise ParityError(
                f"{self.bundle.folder}: on this machine its scores differ by {difference:.3g} from those that it was "
                f"made with, more than {allowed}; upgrade onnxruntime, or export in fp32"
            )
        return difference


class BundleAuditTarget:
    """See `methods.audit.sample.AuditTarget`."""

    def __init__(self, opened: BundleClassifier) -> None:
        bundle = opened.bundle
        self.opened, self.name = opened, bundle.folder.resolve().name
        self.kind, self.fingerprint = bundle.kind, bundle.fingerprint

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes; raises ManifestError where the manifest has others."""
        return manifest.label_set(self.opened.labels.names)

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Ints]]:
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

    def kept_answers(self, classifier: BundleClassifier, manifest: Manifest, images: Manifest) -> None:
        """Nor features."""


@cache
def has_exact_bytes() -> bool:
    """Whether ONNX Runtime's fast products of bytes are exact on this processor: 64 times 255 x 127, which saturates in
    16 bits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (products,) = open_session(_PROBE, options).run(None, {"bytes": np.full((1, 64), 255, np.uint8)})
    return bool((products == 64 * 255 * 127).all())


def _greys(pixels: Singles, spec: Preprocess) -> Greys:
    """f32[B, 3, S, S] -> u8[B, S, S]: the inverse of `imaging.normalise`."""
    side = spec.size
    if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
        raise ImageError(f"pixels {list(pixels.shape)}: expected [B, 3, {side}, {side}]")
    levels = (pixels[:, 0] * np.float32(spec.std[0]) + np.float32(spec.mean[0])) * np.float32(255)
    greys = np.round(levels)
    if not (np.abs(levels - greys) < 0.01).all() or greys.min(initial=0) < 0 or greys.max(initial=0) > 255:
        raise ImageError("pixels: undoing the normalisation does not give whole grey levels in 0..255; normalise once")
    return greys.astype(np.uint8)
