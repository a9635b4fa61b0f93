"""The pictures that are to be scored, each told when its turn comes.

    a.png  folder/  -  m.csv   -->   paths as they were given, in their order

A folder is walked in sorted order with the names of one folder in memory. Hidden files and folders are left out, links to
other folders are not followed, and whatever else is left out is counted.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from thoraclip.deploy.lists import ByteReader, PathTable, listed_paths, read_path_table
from thoraclip.errors import ConfigError, InputError
from thoraclip.imaging import is_image_name, told_by_name

__all__ = ["LIST", "OTHER_FILES", "LeftOut", "Pictures", "find_pictures"]

LIST = "-"
"""The path that stands for a list on standard input."""
OTHER_FILES = "files that are no pictures"
_LINKED = "links to folders (name them to follow them)"
_CLOSED = "folders that cannot be read"


class LeftOut:
    """What stands in folders and is not scored, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self._first[kind] = min(path, self._first.get(kind, path))

    def told(self) -> list[str]:
        """A phrase for each kind, such as `files that are no pictures: 2, first a/notes.txt`."""
        return [f"{kind}: {count}, first {self._first[kind]}" for kind, count in sorted(self.counts.items())]


class Pictures:
    """The paths of all pictures; a pass holds the names of one folder (and of those above it) at a time.

    Args:
        paths: files, which are taken whatever they are called, folders, and `-` for a list on standard input.
        table: more paths.
        stream: where the list is read, once.

    Attributes:
        left_out: of the pass so far.
        looked_at: files of the pass so far, out of `count()`.
    """

    def __init__(self, paths: Sequence[str], *, table: PathTable | None, stream: ByteReader | None) -> None:
        self._paths, self._table, self._stream = paths, table, stream
        self.left_out, self.looked_at = LeftOut(), 0

    def __iter__(self) -> Iterator[str]:
        """Raises InputError where there is none at all: the list is empty, or the folders are empty by now."""
        self.left_out, self.looked_at = LeftOut(), 0
        for path in self._paths:
            if path == LIST:
                yield from self._passed(listed_paths(self._stream or cast(ByteReader, sys.stdin.buffer)))
            elif os.path.isdir(path):  # noqa: PTH112
                yield from self._walked(path)
            else:
                yield from self._passed(iter([path]))
        yield from self._passed(iter(self._table or ()))
        if not self.looked_at:
            raise InputError(f"{' '.join(self._paths)}: no path in the list, no picture; give one path a line")

    def count(self) -> int | None:
        """Files that a pass looks at, by their names alone; `None` with a list, which is only known at its end."""
        if LIST in self._paths:
            return None
        folders = [path for path in self._paths if os.path.isdir(path)]  # noqa: PTH112
        in_folders = sum(1 for folder in folders for _ in _candidates(folder, LeftOut()))
        return in_folders + len(self._paths) - len(folders) + len(self._table or ())

    def _passed(self, paths: Iterator[str]) -> Iterator[str]:
        for path in paths:
            self.looked_at += 1
            yield path

    def _walked(self, folder: str) -> Iterator[str]:
        for path in self._passed(_candidates(folder, self.left_out)):
            if is_image_name(Path(path)):
                yield path
            else:
                self.left_out.add(OTHER_FILES, path)


def find_pictures(
    paths: Sequence[str | Path], *, manifest: Path | None = None, stream: ByteReader | None = None
) -> Pictures:
    """Check what was named; nothing of it is opened yet but a manifest.

    Args:
        paths: files, folders, and `-` for a list on standard input, one path a line or NUL-separated.
        manifest: `.parquet`, or `.csv` with a column `path` whose relative paths are below its folder.
        stream: of the list, in place of standard input.

    Raises:
        ConfigError: neither paths nor a manifest, or both.
        InputError: a path does not exist, a folder holds no picture; see `read_path_table`.
        ManifestError: see `read_path_table`.
    """
    if bool(paths) == (manifest is not None):
        raise ConfigError("give either pictures (files, folders, or - for a list on standard input) or --manifest FILE")
    named = list(dict.fromkeys(os.fspath(path) for path in paths))
    for path in named:
        if path != LIST:
            _check(path)
    return Pictures(named, table=None if manifest is None else read_path_table(manifest), stream=stream)


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
    what = ", ".join(seen.told()) or "nothing, or only what is hidden"
    raise InputError(
        f"{path}: no PNG, JPEG or DICOM picture in this folder; it holds {what}; name another folder, or the files themselves"
    )


def _candidates(root: str, left_out: LeftOut) -> Iterator[str]:
    """Files below a folder that are pictures by name, or whose name does not tell; sorted by the parts of their paths."""
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
    names, folders = [], set()
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    if entry.is_symlink():
                        left_out.add(_LINKED, entry.path)
                        continue
                    folders.add(entry.name)
                elif told_by_name(entry.name) is False:
                    left_out.add(OTHER_FILES, entry.path)
                    continue
                names.append(entry.name)
    except OSError:
        left_out.add(_CLOSED, folder)
    for name in sorted(names):
        yield os.path.join(folder, name), name in folders  # noqa: PTH118


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
