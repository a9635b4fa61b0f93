"""Embeddings: the features of each image from a frozen encoder, as memory-mapped arrays beside an index.

A folder (see `tables.arrays`) with `pooled.npy` f32[N, D], `projected.npy` f32[N, P] and `embeddings.json` (schema,
fingerprint, encoder, preprocessing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.dtypes import Singles
from thoraclip.imaging import DECODING
from thoraclip.runs import digest
from thoraclip.shapes import table, text
from thoraclip.tables.arrays import ArrayKind, ImageArrays, read_arrays
from thoraclip.tables.manifest import Manifest

__all__ = ["EMBEDDINGS", "Embeddings", "embeddings_fingerprint", "embeddings_folder", "read_embeddings"]

_ARRAYS = {"pooled": ("float32", 2), "projected": ("float32", 2)}
_FACTS = {"encoder": table(weights=text, precision=text), "preprocess": table()}
EMBEDDINGS = ArrayKind(name="embeddings", arrays=_ARRAYS, schema=1, remedy="thoraclip embed", facts=_FACTS)


@dataclass(frozen=True)
class Embeddings(ImageArrays):
    """Features of N images, read from a folder; see `ImageArrays` for the index and the join."""

    @property
    def pooled(self) -> Singles:
        """f32[N, D], the vision tower's output before projection."""
        return self.arrays["pooled"]

    @property
    def projected(self) -> Singles:
        """f32[N, P], unit vectors in the space shared with text."""
        return self.arrays["projected"]

    @property
    def encoder(self) -> Mapping[str, Any]:
        """What made them: the weights' fingerprint and the precision."""
        return dict(self.facts["encoder"])

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """The `imaging.Preprocess` fields."""
        return dict(self.facts["preprocess"])


def embeddings_fingerprint(manifest: Manifest, encoder: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """SHA-256 over the images' contents and order, the encoder, the preprocessing and the rules of decoding."""
    return digest([manifest.content_fingerprint, dict(encoder), dict(preprocess), DECODING])


def embeddings_folder(cache: Path, encoder: Mapping[str, Any], preprocess: Mapping[str, Any]) -> Path:
    """Where a cache keeps what an encoder made."""
    return cache / digest([dict(encoder), dict(preprocess)])[:12]


def read_embeddings(folder: Path | str) -> Embeddings:
    """Open a finished folder; raises as `read_arrays` does."""
    return Embeddings(**vars(read_arrays(Path(folder), EMBEDDINGS)))
