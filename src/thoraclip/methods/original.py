"""From a finished run to the one classifier of it that a bundle is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import InputError
from thoraclip.methods.predictors import FinishedRun
from thoraclip.models.classifiers import EncoderClassifier, Original
from thoraclip.models.files import adapter_folders
from thoraclip.models.heads import LinearHead, read_head
from thoraclip.runs import fold_file
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions, read_validation

__all__ = ["chosen_fold", "load_original"]


def load_original(run: FinishedRun, manifest: Manifest, *, fold: int | None = None) -> Original:
    """The classifier of a fold in fp32, with the images that it learned from, was chosen by and is judged on.

    Args:
        run: of a kind that keeps its classifier.
        manifest: the run's own.
        fold: whose classifier; `None` for the first fold, which is no choice by result, or for the split's.

    Raises:
        InputError: the run keeps no classifier, or no scores of validation images.
        ConfigError: the run has no such fold.
        MismatchError: another manifest than the run's.
    """
    run.require_manifest(manifest)
    predictions, chosen = read_predictions(run.folder / "predictions.parquet"), chosen_fold(run, fold)
    exact = replace(run, config=replace(run.config, precision="fp32"))
    classifier = exact.classifier(chosen, predictions.labels)
    kept = next((table for table in read_validation(run.folder) if table.fold[0] == chosen), None)
    if kept is None:
        raise InputError(
            f"{run.folder}: kept no scores of validation images, which temperature and sets are fitted on; run the "
            "same command again (nothing is trained anew), with a manifest that is split"
        )
    val = np.flatnonzero(np.isin(manifest.column("image_id"), kept.image_id))
    judged = dict(run.parts(manifest))
    train = _others(manifest, np.concatenate([val, judged[chosen]]), has_folds=chosen is not None)
    return Original(
        name=run.folder.resolve().name,
        kind=run.kind,
        model=run.config.model,
        classifier=classifier,
        manifest=manifest,
        fold=chosen,
        train=train,
        val=val,
        test=judged[chosen],
        has_learned=run.has_learned,
        validation=kept if getattr(run.config, "refit", False) else None,
        predictions=predictions,
        alike=list(_alike(exact, classifier, judged, chosen, val if not run.has_learned else val[:0])),
        inputs={"run": run.fingerprint, "manifest": run.manifest, **run.config.inputs()},
    )


def chosen_fold(run: FinishedRun, fold: int | None) -> int | None:
    """The fold whose classifier is taken: the one that is asked for, else the first, which is no choice by result.

    Raises:
        InputError: the run keeps no classifier.
        ConfigError: the run has no such fold.
    """
    run.require_classifier()
    if fold is not None:
        run.require_fold(fold)
        return fold
    return run.folds[0]


def _others(manifest: Manifest, used: Ints, *, has_folds: bool) -> Ints:
    """i64 rows of labelled images that are not used, of any fold, or of split `train`."""
    labels, parts = manifest.column("label"), manifest.column("fold" if has_folds else "split")
    in_part = [part is not None if has_folds else part == "train" for part in parts]
    known = [row for row, label in enumerate(labels) if label is not None and in_part[row]]
    return np.setdiff1d(np.array(known, dtype=np.int64), used)


def _alike(
    run: FinishedRun, own: object, judged: dict[int | None, Ints], chosen: int | None, left_out: Ints
) -> Iterator[tuple[LinearHead, Ints]]:
    """(head, rows that it held out) of the other folds, where the encoder is the same one for all."""
    if not isinstance(own, EncoderClassifier) or run.method.trains_adapters:
        return
    if run.config.adapter and None not in adapter_folders(Path(run.config.adapter)):
        return
    for fold, rows in judged.items():
        if fold != chosen:
            file = run.folder / fold_file("head.safetensors", fold)
            yield read_head(file) if run.method.fits_head else own.head, np.setdiff1d(rows, left_out)
