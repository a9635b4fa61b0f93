"""The images to score: files, folders, a list on standard input, a CSV table or a manifest, one path after another.

    a.png  folder/  -  m.csv   -->   paths as they were given, in their order

A folder is listed by `imaging.listing.walk`, in sorted order with the names of one folder in memory. What is left out
is counted by its kind.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from thoraclip.delimited import TablePaths, read_delimited
from thoraclip.errors import ConfigError, InputError, ManifestError, printable
from thoraclip.imaging.listing import Found, Tally, walk
from thoraclip.imaging.names import IMAGES

__all__ = ["LIST", "ImagePaths", "PathTable", "find_images", "listed_paths"]

LIST = "-"
"""The path that stands for a list on standard input."""
_BLOCK = 65536
_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")


class ImagePaths:
    """The paths of all images; a pass holds the names of one folder (and of those above it) at a time.

    Args:
        paths: files, which are taken whatever they are called, folders, and `-` for a list on standard input.
        table: more paths.

    `left_out` is of the pass so far, and so is `looked_at`, the files, out of `count()`. `depths` are those of `table`.
    """

    def __init__(self, paths: Sequence[str], *, table: PathTable | None) -> None:
        self._paths, self._table = paths, table
        self.left_out, self.looked_at = Tally(), 0
        self.depths: Mapping[str, int] = getattr(table, "depths", {})  # any iterable of paths will do

    def __iter__(self) -> Iterator[str]:
        """Raises InputError where there is none at all: the list is empty, or the folders are empty by now."""
        self.left_out, self.looked_at, is_empty = Tally(), 0, True
        for found in self._named():
            self.looked_at += found.may_be_image
            if found.kind == IMAGES:
                is_empty = False
                yield found.path
            else:
                self.left_out.add(found)
        if is_empty:
            raise InputError(f"{' '.join(self._paths)}: no path in the list, no picture; give one path a line")

    def _named(self) -> Iterator[Found]:
        """What was named, and what folders that were named hold."""
        for path in self._paths:
            if path == LIST:
                yield from map(_image, listed_paths(cast(io.BufferedReader, sys.stdin.buffer)))
            elif os.path.isdir(path):  # noqa: PTH112
                yield from walk(path)
            else:
                yield _image(path)
        yield from map(_image, self._table or ())

    def count(self) -> int | None:
        """What a pass looks at, by names alone; `None` with a list, which is only known at its end."""
        if LIST in self._paths:
            return None
        folders = [path for path in self._paths if os.path.isdir(path)]  # noqa: PTH112
        in_folders = sum(found.may_be_image for folder in folders for found in walk(folder, look_inside=False))
        return in_folders + len(self._paths) - len(folders) + len(self._table or ())


def _image(path: str) -> Found:
    """What is named is taken whatever it is called."""
    return Found(path, IMAGES)


def find_images(paths: Sequence[str | Path], *, manifest: Path | None = None) -> ImagePaths:
    """Check what was named; nothing of it is opened yet but a manifest.

    Args:
        paths: files, folders, and `-` for a list on standard input, one path a line or NUL-separated.
        manifest: `.parquet`, or `.csv` with a column `path` whose relative paths are below its folder.

    Raises ConfigError for neither or both, InputError where a path does not exist or a folder holds no image.
    """
    if bool(paths) == (manifest is not None):
        raise ConfigError("give either pictures (files, folders, or - for a list on standard input) or --manifest FILE")
    named = list(dict.fromkeys(os.fspath(path) for path in paths))
    for path in named:
        if path != LIST:
            _check(path)
    return ImagePaths(named, table=None if manifest is None else PathTable(manifest))


def _check(path: str) -> None:
    if not os.path.exists(path):  # noqa: PTH110
        raise InputError(f"{path}: no such file or folder; name pictures, or folders that hold some")
    if not os.path.isdir(path):  # noqa: PTH112
        return
    seen = Tally()
    for found in walk(path):
        if found.kind == IMAGES:
            return
        seen.add(found)
    problem = f"no PNG, JPEG or DICOM picture in this folder; it holds {printable(seen)}"
    raise InputError(f"{printable(path)}: {problem}; name another folder, or the files themselves")


def listed_paths(stream: io.BufferedReader) -> Iterator[str]:
    """Paths of a list, one a line, or each ended by a NUL where the list begins so (`find -print0`).

    Empty lines are passed over. Names that are not UTF-8 come as Python's file functions take them (`os.fsdecode`).
    Raises InputError where the stream holds an image.
    """
    rest, separator, is_first = b"", b"", True
    while block := stream.read1(_BLOCK):
        rest += block
        if is_first and len(rest) >= 4:
            if rest.startswith(_PICTURES):
                raise InputError(
                    "standard input: holds a picture, and a list of paths is read there; name the file itself"
                )
            rest, is_first = rest.removeprefix(_BYTE_ORDER_MARK), False
        separator = separator or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
        if separator:
            *whole, rest = rest.split(separator)
            yield from _decoded(whole, separator)
    yield from _decoded([rest], separator)


def _decoded(lines: list[bytes], separator: bytes) -> Iterator[str]:
    for line in lines:
        if path := line if separator == b"\0" else line.removesuffix(b"\r"):
            yield os.fsdecode(path)


class PathTable:
    """The paths of a manifest (.parquet), or of a table with a column `path` (.csv), checked at once. Raises InputError
    for no such file or another kind, ManifestError for one without rows, paths or its schema. `depths`: path -> bits of
    its samples, where the manifest has them."""

    def __init__(self, file: Path) -> None:
        kind = file.suffix.lower()
        if not file.is_file():
            raise InputError(
                f"{file}: no such manifest; name a manifest (.parquet) or a table with a column 'path' (.csv)"
            )
        if kind not in (".csv", ".parquet"):
            raise InputError(
                f"{file}: a manifest ends in .parquet, a table in .csv; a plain list is read from standard input (-)"
            )
        self._paths, self.depths = _manifest_paths(file) if kind == ".parquet" else (partial(_csv_paths, file), {})
        self._length = sum(1 for _ in self)
        if not self._length:
            raise ManifestError(f"{file}: no rows; a table holds one row per picture")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return self._paths()


def _csv_paths(file: Path) -> Iterator[str]:
    """The column `path` of a CSV file, below the file's folder."""
    table = read_delimited(file, keep_bytes=True)
    column, paths = table.need("path"), TablePaths(file.parent)
    for row in table:
        yield os.path.join(file.parent, paths(row.need(column), row.where))  # noqa: PTH118


def _manifest_paths(file: Path) -> tuple[Callable[[], Iterator[str]], dict[str, int]]:
    """(the column `path` of a manifest, below its root; the depths of those that have one); nothing else is kept."""
    from thoraclip.tables.manifest import read_manifest

    manifest = read_manifest(file, may_leak=True)
    column, root = manifest.table.select(["path"]), str(manifest.root)
    parts = partial(column.to_batches, max_chunksize=_ROWS)

    def paths() -> Iterator[str]:
        return (os.path.join(root, path) for part in parts() for path in part["path"].to_pylist())  # noqa: PTH118

    return paths, {path: bits for path, bits in zip(paths(), manifest.bits, strict=True) if bits}
