"""What only the user can say of a data set."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from thoraclip.errors import ConfigError

__all__ = ["NOT_STATED", "CardSettings"]

NOT_STATED = "not stated"
"""Stands wherever neither the manifest nor the user says anything."""


@dataclass(frozen=True, kw_only=True)
class CardSettings:
    """What the user adds to the card; an empty field is shown as "not stated", never filled in.

    Raises:
        ConfigError: an address that is not absolute, or a date that is not ISO 8601.
    """

    name: str = ""
    """Name of the data set."""
    description: str = ""
    """What it is, who made it and why, in a few sentences."""
    licence: str = ""
    """Licence of the images: the address of its text, or its name."""
    url: str = ""
    """Where the data set can be had (https://...)."""
    citation: str = ""
    """How to cite it, BibTeX or text."""
    creator: str = ""
    """Who made it: a person or an organisation."""
    version: str = ""
    """Its version, as in 1.0.0."""
    date_published: str = ""
    """When it was published, as in 2024-05-01."""

    def __post_init__(self) -> None:
        if self.url and not re.fullmatch(r"https?://[^\s<>]+", self.url):
            raise ConfigError(f"url '{self.url}' is not an absolute address; write it as in https://example.org/data")
        if self.date_published:
            try:
                datetime.date.fromisoformat(self.date_published)
            except ValueError:
                raise ConfigError(
                    f"date_published '{self.date_published}' is not a date; write it as in 2024-05-01"
                ) from None
