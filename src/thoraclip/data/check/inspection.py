"""Measure every image of a manifest once: statistics of its appearance, and a thumbnail for finding copies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from thoraclip.data.appearance import STATISTICS, describe
from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.duplicates import THUMBNAIL_SIDE, DuplicatePair, array_on_disk, find_duplicates, squash, thumbnail
from thoraclip.documents import LARGE, kept_json
from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import DECODING, decode
from thoraclip.imaging.remedies import NONE, cropped, remedied
from thoraclip.runs import Progress, digest, remove_file, write_json
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, is_valid, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["MEASURED", "Inspection", "duplicate_pairs", "file_contents", "inspect"]

MEASURED: Mapping[str, str] = {"file_kilobytes": "size of the file, in thousands of bytes", **STATISTICS}
"""Name -> description of every number that is measured of a picture, in the order of the array's columns."""

_RULES = 2  # number of the rules of measuring; what was measured under another number is measured again
_ARRAYS = {"statistics": ("float32", 2), "wholes": ("uint8", 3), "thumbnails": ("uint8", 3)}
_INSPECTION = ArrayKind(name="inspection", arrays=_ARRAYS, schema=1, remedy="thoraclip check")
_PAIR_RULES = 3  # the same for duplicates
_BATCH = 64


@dataclass(frozen=True)
class Inspection:
    """Measurements of N images."""

    statistics: Singles  # f32[N, K], columns as in `MEASURED`; NaN where the image cannot be used
    wholes: Greys  # u8[N, S, S], with the borders; black where the image cannot be used
    thumbnails: Greys  # the same without borders of one grey, for the search for copies
    unreadable: Mapping[int, str]  # row -> reason


def inspect(manifest: Manifest, folder: Path, *, remedy: str = NONE, progress: Progress | None = None) -> Inspection:
    """Measure every image, or what a remedy makes of it, in parallel, and keep the measurements in `folder`.

    A killed pass goes on where it stopped, a finished one is only read. `progress` is called with (done, total).
    """
    paths, hashes, bits = manifest.paths(), manifest.column("sha256"), manifest.bits

    def measure(row: int) -> tuple[Singles, Greys, Greys, str]:
        """(f32[K], whole and thumbnail u8[S, S], empty), or (NaN, black, the reason why the image cannot be used)."""
        try:
            data = read_indexed(paths[row], hashes[row])
            pixels = remedied(cropped(decode(data, bits=bits[row]).pixels, remedy), remedy)
        except (ImageError, InputError, MismatchError) as error:
            reason = str(error).removeprefix(f"{paths[row]}: ").removeprefix("image: ")
            black = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8)
            return np.full(len(MEASURED), np.nan, dtype=np.float32), black, black, reason
        statistics = np.array([len(data) / 1000, *describe(pixels).values()], dtype=np.float32)
        whole = squash(pixels)
        return statistics, whole, thumbnail(pixels, whole), ""

    about = [manifest.content_fingerprint, list(MEASURED), THUMBNAIL_SIDE, DECODING, _RULES]
    fingerprint = digest(about if remedy == NONE else [*about, remedy])
    if is_valid(folder, _INSPECTION, fingerprint):
        arrays = read_arrays(folder, _INSPECTION).arrays
    else:
        total = len(manifest)
        writer = ArrayWriter(folder, _INSPECTION, total=total, token=digest([fingerprint, _BATCH]))
        if writer.rows < total:  # otherwise only the renaming was left
            for _, measured in in_batches(measure, total, batch_size=_BATCH, start=writer.rows):
                columns = list(zip(*measured, strict=True))
                writer.append({name: np.stack(columns[i]) for i, name in enumerate(_ARRAYS)})
                if progress:
                    progress(writer.rows, total)
        arrays = writer.finish(manifest, facts={"columns": list(MEASURED)}, fingerprint=fingerprint).arrays
    unusable = np.flatnonzero(np.isnan(arrays["statistics"]).all(axis=1)).tolist()
    reasons = {row: measure(row)[-1] for row in unusable}  # tried again
    if not all(reasons.values()):  # one was mended since: everything is measured anew
        remove_file(folder / f"{_INSPECTION.name}.json")
        return inspect(manifest, folder, remedy=remedy, progress=progress)
    return Inspection(arrays["statistics"], arrays["wholes"], arrays["thumbnails"], reasons)


def file_contents(*images: tuple[Manifest, Inspection]) -> list[str]:
    """SHA-256 of the images of manifests in turn; `row N` where one cannot be used, so that it is nobody's copy."""
    contents: list[str] = []
    for manifest, inspection in images:
        for row, sha256 in enumerate(manifest.column("sha256")):
            contents.append(sha256 if sha256 and row not in inspection.unreadable else f"row {len(contents)}")
    return contents


def duplicate_pairs(
    file: Path, *images: tuple[Manifest, Inspection], progress: Progress | None = None
) -> list[DuplicatePair]:
    """Pairs with an image of the first manifest, of this one or of the next, whose rows count on; kept in `file`.

    They are found again where anything that they depend on changed.
    """
    facts = [manifest.content_fingerprint for manifest, _ in images], [sorted(seen.unreadable) for _, seen in images]
    fingerprint = digest([*facts[0], *facts[1], THUMBNAIL_SIDE, DECODING, _PAIR_RULES])
    kept = kept_json(file, limits=LARGE)
    with contextlib.suppress(KeyError, TypeError):
        if kept["fingerprint"] == fingerprint:
            return [DuplicatePair(**pair) for pair in kept["pairs"]]
    contents, count, thumbnails = file_contents(*images), len(images[0][0]), images[0][1].thumbnails
    with TemporaryFile() as on_disk:
        if len(images) > 1:
            thumbnails = array_on_disk(on_disk, np.uint8, (len(contents), *thumbnails.shape[1:]))
            np.concatenate([seen.thumbnails for _, seen in images], out=thumbnails)
        among = np.arange(len(contents)) < count
        pairs = [p for p in find_duplicates(thumbnails, contents, among=among, progress=progress) if p.first < count]
    write_json(file, {"fingerprint": fingerprint, "pairs": [asdict(pair) for pair in pairs]})
    return pairs
