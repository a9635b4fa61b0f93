"""Values that others published: read and checked, and kept apart from what is measured here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from thoraclip.config import build_config
from thoraclip.errors import ConfigError, did_you_mean

__all__ = ["PUBLISHED_METRICS", "Published", "read_published"]

PUBLISHED_METRICS = ("accuracy", "macro_f1", "macro_precision", "macro_recall")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of the literature, a `[[published]]` table of a study file."""

    name: str
    """Name of the method in its source."""
    of: str | None = None
    """Name of the method that it stands beside; without it, it stands in a table of its own."""
    accuracy: float | None = None
    """Fraction in [0, 1]."""
    macro_f1: float | None = None
    """Fraction in [0, 1]."""
    macro_precision: float | None = None
    """Fraction in [0, 1]."""
    macro_recall: float | None = None
    """Fraction in [0, 1]."""
    source: str | None = None
    """Where it was published."""
    note: str | None = None
    """What the reader must know about it."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError('name is empty; give the name of the method in its source, such as name = "ResNet-18"')
        for metric in PUBLISHED_METRICS:
            value = getattr(self, metric)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{metric} = {value!r}; give a fraction in [0, 1], such as 0.924")


def read_published(tables: object, methods: Collection[str], where: str) -> tuple[Published, ...]:
    """Check published rows.

    Args:
        tables: a list of mappings with the fields of `Published`.
        methods: names that `of` may take.
        where: the file (or report) that the rows belong to; begins every message.

    Raises:
        ConfigError: an unknown name, a value that is no fraction, a row without a name, an `of` that names no method.
    """
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigError(f"{where}: 'published' = {tables!r} must be one [[published]] table or more")
    rows = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name")
        called = f"'{name}'" if isinstance(name, str) and name.strip() else str(number)
        row = build_config(Published, table, where=f"{where}, published {called}")
        if row.of is not None and row.of not in methods:
            hint = did_you_mean(row.of, methods)
            raise ConfigError(f"{where}, published {called}: of = {row.of!r} names no method{hint}")
        rows.append(row)
    return tuple(rows)
