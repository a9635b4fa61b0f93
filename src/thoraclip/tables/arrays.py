"""A folder of arrays with one row per image: features, decoded images, measurements.

`index.parquet` (image_id, sha256; row i of the index is row i of every array), one `<name>.npy` an array, and
`<kind>.json` (schema, fingerprint, facts). The JSON is written last: without it the folder is unfinished. `ArrayWriter`
fills such a folder from the first row on; killed at any moment and started again, it ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.format import open_memmap

from thoraclip.array_files import Shape, open_npy
from thoraclip.documents import kept_json, read_json
from thoraclip.dtypes import Ints
from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.locks import is_main_process
from thoraclip.ranges import require_path
from thoraclip.runs import make_folder, needing_room, remove_file, take_room, write_json
from thoraclip.shapes import Check, check, table, text, whole
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import StoredTable, open_table, write_table

__all__ = ["ArrayKind", "ArrayWriter", "ImageArrays", "is_valid", "read_arrays"]

_INDEX = ("image_id", "sha256")


@dataclass(frozen=True)
class ArrayKind:
    """What a folder of one kind holds."""

    name: str  # `embeddings`, `pixels`, ...; names the JSON file and begins every message
    arrays: Mapping[str, tuple[str, int]]  # array name -> (type, number of dimensions)
    schema: int  # the newest schema that this version reads
    remedy: str  # the command that makes such a folder
    facts: Mapping[str, Check] = field(default_factory=dict)  # what its JSON file must say of them


@dataclass(frozen=True)
class ImageArrays:
    """A finished folder; the arrays stay on disk and are mapped into memory."""

    kind: ArrayKind
    index: StoredTable  # the columns image_id and sha256, a row per row of the arrays; not held in memory
    arrays: Mapping[str, npt.NDArray[Any]]  # name -> array[N, ...]
    facts: Mapping[str, Any]  # what made them
    fingerprint: str  # SHA-256 over everything that the arrays depend on

    def __len__(self) -> int:
        return self.index.rows

    @property
    def image_id(self) -> tuple[str, ...]:
        """The image of each row."""
        return tuple(image for part in self.index.parts(["image_id"]) for image in part["image_id"].to_pylist())

    def rows_for(self, manifest: Manifest) -> Ints:
        """i64[len(manifest)]: the row of each of the manifest's images, joined by id and content, or MismatchError."""
        wanted, contents = manifest.values("image_id"), manifest.values("sha256")
        rows, start = np.full(len(wanted), -1), 0
        changed: list[int] = []
        for part in self.index.parts(_INDEX):
            place = pc.index_in(wanted, value_set=part["image_id"].combine_chunks())
            is_here = place.is_valid()
            here, place = np.flatnonzero(np.asarray(is_here)), place.drop_null()
            rows[here] = start + np.asarray(place)
            own, theirs = part["sha256"].take(place), contents.filter(is_here)
            same = pc.equal(own, theirs).fill_null(fill_value=False)
            both_unknown = pc.and_(own.is_null(), theirs.is_null())
            changed += here[~np.asarray(pc.or_(same, both_unknown))].tolist()
            start += len(part)
        missing = np.flatnonzero(rows < 0)
        name, remedy = self.kind.name, self.kind.remedy
        if len(missing):
            what = f"{len(missing)} of {len(wanted)} images of the manifest are not in them"
            why = f"first '{wanted[int(missing[0])]}'; they belong to another manifest: run {remedy} on this one"
            raise MismatchError(f"{name}: {what}, {why}")
        if changed:
            what = f"{len(changed)} images differ in content from the manifest's, first '{wanted[min(changed)]}'"
            why = f"they belong to another data set or the files changed: run {remedy} again"
            raise MismatchError(f"{name}: {what}; {why}")
        return rows


def is_valid(folder: Path, kind: ArrayKind, fingerprint: str) -> bool:
    """True when the folder is finished and was made from exactly this; what a kill at the very end left there goes."""
    note = kept_json(folder / f"{kind.name}.json")
    is_done = bool(note.get("fingerprint") == fingerprint and note.get("schema") == kind.schema)
    if is_done and is_main_process():
        with suppress(OSError):  # a folder that may not be written is only read
            (folder / "progress.json").unlink(missing_ok=True)
    return is_done


def read_arrays(folder: Path, kind: ArrayKind) -> ImageArrays:
    """Open a folder; InputError where it is unfinished, ManifestError where it is newer or does not fit its index."""
    require_path(kind.name, folder)
    note = folder / f"{kind.name}.json"
    if not note.is_file():
        raise InputError(f"{folder}: no finished {kind.name}; make them with: {kind.remedy}")
    remedy = f"delete the folder and run {kind.remedy}"
    facts = read_json(note, error=ManifestError, remedy=remedy)
    check(facts, table(kind.facts, schema=whole(1), fingerprint=text), note, error=ManifestError, remedy=remedy)
    schema, fingerprint = facts.pop("schema"), facts.pop("fingerprint")
    if schema > kind.schema:
        raise ManifestError(f"{folder}: schema {schema} is newer than {kind.schema}; upgrade thoraclip")
    index = open_table(folder / "index.parquet", kind=kind.name, newest_schema=kind.schema)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (dtype, dimensions) in kind.arrays.items():
        expected: tuple[str, Shape] = dtype, (index.rows, *(f"D{axis}" for axis in range(1, dimensions)))
        arrays[name] = np.asarray(open_npy(folder / f"{name}.npy", expected, error=ManifestError, remedy=remedy))
    return ImageArrays(kind, index, arrays, facts, fingerprint)


class ArrayWriter:
    """Fills a folder of arrays row by row, going on where a killed pass of the very same work stopped.

    Each block is on disk before the row count in `progress.json` says so. The folder is made if it is not there (or
    InputError); an earlier end mark is taken away. `append` raises InputError where the disk has no room for all rows.

    Args:
        token: equal for equal work cut into equal blocks; the rows of any other work are thrown away.
    """

    def __init__(self, folder: Path, kind: ArrayKind, *, total: int, token: str) -> None:
        make_folder(folder)
        remove_file(folder / f"{kind.name}.json")
        self._folder, self._kind, self._total, self._token = folder, kind, total, token
        self._parts = {name: folder / f"{name}.npy.part" for name in kind.arrays}
        self._arrays: dict[str, Any] = {}
        self.rows = 0
        state = kept_json(folder / "progress.json")
        rows = state.get("rows") if state.get("token") == token else 0
        is_here = rows == total or all(
            part.is_file() for part in self._parts.values()
        )  # at the end the parts may be renamed
        if isinstance(rows, int) and 0 <= rows <= total and is_here:
            self.rows = rows

    def append(self, blocks: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the next rows: name -> array[B, ...] for every array of the kind."""
        for name, block in blocks.items():
            if name not in self._arrays:
                self._arrays[name] = self._opened(name, (self._total, *block.shape[1:]))
            self._arrays[name][self.rows : self.rows + len(block)] = block
            self._arrays[name].flush()
        self.rows += len(next(iter(blocks.values())))
        write_json(self._folder / "progress.json", {"token": self._token, "rows": self.rows})

    def _opened(self, name: str, shape: tuple[int, ...]) -> Any:
        path = self._parts[name]
        if self.rows:
            return open_memmap(path, mode="r+")
        try:
            with needing_room(path):
                array = open_memmap(path, mode="w+", dtype=np.dtype(self._kind.arrays[name][0]), shape=shape)
                with path.open("r+b") as stream:
                    take_room(stream, path.stat().st_size)
        except InputError:
            path.unlink(missing_ok=True)
            raise
        return array

    def finish(self, manifest: Manifest, *, facts: Mapping[str, Any], fingerprint: str) -> ImageArrays:
        """Give the arrays their names, write the index and the end mark, and open the folder."""
        self._arrays.clear()
        for name, part in self._parts.items():
            if part.exists():
                part.replace(self._folder / f"{name}.npy")
        folder, kind = self._folder, self._kind
        index = pa.table({name: manifest.values(name) for name in _INDEX})
        write_table(folder / "index.parquet", index, kind=kind.name, schema=kind.schema)
        write_json(folder / f"{kind.name}.json", {"schema": kind.schema, "fingerprint": fingerprint, **facts})
        remove_file(folder / "progress.json")
        return read_arrays(folder, kind)
