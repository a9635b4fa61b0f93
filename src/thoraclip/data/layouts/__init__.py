"""Adapters from a folder on disk to candidate rows, one per layout; `data.index` reads the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from thoraclip.data.layouts.covid_qu_ex import find_covid_qu_ex
from thoraclip.data.layouts.csv import COLUMN_SETTINGS, find_csv
from thoraclip.data.layouts.folders import find_folders
from thoraclip.data.layouts.listing import Listing, require_folder
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.imaging.listing import walk
from thoraclip.imaging.names import MASKS

__all__ = ["COLUMN_SETTINGS", "LAYOUTS", "Listing", "detect_layout", "find_layout"]

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


def detect_layout(root: Path) -> str:
    """`covid-qu-ex` with a folder `lung masks` or `infection masks` below, else `folders`; InputError for no folder."""
    require_folder(root)
    masks = ("lung masks", "infection masks")
    found = (one for one in walk(root, look_inside=False) if one.kind == MASKS)
    return "covid-qu-ex" if any(Path(one.path).name.lower() in masks for one in found) else "folders"
