"""Paths from a list on standard input, from a CSV table, and from a manifest: one after another, never all at once."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from thoraclip.errors import InputError, ManifestError, did_you_mean

__all__ = ["ByteReader", "PathTable", "listed_paths", "read_path_table"]

_BLOCK = 65536
_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")


class ByteReader(Protocol):
    """What `sys.stdin.buffer` and `io.BytesIO` can do."""

    def read1(self, size: int, /) -> bytes:
        """What is there, up to `size` bytes; waits for the first, and is empty at the end."""


class PathTable(Protocol):
    """A table whose paths are counted, and listed as often as they are asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


def listed_paths(stream: ByteReader) -> Iterator[str]:
    """Paths of a list, one a line, or each ended by a NUL where the list begins so (`find -print0`).

    Empty lines are passed over. Names that are not UTF-8 come as Python's file functions take them (`os.fsdecode`).

    Raises:
        InputError: the stream holds a picture.
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
        path = line if separator == b"\0" else line.removesuffix(b"\r")
        if path:
            yield os.fsdecode(path)


def read_path_table(file: Path) -> PathTable:
    """The paths of a manifest (.parquet), or of a table with a column `path` (.csv).

    Raises:
        InputError: no such file, another kind of file, or a manifest without its pictures.
        ManifestError: it does not follow its schema, holds no row, or a row without a path.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such manifest; name a manifest (.parquet) or a table with a column 'path' (.csv)")
    if file.suffix.lower() == ".csv":
        return _CsvPaths(file)
    if file.suffix.lower() == ".parquet":
        return _ManifestPaths(file)
    raise InputError(
        f"{file}: a manifest ends in .parquet, a table in .csv; a plain list is read from standard input (-)"
    )


class _CsvPaths:
    """The column `path` of a CSV file; relative paths are below the file's folder. All of it is checked at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._length = sum(1 for _ in self)
        if not self._length:
            raise ManifestError(f"{file}: no rows; a table holds one row per picture")

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        with self._file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream)
            try:
                header = next(reader, [])
                if "path" not in header:
                    raise ManifestError(f"{self._file}: no column 'path'{did_you_mean('path', header)}; name it so")
                column = header.index("path")
                for row in reader:
                    if row:
                        yield os.path.join(self._file.parent, self._cell(row, len(header), column, reader.line_num))  # noqa: PTH118
            except csv.Error as error:
                raise ManifestError(
                    f"{self._file}:{reader.line_num}: not a readable CSV file ({error}); mend it"
                ) from error

    def _cell(self, row: list[str], width: int, column: int, line: int) -> str:
        if len(row) > width:
            raise ManifestError(f"{self._file}:{line}: {len(row)} cells in {width} columns; put quotes around commas")
        if len(row) <= column or not row[column]:
            raise ManifestError(f"{self._file}:{line}: no path in this row; mend the table")
        return row[column]


class _ManifestPaths:
    """The column `path` of a manifest, below its root; nothing else of it is kept."""

    def __init__(self, file: Path) -> None:
        from thoraclip.tables.manifest import read_manifest

        manifest = read_manifest(file, may_leak=True)
        self._column, self._root = manifest.table["path"], str(manifest.root)

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _ROWS):
            for path in self._column.slice(start, _ROWS).to_pylist():
                yield os.path.join(self._root, path)  # noqa: PTH118
