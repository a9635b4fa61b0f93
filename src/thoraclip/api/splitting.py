"""Panel Data: split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thoraclip.api.hooks import File, read_images, writes
from thoraclip.errors import ConfigError
from thoraclip.ranges import FoldCount, Seed, checked
from thoraclip.spelling import LabelMap

if TYPE_CHECKING:
    from thoraclip.api.hooks import Fractions, Images
    from thoraclip.tables.manifest import Manifest

__all__ = ["split"]


@checked
@writes(file=True, in_place=True)
def split(
    manifest: Images,
    *,
    out: File,
    folds: FoldCount | None = None,
    fractions: Fractions | None = None,
    leave_out: str = "",
    merge: Mapping[str, str] | Sequence[str] = (),
    seed: Seed = 0,
    duplicates: File | None = None,
) -> Manifest:
    """Split a manifest into folds or train/val/test, stratified by class, or into one fold a source; whole patients and
    identical files together.

    Args:
        manifest: the images; they may leak.
        out: manifest to write (.parquet).
        folds: number of folds; or give fractions, or leave_out.
        fractions: shares of train, val and test, as in 0.7,0.1,0.2.
        leave_out: column of text, such as source, view or sex: one fold for each of its values. Images of unknown
            source, and of a source without which a class has too few patients, are always trained on.
        merge: with leave_out, OLD=NEW puts a source into a group of that name; may be repeated.
        seed: seed of the shuffle, which leave_out does not have.
        duplicates: folder of a check, whose near duplicates are kept together.

    Returns:
        The new manifest.
    """
    from thoraclip.data.check import read_clusters
    from thoraclip.data.leave_out import leave_out as split_sources
    from thoraclip.data.splits import parse_fractions, split_folds, split_fractions
    from thoraclip.tables.manifest import require_place, write_manifest

    if (folds is not None) + (fractions is not None) + bool(leave_out) != 1:
        raise ConfigError("give either --folds 5 or --fractions 0.7,0.1,0.2 or --leave-out source")
    if merge and not leave_out:
        raise ConfigError("--merge puts sources together; give --leave-out source, too, or leave it out")
    require_place(Path(out), "manifest")
    images = read_images(manifest, may_leak=True)
    images = images if duplicates is None else read_clusters(images, Path(duplicates))
    if leave_out:
        images = split_sources(images, leave_out, LabelMap(merge, option="--merge"))
    elif folds is None:
        shares = parse_fractions(fractions) if isinstance(fractions, str) else fractions or ()
        images = split_fractions(images, fractions=shares, seed=seed)
    else:
        images = split_folds(images, folds=folds, seed=seed)
    write_manifest(Path(out), images)
    return images
