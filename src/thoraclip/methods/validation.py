"""The scores of a run's validation images, read without what a run needs, so that a report starts at once."""

from __future__ import annotations

from pathlib import Path

from thoraclip.runs import fold_file
from thoraclip.tables.predictions import Predictions, read_predictions

__all__ = ["VALIDATION", "read_validation"]

VALIDATION = "validation.parquet"
"""Name in a run folder; of a held-out fold see `runs.fold_file`."""


def read_validation(folder: Path) -> tuple[Predictions, ...]:
    """The validation scores of a run: one table, or one for each fold in their order; `()` where none are kept."""
    whole, prefix = folder / VALIDATION, "validation-fold-"
    if whole.is_file():
        return (read_predictions(whole),)
    names = [file.stem.removeprefix(prefix) for file in folder.glob(f"{prefix}*.parquet")]
    folds = sorted(int(name) for name in names if name.isdigit())
    return tuple(read_predictions(folder / fold_file(VALIDATION, fold)) for fold in folds)
