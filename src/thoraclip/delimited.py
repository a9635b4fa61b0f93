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

import codecs
import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PureWindowsPath
from typing import TextIO

from thoraclip.errors import InputError, ManifestError, did_you_mean, first_line
from thoraclip.spelling import tidy

__all__ = ["UNKNOWN", "Delimited", "Row", "TablePaths", "number", "read_delimited"]

UNKNOWN = frozenset(("", "na", "n/a", "#n/a", "nan", "<na>", "none", "null", "unknown"))
"""Cells, in lower case, that say that a value is not known."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BLOCK, _LONGEST_LINE, _MOST_COLUMNS, _SAMPLE_ROWS = 1 << 20, 1 << 20, 16_384, 100
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # UTF-32 LE begins as UTF-16 LE does, and comes first
_WESTERN = "cp1252"
_INVISIBLE = "\ufeff\u200b\u2060"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FOREIGN = re.compile(r"[^\x00-\x7f]{4,}")  # no text of Western Europe has such runs
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_BINARY = {b"PK\x03\x04": "an Excel workbook or ZIP archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}
_BINARY |= {b"\x1f\x8b": "a gzip archive", b"PAR1": "a Parquet file", b"\x89PNG": "a picture", b"\xff\xd8": "a picture"}
_BINARY |= {b"%PDF": "a PDF document"}
_SEP = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_DECIMAL = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def number(text: str) -> float | None:
    """`40.5`, `40,5`, `1e-3` -> float; `None` for anything else, such as two separators."""
    return float(text.replace(",", ".")) if _DECIMAL.fullmatch(text) else None


@dataclass(frozen=True)
class Row:
    """Cells of one row by column, without white space around them; `None` where the row ended before the column."""

    where: str  # `file:line` of its first line
    line: int
    cells: Mapping[str, str | None]

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
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        """The rows that are not empty; raises ManifestError at a row that cannot be read."""
        short, width = [], len(self.header)
        records = _records(self.path, self.encoding, self.separator)
        next(records, None)  # the header
        for line, cells in records:
            where = f"{self.path}:{line}"
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if len(cells) > width:
                problem = f"more cells than columns ({len(cells)} in {width}), from '{cells[width][:80]}' on"
                raise ManifestError(f"{where}: {problem}; put quotes around cells that hold the separator")
            if len(cells) < width:
                short.append(line)
            padded = [*cells, *[None] * (width - len(cells))]
            yield Row(where, line, dict(zip(self.header, padded, strict=True)))
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
            known = did_you_mean(name, self.header) if self.header else "; found nothing"
            raise ManifestError(f"{self.path}: no column '{name}'{known}; name it so")
        return column


def read_delimited(path: Path) -> Delimited:
    """Open a table of text; see the top of this file for what is read and what is refused.

    Raises:
        InputError: no such file, or it cannot be opened.
        ManifestError: it holds no text, or its encoding, separator or header is not certain.
    """
    notes: list[str] = []
    encoding = _encoding(path, notes)
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
    return Delimited(path, names, encoding, separator, notes)


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    with _readable(path), path.open(encoding=encoding, newline="") as stream:
        yield stream


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a readable file") from error


def _encoding(path: Path, notes: list[str]) -> str:
    """The encoding of a whole file, in which all of it is text; raises ManifestError where there is none."""
    with _readable(path), path.open("rb") as stream:
        start = stream.read(4096)
    for mark, what in _BINARY.items():
        if start.startswith(mark):
            raise ManifestError(f"{path}: holds {what}, not text; save the table as CSV (UTF-8)")
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    encoding = marked or _plain_utf16(start) or "utf-8"
    line, said = _first_fault(path, encoding)
    if said is None:
        return encoding
    if encoding != "utf-8" or "control" in said:
        raise ManifestError(f"{path}:{line}: {said}; save the table again as CSV (UTF-8)")
    other_line, other = _first_fault(path, _WESTERN)
    if other is not None or _has_utf8(path):
        why = f"; as Windows-1252, line {other_line}: {other}" if other else ", but other lines are"
        raise ManifestError(f"{path}:{line}: {said}{why}; save the table again as CSV (UTF-8)")
    with _opened(path, _WESTERN) as text:
        example = next(t for t in _lines(text, path) if not t[1].isascii())[1].strip()[:80]
    notes.append(f"{path}: not UTF-8; read as Windows-1252, first line {line}: {example}")
    return _WESTERN


def _plain_utf16(start: bytes) -> str | None:
    """UTF-16 without a mark, where half of the bytes are NUL, as in text that is mostly ASCII."""
    for name, zeros, others in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if len(zeros) > 2 and zeros.count(0) >= 0.9 * len(zeros) and not others.count(0):
            return name
    return None


def _first_fault(path: Path, encoding: str) -> tuple[int, str | None]:
    """(line, why it is no text in this encoding) of the first such line; (0, None) for none."""
    decoder, line, after_return = codecs.getincrementaldecoder(encoding)(), 1, False
    is_western = encoding == _WESTERN
    with _readable(path), path.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
                fault = _CONTROL.search(text) or (_FOREIGN.search(text) if is_western else None)
                said = f"not text (control character 0x{ord(text[fault.start()]):02x})" if fault else None
                said = "no Western text" if fault and is_western and ord(text[fault.start()]) > 127 else said
                good = text[: fault.start()] if fault else text
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode(encoding, "ignore")
                said = f"not {encoding.upper().replace('-SIG', '')} (byte 0x{error.object[error.start]:02x})"
            ends = good.replace("\r\n", "\n")
            line += ends.count("\n") + ends.count("\r") - (after_return and good.startswith("\n"))
            after_return = good.endswith("\r") if good else after_return
            if said is not None:
                return line, said
            if not block:
                return 0, None


def _has_utf8(path: Path) -> bool:
    """Whether a file holds, beside other bytes, characters that are UTF-8 and would be two or more in Windows-1252."""
    with _readable(path), path.open("rb") as stream:
        return any(_UTF8.search(block) for block in iter(lambda: stream.read(_BLOCK), b""))


def _lines(stream: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """(number, text with its end) of each line; raises ManifestError for one that is longer than a table's."""
    line = 0
    while text := stream.readline(_LONGEST_LINE):
        line += 1
        if len(text) == _LONGEST_LINE and not text.endswith(("\n", "\r")):
            problem = f"a line of more than {_LONGEST_LINE} characters, '{text[:40]}...'"
            raise ManifestError(f"{path}:{line}: {problem}; a table has a line for each image")
        yield line, text


def _records(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(first line, stripped cells) of every record that is not empty, the header's first, without Excel's `sep=`."""
    with _opened(path, encoding) as stream:
        lines = (text for _, text in _lines(stream, path))
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
    said = first_line(error)
    if "unexpected end of data" in said:
        return 'a quote is opened and never closed; close it by "'
    if "expected after" in said:
        return f'text stands after a closed quote; write " within quotes as "", and \'{separator}\' after them'
    if "field limit" in said:
        return f"a cell of more than {csv.field_size_limit()} characters, or a quote that is never closed; mend it"
    return f"not a readable CSV file ({said}); mend it"


def _separator(path: Path, encoding: str) -> str:
    """What stands between the cells; raises ManifestError where two separators fit."""
    with _opened(path, encoding) as stream:
        if named := _SEP.fullmatch(next(_lines(stream, path), (1, ""))[1].strip("\r\n")):
            return named[1]
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

    def __init__(self, root: Path, encoding: str = "utf-8") -> None:
        self._root, self._encoding, self._above = str(root), encoding, list[tuple[str, ...]]()

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
        forms = [plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
        if not text.isascii() and self._encoding == _WESTERN:
            forms.append(os.fsdecode(plain.encode(_WESTERN, "ignore")))
        found = next((form for form in dict.fromkeys(forms) if self._has(form)), None)
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
                return "/".join(parts[len(above) :])
        for start in range(1, len(parts)):
            if self._has("/".join(parts[start:])):
                self._above.append(parts[:start])
                return "/".join(parts[start:])
        raise ManifestError(
            f"{where}: path '{text}' is of another machine, and no end of it is a file below {self._root}; "
            "give paths below that folder"
        )
