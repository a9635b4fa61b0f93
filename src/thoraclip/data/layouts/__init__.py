"""Adapters from a folder on disk to candidate rows, one per layout; `data.index` reads the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thoraclip.data.layouts.covid_qu_ex import find_covid_qu_ex
from thoraclip.data.layouts.csv import COLUMN_SETTINGS, find_csv
from thoraclip.data.layouts.folders import find_folders
from thoraclip.data.layouts.listing import Listing, index_command, require_folder, utf8
from thoraclip.errors import ConfigError, InputError, did_you_mean, printable
from thoraclip.imaging.listing import walk
from thoraclip.imaging.names import MASKS

__all__ = ["COLUMN_SETTINGS", "LAYOUTS", "Listing", "detect_layout", "find_layout", "list_images"]

LAYOUTS: Mapping[str, Callable[..., Listing]] = {
    "covid-qu-ex": find_covid_qu_ex,
    "csv": find_csv,
    "folders": find_folders,
}


def find_layout(name: str) -> Callable[..., Listing]:
    """The adapter of a layout; raises ConfigError for an unknown name."""
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout '{name}'{did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]


def list_images(root: Path, *, layout: str, **options: Any) -> Listing:
    """The candidates of a layout, one or more; ConfigError for an unknown layout, InputError where there is none."""
    find = find_layout(layout)
    table, columns = options.get("csv_file"), options.get("columns") or {}
    if layout != "csv" and table:
        raise ConfigError(f"{table}: layout '{layout}' reads no table; use layout 'csv', or leave the table out")
    if layout != "csv" and (named := [name for column, name in columns.items() if name and name != column]):
        raise ConfigError(f"column '{named[0]}' is of a table, and none is given; give --csv FILE, or leave it out")
    place = str(root.resolve())
    if utf8(place) != place:
        raise InputError(f"{printable(place)}: a folder whose name is not UTF-8, and a manifest holds UTF-8; rename it")
    listing = find(root, **options)
    if listing.rows:
        return listing
    if listing.set_aside:
        path, reason = listing.set_aside[0]
        raise InputError(
            f"{printable(root)}: no picture can be used, {len(listing.set_aside)} are set aside, first "
            f"{printable(path)}: {reason}; give every class a sub-folder of its own, or a table of paths and labels: "
            f"{index_command(root, '--csv', 'TABLE.csv')}"
        )
    raise InputError(
        f"{printable(root)}: no PNG, JPEG or DICOM picture for layout '{layout}'; it holds {printable(listing.seen)}; "
        f"name the images' folder: {index_command('FOLDER')}"
    )


def detect_layout(root: Path) -> str:
    """`covid-qu-ex` with a folder `lung masks` or `infection masks` below, else `folders`; InputError for no folder."""
    require_folder(root)
    masks = ("lung masks", "infection masks")
    found = (one for one in walk(root, look_inside=False) if one.kind == MASKS)
    return "covid-qu-ex" if any(Path(one.path).name.lower() in masks for one in found) else "folders"
