"""Look at every picture of a manifest once: statistics of its appearance, and a thumbnail for finding copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thoraclip.data.appearance import STATISTICS, describe
from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.duplicates import THUMBNAIL_SIDE, thumbnail
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import DECODING, decode
from thoraclip.runs import Progress, digest
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, ImageArrays, is_valid, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["MEASURED", "Inspection", "inspect"]

MEASURED: Mapping[str, str] = {"file_kilobytes": "size of the file, in thousands of bytes", **STATISTICS}
"""Name -> description of every number that is measured of a picture, in the order of the array's columns."""

_RULES = 1
"""Number of the rules of measuring; what was measured under another number is measured again."""
_INSPECTION = ArrayKind(
    name="inspection",
    arrays={"statistics": ("float32", 2), "thumbnails": ("uint8", 3)},
    schema=1,
    remedy="thoraclip check",
)
_BATCH = 64

_Look = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], str]


@dataclass(frozen=True)
class Inspection:
    """What was seen.

    Args:
        statistics: f32[N, K], columns as in `MEASURED`; NaN where the picture cannot be used.
        thumbnails: u8[N, S, S]; black where the picture cannot be used.
        unreadable: row -> reason.
    """

    statistics: npt.NDArray[np.float32]
    thumbnails: npt.NDArray[np.uint8]
    unreadable: Mapping[int, str]


def inspect(manifest: Manifest, folder: Path, *, progress: Progress | None = None) -> Inspection:
    """Measure every picture, in parallel; a killed pass goes on where it stopped, a finished one is only read.

    Args:
        manifest: N images.
        folder: where the measurements are kept.
        progress: called with (done, total).
    """
    fingerprint = digest([manifest.content_fingerprint, list(MEASURED), THUMBNAIL_SIDE, DECODING, _RULES])
    look, total = _looker(manifest), len(manifest)
    if is_valid(folder, _INSPECTION, fingerprint):
        found = read_arrays(folder, _INSPECTION)
    else:
        writer = ArrayWriter(folder, _INSPECTION, total=total, token=digest([fingerprint, _BATCH]))
        if writer.rows < total:  # otherwise only the renaming was left
            for _, looks in in_batches(look, total, batch_size=_BATCH, start=writer.rows):
                statistics, thumbnails, _ = zip(*looks, strict=True)
                writer.append({"statistics": np.stack(statistics), "thumbnails": np.stack(thumbnails)})
                if progress:
                    progress(writer.rows, total)
        found = writer.finish(manifest, facts={"columns": list(MEASURED)}, fingerprint=fingerprint)
    return _with_reasons(manifest, folder, found, look, progress)


def _with_reasons(
    manifest: Manifest,
    folder: Path,
    found: ImageArrays,
    look: Callable[[int], _Look],
    progress: Progress | None,
) -> Inspection:
    """Try the unusable pictures again, for their reasons; where one was mended since, everything is measured anew."""
    statistics = found.arrays["statistics"]
    unusable = np.flatnonzero(np.isnan(statistics).all(axis=1)).tolist()
    reasons = {row: look(row)[2] for row in unusable}
    if not all(reasons.values()):
        shutil.rmtree(folder)
        return inspect(manifest, folder, progress=progress)
    return Inspection(statistics, found.arrays["thumbnails"], reasons)


def _looker(manifest: Manifest) -> Callable[[int], _Look]:
    paths, hashes = manifest.paths(), manifest.column("sha256")

    def look(row: int) -> _Look:
        try:
            data = read_indexed(paths[row], hashes[row])
            pixels = decode(data).pixels
        except (ImageError, InputError, MismatchError) as error:
            nothing = np.full(len(MEASURED), np.nan, dtype=np.float32)
            reason = str(error).removeprefix(f"{paths[row]}: ").removeprefix("image: ")
            return nothing, np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8), reason
        values = {"file_kilobytes": len(data) / 1000, **describe(pixels)}
        return np.array([values[name] for name in MEASURED], dtype=np.float32), thumbnail(pixels), ""

    return look
