"""The images to score: files, folders, a list on standard input, a CSV table or a manifest, one path after another.

    a.png  folder/  -  m.csv   -->   paths as they were given, in their order

A folder is walked in sorted order with the names of one folder in memory. Hidden files and folders are left out, links
to other folders are not followed, and whatever else is left out is counted.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

from thoraclip.errors import ConfigError, InputError, ManifestError, did_you_mean
from thoraclip.imaging import is_image_name, told_by_name
from thoraclip.spreadsheets import MARK, restore

__all__ = ["LIST", "OTHER_FILES", "ImagePaths", "LeftOut", "PathTable", "find_images", "listed_paths"]

LIST = "-"
"""The path that stands for a list on standard input."""
OTHER_FILES = "files that are no pictures"
_LINKED = "links to folders (name them to follow them)"
_CLOSED = "folders that cannot be read"
_BLOCK = 65536
_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")


class LeftOut:
    """What stands in folders and is not scored, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self._first[kind] = min(path, self._first.get(kind, path))

    def phrases(self) -> list[str]:
        """A phrase for each kind, such as `files that are no pictures: 2, first a/notes.txt`."""
        return [f"{kind}: {count}, first {self._first[kind]}" for kind, count in sorted(self.counts.items())]


class ImagePaths:
    """The paths of all images; a pass holds the names of one folder (and of those above it) at a time.

    Args:
        paths: files, which are taken whatever they are called, folders, and `-` for a list on standard input.
        table: more paths.

    `left_out` is of the pass so far, and so is `looked_at`, the files, out of `count()`.
    """

    def __init__(self, paths: Sequence[str], *, table: PathTable | None) -> None:
        self._paths, self._table = paths, table
        self.left_out, self.looked_at = LeftOut(), 0

    def __iter__(self) -> Iterator[str]:
        """Raises InputError where there is none at all: the list is empty, or the folders are empty by now."""
        self.left_out, self.looked_at = LeftOut(), 0
        for path, is_walked in self._named():
            self.looked_at += 1
            if is_walked and not is_image_name(Path(path)):
                self.left_out.add(OTHER_FILES, path)
            else:
                yield path
        if not self.looked_at:
            raise InputError(f"{' '.join(self._paths)}: no path in the list, no picture; give one path a line")

    def _named(self) -> Iterator[tuple[str, bool]]:
        """(path, whether it was found in a folder)."""
        for path in self._paths:
            if path == LIST:
                yield from ((listed, False) for listed in listed_paths(cast(io.BufferedReader, sys.stdin.buffer)))
            elif os.path.isdir(path):  # noqa: PTH112
                yield from ((candidate, True) for candidate in _candidates(path, self.left_out))
            else:
                yield path, False
        yield from ((listed, False) for listed in self._table or ())

    def count(self) -> int | None:
        """Files that a pass looks at, by their names alone; `None` with a list, which is only known at its end."""
        if LIST in self._paths:
            return None
        folders = [path for path in self._paths if os.path.isdir(path)]  # noqa: PTH112
        in_folders = sum(1 for folder in folders for _ in _candidates(folder, LeftOut()))
        return in_folders + len(self._paths) - len(folders) + len(self._table or ())


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
    seen = LeftOut()
    for candidate in _candidates(path, seen):
        if is_image_name(Path(candidate)):
            return
        seen.add(OTHER_FILES, candidate)
    what = ", ".join(seen.phrases()) or "nothing, or only what is hidden"
    problem = f"no PNG, JPEG or DICOM picture in this folder; it holds {what}"
    raise InputError(f"{path}: {problem}; name another folder, or the files themselves")


def _candidates(root: str, left_out: LeftOut) -> Iterator[str]:
    """Files below a folder that are images by name, or whose name does not tell; sorted by the parts of their paths."""
    above = [_entries(root, left_out)]
    while above:
        for path, is_folder in above[-1]:
            if is_folder:
                above.append(_entries(path, left_out))
                break
            yield path
        else:
            above.pop()


def _entries(folder: str, left_out: LeftOut) -> Iterator[tuple[str, bool]]:
    """(path, whether it is a folder) of what counts in one folder, sorted by name."""
    kept = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if (is_folder := _is_folder(entry)) and entry.is_symlink():
                    left_out.add(_LINKED, entry.path)
                elif not is_folder and told_by_name(entry.name) is False:
                    left_out.add(OTHER_FILES, entry.path)
                else:
                    kept.append((entry.name, is_folder))
    except OSError:
        left_out.add(_CLOSED, folder)
    for name, is_folder in sorted(kept):
        yield os.path.join(folder, name), is_folder  # noqa: PTH118


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


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
    for no such file or another kind, ManifestError for one without rows, paths or its schema."""

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
        self._paths = partial(_csv_paths, file) if kind == ".csv" else _manifest_paths(file)
        self._length = sum(1 for _ in self)
        if not self._length:
            raise ManifestError(f"{file}: no rows; a table holds one row per picture")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return self._paths()


def _csv_paths(file: Path) -> Iterator[str]:
    """The column `path` of a CSV file, below the file's folder."""
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        reader = csv.reader(stream)
        try:
            header = next(reader, [])
            if "path" not in header:
                raise ManifestError(f"{file}: no column 'path'{did_you_mean('path', header)}; name it so")
            column, read = header.index("path"), restore if MARK in header else str
            for row in filter(None, reader):
                where = f"{file}:{reader.line_num}"
                if len(row) > len(header):
                    raise ManifestError(f"{where}: {len(row)} cells in {len(header)} columns; put quotes around commas")
                if len(row) <= column or not row[column]:
                    raise ManifestError(f"{where}: no path in this row; mend the table")
                yield os.path.join(file.parent, read(row[column]))  # noqa: PTH118
        except csv.Error as error:
            raise ManifestError(f"{file}:{reader.line_num}: not a readable CSV file ({error}); mend it") from error


def _manifest_paths(file: Path) -> Callable[[], Iterator[str]]:
    """The column `path` of a manifest, below its root; nothing else of it is kept."""
    from thoraclip.tables.manifest import read_manifest

    manifest = read_manifest(file, may_leak=True)
    column, root = manifest.table.select(["path"]), str(manifest.root)
    parts = partial(column.to_batches, max_chunksize=_ROWS)
    return lambda: (os.path.join(root, path) for part in parts() for path in part["path"].to_pylist())  # noqa: PTH118
