"""What a method hands to the judge: its name, its predictions (one table per seed) and what the reader must know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from thoraclip.errors import ConfigError
from thoraclip.tables.predictions import Predictions

__all__ = ["MAJORITY", "MethodResult"]

MAJORITY = "majority"
"""Name (and kind) of the row that the judge adds by itself; no method may take it."""


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One row of the comparison.

    Args:
        name: unique in a report; `majority` is taken.
        kind: the verb that made it (`zeroshot`, `probe`, ...).
        predictions: one table per seed, in the order of `seeds`; `()` when the method failed.
        seeds: the seeds, for the record; `()` when nothing is random or nobody knows.
        settings: printed in the report as they are, such as `model` and `geometry`.
        notes: sentences for the reader.
        details: JSON-able extras of this kind of method, such as
            `{"per_prompt": [{"prompt": ..., "class": ..., "accuracy": ...}]}`; lists of mappings become tables.
        failed: the error's text when the method gave no predictions.

    Raises:
        ConfigError: the name is empty or taken, predictions and `failed` do not exclude each other, or there is not
            one seed per table.
    """

    name: str
    kind: str
    predictions: tuple[Predictions, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    failed: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("a method has no name; name every method of a study")
        if self.name == MAJORITY:
            raise ConfigError(f"method '{MAJORITY}': the report adds this row by itself; choose another name")
        if bool(self.predictions) == (self.failed is not None):
            raise ConfigError(f"method '{self.name}': give predictions, or the error's text in 'failed', and not both")
        if self.seeds and self.predictions and len(self.seeds) != len(self.predictions):
            raise ConfigError(
                f"method '{self.name}': {len(self.seeds)} seeds for {len(self.predictions)} predictions; give one each"
            )
