"""Manifest -> batches of pixels, decoded ahead of the encoder by a pool of threads."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import Preprocess, check_pixels, decode, fit, normalise
from thoraclip.tables.manifest import Manifest

__all__ = ["pixel_batches"]

_AHEAD = 3
"""Batches decoded ahead; more only costs memory."""


def pixel_batches(
    manifest: Manifest, spec: Preprocess, *, batch_size: int, start: int = 0
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield (row of the first image, f32[B, 3, size, size]) in manifest order, beginning at row `start`.

    Batch boundaries are multiples of `batch_size` from row 0, so a resumed pass sees the same batches.

    Raises:
        ImageError: a picture cannot be decoded, or the first batch fails `check_pixels`.
        InputError: a picture is gone.
        MismatchError: a picture's content is not the one that was indexed.
    """
    paths, hashes = manifest.paths(), manifest.column("sha256")
    starts = range(start - start % batch_size, len(paths), batch_size)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:

        def submit(first: int) -> list[Future[npt.NDArray[np.uint8]]]:
            rows = range(first, min(first + batch_size, len(paths)))
            return [pool.submit(_load, paths[row], hashes[row], spec) for row in rows]

        waiting: deque[tuple[int, list[Future[npt.NDArray[np.uint8]]]]] = deque()
        upcoming = iter(starts)
        try:
            for first in upcoming:
                waiting.append((first, submit(first)))
                if len(waiting) >= _AHEAD:
                    break
            checked = False
            while waiting:
                first, futures = waiting.popleft()
                pixels = normalise(np.stack([future.result() for future in futures]), spec)
                following = next(upcoming, None)
                if following is not None:
                    waiting.append((following, submit(following)))
                if not checked:
                    check_pixels(pixels, spec)
                    checked = True
                yield first, pixels
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(path: Path, sha256: str | None, spec: Preprocess) -> npt.NDArray[np.uint8]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read any more ({error.strerror}); put it back or index again") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise MismatchError(f"{path}: its content changed since it was indexed; index the folder again")
    try:
        return fit(decode(data).pixels, spec)
    except ImageError as error:
        raise ImageError(f"{path}: {str(error).removeprefix('image: ')}") from error
