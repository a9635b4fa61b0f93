"""The scores of a run's validation images: where they lie in its folder, read without what a run needs."""

from __future__ import annotations

from pathlib import Path

from thoraclip.runs import fold_file
from thoraclip.tables.predictions import Predictions, read_predictions

__all__ = ["read_validation", "validation_file"]


def validation_file(fold: int | None) -> str:
    """The name in the run folder, for a held-out fold (`None`: of a train/val/test split)."""
    return fold_file("validation.parquet", fold)


def read_validation(folder: Path) -> tuple[Predictions, ...]:
    """The validation scores of a run: one table, or one for each fold in their order; `()` where none are kept."""
    whole, prefix = folder / validation_file(None), "validation-fold-"
    if whole.is_file():
        return (read_predictions(whole),)
    folds = sorted(
        int(number)
        for file in folder.glob(f"{prefix}*.parquet")
        if (number := file.stem.removeprefix(prefix)).isdigit()
    )
    return tuple(read_predictions(folder / validation_file(fold)) for fold in folds)
