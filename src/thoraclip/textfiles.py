"""Text files of unknown encoding: which one a whole file is in, and its lines, each of a million characters at most."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from thoraclip.errors import InputError, ManifestError

__all__ = ["WESTERN", "encoding_of", "lines_of", "opened"]

WESTERN = "cp1252"
_KEPT = "surrogateescape"
_BLOCK, _LONGEST_LINE = 1 << 20, 1 << 20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # UTF-32 LE begins as UTF-16 LE does, and comes first
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FOREIGN = re.compile(
    r"[^\x00-\x7f]{4,}"  # no text of Western Europe has such runs,
    r"|(?<=[^\W\d_])[\u20ac\u201a\u0192\u201e\u2020-\u2022\u02c6\u2030\u2039\u203a\u201c\u201d\u02dc\u2122](?=[^\W\d_])"
    r"|(?<=[a-z])[\u0160\u0178\u017d]"  # nor such letters within a word, as text of Mac Roman or DOS seems to have
)
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_OTHERS = {
    rb"PK\x03\x04": "an Excel workbook or ZIP archive",
    rb"\xd0\xcf\x11\xe0": "an old Excel workbook",
    rb"\x1f\x8b": "a gzip archive",
    rb"PAR1": "a Parquet file",
    rb"ARROW1": "a Feather file",
    rb"\x89PNG|\xff\xd8": "a picture",
    rb"%PDF": "a PDF document",
    rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"|\[\s*(?:\{\s*"|\[\s*"))': "JSON",
    rb"(?i:(?:\xef\xbb\xbf)?\s*<(?:!doctype|!--|\?xml|html|table))": "HTML or XML",
}
"""How files begin that are no tables of text."""
_REMEDY = "save the table again as CSV (UTF-8)"


@contextmanager
def opened(path: Path, encoding: str = "") -> Iterator[IO[Any]]:
    """A file as text, with its line ends as they are, or without an encoding as bytes; raises InputError where it
    cannot be read."""
    errors = _KEPT if encoding.startswith("utf-8") else "strict"
    text: dict[str, Any] = {"encoding": encoding, "errors": errors, "newline": ""} if encoding else {}
    try:
        with path.open("r" if encoding else "rb", **text) as stream:
            yield stream
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a readable file") from error


def encoding_of(path: Path, *, keep_bytes: bool = False) -> tuple[str, list[str]]:
    """(encoding in which all of a file is text, a note where it is a guess).

    UTF-8, UTF-16 and UTF-32 by their byte order marks; without one UTF-8, else UTF-16 where it is mostly ASCII, else
    Windows-1252 where that gives words of Western Europe and no character of the file is UTF-8. With `keep_bytes`,
    bytes that are not UTF-8 stay as they are (`os.fsdecode`), as names of files need it.

    Raises:
        InputError: it cannot be read.
        ManifestError: another encoding, no text, or a line of more than a million characters.
    """
    with opened(path) as stream:
        start = stream.read(4096)
    for beginning, what in _OTHERS.items():
        if re.match(beginning, start):
            raise ManifestError(f"{path}: holds {what}, not CSV; {_REMEDY}")
    marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    encoding = marked or _plain_utf16(start) or "utf-8"
    fault = _first_fault(path, encoding, _KEPT if keep_bytes and encoding.startswith("utf-8") else "strict")
    if fault is None:
        return encoding, []
    line, said = fault
    if encoding != "utf-8" or not said.startswith("not UTF-8"):
        raise ManifestError(f"{path}:{line}: {said}; {_REMEDY}")
    other = _first_fault(path, WESTERN)
    with opened(path) as stream:  # characters that are UTF-8, beside other bytes, would be two or more in Windows-1252
        has_utf8 = any(_UTF8.search(block) for block in iter(lambda: stream.read(_BLOCK), b""))
    if other is not None or has_utf8:
        why = f"; in Windows-1252, line {other[0]}: {other[1]}" if other else ", but other bytes are"
        raise ManifestError(f"{path}:{line}: {said}{why}; {_REMEDY}")
    with opened(path, WESTERN) as text:
        example = next(line for line in lines_of(text, path) if not line.isascii()).strip()[:80]
    return WESTERN, [f"{path}: not UTF-8; read as Windows-1252, first line {line}: {example}"]


def _plain_utf16(start: bytes) -> str | None:
    for name, zeros, others in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if len(zeros) > 2 and zeros.count(0) >= 0.9 * len(zeros) and not others.count(0):
            return name
    return None


def _first_fault(path: Path, encoding: str, errors: str = "strict") -> tuple[int, str] | None:
    """(line, what is wrong) of the first thing that is no text in this encoding."""
    ends, open_line = 0, ""  # lines before the open one, and its text
    try:
        for text in _decoded(path, encoding, errors):
            text = open_line + text
            said, place = _no_text(text, encoding)
            if said:
                return ends + _ends(text[:place]) + 1, said
            cut = max(text.rfind("\n", 0, -1), text.rfind("\r", 0, -1)) + 1
            ends, open_line = ends + _ends(text[:cut]), text[cut:]
            if len(open_line) > _LONGEST_LINE:
                return ends + 1, _too_long(open_line)
    except UnicodeDecodeError as error:
        good = open_line + error.object[: error.start].decode(encoding, "ignore")
        name = "Windows-1252" if encoding == WESTERN else encoding.upper().removesuffix("-SIG")
        return ends + _ends(good) + 1, f"not {name} (byte 0x{error.object[error.start]:02x})"
    return None


def _decoded(path: Path, encoding: str, errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    with opened(path) as stream:
        while block := stream.read(_BLOCK):
            yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _no_text(text: str, encoding: str) -> tuple[str, int]:
    """(what is wrong, where) of the first character that no table has; ("", 0) for none."""
    if control := _CONTROL.search(text):
        return f"not text (control character 0x{ord(control[0]):02x})", control.start()
    if encoding == WESTERN and (foreign := _FOREIGN.search(text)):
        return "no Western text", foreign.start()
    return "", 0


def _ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _too_long(text: str) -> str:
    return f"a line of more than {_LONGEST_LINE} characters, '{text[:40]}...'; a table has a line for each image"


def lines_of(stream: IO[str], path: Path) -> Iterator[str]:
    """Each line with its end; raises ManifestError for one that is longer than a table's."""
    for line, text in enumerate(iter(lambda: stream.readline(_LONGEST_LINE + 1), ""), start=1):
        if len(text) > _LONGEST_LINE and not text.endswith(("\n", "\r")):
            raise ManifestError(f"{path}:{line}: {_too_long(text)}")
        yield text
