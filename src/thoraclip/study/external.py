"""External test sets: images from elsewhere, which no method of a study has seen.

[external.NAME] --read_external--> External --labelled images, under the study's class names--> select
    --images that the study does not have--> prepare_sets
    --external_scores.score_set--> tables of scores --> evaluation.external
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.config import build_config, config_toml, toml_value
from thoraclip.data.overlap import COPIES, IDENTICAL, NEAR, UNREADABLE, find_overlap
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError, did_you_mean
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.external_reading import left_out_words
from thoraclip.labels import LabelSet
from thoraclip.runs import Progress, write_json
from thoraclip.study.images import index_folder, list_images, require_one_source
from thoraclip.tables.manifest import SPLITS, Manifest, write_manifest

__all__ = ["External", "Selection", "external_toml", "listed_count", "prepare_sets", "read_external", "select"]

UNMAPPED, UNLABELLED, OTHER_SPLITS = "label not in the mapping", "unlabelled", "other splits"

_SCHEMA = 1
_REASONS = (IDENTICAL, NEAR, COPIES, UNREADABLE, UNMAPPED, UNLABELLED, OTHER_SPLITS)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A bare TOML key that is a folder's name everywhere."""


@dataclass(frozen=True, kw_only=True)
class External:
    """One external test set."""

    name: str
    """Names its folder and files; stands in the table's header."""
    manifest: str = ""
    """Manifest file; or give a folder."""
    folder: str = ""
    """Folder of images, indexed by the study itself."""
    layout: str = ""
    """Layout of the folder: covid-qu-ex or folders; empty finds out."""
    labels: tuple[tuple[str, str], ...] = ()
    """(label there, class of the study) pairs; an empty class leaves the images out."""
    split: str = ""
    """Takes the images of this split alone; empty: every labelled image."""
    note: str = ""
    """What the reader must know about it."""

    def __post_init__(self) -> None:
        require_one_source(self)
        if self.layout and self.manifest:
            raise ConfigError("'layout' says how a folder is read, and a manifest is given; leave 'layout' out")
        if self.split and self.split not in SPLITS:
            raise ConfigError(f"split = '{self.split}' is unknown{did_you_mean(self.split, SPLITS)}")


def read_external(
    tables: object, where: str, beside: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> tuple[External, ...]:
    """Check the `[external.NAME]` tables of a study file.

    Args:
        tables: set name -> mapping with the fields of `External`.
        where: the study file; begins every message.
        beside: gives the paths of a table that lie beside the study file.

    Raises:
        ConfigError: not a table of tables, a name that is no plain name, an unknown setting, labels that are no
            mapping.
    """
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise ConfigError(f"{where}: 'external' must be [external.NAME] tables, such as [external.hospital-b]")
    return tuple(
        _read_set(str(name), {**table, **beside(table)}, f"{where}, external '{name}'")
        for name, table in tables.items()
    )


def _read_set(name: str, values: dict[str, Any], where: str) -> External:
    if not _PLAIN.fullmatch(name):
        raise ConfigError(
            f"{where}: the name becomes a folder; use letters, digits, - and _ alone, such as [external.hospital-b]"
        )
    if "name" in values:
        raise ConfigError(f"{where}: the name stands in the header [external.{name}]; leave name = ... out")
    labels = values.pop("labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(ours, str) for ours in labels.values()):
        raise ConfigError(
            f"{where}: labels = {labels!r} must name a class of the study for labels of the set, "
            'such as labels = { "COVID-19" = "covid" }; "" leaves them out'
        )
    external = build_config(External, {**values, "name": name}, where=where)
    return dataclasses.replace(external, labels=tuple((str(theirs), ours) for theirs, ours in labels.items()))


def external_toml(sets: Sequence[External]) -> str:
    """The sets as tables that `read_external` reads back."""
    return "".join(
        f"\n[external.{one.name}]\n{config_toml(one, skip=('name', 'labels'))}labels = {toml_value(dict(one.labels))}\n"
        for one in sets
    )


def listed_count(external: External, labels: LabelSet) -> int:
    """How many images have a class of the study, without opening one; raises ThoraclipError as `prepare_sets` does."""
    with _errors_named(external):
        return len(select(external, list_images(external), labels).images)


def prepare_sets(
    sets: Sequence[External],
    study: Manifest,
    labels: LabelSet,
    out: Path,
    *,
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> list[tuple[Manifest, ExternalResult]]:
    """Of every set the images that are scored, and the result without scores.

    `out/external/NAME/` gets `left-out.json` and `manifest.parquet` (the images that are scored).

    Args:
        sets: of the study.
        study: the study's images, of every split and fold.
        labels: the study's classes.
        out: its folder.
        log: gets a line at every stage.
        progress: called with (done, total).

    Raises:
        ConfigError: the labels of a set do not fit, see `select`.
        ManifestError: every image of a set is in the study, too, or none is readable.
        ThoraclipError: the images cannot be had.
    """
    selections = [_read(external, labels, out / "external" / external.name, progress) for external in sets]
    return [
        _prepare(external, selection, study, out, log, progress)
        for external, selection in zip(sets, selections, strict=True)
    ]


def _read(external: External, labels: LabelSet, own: Path, progress: Progress | None) -> Selection:
    with _errors_named(external):
        if not external.folder:
            return select(external, list_images(external), labels)
        manifest, set_aside = index_folder(external, own, progress=progress)
        return dataclasses.replace(select(external, manifest, labels), set_aside=set_aside)


def _prepare(
    external: External,
    selection: Selection,
    study: Manifest,
    out: Path,
    log: Callable[[str], None],
    progress: Progress | None,
) -> tuple[Manifest, ExternalResult]:
    own, images = out / "external" / external.name, selection.images
    log(f"external {external.name}: looking for the study's pictures among {len(images):,} images")
    overlap = find_overlap(images, study, own, out / "inspection", progress=progress)
    counts = Counter(row["reason"] for row in overlap) + Counter(selection.left_out)
    counts[UNREADABLE] += len(selection.set_aside)
    left_out = {reason: counts[reason] for reason in _REASONS}
    their_label = images.by_id("their_label")
    content = {
        "schema": _SCHEMA,
        "counts": left_out,
        "labels_not_in_the_mapping": dict(sorted(selection.unmapped.items())),
        "images": [{**row, "label": their_label[row["image_id"]]} for row in overlap],
        "not_indexed": [{"path": path, "reason": reason} for path, reason in selection.set_aside],
    }
    write_json(own / "left-out.json", content)
    gone, words = {row["image_id"] for row in overlap}, left_out_words(left_out)
    if len(gone) == len(images):
        raise ManifestError(
            f"external '{external.name}': no image is left to judge ({words}), see {own / 'left-out.json'}; take "
            "images that are not in the study"
        )
    kept = images.take(np.flatnonzero([name not in gone for name in images.column("image_id")]))
    write_manifest(own / "manifest.parquet", kept)
    known = set(study.column("patient")) - {None}
    shared = Counter(patient for patient in kept.column("patient") if patient in known)
    warning = f"; warning: {len(shared):,} patients have an id that the study has, too" if shared else ""
    log(f"external {external.name}: {len(kept):,} images are judged{words and f', left out: {words}'}{warning}")
    return kept, ExternalResult(
        name=external.name,
        note=external.note,
        left_out=left_out,
        splits=selection.splits,
        patients_shared=len(shared),
        images_of_shared=shared.total(),
    )


@contextmanager
def _errors_named(external: External) -> Iterator[None]:
    """Errors begin with the set's name."""
    try:
        yield
    except ThoraclipError as error:
        raise type(error)(f"external '{external.name}': {error}") from error


@dataclass(frozen=True)
class Selection:
    """Images of an external set that have a class of the study.

    Args:
        images: their labels are the study's, those of the set are in the column `their_label`; no split, no fold.
        left_out: reason -> images, of the others.
        unmapped: label -> images, of those whose label is no class.
        splits: names of the splits that the images are from; `()` where the set names none.
        set_aside: (path, reason) of images that could not be indexed.
    """

    images: Manifest
    left_out: Mapping[str, int]
    unmapped: Mapping[str, int]
    splits: tuple[str, ...]
    set_aside: tuple[tuple[str, str], ...] = ()


def select(external: External, manifest: Manifest, labels: LabelSet) -> Selection:
    """The images that count by split and label.

    Args:
        external: the set.
        manifest: all its images.
        labels: the study's classes.

    Raises:
        ConfigError: a mapping from a label that no image has or to a class that the study does not have, a split
            without an image, or no label in common.
        ManifestError: no image has a label.
    """
    theirs, splits = manifest.column("label"), manifest.column("split")
    classes = _classes(external, set(theirs) - {None}, labels)
    if external.split and external.split not in splits:
        named = ", ".join(sorted(set(splits) - {None}))
        raise ConfigError(
            f"no image of split '{external.split}'; its splits are {named}"
            if named
            else f"split = '{external.split}', and its images name no split; leave split out to take all"
        )

    def left_out(label: str | None, split: str | None) -> str | None:
        if external.split and split != external.split:
            return OTHER_SPLITS
        if label is None:
            return UNLABELLED
        return None if label in classes else UNMAPPED

    reasons = [left_out(label, split) for label, split in zip(theirs, splits, strict=True)]
    if all(reasons):
        raise _nothing_in_common(external, set(theirs) - {None}, labels)
    images = manifest.take(np.flatnonzero([reason is None for reason in reasons]))
    their_label, nothing = images.column("label"), [None] * len(images)
    return Selection(
        images=images.with_columns(
            label=[classes[label] for label in their_label], split=nothing, fold=nothing, their_label=their_label
        ),
        left_out=Counter(reason for reason in reasons if reason),
        unmapped=Counter(label for label, reason in zip(theirs, reasons, strict=True) if reason == UNMAPPED),
        splits=tuple(sorted(set(images.column("split")) - {None})),
    )


def _classes(external: External, theirs: set[str], labels: LabelSet) -> dict[str, str]:
    """Label of the set -> class of the study, of those that have one."""
    for label, ours in external.labels:
        if label not in theirs:
            raise ConfigError(f"labels: no image has the label '{label}'{did_you_mean(label, theirs)}")
        if ours and ours not in labels.names:
            raise ConfigError(
                f"labels: '{label}' = '{ours}', which is no class of the study{did_you_mean(ours, labels.names)}"
            )
    classes = {label: label for label in theirs if label in labels.names} | dict(external.labels)
    return {label: ours for label, ours in classes.items() if ours}


def _nothing_in_common(external: External, known: set[str], labels: LabelSet) -> ThoraclipError:
    if not known:
        return ManifestError("no image has a label; an external set needs labels to judge by")
    if external.split and known & {*labels.names, *(theirs for theirs, ours in external.labels if ours)}:
        return ConfigError(f"no image of split '{external.split}' has a class of the study; take another split")
    theirs = sorted(known)
    return ConfigError(
        f"no label in common: its labels are {', '.join(theirs)}, the study's classes {', '.join(labels.names)}; "
        f'add labels = {{ "{theirs[0]}" = "{labels.names[0]}" }} to [external.{external.name}], a class for each label'
    )
