"""What was read of each file, kept beside the manifest so that an unchanged file is not read again.

JSON lines: a header with the rules that the facts follow, then `[path, size, mtime_ns, ctime_ns, facts]` a file, added
as files are read, so that a killed pass goes on where it stopped. At the end the lines are written anew, sorted.
A file counts as unchanged while its size and both of its times are the same.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from thoraclip.errors import ImageError, InputError
from thoraclip.imaging import DECODING, read_bytes
from thoraclip.runs import canonical_json, make_folder, needing_room, require_file, write_text

__all__ = ["FactStore"]

Facts = dict[str, Any]
_SCHEMA = 2
_READERS = ("pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm")
"""What a file's facts depend on besides our own rules: another version may decode differently, or decode more."""


class FactStore:
    """Facts of files under a root, by path and stamp; `file` keeps them, `fresh` forgets what was read before."""

    def __init__(self, root: Path, file: Path | None = None, *, fresh: bool = False) -> None:
        self._root, self._file, self._lock = root, file, threading.Lock()
        if file is not None:
            _require_own(file)
        self._known: dict[str, tuple[list[int], Facts]] = {} if fresh or file is None else _load(file)
        self._mode, self._head = ("a", "\n" + _header() + "\n") if self._known else ("w", _header() + "\n")
        self._asked: set[str] = set()
        self.read = 0

    def get(self, path: str, make: Callable[[Path], Facts], *, serves: Callable[[Facts], bool]) -> Facts:
        """Facts of a file below the root: the kept ones where it is unchanged and they serve, else what `make` says."""
        stamp = None
        with suppress(OSError):
            state = (self._root / path).stat()
            stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
            self._asked.add(path)
        known = self._known.get(path)
        if known is not None and known[0] == stamp and serves(known[1]):
            return known[1]
        facts = make(self._root / path)
        with self._lock:
            self.read += 1
            if stamp is not None:
                self._known[path] = (stamp, facts)
                self._add(path)
        return facts

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file's bytes, read only where it changed; the reason where it cannot be read."""

        def make(file: Path) -> Facts:
            try:
                return {"sha256": hashlib.sha256(read_bytes(file)).hexdigest()}
            except ImageError as error:
                return {"sha256": str(error)}

        name = path.relative_to(self._root).as_posix()
        return str(self.get(name, make, serves=lambda facts: "sha256" in facts)["sha256"])

    def _line(self, path: str) -> str:
        stamp, facts = self._known[path]
        return canonical_json([path, *stamp, facts]) + "\n"

    def _add(self, path: str) -> None:
        if self._file is None:
            return
        make_folder(self._file.parent)
        with needing_room(self._file), self._file.open(self._mode, encoding="utf-8", newline="\n") as stream:
            stream.write(self._head + self._line(path))  # the first time, what a kill cut short ends with a new line
        self._mode, self._head = "a", ""

    def settle(self) -> None:
        """After a whole pass: write the facts of the files that it asked for, sorted, and of no others."""
        if self._file is not None:
            write_text(self._file, _header() + "\n" + "".join(map(self._line, sorted(self._asked))))


def _header() -> str:
    """The rules that facts follow; facts under other rules are not used."""
    versions = {name: _version(name) for name in _READERS}
    return canonical_json({"schema": _SCHEMA, "decoding": DECODING, "versions": versions})


def _require_own(file: Path) -> None:
    """Raise InputError where something else lies at the place of the facts, which would be overwritten."""
    with suppress(OSError), require_file(file).open("rb") as stream:
        begins = stream.read(10)
        if begins and not any(ours.startswith(begins) for ours in (b'{"decoding', b'{"schema":')):
            raise InputError(f"{file}: is in the way, and not of an earlier run; move it, or choose another --out")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load(file: Path) -> dict[str, tuple[list[int], Facts]]:
    """The facts of a file whose header is today's; a foreign line, or one cut short, is passed over."""
    known: dict[str, tuple[list[int], Facts]] = {}
    header, valid = _header(), False
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("{"):
                valid = line == header
                continue
            with suppress(ValueError, TypeError, RecursionError):
                path, *stamp, facts = json.loads(line)
                if valid and len(stamp) == 3 and isinstance(path, str) and isinstance(facts, dict):
                    known[path] = (stamp, facts)
    return known
