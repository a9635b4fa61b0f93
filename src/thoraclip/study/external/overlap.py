"""Which images of an external set show a picture that the study has, too, and which show one twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np

from thoraclip.data.check.inspection import Inspection, inspect
from thoraclip.data.duplicates import THUMBNAIL_SIDE, DuplicatePair, clusters, find_duplicates
from thoraclip.imaging import DECODING
from thoraclip.runs import Progress, digest, needing_room, take_room, write_json
from thoraclip.tables.manifest import Manifest

__all__ = ["COPIES", "IDENTICAL", "NEAR", "UNREADABLE", "find_overlap"]

IDENTICAL, NEAR, COPIES, UNREADABLE = "identical", "near", "copies", "unreadable"

_RULES = 1
"""Number of the rules by which copies are found; what was found under another number is found again."""
_BLOCK = 4096


@dataclass(frozen=True)
class _Both:
    """The external images, then the study's, as one list."""

    theirs: Manifest
    ours: Manifest
    seen: tuple[Inspection, Inspection]

    def sha256(self) -> list[str]:
        """Of every picture; a mark of its own where it cannot be used, so that it is nobody's copy."""
        found: list[str] = []
        for manifest, seen in zip((self.theirs, self.ours), self.seen, strict=True):
            names = manifest.column("sha256")
            usable = [bool(name) and row not in seen.unreadable for row, name in enumerate(names)]
            found += [
                n if use else f"row {len(found) + row}" for row, (n, use) in enumerate(zip(names, usable, strict=True))
            ]
        return found

    def fingerprint(self) -> str:
        """Of everything that the pairs depend on."""
        contents = [manifest.content_fingerprint for manifest in (self.theirs, self.ours)]
        return digest([*contents, *(sorted(seen.unreadable) for seen in self.seen), THUMBNAIL_SIDE, DECODING, _RULES])


def find_overlap(
    theirs: Manifest, ours: Manifest, own: Path, inspection: Path, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The external images that must not be judged, in the order of the manifest.

    An image is linked to every picture that it is identical to, or a near duplicate of (see `data.duplicates`); linked
    to any image of the study, whatever its part, directly or through other external images, it is left out. Of external
    images that are linked with each other alone, the one with the smallest id is kept.

    Args:
        theirs: E external images.
        ours: the study's images, all of them.
        own: folder where the measurements of the external images, and the pairs, are kept.
        inspection: folder where those of the study's images are kept.
        progress: called with (done, total).

    Returns:
        A mapping an image: image_id, reason (`identical`, `near`, `copies` or `unreadable`), and `of` (id of the image
        that it repeats), `correlation` (of a near duplicate that was met directly), or `detail` (why it cannot be
        read).
    """
    seen = (inspect(theirs, own / "inspection", progress=progress), inspect(ours, inspection, progress=progress))
    both = _Both(theirs, ours, seen)
    pairs = _pairs(both, own, progress)
    ids = theirs.column("image_id")
    repeats = _repeats(both, pairs)
    found = []
    for row, image_id in enumerate(ids):
        if row in seen[0].unreadable:
            found.append({"image_id": image_id, "reason": UNREADABLE, "detail": seen[0].unreadable[row]})
        elif row in repeats:
            found.append({"image_id": image_id, **repeats[row]})
    return found


def _pairs(both: _Both, own: Path, progress: Progress | None) -> list[DuplicatePair]:
    """Pairs with an external image, kept beside the measurements; found again where anything that they depend on
    changed."""
    file, fingerprint = own / "pairs.json", both.fingerprint()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["fingerprint"] == fingerprint:
            return [DuplicatePair(**pair) for pair in kept["pairs"]]
    count, total = len(both.theirs), len(both.theirs) + len(both.ours)
    with TemporaryFile() as file_of_all:
        with needing_room(Path(gettempdir())):
            take_room(file_of_all, total * THUMBNAIL_SIDE**2)
        shape = (total, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        thumbnails = np.memmap(file_of_all, dtype=np.uint8, mode="r+", shape=shape)
        for first, seen in zip((0, count), both.seen, strict=True):
            for at in range(0, len(seen.thumbnails), _BLOCK):
                block = seen.thumbnails[at : at + _BLOCK]
                thumbnails[first + at : first + at + len(block)] = block
        among = np.arange(total) < count
        found = find_duplicates(thumbnails, both.sha256(), among=among, progress=progress)
    pairs = [pair for pair in found if pair.first < count]
    write_json(file, {"fingerprint": fingerprint, "pairs": [asdict(pair) for pair in pairs]})
    return pairs


def _repeats(both: _Both, pairs: Sequence[DuplicatePair]) -> dict[int, dict[str, Any]]:
    """External row -> reason, `of` and `correlation`, of those that are left out."""
    count = len(both.theirs)
    ids = [*both.theirs.column("image_id"), *both.ours.column("image_id")]
    contents = both.sha256()
    same = {content: row for row, content in reversed(list(enumerate(contents))) if row >= count}
    group = clusters(len(ids), list(pairs))
    members: dict[int, list[int]] = {}
    for row in sorted({end for pair in pairs for end in (pair.first, pair.second)}):
        members.setdefault(int(group[row]), []).append(row)
    direct = _direct(pairs, count)
    found: dict[int, dict[str, Any]] = {}
    for rows in members.values():
        in_study = [row for row in rows if row >= count]
        kept = min((row for row in rows if row < count), key=lambda row: ids[row])
        for row in (row for row in rows if row < count):
            if contents[row] in same:
                found[row] = {"reason": IDENTICAL, "of": ids[same[contents[row]]]}
            elif in_study:
                other, correlation = direct.get(row, (min(in_study, key=lambda other: ids[other]), None))
                found[row] = {"reason": NEAR, "of": ids[other], "correlation": correlation}
            elif row != kept:
                found[row] = {"reason": COPIES, "of": ids[kept]}
    return found


def _direct(pairs: Sequence[DuplicatePair], count: int) -> Mapping[int, tuple[int, float]]:
    """External row -> the study's image that it agrees with best, and how well."""
    found: dict[int, tuple[int, float]] = {}
    for pair in pairs:
        if pair.first < count <= pair.second and pair.correlation > found.get(pair.first, (0, -2.0))[1]:
            found[pair.first] = (pair.second, round(pair.correlation, 4))
    return found
