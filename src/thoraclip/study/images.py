"""Where images come from: those of a study, and of its external sets, which no method of the study has seen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from thoraclip.config import Settings, build_config
from thoraclip.data.index import index, write_index_report
from thoraclip.data.labelling import settle_labels
from thoraclip.data.layouts import COLUMN_SETTINGS, LAYOUTS, detect_layout, list_images
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.ranges import Range, WordOr
from thoraclip.runs import Progress
from thoraclip.spelling import LabelMap
from thoraclip.tables.manifest import SPLITS, Manifest, read_manifest

__all__ = ["External", "ImageSource", "read_external"]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A bare TOML key that is a folder's name everywhere."""


@dataclass(frozen=True, kw_only=True)
class ImageSource(Settings):
    """Either a manifest, or a folder that is read by a layout."""

    manifest: str = ""
    """Manifest file; or give a folder."""
    folder: str = ""
    """Folder of images, indexed by the study itself."""
    layout: str = ""
    """Layout of the folder: covid-qu-ex, folders or csv; empty finds out."""
    csv: str = ""
    """Table of the folder's images, for layout csv."""
    path_column: str = "path"
    """CSV column with the path below the folder."""
    label_column: str = "label"
    """CSV column with the class."""
    id_column: str = ""
    """CSV column of the image's name; empty, here and below: the column of the same name, if any."""
    split_column: str = ""
    """CSV column of the split."""
    patient_column: str = ""
    """CSV column of the patient."""
    source_column: str = ""
    """CSV column of the source."""
    view_column: str = ""
    """CSV column of the view."""
    sex_column: str = ""
    """CSV column of the sex."""
    age_column: str = ""
    """CSV column of the age in years."""
    mask_column: str = ""
    """CSV column of the lung mask's path."""
    infection_mask_column: str = ""
    """CSV column of the infection mask's path."""

    may_be_one_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.manifest) == bool(self.folder):
            raise ConfigError("give either 'manifest' or 'folder', and not both")
        if self.layout and self.layout not in LAYOUTS:
            raise ConfigError(f"unknown layout '{self.layout}'{did_you_mean(self.layout, LAYOUTS)}")
        if self.csv and (self.manifest or self.layout not in ("", "csv")):
            other = "a manifest" if self.manifest else f"layout '{self.layout}'"
            raise ConfigError(f"csv = '{self.csv}' lists the images of a folder, and {other} is given; leave one out")
        if self.layout == "csv" and not self.csv:
            raise ConfigError("layout 'csv' needs the table: csv = FILE")

    def _reading(self) -> dict[str, Any]:
        """How the folder is read."""
        columns = {column: getattr(self, name) or None for name, column in COLUMN_SETTINGS.items()}
        table = Path(self.csv) if self.csv else None
        return {"layout": self.folder_layout(), "csv_file": table, "columns": columns}

    def folder_layout(self) -> str:
        """The layout of the folder, as set or as found out."""
        return self.layout or ("csv" if self.csv else detect_layout(Path(self.folder)))

    def read(self, out: Path, progress: Progress | None) -> tuple[Manifest, Sequence[tuple[str, str]]]:
        """The images, which may leak, and (path, reason) of every one that cannot be used.

        A folder is indexed; `manifest.facts.jsonl` and `manifest.index.json` in `out` keep what was read.
        """
        if self.manifest:
            return read_manifest(Path(self.manifest), may_leak=True), ()
        indexed = index(
            Path(self.folder),
            facts=out / "manifest.facts.jsonl",
            label_map=self._label_map(),
            one_class=self.may_be_one_class,
            progress=progress,
            **self._reading(),
        )
        write_index_report(out / "manifest.index.json", indexed)
        return indexed.manifest, indexed.set_aside

    def _label_map(self) -> LabelMap:
        """Which classes of the folder stay apart from similar ones."""
        return LabelMap()

    def list_images(self) -> Manifest:
        """The images, which may leak, sorted by id, without opening one; InputError where the folder has none."""
        if self.manifest:
            return read_manifest(Path(self.manifest), may_leak=True)
        root = Path(self.folder)
        listing = list_images(root, **self._reading())
        settle_labels(listing, self._label_map())
        rows = sorted(listing.rows, key=lambda row: str(row["image_id"]))
        return Manifest.from_rows(rows, root.resolve(), may_leak=True)


@dataclass(frozen=True, kw_only=True)
class External(ImageSource):
    """One external test set."""

    name: str
    """Names its folder and files; stands in the table's header."""
    labels: tuple[tuple[str, str], ...] = ()
    """(label there, class of the study) pairs; an empty class leaves the images out."""
    split: str = ""
    """Takes the images of this split alone; empty: every labelled image."""
    note: str = ""
    """What the reader must know about it."""
    adapt: tuple[Annotated[int | str, WordOr(("all",), Range(0, 1_000_000))], ...] = ()
    """Adaptation curve: how many labelled patients of each class from here join the training of every probe, as in
    [0, 5, 10, 30, 100, "all"]; they are drawn from one half of the set, and the other half is scored."""

    may_be_one_class: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout and self.manifest:
            raise ConfigError("'layout' says how a folder is read, and a manifest is given; leave 'layout' out")
        if self.split and self.split not in SPLITS:
            raise ConfigError(f"split = '{self.split}' is unknown{did_you_mean(self.split, SPLITS)}")

    def _label_map(self) -> LabelMap:
        return LabelMap(apart=[theirs for theirs, _ in self.labels])


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
