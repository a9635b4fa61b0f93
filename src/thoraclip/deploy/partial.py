"""Where rows go: to a stream as they come, or to a file that a killed run goes on with.

FILE.partial   JSON lines: what the rows depend on, then a row per picture, added as they come
FILE           written from it at the end, whole or not at all, in the order in which the pictures were named
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from thoraclip.deploy.places import Places, path_key
from thoraclip.deploy.rows import FORMATS, Row, columns, head_line, json_line
from thoraclip.errors import InputError, MismatchError
from thoraclip.labels import LabelSet
from thoraclip.runs import atomic_open, make_folder, needing_room

__all__ = ["FileTable", "RowList", "StreamTable", "Table"]

_SCHEMA = 1
_KIND = "thoraclip predict"
_LISTED = 1
_LONGEST_HEAD = 65536


class Table(Protocol):
    """Where rows go."""

    def admit(self, path: str) -> int | Row | None:
        """A place for a picture's row; the row itself where an earlier run has made it; `None` for a picture that was admitted."""

    def put(self, place: int, row: Row) -> None:
        """Add the row of the next place."""

    def finish(self) -> None:
        """All rows are there."""


class _Once:
    """Admits every picture once."""

    def __init__(self) -> None:
        self._seen = Places()

    def admit(self, path: str) -> int | Row | None:
        """See `Table`."""
        key = path_key(path)
        if self._seen.get(key):
            return None
        self._seen.set(key, _LISTED)
        return len(self._seen) - 1

    def finish(self) -> None:
        """See `Table`."""


class RowList(_Once):
    """Rows in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def put(self, place: int, row: Row) -> None:
        """See `Table`."""
        self.rows.append(row)


class StreamTable(_Once):
    """Rows to a binary stream, each at once."""

    def __init__(self, stream: IO[bytes], labels: LabelSet, kind: str) -> None:
        super().__init__()
        self._stream, self._line = stream, FORMATS[kind]
        self._stream.write(head_line(kind, labels))

    def put(self, place: int, row: Row) -> None:
        """See `Table`."""
        self._stream.write(self._line(row))
        self._stream.flush()


class FileTable:
    """Rows to a file that is there when all are; a context that keeps what was done when it ends before.

    Args:
        file: to write.
        labels: classes of the rows.
        kind: see `FORMATS`.
        depends: what the rows depend on, such as the bundle's fingerprint; JSON-able.

    Attributes:
        found: pictures that an earlier run has scored; those that it could not read are tried again.
    """

    def __init__(self, file: Path, labels: LabelSet, kind: str, *, depends: Mapping[str, Any]) -> None:
        self._file, self._partial = file, file.with_name(file.name + ".partial")
        self._labels, self._kind, self._columns = labels, kind, set(columns(labels))
        self._head = {"partial": _KIND, "schema": _SCHEMA, **depends}
        self._places, self._order = Places(), array("Q")
        self.found = 0

    def __enter__(self) -> Self:
        """Open the partial table, and read what an earlier run has done.

        Raises:
            InputError: the place cannot be written, or another process is writing there.
            MismatchError: the partial table is of another bundle, another schema, or something else altogether.
        """
        if self._file.is_dir():
            raise InputError(f"{self._file}: is a folder, and a file is to be written; choose another --out")
        make_folder(self._file.parent)
        try:
            self._stream = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise InputError(f"{self._partial}: cannot be written ({error.strerror}); choose another --out") from error
        try:
            self._lock()
            self._load()
            self._reader = self._partial.open("rb")
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the partial table; one without a row is removed."""
        self._reader.close()
        with suppress(OSError):  # a full disk, which was told already
            self._stream.close()
        if self._end == self._start:
            self._partial.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Refuse to write where another process does; a killed one holds nothing."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{self._partial}: another process is writing it; wait for its end, or choose another --out"
            ) from error
        except OSError:  # a file system without locks
            return

    def _load(self) -> None:
        head = json.dumps(self._head, separators=(",", ":")).encode() + b"\n"
        self._start = self._end = len(head)
        told = self._stream.readline(_LONGEST_HEAD)
        if told == head:
            for line in self._stream:
                row = self._parsed(line)
                if row is None:  # torn by a kill, or by a loss of power; nothing behind it is sure
                    break
                if row["error"] is None:
                    self._places.set(path_key(row["path"]), self._end << 1)
                self._end += len(line)
        elif not head.startswith(told):
            self._refuse(told)
        self.found = len(self._places)
        with needing_room(self._partial):
            self._stream.seek(0)
            if told != head:
                self._stream.write(head)
            self._stream.truncate(self._end)
            self._stream.seek(self._end)
            self._stream.flush()

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return row if line.endswith(b"\n") and isinstance(row, dict) and row.keys() == self._columns else None

    def _refuse(self, told: bytes) -> None:
        remedy = "remove it to begin anew, or choose another --out"
        try:
            head = json.loads(told)
        except ValueError:
            head = None
        if not isinstance(head, dict) or head.get("partial") != _KIND:
            raise MismatchError(
                f"{self._partial}: is in the way, and no partial table of `{_KIND}`; move it away, or choose another --out"
            )
        for name, own in self._head.items():
            if head.get(name) != own:
                told_now = f"{str(head.get(name))[:12]}, now {str(own)[:12]}"
                raise MismatchError(f"{self._partial}: was begun with another {name} ({told_now}); {remedy}")
        raise MismatchError(f"{self._partial}: was begun by another version of thoraclip; {remedy}")

    def admit(self, path: str) -> int | Row | None:
        """See `Table`."""
        key = path_key(path)
        known = self._places.get(key)
        if known & _LISTED:
            return None
        self._places.set(key, known | _LISTED)
        self._order.append(known >> 1)
        row = self._row_at(known >> 1) if known else None
        return len(self._order) - 1 if row is None or row["path"] != path else row

    def _row_at(self, offset: int) -> Row:
        self._reader.seek(offset)
        row: Row = json.loads(self._reader.readline())
        return row

    def put(self, place: int, row: Row) -> None:
        """See `Table`."""
        line = json_line(row)
        with needing_room(self._partial):
            self._stream.write(line)
            self._stream.flush()
        self._order[place] = self._end
        self._end += len(line)

    def finish(self) -> None:
        """Write the file, and remove the partial table."""
        for leftover in self._file.parent.glob(f".{escape(self._file.name)}.*.part"):  # of a kill at this very point
            leftover.unlink(missing_ok=True)
        with atomic_open(self._file) as stream:
            stream.write(head_line(self._kind, self._labels))
            for offset in self._order:
                self._reader.seek(offset)
                line = self._reader.readline()
                stream.write(line if self._kind == "jsonl" else FORMATS[self._kind](json.loads(line)))
        self._end = self._start  # nothing is left to keep
