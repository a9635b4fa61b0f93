"""Tables of text as people have them: CSV of any common separator, encoding and line end; read by one reader.

    bytes --encoding--> text --separator--> header and rows of tidy cells, or one ManifestError that says what to mend

| read | refused |
|---|---|
| separators `,` `;` tab `|`, and Excel's first line `sep=;` | two separators that fit equally well |
| UTF-8, UTF-16, UTF-32, Windows-1252 (noted) | UTF-16 that is not mostly ASCII without its mark, control characters |
| `"quotes"`, line breaks within, lines ended by CR, LF or CRLF | a quote that is not closed, text after a closed one |
| empty lines, empty cells at the end, rows that end early (noted) | more cells than columns, two columns of one name |
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice, zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from thoraclip.errors import ManifestError, did_you_mean, first_line
from thoraclip.spelling import tidy
from thoraclip.spreadsheets import MARK, restore
from thoraclip.textfiles import WESTERN, encoding_of, lines_of, opened

__all__ = ["NO_CLASS", "NO_VALUE", "UNKNOWN", "Delimited", "Row", "TablePaths", "number", "read_delimited"]

UNKNOWN = frozenset(("", "na", "n/a", "#n/a", "nan", "<na>", "none", "null", "unknown"))
"""Cells, in lower case, that say that a value is not known."""
NO_CLASS = UNKNOWN - {"none", "unknown"}
"""The same, but for words that are classes' names, too."""
NO_VALUE = UNKNOWN | {"-", "--", "?", ".", "n.a.", "k.a."}
"""The same of a column other than that of the classes, one of which may be `-`."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MOST_COLUMNS, _SAMPLE_ROWS = 16_384, 100
_INVISIBLE = "\ufeff\u200b\u2060"
_SEP = re.compile(r"""("?)sep=(\t|[^\w\s"'])\1""", re.IGNORECASE)
_VALUE = re.compile(r"[/\\]|\.\w{3,5}$|^[\d.,]+$")  # a path or a number, not the name of a column
_DECIMAL = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def number(text: str) -> float | None:
    """`40.5`, `40,5`, `1e-3` -> float; `None` for anything else, such as two separators."""
    return float(text.replace(",", ".")) if _DECIMAL.fullmatch(text) else None


class Row(NamedTuple):
    """Cells of one row by column, without white space around them; `None` where the row ended before the column."""

    path: Path
    line: int  # its first
    cells: Mapping[str, str | None]

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.path}:{self.line}"

    def need(self, column: str) -> str:
        """The cell of a column that no row may leave out; raises ManifestError."""
        cell = self.cells[column]
        if not cell:
            raise ManifestError(f"{self.where}: no {column} in this row; mend the table")
        return cell


@dataclass(frozen=True)
class Delimited:
    """An open table: its header is read, its rows are read at each pass, none of them is kept.

    `notes` has a line for each thing that was taken for granted; it is whole after a pass.
    """

    path: Path
    header: tuple[str, ...]
    encoding: str
    separator: str
    mark: int | None = None  # place of the column `spreadsheets.MARK`, which is not in the header
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        """The rows that are not empty; raises ManifestError at a row that cannot be read."""
        short, width = [], len(self.header)
        records = _records(self.path, self.encoding, self.separator)
        next(records, None)  # the header
        for line, cells in records:
            if self.mark is not None:
                cells = [restore(cell) for cell in cells]
                del cells[self.mark : self.mark + 1]
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if len(cells) > width:
                problem = f"more cells than columns ({len(cells)} in {width}), from '{cells[width][:80]}' on"
                remedy = "put quotes around cells that hold the separator, and a name above a column of row names"
                raise ManifestError(f"{self.path}:{line}: {problem}; {remedy}")
            if len(cells) < width:
                short.append(line)
            yield Row(self.path, line, dict(zip_longest(self.header, cells)))
        if short:
            note = f"{self.path}: {len(short)} rows end early, first line {short[0]}; their last cells are unknown"
            self.notes.extend({note}.difference(self.notes))

    def column(self, name: str) -> str | None:
        """The column of this name, else the only one that differs by case alone; ManifestError where several do."""
        if name in self.header:
            return name
        alike = [column for column in self.header if column.casefold() == name.casefold()]
        if len(alike) > 1:
            raise ManifestError(f"{self.path}: columns {alike} could all be '{name}'; name one of them exactly so")
        return alike[0] if alike else None

    def need(self, name: str) -> str:
        """`column`; raises ManifestError where there is none."""
        column = self.column(name)
        if column is None:
            raise ManifestError(self.without(name, "; name it so"))
        return column

    def without(self, name: str, remedy: str) -> str:
        """What to say where there is no such column; of a first line that holds no names, that it must."""
        near = did_you_mean(name, self.header) if self.header else "; found nothing"
        if len(self.header) == 1 or any(map(_VALUE.search, self.header)):
            remedy = "; the first line must hold the names of the columns, separated by comma, semicolon, tab or |"
        return f"{self.path}: no column '{name}'{near}{remedy}"


def read_delimited(path: Path, *, keep_bytes: bool = False) -> Delimited:
    """Open a table of text; see the top of this file for what is read and what is refused.

    With `keep_bytes`, bytes that are not UTF-8 stay as they are: see `textfiles.encoding_of`.

    Raises:
        InputError: no such file, or it cannot be opened.
        ManifestError: it holds no text, or its encoding, separator or header is not certain.
    """
    encoding, notes = encoding_of(path, keep_bytes=keep_bytes)
    separator = _separator(path, encoding)
    line, header = next(_records(path, encoding, separator), (1, []))
    while header and not header[-1]:
        header.pop()
    if not header:
        raise ManifestError(f"{path}: the file is empty; it needs a line of column names and rows below it")
    names = tuple(tidy(name) or f"column {place}" for place, name in enumerate(header, start=1))
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if first.setdefault(name, place) != place:
            places = f"columns {first[name]} and {place}"
            raise ManifestError(f"{path}:{line}: column '{name}' stands there twice ({places}); rename or remove one")
    if all(re.fullmatch("'.*'", name) for name in names):
        raise ManifestError(f"{path}:{line}: cells are quoted by ' as in {names[0]}; quote them by \"")
    mark = names.index(MARK) if MARK in names else None
    if mark is not None:
        names = tuple(restore(name) for name in names if name != MARK)
    return Delimited(path, names, encoding, separator, mark, notes)


def _records(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, stripped cells) of every record that is not empty, the header's first, without Excel's `sep=`."""
    with opened(path, encoding) as stream:
        lines = lines_of(stream, path)
        first = next(lines, "")
        skipped = 1 if _SEP.fullmatch(first.strip("\r\n")) else 0
        reader = csv.reader(
            lines if skipped else chain([first], lines), delimiter=separator, strict=True, skipinitialspace=True
        )
        while True:
            line = reader.line_num + 1 + skipped
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ManifestError(f"{path}:{line}: {_explained(error, separator)}") from error
            if cells is None:
                return
            if len(cells) > _MOST_COLUMNS:
                raise ManifestError(f"{path}:{line}: {len(cells)} columns; {_MOST_COLUMNS} are the most, as in Excel")
            cells = [cell.strip().strip(_INVISIBLE).strip() for cell in cells]
            if any(cells):
                yield line, cells


def _explained(error: csv.Error, separator: str) -> str:
    said, most = first_line(error), csv.field_size_limit()
    known = {
        "unexpected end of data": 'a quote is opened and never closed; close it by "',
        "expected after": 'text stands after a closed quote; write " within quotes as "", '
        f"and '{separator}' after them",
        "field limit": f"a cell of more than {most} characters, or a quote that is never closed; mend it",
    }
    return next((text for part, text in known.items() if part in said), f"not a readable CSV file ({said}); mend it")


def _separator(path: Path, encoding: str) -> str:
    """What stands between the cells; raises ManifestError where two separators fit."""
    with opened(path, encoding) as stream:
        if named := _SEP.fullmatch(next(lines_of(stream, path), "").strip("\r\n")):
            return named[2]
    widths = {separator: _widths(path, encoding, separator) for separator in _SEPARATORS}
    fits = [separator for separator, found in widths.items() if found and found[0] > 1]
    for enough in (all, any):  # of the rows are as wide as the header
        even = [s for s in fits if enough(width == widths[s][0] for width in widths[s][1:])]
        if len(fits) > 1 and even:
            fits = even
    if len(fits) > 1:
        kinds = " or ".join(_SEPARATORS[separator] for separator in fits)
        raise ManifestError(f"{path}:1: cells may be separated by {kinds}; say which by a first line: sep={fits[0]}")
    return fits[0] if fits else ","


def _widths(path: Path, encoding: str, separator: str) -> list[int]:
    """Number of cells of the first records; 0 at the end where they cannot be read on."""
    found = []
    try:
        for _, cells in islice(_records(path, encoding, separator), _SAMPLE_ROWS):
            found.append(len(cells))
    except ManifestError:
        found.append(0)
    return found


class TablePaths:
    """Paths as tables write them -> paths below a folder: `a\\b.png`, `C:\\data\\a\\b.png`, other Unicode forms."""

    def __init__(self, root: Path) -> None:
        self._root, self._above, self._find = str(root), list[tuple[str, ...]](), name_finder(root)

    def __call__(self, text: str, where: str) -> str:
        """The path of the table that has a file, else the likeliest; it may be absolute, or lead out by `..`.

        Raises ManifestError for a path of a Windows machine none of whose ends is below the folder.
        """
        if (text.isascii() and not re.search(r"[\\\r\n]|^[A-Za-z]:", text)) or self._has(text):
            return text
        windows = PureWindowsPath(text)
        if windows.drive:
            return self._below(windows, text, where)
        plain = text.replace("\\", "/")
        forms = [plain]
        if re.search("[\udc80-\udcff]", plain):  # bytes that are not UTF-8
            forms.append(os.fsencode(plain).decode(WESTERN, "ignore"))
        found = next((form for form in map(self._find, forms) if self._has(form)), None)
        if found is None and re.search(r"[\r\n]", text):
            raise ManifestError(f"{where}: path {text[:80]!r} holds a line break and no such file; a quote is missing")
        return found or plain

    def _has(self, text: str) -> bool:
        try:
            return os.path.exists(os.path.join(self._root, text))  # noqa: PTH110, PTH118
        except ValueError:  # a NUL
            return False

    def _below(self, path: PureWindowsPath, text: str, where: str) -> str:
        """The path below what stands above the folder on the machine that wrote it, found out by the first file."""
        parts = path.parts
        for above in self._above:
            if parts[: len(above)] == above:
                return self._find("/".join(parts[len(above) :]))
        for start in range(1, len(parts)):
            if self._has("/".join(parts[start:])):
                self._above.append(parts[:start])
                return "/".join(parts[start:])
        said = f"path '{text}' is of another machine, and no end of it is a file below {self._root}"
        raise ManifestError(f"{where}: {said}; give paths below that folder")


def name_finder(root: Path) -> Callable[[str], str]:
    """path -> the path of that file below the root as it is written on disk: the path itself where it exists, else the
    one that differs only in its Unicode form (composed or decomposed accents), where there is one alone."""

    @lru_cache(maxsize=64)
    def names(folder: str) -> dict[str, list[str]]:
        known: dict[str, list[str]] = {}
        with suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208
                known.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return known

    def find(path: str) -> str:
        if path.isascii() or os.path.lexists(root / path):
            return path
        parts: list[str] = []
        for part in PurePosixPath(path).parts:
            same = names(os.fspath(root.joinpath(*parts))).get(unicodedata.normalize("NFC", part), [])
            if part not in same and len(same) != 1:
                return path
            parts.append(part if part in same else same[0])
        return "/".join(parts)

    return find
