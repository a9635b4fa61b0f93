"""Measure every image of a manifest once: statistics of its appearance, and a thumbnail for finding copies."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from thoraclip.data.appearance import STATISTICS, describe
from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.duplicates import THUMBNAIL_SIDE, DuplicatePair, thumbnail
from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import DECODING, decode
from thoraclip.runs import Progress, digest, write_json
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, is_valid, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["MEASURED", "Inspection", "file_contents", "inspect", "kept_pairs"]

MEASURED: Mapping[str, str] = {"file_kilobytes": "size of the file, in thousands of bytes", **STATISTICS}
"""Name -> description of every number that is measured of a picture, in the order of the array's columns."""

_RULES = 1
"""Number of the rules of measuring; what was measured under another number is measured again."""
_ARRAYS = {"statistics": ("float32", 2), "thumbnails": ("uint8", 3)}
_INSPECTION = ArrayKind(name="inspection", arrays=_ARRAYS, schema=1, remedy="thoraclip check")
_PAIR_RULES = 1
"""The same for duplicates."""
_BATCH = 64


@dataclass(frozen=True)
class Inspection:
    """Measurements of N images."""

    statistics: Singles  # f32[N, K], columns as in `MEASURED`; NaN where the image cannot be used
    thumbnails: Greys  # u8[N, S, S]; black where the image cannot be used
    unreadable: Mapping[int, str]  # row -> reason


def inspect(manifest: Manifest, folder: Path, *, progress: Progress | None = None) -> Inspection:
    """Measure every image, in parallel, and keep the measurements in `folder`.

    A killed pass goes on where it stopped, a finished one is only read. `progress` is called with (done, total).
    """
    paths, hashes = manifest.paths(), manifest.column("sha256")

    def measure(row: int) -> tuple[Singles, Greys, str]:
        return _measure(paths[row], hashes[row])

    fingerprint = digest([manifest.content_fingerprint, list(MEASURED), THUMBNAIL_SIDE, DECODING, _RULES])
    if is_valid(folder, _INSPECTION, fingerprint):
        arrays = read_arrays(folder, _INSPECTION).arrays
    else:
        total = len(manifest)
        writer = ArrayWriter(folder, _INSPECTION, total=total, token=digest([fingerprint, _BATCH]))
        if writer.rows < total:  # otherwise only the renaming was left
            for _, measured in in_batches(measure, total, batch_size=_BATCH, start=writer.rows):
                statistics, thumbnails, _ = zip(*measured, strict=True)
                writer.append({"statistics": np.stack(statistics), "thumbnails": np.stack(thumbnails)})
                if progress:
                    progress(writer.rows, total)
        arrays = writer.finish(manifest, facts={"columns": list(MEASURED)}, fingerprint=fingerprint).arrays
    unusable = np.flatnonzero(np.isnan(arrays["statistics"]).all(axis=1)).tolist()
    reasons = {row: measure(row)[2] for row in unusable}  # tried again
    if not all(reasons.values()):  # one was mended since: everything is measured anew
        shutil.rmtree(folder)
        return inspect(manifest, folder, progress=progress)
    return Inspection(arrays["statistics"], arrays["thumbnails"], reasons)


def _measure(path: Path, sha256: str | None) -> tuple[Singles, Greys, str]:
    """(f32[K], thumbnail u8[S, S], empty), or (NaN, black, the reason why the image cannot be used)."""
    try:
        data = read_indexed(path, sha256)
        pixels = decode(data).pixels
    except (ImageError, InputError, MismatchError) as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix("image: ")
        black = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8)
        return np.full(len(MEASURED), np.nan, dtype=np.float32), black, reason
    values = {"file_kilobytes": len(data) / 1000, **describe(pixels)}
    return np.array([values[name] for name in MEASURED], dtype=np.float32), thumbnail(pixels), ""


def file_contents(manifest: Manifest, inspection: Inspection, *, first: int = 0) -> list[str]:
    """SHA-256 of every image; `row N`, counted from `first`, where it cannot be used, so that it is nobody's copy."""
    return [
        sha256 if sha256 and row not in inspection.unreadable else f"row {first + row}"
        for row, sha256 in enumerate(manifest.column("sha256"))
    ]


def kept_pairs(file: Path, made_from: Sequence[object], find: Callable[[], list[DuplicatePair]]) -> list[DuplicatePair]:
    """Pairs of duplicates, kept in `file`; found again where anything that they depend on (`made_from`) changed."""
    fingerprint = digest([*made_from, THUMBNAIL_SIDE, DECODING, _PAIR_RULES])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["fingerprint"] == fingerprint:
            return [DuplicatePair(**pair) for pair in kept["pairs"]]
    pairs = find()
    write_json(file, {"fingerprint": fingerprint, "pairs": [asdict(pair) for pair in pairs]})
    return pairs
