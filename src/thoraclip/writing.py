"""Files and folders that appear whole or not at all, and sets of files that change together.

While NAME is written, these lie beside it:

.NAME.<8 digits>.thoraclip-part   a file or folder that will take its place
.NAME.thoraclip-set               a set of files of which some may have taken their places: [[temporary, file], ...]
.NAME.thoraclip-lock              held by the process that writes NAME, see `locks`

A killed process leaves them. The next one that writes the same output, under its lock, ends the set and removes the
rest; nothing else is removed. A link is followed, so that it stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from glob import escape
from pathlib import Path
from typing import IO, Any

from thoraclip.disk import needing_room, writing
from thoraclip.documents import regular
from thoraclip.errors import InputError
from thoraclip.interrupts import uninterrupted

__all__ = [
    "HELD", "atomic_open", "end_sets", "hidden", "real_path", "remove_file", "remove_leftovers", "require_file",
    "require_own", "whole_folder", "write_json", "write_text", "written_together",
]  # fmt: skip

_PART, _SET = ".thoraclip-part", ".thoraclip-set"
_LONGEST_NAME = 200
"""Bytes of a name that a temporary name is made from; systems take 255."""

_OURS = re.compile(rb'"schema":\s*\d|"versions":\s*\{|"images/image_id"')
"""Stands in every JSON file of ours; the last is a field of the data card's record."""

HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""The outputs that this process has locked."""
_waiting: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)
"""Of the set that is being written: file -> its temporary one."""


@contextmanager
def atomic_open(path: Path, mode: str = "wb", *, is_one_of_many: bool = False) -> Iterator[IO[Any]]:
    """Write to a temporary neighbour, which takes the place of `path` when the block ends without an error, or, within
    `written_together`, when that ends.

    A new file has the permissions of the user's umask, a replaced one keeps its own.

    Args:
        is_one_of_many: do not wait until the content is on the disk (a power cut may leave an empty file), nor look for
            what a killed process left of it.

    Raises:
        InputError: `path` is a folder, a device or read-only; it cannot be written; or the disk is full.
    """
    target, waiting = require_file(path), _waiting.get()
    if not is_one_of_many:
        remove_leftovers(target.parent, target.name, but=() if waiting is None else waiting.values())
    temporary = hidden(target, f".{secrets.token_hex(4)}{_PART}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with writing(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(temporary, flags, 0o666)
        with needing_room(path), os.fdopen(handle, mode, encoding=encoding, newline=newline) as stream:
            yield stream
            stream.flush()
            if not is_one_of_many:
                os.fsync(stream.fileno())
        with suppress(OSError):  # there is none yet, or it is another user's
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        if waiting is None:
            with writing(path):
                temporary.replace(target)
        else:
            if target in waiting:
                waiting[target].unlink(missing_ok=True)
            waiting[target] = temporary
    except BaseException:
        with suppress(OSError):  # also where there is no such folder
            temporary.unlink()
        raise


def require_file(path: Path) -> Path:
    """The place of a file that may be written, links followed; raises InputError for a folder, a device, or a file
    that nobody may write."""
    target = real_path(path)
    with suppress(OSError):  # there is nothing, or its folder cannot be read, which writing will say
        mode = target.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a folder, and a file is to be written; choose another --out")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: is not a regular file; choose another --out")
        if not mode & 0o222:
            raise InputError(f"{path}: is read-only; make it writable, or choose another --out")
    return target


def require_own(folder: Path, groups: Mapping[str, Sequence[str]], others: Mapping[str, str] | None = None) -> None:
    """Raise InputError where a file that is to be written into `folder` is there and not of an earlier run, or where
    another command keeps files of the same names there.

    Args:
        groups: name of a JSON file that thoraclip writes -> files that it writes together with it.
        others: name of a file or folder that only the other command makes -> what that is of.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, and a folder is to be written; choose another --out")
    for mark, what in (others or {}).items():
        if (folder / mark).exists():
            raise InputError(f"{folder}: holds {what}, whose files would be replaced; choose another --out")
    for mark, names in groups.items():
        is_own = False
        with suppress(OSError, ValueError):
            content = regular(folder / mark).read_bytes()  # nothing, after a power cut
            is_own = not content or _OURS.search(content) is not None
        for file in (folder / name for name in (mark, *names)):
            if os.path.lexists(file) and not (is_own and real_path(folder) in real_path(file).parents):
                raise InputError(f"{file}: is in the way, and not of an earlier run; move it, or choose another --out")


@contextmanager
def written_together(folder: Path, name: str) -> Iterator[None]:
    """What `atomic_open` writes below `folder` in the block takes its place when the block ends without an error: all
    of it, even where the process is killed in between, as soon as the output is written to again.

    Within another such block, it belongs to that one. Files that other threads write do not belong to the set.

    Args:
        folder: made if need be.
        name: names the set among others in this folder.
    """
    if _waiting.get() is not None:
        yield
        return
    end_sets(folder)
    waiting: dict[Path, Path] = {}
    token = _waiting.set(waiting)
    try:
        try:
            yield
        finally:
            _waiting.reset(token)
        note = hidden(real_path(folder) / name, _SET)
        if waiting:
            pairs = [[_below(note.parent, part), _below(note.parent, file)] for file, part in waiting.items()]
            with uninterrupted():
                write_text(note, json.dumps(pairs))  # in ASCII: any file name comes back as it was
                waiting.clear()  # they are the list's
                _end_set(note)
    except BaseException:
        for part in waiting.values():
            part.unlink(missing_ok=True)
        raise


def _below(folder: Path, path: Path) -> str:
    if folder not in path.parents:
        raise InputError(f"{path}: a link in {folder} leads there; remove the link, or choose another --out")
    return path.relative_to(folder).as_posix()


def end_sets(folder: Path, name: str = "") -> None:
    """Give the files of a set, or of all in a folder, that a killed process was renaming their places."""
    for note in [hidden(folder / name, _SET)] if name else [*folder.glob(f".*{_SET}")]:
        _end_set(note)


def _end_set(note: Path) -> None:
    """Rename what is not renamed yet, and remove the list; any process may, at any time."""
    try:
        listed = json.loads(regular(note).read_text("ascii"))
        pairs = [(note.parent / part, note.parent / file) for part, file in listed]
        is_ours = all(_is_part_of(*pair) and real_path(note.parent) in real_path(pair[1]).parents for pair in pairs)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise InputError(f"{note}: is not a list that thoraclip wrote; move it, or choose another --out")
    for part, file in pairs:
        with writing(file), suppress(FileNotFoundError):  # renamed before
            part.replace(file)
    note.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, is_own: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when the block ends without an error.

    What is there is replaced at once where the system can swap folders (Linux).

    Raises:
        InputError: there is a file, or a folder with something in it that is not our own, or it cannot be written.
    """
    target = real_path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{folder}: is a file, and a folder is to be written; choose another --out")
    old = hidden(target, ".old" + _PART)
    if old.is_dir() and not target.exists():  # killed between the two renames
        old.rename(target)
    if target.is_dir() and any(target.iterdir()) and not is_own(target):
        raise InputError(f"{folder}: holds other things than what is to be written; move it, or choose another --out")
    remove_leftovers(target.parent, target.name)
    part = hidden(target, f".{secrets.token_hex(4)}{_PART}")
    token = _waiting.set(None)
    try:
        with writing(folder):
            part.mkdir(parents=True)
        with needing_room(folder):
            yield part
        with uninterrupted(), writing(folder):
            if not target.exists():
                part.rename(target)
            elif not _swap(part, target):
                target.rename(old)
                part.rename(target)
                old.rename(part)
    finally:
        _waiting.reset(token)
        with uninterrupted():
            shutil.rmtree(part, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Swap two folders in one step; false where the system cannot."""
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def remove_file(path: Path) -> None:
    """Remove a file of ours, or a link to one, if it is there, and what a killed process left of it; raises as
    `require_file`."""
    target = require_file(path)
    path.unlink(missing_ok=True)  # not what a link leads to
    remove_leftovers(target.parent, target.name)


def remove_leftovers(folder: Path, name: str = "", *, but: Collection[Path] = (), is_locked: bool = False) -> None:
    """Remove the temporary files and folders of NAME, or of all names, that killed processes left in a folder.

    Does nothing unless an output is locked, here or (`is_locked`) by other means: another process may be writing.
    """
    of = hidden(folder / name, "").name if name else ".*"
    for part in folder.glob(f"{escape(of) if name else of}.*{_PART}") if is_locked or HELD.get() else ():
        if part not in but and re.fullmatch(rf"\..*\.([0-9a-f]{{8}}|old){re.escape(_PART)}", part.name):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _is_part_of(part: Path, file: Path) -> bool:
    """Whether a file is named as a temporary one of another is."""
    made = re.escape(hidden(file, "").name) + r"\.[0-9a-f]{8}" + re.escape(_PART)
    return part.parent == file.parent and re.fullmatch(made, part.name) is not None


def hidden(path: Path, suffix: str) -> Path:
    """A hidden neighbour; names that would be too long are replaced by their digest."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}{suffix}")


def real_path(path: Path) -> Path:
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with atomic_open(path, "w") as stream:
        stream.write(text)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
