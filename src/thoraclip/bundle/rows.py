"""Rows of `predict`, one per image: their columns, their formats, and the list, stream or file that takes them.

The columns are `path, label, score_<class>..., set, ood, error`. JSON lines hold null where a value is unknown. CSV
holds nothing there, and joins the classes of a set by `|`; for a spreadsheet, see `thoraclip.spreadsheets`.

FILE.partial   SQLite: what the rows depend on, the rows so far by path, and the paths of this run in their order
FILE           written from it at the end, whole or not at all, in the order in which the images were named
"""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from thoraclip.disk import writing
from thoraclip.errors import ConfigError, InputError, MismatchError, did_you_mean
from thoraclip.labels import LabelSet
from thoraclip.runs import atomic_open, make_folder, remove_leftovers, require_file
from thoraclip.spreadsheets import MARK, protect

if TYPE_CHECKING:
    from thoraclip.bundle.runtime import Prediction

__all__ = ["Row", "Table", "failed_row", "json_line", "row_of", "table_format"]

Row = Mapping[str, Any]

_DECIMALS = 6
_OTHER_TABLES = (".parquet", ".json", ".xlsx")
_PARTIAL: Mapping[str, str | int] = {"partial": "thoraclip predict", "schema": 2}
"""Schema 1 was a file of JSON lines."""
_SECONDS_BETWEEN_COMMITS = 1.0


def columns(labels: LabelSet) -> tuple[str, ...]:
    """Names of the columns."""
    return ("path", "label", *(f"score_{name}" for name in labels.names), "set", "ood", "error")


def row_of(path: str, prediction: Prediction, labels: LabelSet) -> Row:
    """The row of an image that was scored; scores have 6 decimals."""
    scores = {f"score_{name}": round(prediction.scores[name], _DECIMALS) for name in labels.names}
    inside = None if prediction.set is None else list(prediction.set)
    return {"path": path, "label": prediction.label, **scores, "set": inside, "ood": prediction.ood, "error": None}


def failed_row(path: str, reason: str, labels: LabelSet) -> Row:
    """The row of an image that could not be scored."""
    return dict.fromkeys(columns(labels)) | {"path": path, "error": reason}


def json_line(row: Row) -> bytes:
    """JSON and a newline, in ASCII: any file name comes back as it was."""
    return (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def csv_line(row: Row) -> bytes:
    """CSV and a newline, in UTF-8; a file name that is not UTF-8 keeps its bytes."""
    line = io.StringIO(newline="")
    cells = map(_cell, row.values())
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # so that both characters are put in quotes
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def spreadsheet_line(row: Row) -> bytes:
    """`csv_line` without a cell that a spreadsheet takes for a formula, and with the column that says so."""
    return csv_line({name: protect(_cell(value)) for name, value in row.items()} | {MARK: "true"})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.{_DECIMALS}f}"
    return "|".join(value) if isinstance(value, list) else str(value)


FORMATS: Mapping[str, Callable[[Row], bytes]] = {"csv": csv_line, "jsonl": json_line}


def head_line(kind: str, labels: LabelSet, *, spreadsheet_safe: bool = False) -> bytes:
    """What stands before the first row."""
    names = (*map(protect, columns(labels)), MARK) if spreadsheet_safe else columns(labels)
    return csv_line({name: name for name in names}) if kind == "csv" else b""


def table_format(asked: str, out: str | Path | IO[bytes] | None) -> str:
    """`csv` or `jsonl`: what was asked for, else what the file's name says, else CSV; raises ConfigError for others."""
    if asked and asked not in FORMATS:
        raise ConfigError(f"--format: unknown format '{asked}'{did_you_mean(asked, FORMATS)}")
    suffix = Path(out).suffix.lower() if isinstance(out, str | Path) else ""
    if not asked and suffix in _OTHER_TABLES:
        raise ConfigError(f"{out}: the table is CSV or JSON lines; end its name in .csv or .jsonl")
    return asked or ("jsonl" if suffix == ".jsonl" else "csv")


def path_key(path: str) -> bytes:
    """What an image is known by: its folder, with links and `..` resolved, and its name.

    Two links to one file are two images.
    """
    folder, name = os.path.split(path)
    if "\0" not in path:
        path = os.path.join(_resolved(os.path.join(os.getcwd(), folder)), name)  # noqa: PTH109, PTH118
    return os.path.normcase(path).encode("utf-8", "surrogatepass")


@lru_cache(maxsize=256)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


def _require_table(path: Path) -> None:
    """Raise InputError unless a table may be written to `path`; what is there is an older one, or empty."""
    if require_file(path).is_file():
        with path.open("rb") as stream:
            start = stream.read(20)
        if start and not start.startswith((b"path,label,score_", b'path,label,"score_', b'{"path":')):
            what = "is in the way, and no table of `thoraclip predict`; move it, or choose another --out"
            raise InputError(f"{path}: {what}")


class Table:
    """Rows to a file that appears when all are there, or, each at once, to a binary stream or a list (`None`).

    A context; each image is admitted once. What was done for a file is kept when the context ends before. The paths lie
    in an SQLite database, so that memory does not grow with them. `kind` is a format of `FORMATS`, `fingerprint` that
    of the bundle, `bits` the stated depth of 16-bit pictures. `spreadsheet_safe`, of CSV: see `thoraclip.spreadsheets`.

    Attributes:
        rows: so far; `None` where they go to a file or stream.
        resumed: images that an earlier run has scored; those that it could not read are tried again.

    Raises:
        InputError: the file cannot be written, or (by the context) another process is writing there.
        MismatchError: (by the context) the partial table is of another bundle or schema, or something else altogether.
    """

    def __init__(
        self,
        out: Path | IO[bytes] | None,
        labels: LabelSet,
        kind: str,
        *,
        fingerprint: str,
        bits: int | None = None,
        spreadsheet_safe: bool = False,
    ) -> None:
        from thoraclip.imaging import DECODING  # here: `predict` checks the format before the libraries are loaded

        self._file = out if isinstance(out, Path) else None
        self._stream = None if isinstance(out, Path) else out
        self._partial = self._file and self._file.with_name(self._file.name + ".partial")
        self._head = head_line(kind, labels, spreadsheet_safe=spreadsheet_safe)
        self._line = spreadsheet_line if spreadsheet_safe else FORMATS[kind]
        self._depends = {**_PARTIAL, "bundle": fingerprint, "decoding": DECODING, **({"bits": bits} if bits else {})}
        self.rows: list[Row] | None = [] if out is None else None
        self.resumed, self._committed, self._is_empty = 0, -inf, True
        if self._stream is not None:
            self._stream.write(self._head)
        if self._file is not None and self._partial is not None:
            _require_table(self._file)
            require_file(self._partial)
            make_folder(self._file.parent)
            with writing(self._partial):
                self._partial.touch()
        # without a name: a temporary one
        self._connection = sqlite3.connect(self._partial or "", isolation_level=None, timeout=0)
        self._execute = self._connection.execute

    def __enter__(self) -> Self:
        try:
            with self._storing():
                self._begin()
        except BaseException:
            self._connection.close()
            raise
        return self

    def _begin(self) -> None:
        self._execute("PRAGMA locking_mode = EXCLUSIVE")  # until the end, not of a transaction alone
        self._execute("BEGIN EXCLUSIVE")
        if self._execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._check()
            self._execute("DELETE FROM rows WHERE failed")
            self._execute("DROP TABLE named")
        else:
            self._execute("CREATE TABLE depends (name TEXT PRIMARY KEY, value)")
            self._connection.executemany("INSERT INTO depends VALUES (?, ?)", self._depends.items())
            self._execute("CREATE TABLE rows (path BLOB PRIMARY KEY, row BLOB, failed INTEGER)")
        self._execute("CREATE TABLE named (place INTEGER PRIMARY KEY, path BLOB UNIQUE)")
        self.resumed = self._execute("SELECT count(*) FROM rows").fetchone()[0]
        self._is_empty = not self.resumed

    def _check(self) -> None:
        """Refuse a partial table of something else."""
        try:
            stored = dict(self._execute("SELECT name, value FROM depends").fetchall())
        except sqlite3.OperationalError:  # no such table
            raise self._in_the_way() from None
        if stored.get("partial") != _PARTIAL["partial"]:
            raise self._in_the_way()
        for name in {**self._depends, **stored}:
            before, now = stored.get(name), self._depends.get(name)
            if before != now:
                raise MismatchError(
                    f"{self._partial}: was begun with another {name} ({str(before)[:12]}, now {str(now)[:12]}); remove "
                    "it to begin anew, or choose another --out"
                )

    def admit(self, path: str) -> int | Row | None:
        """A place for an image's row; the row itself of an earlier run; `None` for an image that was admitted."""
        query, known = "SELECT row FROM named JOIN rows USING (path) WHERE place = ?", None
        with self._storing():
            added = self._execute("INSERT OR IGNORE INTO named (path) VALUES (?)", (path_key(path),))
            if not added.rowcount:
                return None
            if self.resumed:
                known = self._execute(query, (added.lastrowid,)).fetchone()
        row: Row | None = json.loads(known[0]) if known else None
        return row if row and row["path"] == path else added.lastrowid

    def put(self, place: int, row: Row) -> None:
        """Add the row of the next place."""
        if self.rows is not None:
            self.rows.append(row)
        elif self._stream is not None:
            self._stream.write(self._line(row))
            self._stream.flush()
        else:
            values = json_line(row), row["error"] is not None, place
            with self._storing():
                self._execute("INSERT OR REPLACE INTO rows SELECT path, ?, ? FROM named WHERE place = ?", values)
                self._is_empty = False
                if time.monotonic() - self._committed >= _SECONDS_BETWEEN_COMMITS:
                    self._commit()

    def _commit(self) -> None:
        self._execute("COMMIT")
        self._execute("BEGIN")
        self._committed = time.monotonic()

    def finish(self) -> None:
        """All rows are there."""
        if self._file is None:
            return
        remove_leftovers(self._file.parent, self._file.name, is_locked=True)  # of a kill at this very point
        with self._storing():
            self._commit()
            with atomic_open(self._file) as stream:
                stream.write(self._head)
                for (line,) in self._execute("SELECT row FROM named JOIN rows USING (path) ORDER BY place"):
                    stream.write(line if self._line is json_line else self._line(json.loads(line)))
        self._is_empty = True

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):  # a full disk, which was reported already
            self._execute("COMMIT")
        self._connection.close()
        if self._is_empty and self._partial:
            self._partial.unlink(missing_ok=True)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Turn an error of SQLite into what is wrong with the file."""
        try:
            yield
        except sqlite3.Error as error:
            name, where = getattr(error, "sqlite_errorname", ""), self._partial or "the temporary folder (TMPDIR)"
            if name.startswith("SQLITE_BUSY"):
                what = "another process is writing it; wait for its end, or choose another --out"
                raise InputError(f"{where}: {what}") from error
            if name == "SQLITE_NOTADB":
                raise self._in_the_way() from error
            if name.startswith("SQLITE_CORRUPT"):
                what = f"is damaged ({error}); remove it to begin anew, or choose another --out"
                raise MismatchError(f"{where}: {what}") from error
            is_full = name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC") or self._partial is None
            remedy = "make room on that disk and run the same command again" if is_full else "choose another --out"
            raise InputError(f"{where}: cannot be written ({error}); {remedy}") from error

    def _in_the_way(self) -> MismatchError:
        what = "is in the way, and no partial table of `thoraclip predict`; move it away, or choose another --out"
        with open(self._partial or os.devnull, "rb") as stream:  # noqa: PTH123
            if stream.read(512).startswith(b'{"partial":"thoraclip predict"'):
                what = "was begun by an earlier version of thoraclip; end it with that, or remove it to begin anew"
        return MismatchError(f"{self._partial}: {what}")
