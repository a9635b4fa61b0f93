"""Which images a training uses: of each fold or of the split, all of them or a few shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.data.splits import draw_patients, hold_out, independent_groups, patient_counts
from thoraclip.dtypes import Ints, Masks
from thoraclip.errors import ManifestError
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest

__all__ = ["Part", "labelled_patients", "parts", "parts_of", "require_folds", "require_patients"]


@dataclass(frozen=True)
class Part:
    """What one training and its scoring use."""

    fold: int | None  # number of the held-out fold; `None` with a train/val/test split
    train: Ints  # i64 rows of the manifest, all labelled
    val: Ints  # no training rows, but the same ones where too few shots leave none to hold out
    test: Ints


def parts(
    manifest: Manifest,
    labels: LabelSet,
    *,
    val_fraction: float,
    seed: int,
    only: Sequence[int] = (),
    shots: int | str = "all",
) -> Iterator[Part]:
    """The parts of a manifest: one per fold (of those in `only`, where it names any), or one for its split. Images of
    split `train` in no fold, beside others that are in one, are in the training part of every fold.

    Where no validation split is given, a stratified part of the training images is held out by patient.

    With `shots`, that many patients of each class (images where patients are unknown) are drawn from the training part,
    by the seed and anew in each fold. They are all the labels that training sees: validation images are held out from
    them, a validation split of the manifest is not used, and where so few leave none to hold out, as one shot does, the
    training images validate too.

    Raises:
        ManifestError: neither folds nor a split, an empty part, a class without a training or validation image, or one
            with fewer training patients than `shots`.
    """
    targets, groups = manifest.targets(labels), independent_groups(manifest)
    for fold, train, val, test in _masks(manifest, targets, only):
        where = "" if fold is None else f" of fold {fold}"
        if isinstance(shots, int):
            require_patients(labels, patient_counts(targets[train], groups[train], len(labels)), shots)
            own_seed = [seed] if fold is None else [seed, fold]
            train[train] = draw_patients(targets[train], groups[train], shots=shots, seed=own_seed)
            val = np.zeros_like(train)
        if not val.any():
            pool = np.flatnonzero(train)
            own = hold_out(targets[pool], groups[pool], fraction=val_fraction, seed=seed)
            if shots == "all" or all(len(np.unique(targets[pool[rows]])) == len(labels) for rows in (own, ~own)):
                val[pool[own]], train[pool[own]] = True, False
            else:
                val = train
        for index, label in enumerate(labels.names):
            for name, rows in (("training", train), ("validation", val)):
                if not (rows & (targets == index)).any():
                    raise ManifestError(f"class '{label}' has no {name} image{where}; add images or split again")
        yield Part(fold, np.flatnonzero(train), np.flatnonzero(val), np.flatnonzero(test))


def _masks(manifest: Manifest, targets: Ints, only: Sequence[int]) -> Iterator[tuple[int | None, Masks, Masks, Masks]]:
    """(fold, training, validation and test images bool[N]) as a manifest names them; raises as `parts`."""
    known = targets >= 0
    folds = np.array([-1 if f is None else f for f in manifest.column("fold")])
    split = np.array([s or "" for s in manifest.column("split")])
    numbers = sorted(set(folds[folds >= 0].tolist()))
    require_folds(only, numbers)
    held_out: Sequence[int | None] = (only or numbers) if numbers else [None]
    for fold in held_out:
        if fold is None:
            train, val, test = (known & (split == name) for name in ("train", "val", "test"))
        else:
            always = (folds < 0) & (split == "train")
            train = known & (folds != fold) & ((folds >= 0) | always)
            val, test = np.zeros_like(known), known & (folds == fold)
        for name, rows in (("training", train), ("test", test)):
            if not rows.any():
                raise ManifestError(
                    f"manifest: no {name} image; split it first: thoraclip split MANIFEST --folds 5 --out FILE"
                )
        yield fold, train, val, test


def labelled_patients(manifest: Manifest, labels: LabelSet, only: Sequence[int] = ()) -> tuple[Ints, Ints]:
    """How many patients (images of unknown patients) of each class a training can use, in the fold with the fewest.

    Returns:
        i64[C] in the training part, from which shots are drawn; and i64[C] together with the validation split.
    """
    targets, groups = manifest.targets(labels), independent_groups(manifest)
    counts = [
        [patient_counts(targets[rows], groups[rows], len(labels)) for rows in (train, train | val)]
        for _, train, val, _ in _masks(manifest, targets, only)
    ]
    fewest = np.min(counts, axis=0)
    return fewest[0], fewest[1]


def parts_of(config: Any, manifest: Manifest, labels: LabelSet) -> Iterator[Part]:
    """The parts on which a method of these settings trains, validates and tests; raises as `parts`."""
    given = {"val_fraction": config.val_fraction, "seed": config.seed, "only": config.only_folds}
    return parts(manifest, labels, **given, shots=config.shots)


def require_patients(labels: LabelSet, patients: Ints, shots: int) -> None:
    """Raise ManifestError where a class has fewer training patients (i64[C]) than are to be drawn."""
    name, count = min(zip(labels.names, patients.tolist(), strict=True), key=lambda one: one[1])
    if count < shots:
        raise ManifestError(
            f"shots = {shots}: class '{name}' has {count} training patients (or images of unknown patients); ask for "
            f"{count} or fewer, or label more"
        )


def require_folds(only: Sequence[int], known: Sequence[int]) -> None:
    """Raise ManifestError unless the manifest has every fold of `only`."""
    missing = sorted(set(only) - set(known))
    if missing:
        raise ManifestError(f"manifest: no fold {missing[0]}, which only_folds names; its folds are {list(known)}")
