"""What can go wrong, as one tree.

Every error that a user can mend is a `ThoraclipError`. Its message is one line: the file, the value, the rule, the
remedy. The command line prints that line and ends with exit code 2; nothing else in the package catches it.

    ThoraclipError
     +- ConfigError        a setting is unknown or out of range
     +- InputError         a file or folder that was named is missing, empty or of the wrong kind
     +- ManifestError      a table does not follow its schema
     |   +- LeakError      one patient or picture on both sides of a split
     +- ImageError         a file cannot be decoded, or its range is not what it declares
     +- ModelError         a model cannot be found, or its weights are incomplete
     +- MismatchError      two artefacts do not belong together (labels, encoder, preprocessing)
     +- ParityError        the exported model does not reproduce the original
     +- TrainingError      training cannot go on: a loss or a gradient is not finite
     +- MissingExtraError  an optional dependency is not installed
"""

from __future__ import annotations

import difflib
import errno
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "ConfigError", "ImageError", "InputError", "LeakError", "ManifestError", "MismatchError", "MissingExtraError",
    "ModelError", "ParityError", "ThoraclipError", "TrainingError", "did_you_mean", "first_line", "named", "printable",
    "shown", "system_message", "why_not_written",
]  # fmt: skip

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separators


class ThoraclipError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(ThoraclipError):
    """A setting is unknown or out of range."""


class InputError(ThoraclipError):
    """A file or folder that was named is missing, empty or of the wrong kind."""


class ManifestError(ThoraclipError):
    """A table does not follow its schema."""


class LeakError(ManifestError):
    """One patient or picture stands on both sides of a split."""


class ImageError(ThoraclipError):
    """A file cannot be decoded, or its range is not what it declares."""


class ModelError(ThoraclipError):
    """A model cannot be found, or its weights are incomplete."""


class MismatchError(ThoraclipError):
    """Two artefacts do not belong together."""


class ParityError(ThoraclipError):
    """The exported model does not reproduce the original."""


class TrainingError(ThoraclipError):
    """Training cannot go on: a loss or a gradient is not finite."""


class MissingExtraError(ThoraclipError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"'{package}' is not installed; mend it with: pip install 'thoraclip[{extra}]'")


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to its first line and 200 characters; its type's name when it says
    nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def printable(text: object) -> str:
    """`str(text)` for a terminal: line breaks, control characters, marks of writing direction and lone surrogates (the
    bytes of names that are not UTF-8) become escapes such as `\\n`, `\\x1b`, `\\u202e` and `\\udcff`."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNPRINTABLE else c for c in str(text))


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and cut."""
    try:
        text = printable(repr(value[: _SHOWN_LETTERS + 1] if isinstance(value, str | list | tuple) else value))
    except ValueError:  # more digits than Python writes
        return "a number of more than 4,000 digits"
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def named(path: object, error: BaseException) -> str:
    """The message of an error, which begins with the file."""
    return str(error) if str(error).startswith(f"{path}:") else f"{path}: {error}"


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk is full, or a user's share of it."""
_REMEDIES = {
    **dict.fromkeys(NO_ROOM, "make room and run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or name another"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files, as with ulimit -n 4096"),
    errno.EROFS: "name a place that can be written",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "mend the links, or name another",
}
_SHOWN_LETTERS = 80
_LONGEST_PATH = 1_000  # letters in a message
_WRITTEN = (*NO_ROOM, errno.EROFS)


def system_message(error: OSError) -> str:
    """What the system refused, as `file: what (reason); remedy`."""
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    names = [name if len(name) <= _LONGEST_PATH else f"{name[:80]}..." for name in files]
    what = "cannot be written" if error.errno in _WRITTEN else "cannot be read or written"
    remedy = _REMEDIES.get(error.errno or 0, "mend it and run the same command again")
    where = f"{' -> '.join(names)}: " if names else "the output " if error.errno in _WRITTEN else "a file "
    return f"{where}{what} ({error.strerror or first_line(error)}); {remedy}"


def why_not_written(path: Path, error: OSError) -> str:
    """The file that stands where a folder of the path is wanted, else the system's words."""
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    return f"{file} is a file, not a folder" if file else error.strerror or first_line(error)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, else `; known: a, b, c`; empty where none is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{next(n for n in names if n.lower() == near[0])}'?"
    return f"; known: {', '.join(names)}" if names else ""
