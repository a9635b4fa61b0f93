"""Pixel cache: decoded, resized 8-bit grey pictures in one memory-mapped file, whoever reads them.

A folder (see `tables.arrays`) with `pixels.npy` u8[N, size, size] and `pixels.json` (schema, fingerprint, geometry).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.imaging import DECODING, Preprocess
from thoraclip.runs import digest
from thoraclip.tables.arrays import ArrayKind, ImageArrays, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["PIXELS", "PixelCache", "geometry_of", "pixels_fingerprint", "read_pixels"]

PIXELS = ArrayKind(
    name="pixels", arrays={"pixels": ("uint8", 3)}, schema=1, remedy="thoraclip embed MANIFEST --pixels DIR"
)


@dataclass(frozen=True)
class PixelCache(ImageArrays):
    """Pictures of N images, read from a folder; see `ImageArrays` for the index and the join."""

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """u8[N, size, size], mapped into memory."""
        return self.arrays["pixels"]


def geometry_of(spec: Preprocess) -> dict[str, Any]:
    """The part of a spec that decides the pixels; mean and std come later, at the model's door."""
    return {name: getattr(spec, name) for name in ("size", "geometry", "short_side", "resample")}


def pixels_fingerprint(manifest: Manifest, spec: Preprocess) -> str:
    """SHA-256 over what the pixels depend on: the images' contents and order, the geometry, the rules of decoding."""
    return digest([manifest.content_fingerprint, geometry_of(spec), DECODING])


def read_pixels(folder: Path) -> PixelCache:
    """Open a finished folder; raises as `read_arrays` does."""
    return PixelCache(**vars(read_arrays(folder, PIXELS)))
