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
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.bundle.seal import FACTS, read_seal
from thoraclip.errors import ConfigError, MismatchError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.posthoc.conformal import ClassThresholds
from thoraclip.posthoc.ood import OodScore
from thoraclip.posthoc.scaling import TemperatureScaling

__all__ = ["CARD", "DIGEST_BYTES", "MODEL", "PARITY", "SCHEMA", "Bundle", "Neighbour", "Thumbnails", "read_bundle"]

SCHEMA = 1
MODEL, PARITY, CARD = "model.onnx", "parity.json", "README.md"
_OOD, _SELF_TEST, _TRAINED_ON = "novelty.npz", "self-test.npz", "trained-on.npz"
_THUMBNAILS = "thumbnails.npz"
DIGEST_BYTES = 8
"""Bytes of a picture's SHA-256 that `trained-on.npz` keeps."""

Greys = npt.NDArray[np.uint8]


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

    def nearest(self, features: npt.NDArray[np.float32], *, count: int) -> list[Neighbour]:
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
        fingerprint: SHA-256 over the checksums of all its files.
        facts: all of `bundle.json`; the attributes are what they say.

    Attributes:
        name: a title, such as `probe on dino-minilm`.
        precision: `fp32` or `int8`.
        scaling, sets: fitted on validation images, the sets on scores as the model gives them; `None` without them.
    """

    def __init__(self, folder: Path, fingerprint: str, facts: Mapping[str, Any]) -> None:
        self.folder, self.fingerprint, self.facts = folder, fingerprint, facts
        self.name, self.kind, self.precision = (str(facts[name]) for name in ("name", "kind", "precision"))
        self.labels, self.preprocess = LabelSet(tuple(facts["labels"])), Preprocess.from_dict(facts["preprocess"])
        temperature, sets = facts["temperature"], facts["sets"]
        self.scaling = None if temperature is None else TemperatureScaling(float(temperature))
        self.sets = None if sets is None else _thresholds(sets, self.labels)

    @property
    def bits(self) -> int | None:
        """Depth of the training images, for 16-bit pictures that state none; bundles of earlier versions have none."""
        bits = self.facts.get("bits")
        return int(bits) if bits else None

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
        about = self.facts["novelty"]
        if about is None:
            return None
        arrays = {name: array.astype(np.float64) for name, array in _arrays(self.folder / _OOD).items()}  # once
        return OodScore.from_facts(about, arrays)

    @cached_property
    def thumbnails(self) -> Thumbnails | None:
        """Training pictures that it carries; `None` where it has none."""
        about = self.facts.get("thumbnails")
        if about is None:
            return None
        arrays, names = _arrays(self.folder / _THUMBNAILS), self.labels.names
        return Thumbnails(arrays["greys"], [names[target] for target in arrays["targets"]], arrays["features"])

    def self_test(self) -> tuple[Greys, npt.NDArray[np.float32]]:
        """(synthetic pictures u8[K, S, S], the scores that the model gave them when it was made f32[K, C])."""
        arrays = _arrays(self.folder / _SELF_TEST)
        return arrays["greys"], arrays["scores"]

    def is_trained_on(self, hashes: list[str]) -> npt.NDArray[np.bool_]:
        """SHA-256 of N picture files, hexadecimal -> bool[N]: whether the classifier has learned from that picture."""
        known = _arrays(self.folder / _TRAINED_ON)["digests"]
        own = {row.tobytes() for row in known}
        return np.array([bytes.fromhex(one)[:DIGEST_BYTES] in own for one in hashes], dtype=bool)


def read_bundle(folder: Path) -> Bundle:
    """A bundle as it lies there; raises InputError where there is none or it has no checksums, MismatchError where it
    is not readable or of another schema."""
    fingerprint = hashlib.sha256(read_seal(folder).encode()).hexdigest()
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if 1 <= (schema := int(facts["schema"])) <= SCHEMA:
            return Bundle(folder, fingerprint, facts)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise MismatchError(f"{folder / FACTS}: is not readable ({error!r}); export the run again") from error
    if schema < 1:
        raise MismatchError(f"{folder}: schema {schema} is no schema of a bundle; export the run again")
    by = facts.get("provenance", {}).get("versions", {}).get("thoraclip", "a later version")
    raise MismatchError(
        f"{folder}: is a bundle of schema {schema}, written by thoraclip {by}, and this version reads up to "
        f"{SCHEMA}; upgrade: pip install -U thoraclip"
    )


def _thresholds(sets: Mapping[str, Any], labels: LabelSet) -> ClassThresholds:
    thresholds = [sets["threshold"][name] for name in labels.names]
    return ClassThresholds(
        alpha=float(sets["alpha"]),
        threshold=np.array([np.inf if t is None else t for t in thresholds], dtype=np.float64),
        images=np.array([sets["images"][name] for name in labels.names], dtype=np.int64),
        patients=np.array([sets.get("patients", sets["images"])[name] for name in labels.names], dtype=np.int64),
    )


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError) as error:  # the checksums were right, so it was written so
        raise MismatchError(f"{path}: is not readable ({error}); export the run again") from error


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
