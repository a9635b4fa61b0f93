"""The folder of a bundle: what stands in it, and how it is read and refused.

bundle.json       schema, labels, preprocessing, temperature, prediction sets, operating points, where it is from
model.onnx        u8[B, S, S] -> features f32[B, D], scores f32[B, C]
model.onnx.data   the large matrices that it multiplies by
self-test.npz     a synthetic picture and the scores that it must get, on whatever machine
novelty.npz       the out-of-distribution reference, where there were images enough
thumbnails.npz    some of the training pictures, small, where they were asked for
trained-on.npz    short digests of the pictures that the classifier has learned from
parity.json       how far it is from the original
README.md         the card
SHA256SUMS        of all files above; `sha256sum -c` checks it too
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.array_files import Expected, read_npz
from thoraclip.bundle.seal import FACTS, Seal, read_seal
from thoraclip.documents import Limits, read_json
from thoraclip.dtypes import Greys, Masks, Singles
from thoraclip.errors import ConfigError, MismatchError
from thoraclip.imaging import Preprocess
from thoraclip.imaging.preprocessing import PREPROCESS_SHAPE
from thoraclip.labels import LabelSet
from thoraclip.posthoc.conformal import ClassThresholds
from thoraclip.posthoc.ood import OOD_SHAPE, OodScore
from thoraclip.posthoc.scaling import TemperatureScaling
from thoraclip.ranges import BITS
from thoraclip.shapes import Check, check, mapping, number, one_of, optional, sequence, table, text, whole

__all__ = ["CARD", "DIGEST_BYTES", "MODEL", "PARITY", "SCHEMA", "Bundle", "Neighbour", "Thumbnails", "read_bundle"]

SCHEMA = 1
MODEL, PARITY, CARD = "model.onnx", "parity.json", "README.md"
_OOD, _SELF_TEST, _TRAINED_ON = "novelty.npz", "self-test.npz", "trained-on.npz"
_THUMBNAILS = "thumbnails.npz"
DIGEST_BYTES = 8
"""Bytes of a picture's SHA-256 that `trained-on.npz` keeps."""


@dataclass(frozen=True)
class Neighbour:
    """A training picture of the bundle, beside an image."""

    label: str
    similarity: float  # cosine of the bundle's features of both
    grey: Greys  # u8[S, S]


@dataclass(frozen=True)
class Thumbnails:
    """Training pictures that a bundle may carry, small, so that a person sees what a new one is most like."""

    greys: Greys  # u8[N, S, S]
    labels: Sequence[str]  # class of each
    features: npt.NDArray[np.floating]  # f16 or f32[N, D], of length 1: the bundle's own

    def nearest(self, features: Singles, *, count: int) -> list[Neighbour]:
        """The most similar ones to f32[D], the first most of all; of equals, the one that comes first."""
        own = np.asarray(features, np.float64)
        kept = self.features.astype(np.float64)  # f16 is off length 1 by up to 5e-4
        lengths = np.linalg.norm(kept, axis=1) * np.linalg.norm(own)
        # not `@`: BLAS sums some rows in another order, and equal pictures would not tie
        similarity = ((kept * own).sum(axis=1) / np.maximum(lengths, 1e-12)).clip(-1, 1)
        order = np.argsort(-similarity, kind="stable")[:count]
        return [Neighbour(self.labels[row], float(similarity[row]), self.greys[row]) for row in order]


class Bundle:
    """What a bundle says of itself; its large files are read when they are asked for.

    Args:
        folder: of the bundle.
        facts: all of `bundle.json`; the attributes are what they say.
        sealed: its checksums; `None` for one that is being made.

    Attributes:
        fingerprint: SHA-256 over the checksums of all its files.
        name: a title, such as `probe on dino-minilm`.
        precision: `fp32` or `int8`.
        scaling, sets: fitted on validation images, the sets on scores as the model gives them; `None` without them.
        width: the D of the model's features; 0 while the model is not loaded.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, sealed: Seal | None = None) -> None:
        self.folder, self.facts, self._sealed, self.width = folder, facts, sealed, 0
        self.fingerprint = "" if sealed is None else sealed.fingerprint
        self.name, self.kind, self.precision = (str(facts[name]) for name in ("name", "kind", "precision"))
        self.labels, self.preprocess = LabelSet(tuple(facts["labels"])), Preprocess.from_dict(facts["preprocess"])
        temperature, sets = facts["temperature"], facts["sets"]
        self.scaling = None if temperature is None else TemperatureScaling(float(temperature))
        self.sets = None if sets is None else _thresholds(sets, self.labels)

    def file(self, name: str) -> Path:
        """Where one of its files lies; raises MismatchError for one that was not sealed."""
        return self.folder / name if self._sealed is None else self._sealed.file(name)

    @property
    def bits(self) -> int | None:
        """Depth of the training images, for 16-bit pictures that state none; bundles of earlier versions have none."""
        return self.facts.get("bits") or None

    @property
    def title(self) -> str:
        """Shown beside its answers."""
        fold = self.facts["run"]["fold"]
        return f"bundle: {self.name}, {self.precision}" + ("" if fold is None else f", fold {fold}")

    def note_on(self, picture: bytes) -> str:
        """Which classifier explains a picture, and whether it has learned from this one."""
        used = self.is_trained_on([hashlib.sha256(picture).hexdigest()])[0]
        return self.title + (", which was trained or tuned on this image" if used else "")

    @cached_property
    def ood(self) -> OodScore | None:
        """The out-of-distribution reference; `None` where the bundle has none."""
        about, width = self.facts["novelty"], self.width or "D"
        if about is None:
            return None
        found = self._arrays(_OOD, {"means": ("f4", ("K", width)), "factor": ("f4", (width, width))})
        if not 1 <= len(found["means"]) <= len(self.labels):
            raise MismatchError(f"{self.folder / _OOD}: means of {len(found['means'])} classes; {_REMEDY}")
        return OodScore.from_facts(about, {name: array.astype(np.float64) for name, array in found.items()})  # once

    @cached_property
    def thumbnails(self) -> Thumbnails | None:
        """Training pictures that it carries; `None` where it has none."""
        about, names = self.facts.get("thumbnails"), self.labels.names
        if about is None:
            return None
        count, width = about["images"], self.width or "D"
        pictures = {"greys": ("u1", (count, "S", "S")), "targets": ("i8", (count,))}
        found = self._arrays(_THUMBNAILS, {**pictures, "features": ("f2 f4", (count, width))})
        if not ((found["targets"] >= 0) & (found["targets"] < len(names))).all():
            raise MismatchError(f"{self.folder / _THUMBNAILS}: a target is no class; {_REMEDY}")
        return Thumbnails(found["greys"], [names[target] for target in found["targets"]], found["features"])

    def self_test(self) -> tuple[Greys, Singles]:
        """(synthetic pictures u8[K, S, S], the scores that the model gave them when it was made f32[K, C])."""
        size = self.preprocess.size
        expected = {"greys": ("u1", ("K", size, size)), "scores": ("f4", ("K", len(self.labels)))}
        found = self._arrays(_SELF_TEST, expected)
        if not 1 <= len(found["greys"]) <= _MOST_TESTED:
            raise MismatchError(f"{self.folder / _SELF_TEST}: {len(found['greys'])} pictures; {_REMEDY}")
        return found["greys"], found["scores"]

    def is_trained_on(self, hashes: list[str]) -> Masks:
        """SHA-256 of N picture files, hexadecimal -> bool[N]: whether the classifier has learned from that picture."""
        own = b"".join(bytes.fromhex(one)[:DIGEST_BYTES] for one in hashes)
        return np.isin(np.frombuffer(own, np.uint64), self._trained_on)

    @cached_property
    def _trained_on(self) -> npt.NDArray[np.uint64]:
        return self._arrays(_TRAINED_ON, {"digests": ("u1", ("N", DIGEST_BYTES))})["digests"].view(np.uint64).ravel()

    def require_fit(self, width: int) -> None:
        """Read the small files, for a model of `width` features; raises MismatchError where one does not fit."""
        self.width = width
        if self._sealed is not None:
            _ = self.ood, self._trained_on

    def _arrays(self, name: str, expected: Expected) -> dict[str, npt.NDArray[Any]]:
        return read_npz(self.file(name), expected, error=MismatchError, remedy=_REMEDY)


def read_bundle(folder: Path, sealed: Seal | None = None) -> Bundle:
    """A bundle as it lies there, `sealed` by checksums that were read already.

    Raises:
        InputError: no bundle there, or one without checksums.
        MismatchError: `bundle.json` breaks a rule or is of another schema, or the checksums do not name a file.
    """
    sealed = sealed or read_seal(folder)
    path = sealed.file(FACTS)
    facts = read_json(path, error=MismatchError, remedy=_REMEDY, limits=Limits(bytes=4 << 20))
    check(facts, table(schema=whole(1)), path, error=MismatchError, remedy=_REMEDY)
    if facts["schema"] > SCHEMA:
        raise MismatchError(
            f"{folder}: is a bundle of schema {facts['schema']}, written by thoraclip {_writer(facts)}, and this "
            f"version reads up to {SCHEMA}; upgrade: pip install -U thoraclip"
        )
    check(facts, _FACTS, path, error=MismatchError, remedy=_REMEDY)
    check(facts, _sets_of(facts["labels"]), path, error=MismatchError, remedy=_REMEDY)
    for name in (MODEL, CARD, _SELF_TEST, _TRAINED_ON):
        sealed.file(name)
    try:
        return Bundle(folder, facts, sealed=sealed)
    except ConfigError as error:
        raise MismatchError(f"{path}: {error}; {_REMEDY}") from error


def _writer(facts: Mapping[str, Any]) -> str:
    try:
        return str(facts["provenance"]["versions"]["thoraclip"])[:20]
    except (KeyError, TypeError):
        return "a later version"


_REMEDY = "export the run again"
_MOST_TESTED = 16
_FACTS = table(
    name=text,
    kind=text,
    precision=one_of("fp32", "int8"),
    quantisation=optional(text),
    weights=optional(text),
    labels=sequence(text, 2, 1000, unique=True),
    preprocess=PREPROCESS_SHAPE,
    bits=optional(whole(BITS[0], BITS[-1])),
    temperature=optional(number(1e-3, 1e3)),
    novelty=optional(OOD_SHAPE),
    thumbnails=optional(table(images=whole(1, 100_000))),
    run=table(fold=optional(whole())),
    provenance=table(inputs=mapping(text), versions=mapping(text)),
    may=["quantisation", "weights", "bits", "thumbnails"],
)


def _sets_of(labels: Sequence[str]) -> Check:
    """The prediction sets of these classes."""
    counts, levels = table(dict.fromkeys(labels, whole())), table(dict.fromkeys(labels, optional(number(0, 1))))
    return table(
        sets=optional(table(alpha=number(0, 1), threshold=levels, images=counts, patients=counts, may=["patients"]))
    )


def _thresholds(sets: Mapping[str, Any], labels: LabelSet) -> ClassThresholds:
    thresholds = [sets["threshold"][name] for name in labels.names]
    return ClassThresholds(
        alpha=float(sets["alpha"]),
        threshold=np.array([np.inf if t is None else t for t in thresholds], dtype=np.float64),
        images=np.array([sets["images"][name] for name in labels.names], dtype=np.int64),
        patients=np.array([sets.get("patients", sets["images"])[name] for name in labels.names], dtype=np.int64),
    )


def write_ood_arrays(folder: Path, fitted: OodScore) -> dict[str, Any]:
    """Write the arrays of an out-of-distribution score; returns what `bundle.json` says of it."""
    np.savez(folder / _OOD, **fitted.arrays)  # type: ignore[arg-type]
    return fitted.facts


def write_self_test(folder: Path, greys: Greys, scores: npt.NDArray[np.floating]) -> None:
    """Write synthetic pictures u8[K, S, S] and the model's own scores of them f32[K, C]."""
    np.savez(folder / _SELF_TEST, greys=greys, scores=scores.astype(np.float32))


def write_thumbnails(folder: Path, found: Thumbnails, labels: LabelSet) -> dict[str, Any]:
    """Write training images; returns what `bundle.json` says of them."""
    targets = np.array([labels.names.index(label) for label in found.labels], dtype=np.int64)
    features = found.features.astype(np.float16)
    np.savez_compressed(folder / _THUMBNAILS, greys=found.greys, targets=targets, features=features)
    return {"images": len(targets)}


def write_trained_on(folder: Path, hashes: list[str]) -> None:
    """Write the digests of the pictures, SHA-256 of their files, that the classifier has learned from."""
    short = sorted(bytes.fromhex(one)[:DIGEST_BYTES] for one in set(hashes))
    rows = np.frombuffer(b"".join(short), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    np.savez(folder / _TRAINED_ON, digests=rows)
