"""`explain`: which classifier of a run explains a picture; the map and its sheet are drawn by `heatmaps.picture`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.imaging import read_bytes
from thoraclip.methods.predictors import FinishedRun, find_manifest
from thoraclip.predictor import Predictor
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions

__all__ = ["Chosen", "choose_classifier", "load_classifier"]


@dataclass(frozen=True)
class Chosen:
    """Which classifier of a run explains a picture."""

    fold: int | None  # its number; `None` of a run without folds
    note: str  # why this one
    lung_mask: Path | None = None  # the manifest's mask of the picture, where it has one


def choose_classifier(run: FinishedRun, image: Path, fold: int | None = None) -> Chosen:
    """The classifier that did not see the picture in training, where the run has one.

    A picture is known by its bytes. One of the run's own manifest is explained by the fold that held it out; any other,
    and every one where the manifest is not beside the run, by the first fold.

    Raises:
        ConfigError: the run has no such fold.
        ImageError: the file cannot be read.
    """
    row = _row_of(run, hashlib.sha256(read_bytes(image)).hexdigest())
    mask, held, split = row or (None, None, None)
    if fold is not None:
        run.require_fold(fold)
        return Chosen(fold, f"fold {fold}, {'which held this picture out' if held == fold else 'as asked'}", mask)
    if run.folds == (None,):
        trained = {"train": "which was trained on this picture", "val": "which was chosen by this picture"}
        return Chosen(None, f"the run's classifier{', ' + trained[split] if split in trained else ''}", mask)
    if held in run.folds:
        return Chosen(held, f"fold {held}, which held this picture out", mask)
    why = "the picture is in no fold of the run's manifest" if row is None else "the picture was held out by no fold"
    return Chosen(run.folds[0], f"fold {run.folds[0]}, the first: {why}", mask)


def _row_of(run: FinishedRun, sha256: str) -> tuple[Path | None, int | None, str | None] | None:
    """(lung mask, fold, split) of a picture in the run's manifest; `None` where it, or the manifest, is not there."""
    try:
        manifest: Manifest = find_manifest(run)
    except (InputError, MismatchError, ManifestError):
        return None
    hashes = manifest.column("sha256")
    if sha256 not in hashes:
        return None
    row = hashes.index(sha256)
    mask, fold, split = (manifest.column(name)[row] for name in ("lung_mask", "fold", "split"))
    return (manifest.root / mask if mask else None), fold, split


def load_classifier(run: FinishedRun, image: Path, *, fold: int | None = None) -> tuple[Predictor, Chosen]:
    """(the classifier that `choose_classifier` names, what it said).

    Raises:
        InputError: the run keeps no classifier.
    """
    chosen = choose_classifier(run, image, fold)
    labels = read_predictions(run.folder / "predictions.parquet").labels
    return run.classifier(chosen.fold, labels), chosen
