"""What is handed to the judge: the predictions of a method, and values that others published, which stand apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thoraclip.config import Settings, build_config
from thoraclip.documents import kept_json
from thoraclip.errors import ConfigError, ManifestError, MismatchError, did_you_mean
from thoraclip.ranges import Share
from thoraclip.tables.predictions import Predictions

__all__ = ["MAJORITY", "PUBLISHED_METRICS", "MethodResult", "Published", "empty_adapters", "read_published"]

MAJORITY = "majority"
"""Name (and kind) of the row that the judge adds by itself; no method may take it."""
PUBLISHED_METRICS = ("accuracy", "macro_f1", "macro_precision", "macro_recall")


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
        validation: per table of `predictions`, its scores of images that nothing was fitted on, which calibration,
            prediction sets and thresholds are fitted on: one table, or one for every fold, whose column `fold` names
            the held-out fold that it serves. `()` when there are none; then the rows of split `val` of the first table
            serve.
        is_trained: False where nothing was fitted, so that no training varies.

    Raises:
        ConfigError: the name is empty or taken, predictions and `failed` do not exclude each other, there is not
            one seed per table, or there are validation scores of some tables or folds only, or two of one fold.
        MismatchError: validation scores have other classes than the predictions.
        ManifestError: a validation row has no label.
    """

    name: str
    kind: str
    predictions: tuple[Predictions, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    failed: str | None = None
    validation: tuple[tuple[Predictions, ...], ...] = ()
    is_trained: bool = True

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
        if len(self.validation) not in (0, len(self.predictions)):
            raise ConfigError(
                f"method '{self.name}': validation scores for {len(self.validation)} of {len(self.predictions)} "
                "predictions; give them for each, or for none"
            )
        for predictions, tables in zip(self.predictions, self.validation, strict=False):
            served = []
            for table in tables:
                if set(table.labels.names) != set(predictions.labels.names):
                    raise MismatchError(
                        f"method '{self.name}': its validation scores have the classes {sorted(table.labels.names)}, "
                        f"its predictions {sorted(predictions.labels.names)}; run the method again"
                    )
                if not len(table) or (table.target < 0).any():
                    raise ManifestError(f"method '{self.name}': a validation image has no label; leave it out")
                served += sorted({-1 if fold is None else fold for fold in table.fold})
            if len(served) > len(tables) or len(set(served)) < len(served) or (len(served) > 1 and -1 in served):
                raise ConfigError(
                    f"method '{self.name}': validation scores for the folds {served}; give one table without a fold, "
                    "or one for each fold, whose rows all name it"
                )


@dataclass(frozen=True, kw_only=True)
class Published(Settings):
    """One row of the literature, a `[[published]]` table of a study file."""

    name: str
    """Name of the method in its source."""
    of: str | None = None
    """Name of the method that it stands beside; without it, it stands in a table of its own."""
    accuracy: Share | None = None
    """Fraction in [0, 1]."""
    macro_f1: Share | None = None
    """Fraction in [0, 1]."""
    macro_precision: Share | None = None
    """Fraction in [0, 1]."""
    macro_recall: Share | None = None
    """Fraction in [0, 1]."""
    source: str | None = None
    """Where it was published."""
    note: str | None = None
    """What the reader must know about it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name.strip():
            raise ConfigError('name is empty; give the name of the method in its source, such as name = "ResNet-18"')


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


def empty_adapters(name: str, runs: Sequence[Path]) -> list[str]:
    """The report's sentence on the trainings of row `name` of which no step was kept; `[]` where all gave an adapter.
    Of the folders `runs`, what has no readable `details.json` is passed over."""
    rows = [kept_json(run / "details.json").get("chosen") for run in runs]
    chosen = [one for row in rows if isinstance(row, list) for one in row if isinstance(one, Mapping)]
    empty = sum(one.get("empty") is True for one in chosen)
    if not empty:
        return []
    return [
        f"{name}: in {empty} of {len(chosen)} trainings no step beat the untouched encoder on validation; the adapter "
        "kept there is empty, so its scores are those of the untouched encoder."
    ]
