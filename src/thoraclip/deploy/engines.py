"""Who scores pictures: the threads of this process, or the actors of a Ray cluster; the rows are the same."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from thoraclip.deploy.rows import Row, failed_row, json_line, row_of
from thoraclip.errors import ImageError, MismatchError
from thoraclip.labels import LabelSet
from thoraclip.ray_pool import over_ray
from thoraclip.threads import in_order

if TYPE_CHECKING:
    from thoraclip.deploy.runtime import BundleClassifier, Prediction

__all__ = ["Classifier", "Engine", "by_ray", "by_threads"]

_SHARD = 256
"""Pictures that an actor gets at once."""
_HERE = Path()

Item = TypeVar("Item")
Place = tuple[int, str]
"""(place of a picture's row, its path)."""
Engine = Callable[[Iterator[Place]], Iterator[list[tuple[int, Row]]]]
"""Pictures in order -> the rows of some, in the same order."""


class Classifier(Protocol):
    """What a `BundleClassifier` can do, as far as it is needed here; several threads may call it at once."""

    @property
    def labels(self) -> LabelSet:
        """The classes."""

    @property
    def together(self) -> int:
        """Pictures that are best asked for at once."""

    def classify_each(self, sources: Sequence[Path]) -> list[Prediction | ImageError]:
        """Predict some files, each as if it were alone; one that cannot be decoded gets the reason."""


def by_threads(classifier: Classifier, *, threads: int = 0, base: Path = _HERE) -> Engine:
    """This process, by as many threads as there are cores where 0 is given; relative paths are below `base`."""

    def work(some: Sequence[Place]) -> list[tuple[int, Row]]:
        rows = _rows(classifier, [path for _, path in some], base)
        return list(zip((place for place, _ in some), rows, strict=True))

    return lambda items: in_order(work, _in_groups(items, classifier.together), workers=threads)


def by_ray(classifier: BundleClassifier, *, workers: int = 0) -> Engine:
    """The actors of a Ray cluster, each with the bundle opened once; every machine must see the bundle and the pictures.

    All paths are listed before the first picture is scored.

    Args:
        classifier: of a bundle.
        workers: actors; 0 as in `ray_pool.over_ray`.
    """

    def engine(items: Iterator[Place]) -> Iterator[list[tuple[int, Row]]]:
        import pyarrow as pa

        places, listed = array("Q"), 0

        def shards() -> Iterator[pa.Table]:
            nonlocal listed
            while some := list(islice(items, _SHARD)):
                places.extend(place for place, _ in some)
                rows = pa.array(range(listed, listed + len(some)), pa.int64())
                yield pa.table({"row": rows, "path": pa.array([os.fsencode(path) for _, path in some], pa.binary())})
                listed += len(some)

        make = _Actor(str(classifier.bundle.folder.resolve()), classifier.bundle.fingerprint, str(_HERE.resolve()))
        at = 0
        for block in over_ray(make, shards(), workers=workers):
            lines = [json.loads(line) for line in block["line"].tolist()]
            yield list(zip(places[at : at + len(lines)], lines, strict=True))
            at += len(lines)

    return engine


class _Actor:
    """Makes, in an actor, what scores a shard.

    Args:
        bundle: its folder.
        fingerprint: of the bundle that is meant.
        base: what relative paths of pictures are below; an actor may be at home elsewhere.
    """

    def __init__(self, bundle: str, fingerprint: str, base: str) -> None:
        self._bundle, self._fingerprint, self._base = bundle, fingerprint, Path(base)

    def __call__(self, threads: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Open the bundle; threads: that the actor may use."""
        from thoraclip.deploy.opening import open_bundle

        classifier = open_bundle(self._bundle)
        if classifier.bundle.fingerprint != self._fingerprint:
            raise MismatchError(f"{self._bundle}: is another bundle on a machine of the cluster; give all the same")
        alone = by_threads(classifier, threads=threads, base=self._base)

        def work(shard: dict[str, Any]) -> dict[str, Any]:
            import numpy as np

            items = ((place, os.fsdecode(path)) for place, path in enumerate(shard["path"].tolist()))
            lines = [json_line(row) for rows in alone(items) for _, row in rows]
            return {"row": shard["row"], "line": np.array(lines, dtype=object)}

        return work


def _in_groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while group := list(islice(items, size)):
        yield group


def _rows(classifier: Classifier, paths: Sequence[str], base: Path) -> list[Row]:
    """The rows of some pictures, which name their paths as they were given."""
    found = iter(classifier.classify_each([base / path for path in paths if "\0" not in path]))
    rows = []
    for path in paths:
        one = ImageError("no file's name holds a NUL byte") if "\0" in path else next(found)
        if isinstance(one, ImageError):
            reason = str(one).removeprefix(f"{base / path}: ").removeprefix("image: ")
            rows.append(failed_row(path, " ".join(reason.split()), classifier.labels))
        else:
            rows.append(row_of(path, one, classifier.labels))
    return rows
