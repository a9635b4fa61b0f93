"""Manifest -> batches of grey pictures: from the pixel cache, or decoded ahead by a pool of threads.

manifest --decode, fit--> u8[B, size, size] --+--> encoder
                                              +--> pixel cache on disk --> u8[B, size, size] for every later pass
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from thoraclip.dtypes import Greys
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import DECODING, Preprocess, decode, fit, read_bytes
from thoraclip.runs import Progress, digest, locked, require_room
from thoraclip.tables.arrays import ArrayKind, ArrayWriter, ImageArrays, is_valid, read_arrays
from thoraclip.tables.manifest import Manifest, depths_of
from thoraclip.threads import in_order

__all__ = [
    "PIXELS", "decoded", "grey_batches", "in_batches", "picture_loader", "picture_source", "pixel_cache",
    "read_indexed", "read_pixels",
]  # fmt: skip

T = TypeVar("T")

_AHEAD = 3  # batches decoded ahead; more only costs memory
_CACHE_BATCH = 256

PIXELS = ArrayKind(
    name="pixels", arrays={"pixels": ("uint8", 3)}, schema=1, remedy="thoraclip embed MANIFEST --pixels DIR"
)
"""Pixel cache: `pixels.npy` u8[N, size, size], decoded and resized grey images; its facts are the geometry."""


def grey_batches(
    manifest: Manifest,
    spec: Preprocess,
    *,
    batch_size: int,
    start: int = 0,
    pixels: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Greys]]:
    """Yield (row of the first image, u8[B, size, size]) in manifest order, beginning at row `start`.

    Batch boundaries are multiples of `batch_size` from row 0, so a resumed pass sees the same batches. With and without
    a pixel cache the batches are equal, bit for bit.

    `pixels` is a folder of pixel caches: the right one in it is used, and made first where it is not there, which
    `progress` is told.

    Raises:
        ImageError: an image cannot be decoded.
        InputError: an image is gone, or the disk is too full for the cache.
        MismatchError: a picture's content is not the one that was indexed.
    """
    rows, total = range(start - start % batch_size, len(manifest), batch_size), len(manifest)
    source = picture_source(manifest, spec, pixels=pixels, progress=progress)
    if pixels is not None:
        yield from ((first, source(range(first, min(first + batch_size, total)))) for first in rows)
        return
    one_by_one = in_batches(lambda row: source(range(row, row + 1)), total, batch_size=batch_size, start=rows.start)
    yield from ((first, np.concatenate(images)) for first, images in one_by_one)


def picture_source(
    manifest: Manifest, spec: Preprocess, *, pixels: Path | None = None, progress: Progress | None = None
) -> Callable[[range], Greys]:
    """What gives the images of some rows, u8[n, size, size], in whichever thread it is called; see `grey_batches`."""
    if pixels is None:
        return decoded(manifest.root, manifest.table, spec)
    cached = pixel_cache(manifest, spec, pixels, progress=progress).arrays["pixels"]
    return lambda rows: np.array(cached[rows.start : rows.stop])


def decoded(root: Path | str, table: pa.Table, spec: Preprocess) -> Callable[[range], Greys]:
    """The same for the columns `path`, below a folder, `sha256` and `bits`, if any, of a table, which may have millions
    of rows."""

    def load(rows: range) -> Greys:
        part = table.slice(rows.start, len(rows))
        files = zip(part["path"].to_pylist(), part["sha256"].to_pylist(), depths_of(part), strict=True)
        return np.stack([read_pixels(Path(root, path), sha256, spec, bits=bits) for path, sha256, bits in files])

    return load


def read_pixels(path: Path, sha256: str | None, spec: Preprocess | None = None, *, bits: int | None = None) -> Greys:
    """u8[H, W], or at a geometry, of an image of a manifest and its depth there; raises ImageError, and as
    `read_indexed` does."""
    data = read_indexed(path, sha256)
    try:
        pixels = decode(data, bits=bits).pixels
        return fit(pixels, spec) if spec else pixels
    except ImageError as error:
        raise ImageError(f"{path}: {str(error).removeprefix('image: ')}") from error


def pixel_cache(
    manifest: Manifest, spec: Preprocess, root: Path | str, *, progress: Progress | None = None
) -> ImageArrays:
    """The decoded pictures of a manifest at one geometry: found in `root`, or written there, in parallel, now.

    A killed pass goes on where it stopped and ends with the same bytes; InputError where the disk has no room. `root`
    holds a folder for each set of images and geometry; mean and std do not matter; `progress` gets (done, total).
    """
    geometry = spec.pixels
    fingerprint = digest([manifest.content_fingerprint, geometry, DECODING])
    folder = Path(root) / f"{spec.geometry}-{spec.size}-{fingerprint[:12]}"
    if is_valid(folder, PIXELS, fingerprint):
        return read_arrays(folder, PIXELS)
    with locked(folder, option="--pixels"):
        total = len(manifest)
        writer = ArrayWriter(folder, PIXELS, total=total, token=digest([fingerprint, _CACHE_BATCH]))
        remedy = "name a folder on another disk with --pixels, or go without it"
        require_room(folder, (total - writer.rows) * spec.size**2, "the pixel cache", remedy)
        if writer.rows < total:  # otherwise only the renaming was left
            for _, greys in grey_batches(manifest, spec, batch_size=_CACHE_BATCH, start=writer.rows):
                writer.append({"pixels": greys})
                if progress:
                    progress(writer.rows, total)
        return writer.finish(manifest, facts={"geometry": geometry}, fingerprint=fingerprint)


def picture_loader(manifest: Manifest) -> Callable[[Path], Greys]:
    """What gives an image of a manifest, u8[H, W], by its path, at its depth; raises ImageError."""
    depths = {path: bits for path, bits in zip(manifest.paths(), manifest.bits, strict=True) if bits}
    return lambda path: decode(path, bits=depths.get(path)).pixels


def in_batches(
    work: Callable[[int], T], total: int, *, batch_size: int, start: int = 0
) -> Iterator[tuple[int, Sequence[T]]]:
    """Yield (first row, `work(row)` of each row of a batch), computed ahead by threads, from row `start` to `total`."""
    results = in_order(work, range(start, total), ahead=_AHEAD * batch_size)
    for first in range(start, total, batch_size):
        yield first, list(islice(results, batch_size))


def read_indexed(path: Path, sha256: str | None) -> bytes:
    """The bytes of an image of a manifest; InputError where it is gone, MismatchError where its content changed."""
    try:
        data = read_bytes(path)
    except ImageError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix("cannot be read ")
        raise InputError(f"{path}: cannot be read any more {reason}; put it back or index again") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise MismatchError(f"{path}: its content changed since it was indexed; index the folder again")
    return data
