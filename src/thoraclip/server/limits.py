"""How much a server takes upon itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from thoraclip.errors import ConfigError

__all__ = ["MEGA", "Limits"]

MEGA = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server refuses rather than to grow, hang or fall."""

    files: int = 32
    """Pictures in one request."""
    megabytes: int = 64
    """Size of one request, in millions of bytes."""
    megapixels: int = 50
    """Size of one picture, in millions of pixels; larger ones are refused before they are decoded."""
    waiting: int = 64
    """Pictures that wait for the classifier; who comes then is told to come later (429)."""
    explanations: int = 4
    """Explanations that wait or are being made, one at a time."""
    seconds: float = 30.0
    """Until the answer, once a request has arrived."""
    upload_seconds: float = 30.0
    """For a request to arrive."""
    head_seconds: float = 10.0
    """For a request's first lines, from the opening of the connection or from their first byte."""
    held_megabytes: int = 256
    """Size of all requests that are being received or answered, in millions of bytes."""
    connections: int = 256
    """Open at once; more are told to come later (503)."""
    grace_seconds: float = 30.0
    """For the requests in flight when the server is told to stop."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{field.name} = {value}: must be larger than 0")
        if self.files > self.waiting:
            rule = f"no more than can wait ({self.waiting})"
            raise ConfigError(f"files = {self.files}: {rule}; raise waiting, or lower files")
        if self.megabytes > self.held_megabytes:
            rule = f"no more than can be held ({self.held_megabytes})"
            raise ConfigError(f"megabytes = {self.megabytes}: {rule}; raise held_megabytes, or lower megabytes")
