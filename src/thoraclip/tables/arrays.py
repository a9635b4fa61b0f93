"""A folder of arrays with one row per image: features, decoded pictures, measurements.

`index.parquet` (image_id, sha256; row i of the index is row i of every array), one `<name>.npy` an array, and
`<kind>.json` (schema, fingerprint, facts). The JSON is written last: without it the folder is unfinished. `ArrayWriter`
fills such a folder from the first row on; killed at any moment and started again, it ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.format import open_memmap

from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.runs import make_folder, needing_room, sweep, take_room, write_json
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import read_table, write_table

__all__ = ["ArrayKind", "ArrayWriter", "ImageArrays", "finish_arrays", "is_valid", "read_arrays"]


@dataclass(frozen=True)
class ArrayKind:
    """What a folder of one kind holds.

    Args:
        name: `embeddings`, `pixels`, ...; names the JSON file and begins every message.
        arrays: array name -> (type, number of dimensions).
        schema: the newest schema that this version reads.
        remedy: the command that makes such a folder.
    """

    name: str
    arrays: Mapping[str, tuple[str, int]]
    schema: int
    remedy: str


@dataclass(frozen=True)
class ImageArrays:
    """A finished folder; the arrays stay on disk and are mapped into memory.

    Args:
        kind: what it is.
        image_id, sha256: one per row.
        arrays: name -> array[N, ...].
        facts: what made them.
        fingerprint: SHA-256 over everything that the arrays depend on.
    """

    kind: ArrayKind
    image_id: tuple[str, ...]
    sha256: tuple[str, ...]
    arrays: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Any]
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
                f"{self.kind.name}: {len(missing)} of {len(wanted)} images of the manifest are not in them, first "
                f"'{missing[0]}'; they belong to another manifest: run {self.kind.remedy} on this one"
            )
        changed = [i for i, sha in wanted if self.sha256[position[i]] != sha]
        if changed:
            raise MismatchError(
                f"{self.kind.name}: {len(changed)} images differ in content from the manifest's, first '{changed[0]}'; "
                f"they belong to another data set or the files changed: run {self.kind.remedy} again"
            )
        return np.array([position[i] for i, _ in wanted], dtype=np.int64)


def is_valid(folder: Path, kind: ArrayKind, fingerprint: str) -> bool:
    """True when the folder is finished and was made from exactly this."""
    try:
        found = json.loads((folder / f"{kind.name}.json").read_text(encoding="utf-8"))
        return bool(found["fingerprint"] == fingerprint and found["schema"] == kind.schema)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finish_arrays(
    folder: Path, kind: ArrayKind, manifest: Manifest, *, facts: Mapping[str, Any], fingerprint: str
) -> None:
    """Write the index and, last, the JSON; the arrays are already in place."""
    columns = {name: pa.array(manifest.column(name), pa.string()) for name in ("image_id", "sha256")}
    write_table(folder / "index.parquet", pa.table(columns), kind=kind.name, schema=kind.schema)
    write_json(folder / f"{kind.name}.json", {"schema": kind.schema, "fingerprint": fingerprint, **facts})


def read_arrays(folder: Path, kind: ArrayKind) -> ImageArrays:
    """Open a finished folder.

    Raises:
        InputError: nothing finished there.
        ManifestError: written by a newer version, or the arrays do not fit the index.
    """
    note = folder / f"{kind.name}.json"
    if not note.is_file():
        raise InputError(f"{folder}: no finished {kind.name}; make them with: {kind.remedy}")
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        newer, fingerprint = int(content.pop("schema")), str(content.pop("fingerprint"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{note}: not readable ({error!r}); delete the folder and run {kind.remedy}") from error
    if newer > kind.schema:
        raise ManifestError(f"{folder}: schema {newer} is newer than {kind.schema}; upgrade thoraclip")
    table, _ = read_table(folder / "index.parquet", kind=kind.name, newest_schema=kind.schema)
    return ImageArrays(
        kind=kind,
        image_id=tuple(table["image_id"].to_pylist()),
        sha256=tuple(table["sha256"].to_pylist()),
        arrays={name: _map(folder, kind, name, table.num_rows) for name in kind.arrays},
        facts=content,
        fingerprint=fingerprint,
    )


def _map(folder: Path, kind: ArrayKind, name: str, rows: int) -> npt.NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path}: not a readable array ({error}); delete the folder and run {kind.remedy}"
        ) from error
    dtype, dimensions = kind.arrays[name]
    if array.dtype != np.dtype(dtype) or array.ndim != dimensions or len(array) != rows:
        raise ManifestError(
            f"{path}: {array.dtype}{list(array.shape)}, expected {dtype} of {rows} rows; run {kind.remedy} again"
        )
    return np.asarray(array)


class ArrayWriter:
    """Fills a folder of arrays row by row, going on where a killed pass of the very same work stopped.

    Each block is on disk before the row count in `progress.json` says so.

    Args:
        folder: made if it is not there; an earlier end mark is taken away.
        kind: which arrays.
        total: rows in all.
        token: equal for equal work cut into equal blocks; the rows of any other work are thrown away.

    Raises:
        InputError: the folder cannot be made, or, in `append`, the disk has no room for all rows.
    """

    def __init__(self, folder: Path, kind: ArrayKind, *, total: int, token: str) -> None:
        sweep(folder)
        make_folder(folder)
        (folder / f"{kind.name}.json").unlink(missing_ok=True)
        self._folder, self._kind, self._total, self._token = folder, kind, total, token
        self._arrays: dict[str, Any] = {}
        self.rows = self._rows_done()

    def _part(self, name: str) -> Path:
        return self._folder / f"{name}.npy.part"

    def _rows_done(self) -> int:
        try:
            state = json.loads((self._folder / "progress.json").read_text(encoding="utf-8"))
            rows = int(state["rows"]) if state["token"] == self._token else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        there = all(self._part(name).is_file() for name in self._kind.arrays)
        return rows if there or rows == self._total else 0  # at the end the parts may be renamed already

    def append(self, blocks: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the next rows: name -> array[B, ...] for every array of the kind."""
        for name, block in blocks.items():
            if name not in self._arrays:
                self._arrays[name] = self._open(name, (self._total, *block.shape[1:]))
            self._arrays[name][self.rows : self.rows + len(block)] = block
            self._arrays[name].flush()
        self.rows += len(next(iter(blocks.values())))
        write_json(self._folder / "progress.json", {"token": self._token, "rows": self.rows})

    def _open(self, name: str, shape: tuple[int, ...]) -> Any:
        path, dtype = self._part(name), np.dtype(self._kind.arrays[name][0])
        if self.rows:
            return open_memmap(path, mode="r+")
        try:
            with needing_room(path):
                array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                with path.open("r+b") as stream:
                    take_room(stream, path.stat().st_size)
        except InputError:
            path.unlink(missing_ok=True)
            raise
        return array

    def finish(self, manifest: Manifest, *, facts: Mapping[str, Any], fingerprint: str) -> ImageArrays:
        """Give the arrays their names, write the index and the end mark, and open the folder."""
        self._arrays.clear()
        for name in self._kind.arrays:
            if self._part(name).exists():
                self._part(name).replace(self._folder / f"{name}.npy")
        finish_arrays(self._folder, self._kind, manifest, facts=facts, fingerprint=fingerprint)
        (self._folder / "progress.json").unlink(missing_ok=True)
        return read_arrays(self._folder, self._kind)
