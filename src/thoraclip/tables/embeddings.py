"""Embeddings: what a frozen encoder says of each image, as memory-mapped arrays beside an index.

A folder: `index.parquet` (image_id, sha256; row i of the index is row i of the arrays), `pooled.npy` f32[N, D] (the
vision tower's pooled output before projection), `projected.npy` f32[N, P] (unit vectors in the space shared with
text), `embeddings.json` (schema, fingerprint, encoder, preprocessing). The JSON is written last: without it the
folder is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.runs import digest, write_json
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import read_table, write_table

__all__ = ["ARRAYS", "Embeddings", "embeddings_fingerprint", "finish_embeddings", "is_valid", "read_embeddings"]

_SCHEMA = 1
ARRAYS = ("pooled", "projected")


@dataclass(frozen=True)
class Embeddings:
    """Features of N images, read from a folder.

    Args:
        image_id, sha256: one per row.
        pooled: f32[N, D].
        projected: f32[N, P], unit vectors.
        encoder: what made them: model, weights' fingerprint, adapter, precision.
        preprocess: the `imaging.Preprocess` fields.
        fingerprint: SHA-256 over encoder, preprocessing and the images' contents.
    """

    image_id: tuple[str, ...]
    sha256: tuple[str, ...]
    pooled: npt.NDArray[np.float32]
    projected: npt.NDArray[np.float32]
    encoder: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    fingerprint: str

    def rows_for(self, manifest: Manifest) -> npt.NDArray[np.int64]:
        """i64[len(manifest)]: the row of each of the manifest's images, joined by id and content.

        Raises:
            MismatchError: an image is missing here, or its content differs (another data set, or changed files).
        """
        position = {image_id: row for row, image_id in enumerate(self.image_id)}
        wanted = list(zip(manifest.column("image_id"), manifest.column("sha256"), strict=True))
        missing = [i for i, _ in wanted if i not in position]
        if missing:
            raise MismatchError(
                f"embeddings: {len(missing)} of {len(wanted)} images of the manifest are not in them, first '{missing[0]}'; "
                "they belong to another manifest: run thoraclip embed on this one"
            )
        changed = [i for i, sha in wanted if self.sha256[position[i]] != sha]
        if changed:
            raise MismatchError(
                f"embeddings: {len(changed)} images differ in content from the manifest's, first '{changed[0]}'; "
                "they belong to another data set or the files changed: run thoraclip embed again"
            )
        return np.array([position[i] for i, _ in wanted], dtype=np.int64)


def embeddings_fingerprint(manifest: Manifest, encoder: Mapping[str, Any], preprocess: Mapping[str, Any]) -> str:
    """SHA-256 over what the arrays depend on: the images' contents and order, the encoder, the preprocessing."""
    return digest([manifest.content_fingerprint, dict(encoder), dict(preprocess)])


def is_valid(folder: Path, fingerprint: str) -> bool:
    """True when the folder is finished and was made from exactly this."""
    try:
        found = json.loads((folder / "embeddings.json").read_text(encoding="utf-8"))
        return bool(found["fingerprint"] == fingerprint and found["schema"] == _SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finish_embeddings(
    folder: Path, manifest: Manifest, *, encoder: Mapping[str, Any], preprocess: Mapping[str, Any], fingerprint: str
) -> None:
    """Write the index and, last, `embeddings.json`; the arrays are already in place."""
    columns = {name: pa.array(manifest.column(name), pa.string()) for name in ("image_id", "sha256")}
    write_table(folder / "index.parquet", pa.table(columns), kind="embeddings", schema=_SCHEMA)
    content = {"schema": _SCHEMA, "fingerprint": fingerprint, "encoder": dict(encoder), "preprocess": dict(preprocess)}
    write_json(folder / "embeddings.json", content)


def read_embeddings(folder: Path) -> Embeddings:
    """Open a finished folder; the arrays stay on disk and are mapped into memory.

    Raises:
        InputError: no finished embeddings there.
        ManifestError: written by a newer version, or the arrays do not fit the index.
    """
    note = folder / "embeddings.json"
    if not note.is_file():
        raise InputError(
            f"{folder}: no finished embeddings; make them with: thoraclip embed MANIFEST --model MODEL --out {folder}"
        )
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        newer = int(content["schema"]) > _SCHEMA
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{note}: not readable ({error!r}); delete the folder and embed again") from error
    if newer:
        raise ManifestError(f"{folder}: schema {content['schema']} is newer than {_SCHEMA}; upgrade thoraclip")
    table, _ = read_table(folder / "index.parquet", kind="embeddings", newest_schema=_SCHEMA)
    arrays = [_map(folder / f"{name}.npy", table.num_rows) for name in ARRAYS]
    return Embeddings(
        image_id=_texts(table["image_id"]),
        sha256=_texts(table["sha256"]),
        pooled=arrays[0],
        projected=arrays[1],
        encoder=content["encoder"],
        preprocess=content["preprocess"],
        fingerprint=content["fingerprint"],
    )


def _texts(column: Any) -> tuple[str, ...]:
    values: Sequence[str] = column.to_pylist()
    return tuple(values)


def _map(path: Path, rows: int) -> npt.NDArray[np.float32]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable array ({error}); delete the folder and embed again") from error
    if array.dtype != np.float32 or array.ndim != 2 or len(array) != rows:
        raise ManifestError(f"{path}: {array.dtype}{list(array.shape)}, expected float32 of {rows} rows; embed again")
    return np.asarray(array)
