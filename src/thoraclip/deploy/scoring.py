"""Any number of pictures to a table of scores: decoded and scored by threads, written in order, in steady memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from thoraclip.deploy.engines import Classifier, Engine, by_threads
from thoraclip.deploy.pictures import OTHER_FILES, Pictures
from thoraclip.deploy.rows import FileTable, Row, StreamTable, Table
from thoraclip.errors import ConfigError, InputError
from thoraclip.imaging import DECODING
from thoraclip.labels import LabelSet
from thoraclip.runs import Progress

__all__ = ["ScoringSummary", "open_table", "require_one", "score"]

_MOST_TOLD = 10


@dataclass
class ScoringSummary:
    """What became of the pictures.

    Args:
        images: pictures, each counted once.
        failed: of these, could not be read; their rows hold the reason.
        flagged: of these, unlike the training images; `None` where the bundle cannot tell.
        resumed: of these, scored by an earlier run.
        repeated: named once more, and passed over.
        left_out: what stands in the folders besides, by kind.
        left_out_told: the same, in words.
        not_utf8: pictures whose name is not UTF-8.
        first_failed: (path, reason) of the first ten that failed.
        rows: all rows, where they go to no file and no stream.
    """

    images: int = 0
    failed: int = 0
    flagged: int | None = None
    resumed: int = 0
    repeated: int = 0
    left_out: Mapping[str, int] = field(default_factory=Counter)
    left_out_told: list[str] = field(default_factory=list)
    not_utf8: int = 0
    first_failed: list[tuple[str, str]] = field(default_factory=list)
    rows: list[Row] | None = None

    @property
    def other_files(self) -> int:
        """Files in the folders that are no pictures."""
        return self.left_out.get(OTHER_FILES, 0)

    def add(self, row: Row) -> None:
        """Count a row."""
        self.images += 1
        self.not_utf8 += not _is_utf8(row["path"])
        if row["ood"] is not None:
            self.flagged = (self.flagged or 0) + row["ood"]
        if row["error"] is not None:
            self.failed += 1
            if len(self.first_failed) < _MOST_TOLD:
                self.first_failed.append((row["path"], row["error"]))


@contextmanager
def open_table(
    out: Path | IO[bytes] | None,
    labels: LabelSet,
    kind: str,
    *,
    fingerprint: str,
    announce: Callable[[str], None] = lambda _: None,
) -> Iterator[Table]:
    """Where the rows go: a file, a binary stream, or a list.

    Args:
        out: file or stream to write; `None` keeps the rows.
        labels: classes of the rows.
        kind: `csv` or `jsonl`.
        fingerprint: of the bundle.
        announce: told where an earlier run is gone on with.

    Raises:
        InputError, MismatchError: see `FileTable`.
    """
    if isinstance(out, Path):
        table: Table = FileTable(out, labels, kind, depends={"bundle": fingerprint, "decoding": DECODING})
    else:
        table = Table() if out is None else StreamTable(out, labels, kind)
    with table:
        if table.resumed:
            announce(f"{out}: goes on; {table.resumed} pictures were scored by an earlier run")
        yield table


def score(
    classifier: Classifier,
    pictures: Pictures,
    table: Table,
    *,
    threads: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> ScoringSummary:
    """Score every picture once and write its row; one that cannot be decoded gets a row with the reason.

    Two paths are the same picture where their folders are, with links and `..` resolved, and the file's name.

    Args:
        classifier: decodes and predicts, in the same thread.
        pictures: in the order of the rows.
        table: where the rows go; what it has from an earlier run is not scored again.
        threads: pictures at once; 0 for as many as there are cores.
        engine: who scores; `None` for threads of this process.
        progress: called with (files looked at, all of them), 0 for unknown.

    Raises:
        ConfigError: a negative number of threads.
        InputError: no picture at all.
    """
    if threads < 0:
        raise ConfigError(f"threads = {threads}: 1 or more are needed, or 0 for as many as there are cores")
    summary = ScoringSummary(rows=table.rows)
    total = pictures.count() if progress else None
    waiting, drawn = 0, (0, 0)

    def admitted() -> Iterator[tuple[int, str]]:
        """What is to be scored: (place of the row, path)."""
        nonlocal waiting
        for path in pictures:
            place = table.admit(path)
            if place is None:
                summary.repeated += 1
            elif isinstance(place, int):
                waiting += 1
                yield place, path
            else:
                summary.resumed += 1
                summary.add(place)

    for rows in (engine or by_threads(classifier, threads=threads))(admitted()):
        for place, row in rows:
            table.put(place, row)
            waiting -= 1
            summary.add(row)
        if progress:
            done = pictures.looked_at - waiting
            drawn = (done, 0) if total is None else (min(done, total), total)
            progress(*drawn)
    table.finish()
    whole = pictures.looked_at if total is None else total
    if progress and drawn != (whole, whole):
        progress(whole, whole)
    summary.left_out, summary.left_out_told = pictures.left_out.counts, pictures.left_out.told()
    return summary


def require_one(summary: ScoringSummary, out: Path | IO[bytes] | None) -> None:
    """Raise InputError unless one picture, or more, could be read."""
    if summary.failed == summary.images:
        path, reason = summary.first_failed[0]
        where = out if isinstance(out, Path) else "the rows"
        raise InputError(
            f"{where}: not one of {summary.images} pictures can be read, first {path}: {reason}; the column `error` has all reasons"
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
