"""What `split` prints of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thoraclip.cli.console import announce, print_table
from thoraclip.cli.show import print_counts
from thoraclip.spelling import LabelMap

if TYPE_CHECKING:
    from thoraclip.tables.manifest import Manifest


def split(manifest: Manifest, given: Mapping[str, Any]) -> None:
    """Images of each class in each part; with `--leave-out` also the sources, and what the user should know of them."""
    print_counts(*manifest.counts())
    if given["leave_out"]:
        from thoraclip.data.leave_out import source_folds

        found = source_folds(manifest, given["leave_out"], LabelMap(given["merge"] or (), option="--merge"))
        rows = [
            [str(one.fold), one.source, f"{one.images:,}", f"{one.patients:,}", ", ".join(one.absent) or "none"]
            for one in found.held_out
        ]
        heads = ["fold", given["leave_out"], "images", "patients", "classes absent"]
        print_table(heads, rows, numbers=False)
        for note in found.notes:
            announce(note)
    announce(f"{len(manifest)} images -> {given['out']}")
