"""The `[external.NAME]` tables of a study file: read, checked, and written back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thoraclip.config import build_config, config_toml, toml_value
from thoraclip.data.layouts import LAYOUTS
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.tables.manifest import SPLITS

__all__ = ["External", "external_toml", "read_external", "require_one_source"]

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
        require_one_source(self.manifest, self.folder, self.layout)
        if self.layout and self.manifest:
            raise ConfigError("'layout' says how a folder is read, and a manifest is given; leave 'layout' out")
        if self.split and self.split not in SPLITS:
            raise ConfigError(f"split = '{self.split}' is unknown{did_you_mean(self.split, SPLITS)}")


def require_one_source(manifest: str, folder: str, layout: str) -> None:
    """Raise ConfigError unless images come from a manifest or from a folder, which is read by a layout that needs no
    columns."""
    if bool(manifest) == bool(folder):
        raise ConfigError("give either 'manifest' or 'folder', and not both")
    if layout and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'{did_you_mean(layout, LAYOUTS)}")
    if layout == "csv":
        raise ConfigError("layout 'csv' needs column names; make a manifest with thoraclip index and give 'manifest'")


def read_external(
    tables: object, where: str, beside: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> tuple[External, ...]:
    """Check the tables of external sets.

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
    return tuple(_read_set(str(name), table, f"{where}, external '{name}'", beside) for name, table in tables.items())


def _read_set(
    name: str, table: Mapping[str, Any], where: str, beside: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> External:
    if not _PLAIN.fullmatch(name):
        raise ConfigError(
            f"{where}: the name becomes a folder; use letters, digits, - and _ alone, such as [external.hospital-b]"
        )
    values = {**table, **beside(table)}
    if "name" in values:
        raise ConfigError(f"{where}: the name stands in the header [external.{name}]; leave name = ... out")
    labels = values.pop("labels", {})
    if not isinstance(labels, Mapping) or not all(isinstance(ours, str) for ours in labels.values()):
        raise ConfigError(
            f"{where}: labels = {labels!r} must name a class of the study for labels of the set, "
            'such as labels = { "COVID-19" = "covid" }; "" leaves them out'
        )
    found = build_config(External, {**values, "name": name}, where=where)
    return dataclasses.replace(found, labels=tuple((str(theirs), ours) for theirs, ours in labels.items()))


def external_toml(sets: Sequence[External]) -> str:
    """The sets as tables that `read_external` reads back."""
    return "".join(
        f"\n[external.{one.name}]\n{config_toml(one, skip=('name', 'labels'))}labels = {toml_value(dict(one.labels))}\n"
        for one in sets
    )
