"""An external set made ready: read, compared with the study's images, and what was left out written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.errors import ManifestError
from thoraclip.evaluation.external_reading import left_out_words
from thoraclip.runs import Progress, write_json
from thoraclip.study.external.images import OTHER_SPLITS, UNLABELLED, UNMAPPED, Candidates, read_candidates
from thoraclip.study.external.overlap import COPIES, IDENTICAL, NEAR, UNREADABLE, find_overlap
from thoraclip.study.external.toml import External
from thoraclip.tables.manifest import Manifest, write_manifest

__all__ = ["ExternalSet", "prepare_sets"]

_SCHEMA = 1
_REASONS = (IDENTICAL, NEAR, COPIES, UNREADABLE, UNMAPPED, UNLABELLED, OTHER_SPLITS)


@dataclass(frozen=True)
class ExternalSet:
    """What is judged of an external set.

    Args:
        external: its settings.
        images: readable, labelled with the study's classes, none of them in the study.
        left_out: reason -> images.
        splits: of the set's own, which the images are from; `()` where it names none.
        patients_shared: patients of these images whose id the study has, too.
        images_of_shared: images of these patients.
    """

    external: External
    images: Manifest
    left_out: Mapping[str, int]
    splits: tuple[str, ...]
    patients_shared: int
    images_of_shared: int


def prepare_sets(
    sets: Sequence[External],
    study: Manifest,
    classes: Sequence[str],
    out: Path,
    *,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> list[ExternalSet]:
    """Make every external set ready; `out/external/NAME/` gets `left-out.json` and `manifest.parquet` (what is judged).

    Args:
        sets: of the study.
        study: its images, all of them.
        classes: its classes as it names them; empty for those of its images.
        out: its folder.
        announce: gets a line for each set.
        progress: called with (done, total).

    Raises:
        ConfigError: the labels of a set do not fit, see `images.select`.
        ManifestError: every image of a set stands in the study, too, or none is readable.
        ThoraclipError: the images cannot be had.
    """
    if not sets:
        return []
    labels, folder = study.label_set(classes), out / "external"
    candidates = {one.name: read_candidates(one, labels, folder / one.name, progress=progress) for one in sets}
    return [_prepare(one, candidates[one.name], study, out, announce, progress) for one in sets]


def _prepare(
    external: External,
    candidates: Candidates,
    study: Manifest,
    out: Path,
    announce: Callable[[str], None],
    progress: Progress | None,
) -> ExternalSet:
    own, images = out / "external" / external.name, candidates.images
    announce(f"external {external.name}: looking for the study's pictures among {len(images):,} images")
    found = find_overlap(images, study, own, out / "inspection", progress=progress)
    counts = Counter(row["reason"] for row in found) + Counter(candidates.left_out)
    counts[UNREADABLE] += len(candidates.set_aside)
    left_out = {reason: counts[reason] for reason in _REASONS}
    _write_left_out(own / "left-out.json", candidates, found, left_out)
    gone = {row["image_id"] for row in found}
    rows = np.array([row for row, name in enumerate(images.column("image_id")) if name not in gone], dtype=np.int64)
    if not len(rows):
        raise ManifestError(
            f"external '{external.name}': no image is left to judge ({left_out_words(left_out)}), see "
            f"{own / 'left-out.json'}; take images that are not in the study"
        )
    kept = images.take(rows)
    write_manifest(own / "manifest.parquet", kept)
    known = {patient for patient in study.column("patient") if patient is not None}
    shared = [patient for patient in kept.column("patient") if patient in known]
    announce(f"external {external.name}: {_told(len(kept), left_out, len(set(shared)))}")
    return ExternalSet(external, kept, left_out, candidates.splits, len(set(shared)), len(shared))


def _write_left_out(
    file: Path, candidates: Candidates, found: Sequence[Mapping[str, Any]], left_out: Mapping[str, int]
) -> None:
    """Which images are left out, and why; of labels without a class the count is enough."""
    theirs = dict(zip(candidates.images.column("image_id"), candidates.images.column("their_label"), strict=True))
    content = {
        "schema": _SCHEMA,
        "counts": dict(left_out),
        "labels_not_in_the_mapping": dict(sorted(candidates.unmapped.items())),
        "images": [{**row, "label": theirs[row["image_id"]]} for row in found],
        "not_indexed": [{"path": path, "reason": reason} for path, reason in candidates.set_aside],
    }
    write_json(file, content)


def _told(kept: int, left_out: Mapping[str, int], shared: int) -> str:
    gone = left_out_words(left_out)
    patients = f"; warning: {shared:,} patients have an id that the study has, too" if shared else ""
    return f"{kept:,} images are judged" + (f", left out: {gone}" if gone else "") + patients
