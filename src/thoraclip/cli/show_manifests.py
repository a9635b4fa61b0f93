"""What overlap and join print, as `show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thoraclip.cli.console import announce, print_table, say
from thoraclip.cli.show import print_counts

if TYPE_CHECKING:
    from thoraclip.data.joining import Joined


def overlap(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The labels of the shared images as a table on standard output, and the reading."""
    from thoraclip.data.overlap import overlap_reading

    rows = [
        [*(row[side] or "unknown" for side in "ab"), f"{row['images']:,}", row["relation"].replace("open", "not known")]
        for row in content["labels"]
    ]
    if rows:
        print_table(["label in A", "label in B", "images of A", "the same class?"], rows, numbers=False)
    for sentence in overlap_reading(content):
        say(sentence)
    announce(f"page: {given['out'] / 'overlap.html'}")


def join(joined: Joined, given: Mapping[str, Any]) -> None:
    """Images of each class in each part, and what was done."""
    from thoraclip.data.joining import join_reading

    print_counts(*joined.manifest.counts())
    announce(f"{len(joined.manifest)} images -> {given['out']}")
    for sentence in join_reading(joined.content):
        say(sentence)
    announce(f"left out, with reasons: {given['out'].with_suffix('.join.json')}")
