"""The labelled images of an external set, under the class names of the study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thoraclip.data.index import index, write_index_report
from thoraclip.data.layouts import detect_layout, find_layout
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError, did_you_mean
from thoraclip.labels import LabelSet
from thoraclip.runs import Progress
from thoraclip.study.external.toml import External
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["UNMAPPED", "Candidates", "listed_images", "read_candidates", "select"]

UNMAPPED, UNLABELLED, OTHER_SPLITS = "label not in the mapping", "unlabelled", "other splits"


@dataclass(frozen=True)
class Candidates:
    """Images of an external set that have a class of the study, before any picture is looked at.

    Args:
        images: their labels are the study's, those of the set stand in the column `their_label`; no split, no fold.
        left_out: reason -> images, of those that are no candidates.
        unmapped: label -> images, of those whose label is no class.
        set_aside: (path, reason) of pictures that could not be indexed.
        splits: names of the splits that the candidates are from; `()` where the set names none.
    """

    images: Manifest
    left_out: Mapping[str, int]
    unmapped: Mapping[str, int]
    set_aside: tuple[tuple[str, str], ...] = field(default=())
    splits: tuple[str, ...] = ()


def read_candidates(external: External, labels: LabelSet, own: Path, *, progress: Progress | None = None) -> Candidates:
    """Read (or index) a set, and give its images the study's classes.

    Args:
        external: the set.
        labels: the study's classes.
        own: the set's folder in the study; what indexing a folder found is kept there.
        progress: called with (done, total).

    Raises:
        ConfigError: see `select`.
        ThoraclipError: the images cannot be had.
    """
    try:
        if external.manifest:
            return select(external, read_manifest(Path(external.manifest), may_leak=True), labels)
        layout = external.layout or detect_layout(Path(external.folder))
        found = index(Path(external.folder), layout=layout, facts=own / "manifest.facts.jsonl", progress=progress)
        write_index_report(own / "manifest.index.json", found)
        return select(external, found.manifest, labels, set_aside=tuple(found.set_aside))
    except ThoraclipError as error:
        raise type(error)(f"external '{external.name}': {error}") from error


def listed_images(external: External, labels: LabelSet) -> Manifest:
    """The candidates without reading a picture: of a folder, the files are listed.

    Raises:
        ThoraclipError: as in `read_candidates`.
    """
    try:
        if external.manifest:
            found = read_manifest(Path(external.manifest), may_leak=True)
        else:
            root = Path(external.folder)
            rows = find_layout(external.layout or detect_layout(root))(root).rows
            if not rows:
                raise ManifestError(f"{root}: no picture can be used; give every class a sub-folder of its own")
            found = Manifest.from_rows(rows, root.resolve(), may_leak=True)
        return select(external, found, labels).images
    except ThoraclipError as error:
        raise type(error)(f"external '{external.name}': {error}") from error


def select(
    external: External, manifest: Manifest, labels: LabelSet, *, set_aside: tuple[tuple[str, str], ...] = ()
) -> Candidates:
    """The images that count by split and label.

    Args:
        external: the set.
        manifest: all its images.
        labels: the study's classes.
        set_aside: pictures that could not be indexed.

    Raises:
        ConfigError: a mapping from a label that no image has or to a class that the study does not have, a split
            without an image, or no label in common.
    """
    theirs, splits = manifest.column("label"), manifest.column("split")
    classes = _classes(external, {label for label in theirs if label is not None}, labels)
    in_split = [not external.split or split == external.split for split in splits]
    if not any(in_split):
        named = sorted({split for split in splits if split is not None})
        raise ConfigError(
            f"no image of split '{external.split}'; its splits are {', '.join(named)}"
            if named
            else f"split = '{external.split}', and its images name no split; leave split out to take all"
        )
    reasons = [
        OTHER_SPLITS if not taken else UNLABELLED if label is None else "" if label in classes else UNMAPPED
        for taken, label in zip(in_split, theirs, strict=True)
    ]
    rows = np.flatnonzero(np.array([not reason for reason in reasons]))
    if not len(rows):
        raise _nothing_in_common(external, theirs, labels)
    found, nothing = manifest.take(rows), [None] * len(rows)
    their_label = found.column("label")
    return Candidates(
        images=found.with_columns(
            label=[classes[label] for label in their_label], split=nothing, fold=nothing, their_label=their_label
        ),
        left_out=Counter(reason for reason in reasons if reason),
        unmapped=Counter(label for label, reason in zip(theirs, reasons, strict=True) if reason == UNMAPPED),
        set_aside=set_aside,
        splits=tuple(sorted({splits[row] for row in rows if splits[row] is not None})),
    )


def _classes(external: External, theirs: set[str], labels: LabelSet) -> dict[str, str]:
    """Label of the set -> class of the study, of those that have one."""
    mapping = dict(external.labels)
    for label, ours in mapping.items():
        if label not in theirs:
            raise ConfigError(f"labels: no image has the label '{label}'{did_you_mean(label, theirs)}")
        if ours and ours not in labels.names:
            raise ConfigError(
                f"labels: '{label}' = '{ours}', which is no class of the study{did_you_mean(ours, labels.names)}"
            )
    same = {label: label for label in theirs if label in labels.names}
    return {label: ours for label, ours in {**same, **mapping}.items() if ours}


def _nothing_in_common(external: External, theirs: list[str | None], labels: LabelSet) -> ThoraclipError:
    known = sorted({label for label in theirs if label is not None})
    if not known:
        return ManifestError("no image has a label; an external set needs labels to judge by")
    if external.split and set(known) & {*labels.names, *(theirs for theirs, ours in external.labels if ours)}:
        return ConfigError(f"no image of split '{external.split}' has a class of the study; take another split")
    return ConfigError(
        f"no label in common: its labels are {', '.join(known)}, the study's classes {', '.join(labels.names)}; "
        f'add labels = {{ "{known[0]}" = "{labels.names[0]}" }} to [external.{external.name}], a class for each label'
    )
