"""Folds that each hold out the images of one source (hospital, collection), or of one value of another column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from thoraclip.data.splits import independent_groups, patient_counts
from thoraclip.dtypes import Ints, Masks
from thoraclip.errors import ConfigError, ManifestError, did_you_mean
from thoraclip.labels import LabelSet
from thoraclip.spelling import LabelMap
from thoraclip.tables.manifest import Manifest

__all__ = ["HeldOut", "SourceFolds", "leave_out", "source_folds"]

_NOT_SOURCES = ("image_id", "path", "sha256", "phash", "label", "split", "patient", "lung_mask", "infection_mask")
_LEAST = 2  # patients of each class outside of a source, one to train on and one to validate on


@dataclass(frozen=True)
class HeldOut:
    """One fold."""

    fold: int
    source: str
    images: int  # labelled ones
    patients: int  # an image of an unknown patient counts as one
    absent: tuple[str, ...]  # classes without an image in it


@dataclass(frozen=True)
class SourceFolds:
    """Which fold holds out each image."""

    fold: Ints  # i64[N]; -1 for an image that is always trained on, and for one without a label
    held_out: tuple[HeldOut, ...]
    notes: tuple[str, ...]  # what the user should know, a line each


def leave_out(manifest: Manifest, column: str, merge: LabelMap | None = None) -> Manifest:
    """A new manifest with one fold for each source, see `source_folds`; images that are always trained on have split
    `train` and no fold."""
    folds = source_folds(manifest, column, merge).fold
    labelled = ~np.asarray(manifest.values("label").is_null())
    split = pa.array(np.where(labelled & (folds < 0), "train", ""), mask=~labelled | (folds >= 0))
    fold = pa.array(folds.astype(np.int32), mask=folds < 0)
    return manifest.with_columns(split=split.cast(pa.string()), fold=fold).strict()


def source_folds(manifest: Manifest, column: str, merge: LabelMap | None = None) -> SourceFolds:
    """One fold for each source, in the order of their names.

    Images that share a patient, bytes or a duplicate cluster stay together: with the source of most of them (of equally
    many, the first by name; unknown ones do not count). Always trained on are images of unknown source, and of a source
    without which a class would have fewer than two patients, one to train on and one to validate on.

    Args:
        manifest: the images; they may leak.
        column: of text: source, view, sex or an extra one.
        merge: OLD=NEW puts a source into a group of that name; an empty NEW makes it unknown.

    Raises:
        ConfigError: no such column, one that names no sources, or a source to merge that no image has.
        ManifestError: fewer than two sources can be held out.
    """
    names, own = _sources(manifest, column, merge or LabelMap())
    labels, groups = manifest.label_set(), independent_groups(manifest)
    targets = manifest.targets(labels)
    source = _of_groups(own, groups)
    known = targets >= 0
    moved = int((known & (own >= 0) & (source != own)).sum())
    notes = [f"{moved:,} images moved to the {column} of most images of their patient or copies"] if moved else []
    fold, held_out, kept = np.full(len(manifest), -1), list[HeldOut](), list[str]()
    for number, name in enumerate(names):
        inside = known & (source == number)
        if not inside.any():
            continue
        outside = patient_counts(targets[known & ~inside], groups[known & ~inside], len(labels))
        if outside.min() < _LEAST:
            kept.append(f"{column} '{name}' is always trained on ({_images(inside)}): {_why(outside, labels)}")
            continue
        absent = tuple(label for index, label in enumerate(labels.names) if not (inside & (targets == index)).any())
        patients = len(np.unique(groups[inside]))
        fold[inside] = len(held_out)
        held_out.append(HeldOut(len(held_out), name, int(inside.sum()), patients, absent))
    if (known & (source < 0)).any():
        notes.append(f"{_images(known & (source < 0))} of unknown {column} are always trained on")
    if len(held_out) < 2:
        why = "".join(f"; {line}" for line in kept[:3])
        raise ManifestError(
            f"{manifest.file or 'manifest'}: {len(held_out)} of {len(names)} values of '{column}' can be held out, and "
            f"two are needed{why}; put them together with --merge OLD=NEW, or split by patient: --folds 5"
        )
    lacking = (f"{column} '{one.source}' has no image of {', '.join(one.absent)}" for one in held_out if one.absent)
    return SourceFolds(fold, tuple(held_out), (*notes, *kept, *lacking))


def _images(rows: Masks) -> str:
    return f"{int(rows.sum()):,} images"


def _why(outside: Ints, labels: LabelSet) -> str:
    """Why the images of a source cannot be held out, by the patients i64[C] of all others."""
    lacking = (f"{count or 'no'} patients of {name}" for name, count in zip(labels.names, outside, strict=True)
               if count < _LEAST)  # fmt: skip
    return f"without it there are {', '.join(lacking)} to train and validate on"


def _sources(manifest: Manifest, column: str, merge: LabelMap) -> tuple[list[str], Ints]:
    """(names of the sources, sorted; i64[N] number of each image's, -1 where unknown)."""
    choices = list(_columns(manifest))
    if column not in choices:
        why = "names no sources" if column in manifest.table.column_names else "is no column of the manifest"
        raise ConfigError(f"--leave-out '{column}' {why}{did_you_mean(column, choices)}; one of {', '.join(choices)}")
    values = manifest.column(column)
    known = {value for value in values if value}
    for old in merge.renamed:
        if old not in known:
            raise ConfigError(f"--merge: no image has the {column} '{old}'{did_you_mean(old, known)}")
    merged = [merge(value) if value else None for value in values]
    names = sorted({value for value in merged if value})
    number = {name: place for place, name in enumerate(names)}
    return names, np.array([-1 if value is None else number[value] for value in merged], dtype=np.int64)


def _columns(manifest: Manifest) -> Iterator[str]:
    """Names of the columns of text that can name a source."""
    for field in manifest.table.schema:
        if pt.is_string(field.type) and field.name not in _NOT_SOURCES:
            yield field.name


def _of_groups(own: Ints, groups: Ints) -> Ints:
    """i64[N]: the source of most images of each image's group, -1 where none is known."""
    known = own >= 0
    pairs, images = np.unique(np.stack([groups[known], own[known]]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], images))  # the last one of a group is the one that stays: most images, first name
    source = np.full(int(groups.max()) + 1, -1)
    source[pairs[0][order]] = pairs[1][order]
    return np.asarray(source[groups])
