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
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.bundle.seal import FACTS, read_seal
from thoraclip.bundle.thumbnails import Thumbnails
from thoraclip.errors import MismatchError, ThoraclipError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.posthoc.conformal import ClassThresholds
from thoraclip.posthoc.ood import OodScore
from thoraclip.posthoc.scaling import TemperatureScaling
from thoraclip.runs import write_json

__all__ = [
    "CARD",
    "DIGEST_BYTES",
    "MODEL",
    "PARITY",
    "SCHEMA",
    "Bundle",
    "parse_facts",
    "read_bundle",
    "write_facts",
    "write_ood_arrays",
    "write_self_test",
    "write_thumbnails",
    "write_trained_on",
]

SCHEMA = 1
MODEL, PARITY, CARD = "model.onnx", "parity.json", "README.md"
_OOD, _SELF_TEST, _TRAINED_ON = "novelty.npz", "self-test.npz", "trained-on.npz"
_THUMBNAILS = "thumbnails.npz"
DIGEST_BYTES = 8
"""Bytes of a picture's SHA-256 that `trained-on.npz` keeps."""

Greys = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle says of itself; its large files are read when they are asked for.

    Args:
        folder: of the bundle.
        fingerprint: SHA-256 over the checksums of all its files.
        name: a title, such as `probe on dino-minilm`.
        kind: of the method.
        precision: `fp32` or `int8`.
        labels: C classes, in the order of the scores.
        preprocess: how a picture becomes the model's input.
        scaling: temperature, fitted on validation images; `None` without them.
        sets: thresholds of the prediction sets, on scores as the model gives them; `None` without validation images.
        operating_points: class -> threshold on the calibrated score that finds the share `goal` of its validation
            images.
        facts: all of `bundle.json`.
    """

    folder: Path
    fingerprint: str
    name: str
    kind: str
    precision: str
    labels: LabelSet
    preprocess: Preprocess
    scaling: TemperatureScaling | None
    sets: ClassThresholds | None
    operating_points: Mapping[str, float]
    facts: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Shown beside its answers."""
        fold = self.facts["run"]["fold"]
        return f"bundle: {self.name}, {self.precision}" + ("" if fold is None else f", fold {fold}")

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL

    @cached_property
    def parity(self) -> dict[str, Any]:
        """How far the bundle is from the original; the content of `parity.json`."""
        content: dict[str, Any] = json.loads((self.folder / PARITY).read_text(encoding="utf-8"))
        return content

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
    """A bundle as it lies there; `check_seal` tells whether it is as it was made.

    Raises:
        InputError: no bundle there, or one without checksums.
        MismatchError: it is not readable, or of another schema.
    """
    fingerprint = hashlib.sha256(read_seal(folder).encode()).hexdigest()
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        _check_schema(folder, facts)
        return parse_facts(folder, fingerprint, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{folder / FACTS}: is not readable ({error!r}); export the run again") from error


def _check_schema(folder: Path, facts: Mapping[str, Any]) -> None:
    found = int(facts["schema"])
    if found > SCHEMA:
        by = facts.get("provenance", {}).get("versions", {}).get("thoraclip", "a later version")
        raise MismatchError(
            f"{folder}: is a bundle of schema {found}, written by thoraclip {by}, and this version reads up to "
            f"{SCHEMA}; upgrade: pip install -U thoraclip"
        )
    if found < 1:
        raise MismatchError(f"{folder}: schema {found} is no schema of a bundle; export the run again")


def parse_facts(folder: Path, fingerprint: str, facts: Mapping[str, Any]) -> Bundle:
    labels, temperature, sets = LabelSet(tuple(facts["labels"])), facts["temperature"], facts["sets"]
    points = facts["operating_points"]
    try:
        preprocess = Preprocess.from_dict(facts["preprocess"])
    except ThoraclipError as error:
        raise ValueError(str(error)) from error
    return Bundle(
        folder=folder,
        fingerprint=fingerprint,
        name=str(facts["name"]),
        kind=str(facts["kind"]),
        precision=str(facts["precision"]),
        labels=labels,
        preprocess=preprocess,
        scaling=None if temperature is None else TemperatureScaling(float(temperature)),
        sets=None if sets is None else _thresholds(sets, labels),
        operating_points={}
        if points is None
        else {n: float(t) for n, t in points["threshold"].items() if t is not None},
        facts=facts,
    )


def _thresholds(sets: Mapping[str, Any], labels: LabelSet) -> ClassThresholds:
    told = [sets["threshold"][name] for name in labels.names]
    return ClassThresholds(
        alpha=float(sets["alpha"]),
        threshold=np.array([np.inf if t is None else t for t in told], dtype=np.float64),
        images=np.array([sets["images"][name] for name in labels.names], dtype=np.int64),
    )


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError) as error:  # the checksums were right, so it was written so
        raise MismatchError(f"{path}: is not readable ({error}); export the run again") from error


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `bundle.json`."""
    write_json(folder / FACTS, dict(facts))


def write_ood_arrays(folder: Path, fitted: OodScore) -> dict[str, Any]:
    """Write the arrays of an out-of-distribution score; returns what `bundle.json` says of it."""
    np.savez(folder / _OOD, **fitted.arrays)  # type: ignore[arg-type]
    return fitted.facts


def write_self_test(folder: Path, greys: Greys, scores: npt.NDArray[np.float32]) -> None:
    """Write synthetic pictures u8[K, S, S] and the model's own scores of them f32[K, C]."""
    np.savez(folder / _SELF_TEST, greys=greys, scores=scores.astype(np.float32))


def write_thumbnails(folder: Path, found: Thumbnails, labels: LabelSet) -> dict[str, Any]:
    """Write training pictures; returns what `bundle.json` says of them."""
    targets = np.array([labels.names.index(label) for label in found.labels], dtype=np.int64)
    np.savez_compressed(
        folder / _THUMBNAILS, greys=found.greys, targets=targets, features=found.features.astype(np.float16)
    )
    return {"images": len(found)}


def write_trained_on(folder: Path, hashes: list[str]) -> None:
    """Write the digests of the pictures, SHA-256 of their files, that the classifier has learned from."""
    short = sorted(bytes.fromhex(one)[:DIGEST_BYTES] for one in set(hashes))
    rows = np.frombuffer(b"".join(short), dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    np.savez(folder / _TRAINED_ON, digests=rows)
