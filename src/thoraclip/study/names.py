"""Names of methods in a study, and the folders that they become."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from thoraclip.errors import ConfigError, printable, shown
from thoraclip.evaluation.results import MAJORITY

__all__ = ["folder_name", "require_name"]

_LONGEST_NAME = 200


def require_name(name: Any, where: str) -> None:
    """Raise ConfigError unless a method's name is one line of text that the report can show."""
    if not isinstance(name, str) or not name.strip() or printable(name) != name or len(name) > _LONGEST_NAME:
        rule = f"one line of 1 to {_LONGEST_NAME} letters without control characters is needed"
        raise ConfigError(f"{where}: name = {shown(name)}: {rule}")
    if name == MAJORITY:
        raise ConfigError(f"{where}: name = '{name}': the report adds a row of this name by itself; choose another")


def folder_name(name: str, taken: Collection[str]) -> str:
    """Name of a folder: small letters, digits and -, no device of Windows, and at most 100 letters."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:100].strip("-") or "method"
    if re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", slug):
        slug = f"method-{slug}"
    return next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, len(taken) + 3))) if s not in taken)
