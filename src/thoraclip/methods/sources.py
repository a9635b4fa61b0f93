"""The sources of images (hospitals, collections), for settings that balance them."""

from __future__ import annotations

from typing import Any

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import ManifestError
from thoraclip.tables.codes import ranks
from thoraclip.tables.manifest import Manifest

__all__ = ["balances_sources", "sources_of"]

_SETTINGS = {"class_weight": "balanced", "sampling": "balanced", "erase": "none"}
"""Setting that may be `source` -> what it can be where no image has one."""


def balances_sources(config: Any) -> bool:
    """True for settings of a method whose result depends on the manifest's sources."""
    return any(getattr(config, name, "") == "source" for name in _SETTINGS)


def sources_of(config: Any, manifest: Manifest) -> Ints | None:
    """i64[N], the number of each image's source, in the order of their names, -1 where unknown; `None` where the
    settings balance no sources.

    Raises:
        ManifestError: they do, and no image has a source.
    """
    if not balances_sources(config):
        return None
    column = manifest.values("source")
    if column.null_count == len(column):
        name = next(name for name in _SETTINGS if getattr(config, name, "") == "source")
        raise ManifestError(
            f"{manifest.file or 'manifest'}: {name} = source, and no image has a source; index again with "
            f"--source-column, or set {name} to {_SETTINGS[name]}"
        )
    return np.asarray(ranks(column))
