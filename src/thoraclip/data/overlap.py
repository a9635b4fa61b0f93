"""Images of one manifest that show the same picture as images of another one, or as each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from thoraclip.data.check.inspection import Inspection, file_contents, inspect, kept_pairs
from thoraclip.data.duplicates import THUMBNAIL_SIDE, DuplicatePair, array_on_disk, clusters, find_duplicates
from thoraclip.runs import Progress
from thoraclip.tables.manifest import Manifest

__all__ = ["COPIES", "IDENTICAL", "NEAR", "UNREADABLE", "find_overlap"]

IDENTICAL, NEAR, COPIES, UNREADABLE = "identical", "near", "copies", "unreadable"


def find_overlap(
    theirs: Manifest, ours: Manifest, own: Path, inspection: Path, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The external images that must not be scored, in the order of their manifest.

    An image is linked to every image that it is identical to, or a near duplicate of (see `data.duplicates`). Linked
    to any image of ours, directly or through other external images, it is left out. Of external images that are linked
    with each other alone, the one with the smallest id is kept.

    Args:
        theirs: E external images.
        ours: the study's images, of every split and fold.
        own: folder where the measurements of the external images, and the pairs, are kept.
        inspection: folder where those of our images are kept.
        progress: called with (done, total).

    Returns:
        A mapping an image: image_id, reason (`identical`, `near`, `copies` or `unreadable`), and `of` (id of the image
        that it repeats), `correlation` (of a near duplicate that was found directly), or `detail` (why it cannot be
        read).
    """
    seen = (inspect(theirs, own / "inspection", progress=progress), inspect(ours, inspection, progress=progress))
    contents = [*file_contents(theirs, seen[0]), *file_contents(ours, seen[1], first=len(theirs))]
    facts = [theirs.content_fingerprint, ours.content_fingerprint, *(sorted(part.unreadable) for part in seen)]
    pairs = kept_pairs(own / "pairs.json", facts, lambda: _pairs(seen, contents, progress))
    ids = theirs.column("image_id")
    repeats = _repeats([*ids, *ours.column("image_id")], len(ids), contents, pairs)
    for row, reason in seen[0].unreadable.items():
        repeats[row] = {"reason": UNREADABLE, "detail": reason}
    return [{"image_id": ids[row], **repeats[row]} for row in sorted(repeats)]


def _pairs(
    seen: tuple[Inspection, Inspection], contents: Sequence[str], progress: Progress | None
) -> list[DuplicatePair]:
    """Pairs with an external image."""
    with TemporaryFile() as on_disk:  # of large sets the thumbnails do not fit in memory
        thumbnails = array_on_disk(on_disk, np.uint8, (len(contents), THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        np.concatenate([part.thumbnails for part in seen], out=thumbnails)
        count = len(seen[0].thumbnails)
        pairs = find_duplicates(thumbnails, contents, among=np.arange(len(contents)) < count, progress=progress)
    return [pair for pair in pairs if pair.first < count]


def _repeats(
    ids: Sequence[str], count: int, contents: Sequence[str], pairs: Sequence[DuplicatePair]
) -> dict[int, dict[str, Any]]:
    """External row (the first `count`) -> reason, `of` and `correlation`, of those that are left out."""
    same = {content: row for row, content in reversed(list(enumerate(contents))) if row >= count}
    best: dict[int, DuplicatePair] = {}
    for pair in pairs:
        if pair.second >= count and (pair.first not in best or pair.correlation > best[pair.first].correlation):
            best[pair.first] = pair
    group = clusters(len(ids), list(pairs))
    members: dict[int, list[int]] = {}
    for row in sorted({end for pair in pairs for end in (pair.first, pair.second)}):
        members.setdefault(int(group[row]), []).append(row)
    repeats: dict[int, dict[str, Any]] = {}
    for rows in members.values():
        external, in_study = ([row for row in rows if (row >= count) is inside] for inside in (False, True))
        kept = min(external, key=lambda row: ids[row])
        for row in external:
            if contents[row] in same:
                repeats[row] = {"reason": IDENTICAL, "of": ids[same[contents[row]]]}
            elif row in best:
                pair = best[row]
                repeats[row] = {"reason": NEAR, "of": ids[pair.second], "correlation": round(pair.correlation, 4)}
            elif in_study:
                repeats[row] = {"reason": NEAR, "of": min(ids[other] for other in in_study), "correlation": None}
            elif row != kept:
                repeats[row] = {"reason": COPIES, "of": ids[kept]}
    return repeats
