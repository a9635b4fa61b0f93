"""Any number of images to a table of scores, in order and in steady memory; by threads or by Ray actors."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from thoraclip.bundle.images import ImagePaths
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.rows import Row, Table, failed_row, json_line, row_of
from thoraclip.engine import over_ray
from thoraclip.errors import ConfigError, ImageError, InputError, MismatchError
from thoraclip.runs import Progress
from thoraclip.threads import in_order

if TYPE_CHECKING:
    from thoraclip.bundle.runtime import BundleClassifier, Prediction
    from thoraclip.labels import LabelSet

__all__ = ["Engine", "ScoringSummary", "by_ray", "by_threads", "require_one", "score"]

REMARKS = "remarks"
"""What was remarked on an image: comes with its row and is counted, but is no column of the table."""
_MOST_TOLD = 10
_SHARD = 256
"""Images that an actor gets at once."""
_HERE = Path()
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")
"""What `os.fsdecode` makes of bytes that are not UTF-8."""

Item = TypeVar("Item")
Place = tuple[int, str]
"""(place of an image's row, its path)."""
Engine = Callable[[Iterator[Place]], Iterator[list[tuple[int, Row]]]]
"""Images in order -> the rows of some, in the same order."""


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
        remarked: on how many of those that this run scored the decoder remarked something; see `imaging.Radiograph`.
        first_remark: (path, remark) of the first of them.
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
    remarked: int = 0
    first_remark: tuple[str, str] | None = None
    rows: list[Row] | None = None

    def add(self, row: Row) -> None:
        """Count a row."""
        self.images += 1
        self.not_utf8 += bool(_NOT_UTF8.search(row["path"]))
        if remarks := row.get(REMARKS):
            self.remarked += 1
            self.first_remark = self.first_remark or (row["path"], "; ".join(remarks))
        if row["ood"] is not None:
            self.flagged = (self.flagged or 0) + row["ood"]
        if row["error"] is not None:
            self.failed += 1
            if len(self.first_failed) < _MOST_TOLD:
                self.first_failed.append((row["path"], row["error"]))


def score(
    classifier: BundleClassifier,
    pictures: ImagePaths,
    table: Table,
    *,
    threads: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> ScoringSummary:
    """Score every image once and write its row; one that cannot be decoded gets a row with the reason.

    Two paths are the same image where their folders are, with links and `..` resolved, and the file's name. What the
    table has from an earlier run is not scored again.

    Args:
        threads: images at once, each decoded and scored in one thread; 0 for as many as there are cores.
        engine: who scores; `None` for threads of this process.
        progress: called with (files looked at, all of them), 0 for unknown.

    Raises ConfigError for a negative number of threads, InputError for no image at all.
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

    for rows in (engine or by_threads(classifier, threads=threads, depths=pictures.depths))(admitted()):
        for place, row in rows:
            table.put(place, {name: value for name, value in row.items() if name != REMARKS})
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
    summary.left_out, summary.left_out_told = pictures.left_out.counts, pictures.left_out.phrases()
    return summary


def require_one(summary: ScoringSummary, out: Path | IO[bytes] | None) -> None:
    """Raise InputError unless one picture, or more, could be read."""
    if summary.failed == summary.images:
        path, reason = summary.first_failed[0]
        where = out if isinstance(out, Path) else "the rows"
        raise InputError(
            f"{where}: not one of {summary.images} pictures can be read, first {path}: {reason}; the column `error` "
            "has all reasons"
        )


def by_threads(
    classifier: BundleClassifier, *, threads: int = 0, base: Path = _HERE, depths: Mapping[str, int] | None = None
) -> Engine:
    """Score in this process, with as many threads as there are cores for 0; relative paths are below `base`, `depths`
    are those of a manifest, by path."""

    def work(some: Sequence[Place]) -> list[tuple[int, Row]]:
        sources = [base / path for _, path in some]
        answers = classifier.classify_each(sources, [(depths or {}).get(path) for _, path in some])
        named = zip(some, sources, answers, strict=True)
        return [(place, _row(path, source, answer, classifier.labels)) for (place, path), source, answer in named]

    return lambda items: in_order(work, _in_groups(items, classifier.together), workers=threads)


def by_ray(classifier: BundleClassifier, *, workers: int = 0, depths: Mapping[str, int] | None = None) -> Engine:
    """Score in the actors of a Ray cluster, see `engine.over_ray`, each with the bundle opened once.

    Every machine must see the bundle and the images. All paths are listed before the first image is scored.
    """
    bundle = classifier.bundle
    place = str(bundle.folder.resolve()), bundle.fingerprint, str(_HERE.resolve())
    make = partial(_actor, *place, classifier.bits, dict(depths or {}))

    def engine(items: Iterator[Place]) -> Iterator[list[tuple[int, Row]]]:
        import pyarrow as pa

        shards = (zip(*some, strict=True) for some in _in_groups(items, _SHARD))
        tables = (
            pa.table({"place": list(places), "path": pa.array(map(os.fsencode, paths), pa.binary())})
            for places, paths in shards
        )
        for block in over_ray(make, tables, workers=workers):
            yield list(zip(block["place"].tolist(), map(json.loads, block["line"].tolist()), strict=True))

    return engine


def _actor(
    bundle: str, fingerprint: str, base: str, bits: int | None, depths: dict[str, int], threads: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """In an actor: open the bundle and give what scores a shard; relative paths are below `base`, whatever the actor's
    own folder is."""
    classifier = open_bundle(bundle, bits=bits)
    if classifier.bundle.fingerprint != fingerprint:
        raise MismatchError(f"{bundle}: is another bundle on a machine of the cluster; give all the same")
    alone = by_threads(classifier, threads=threads, base=Path(base), depths=depths)

    def work(shard: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        rows = chain.from_iterable(alone(zip(shard["place"], map(os.fsdecode, shard["path"]), strict=True)))
        return {"place": shard["place"], "line": np.array([json_line(row) for _, row in rows], dtype=object)}

    return work


def _in_groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(items, size)):
        yield group


def _row(path: str, source: Path, answer: Prediction | ImageError, labels: LabelSet) -> Row:
    """The row of an image, which names its path as it was given."""
    if isinstance(answer, ImageError):
        reason = str(answer).removeprefix(f"{source}: ").removeprefix("image: ")
        return failed_row(path, " ".join(reason.split()), labels)
    remarks = {REMARKS: list(answer.remarks)} if answer.remarks else {}
    return {**row_of(path, answer, labels), **remarks}
