"""Images of one manifest that show the same picture as images of another one, or as each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thoraclip.data.check.inspection import duplicate_pairs, file_contents, inspect
from thoraclip.data.duplicates import DuplicatePair, clusters
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

    The folder `own` keeps the measurements of the external images, and the pairs, `inspection` those of our images, of
    every split and fold. Returns a mapping an image: image_id, reason (`identical`, `near`, `copies` or `unreadable`),
    and `of` (id of the image that it repeats), `correlation` (of a near duplicate that was found directly), or `detail`
    (why it cannot be read). `progress` gets (done, total).
    """
    seen = inspect(theirs, own / "inspection", progress=progress)
    both = (theirs, seen), (ours, inspect(ours, inspection, progress=progress))
    pairs = duplicate_pairs(own / "pairs.json", *both, progress=progress)
    ids = theirs.column("image_id")
    repeats = _repeats([*ids, *ours.column("image_id")], len(ids), file_contents(*both), pairs)
    for row, reason in seen.unreadable.items():
        repeats[row] = {"reason": UNREADABLE, "detail": reason}
    return [{"image_id": ids[row], **repeats[row]} for row in sorted(repeats)]


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
