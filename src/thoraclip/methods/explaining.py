"""Which classifier of a finished run explains an image: one that was not trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError, LeakError, ManifestError, MismatchError
from thoraclip.imaging import read_bytes
from thoraclip.methods.predictors import FinishedRun, find_manifest
from thoraclip.tables.manifest import Manifest

__all__ = ["Chosen", "choose_classifier"]

Copies = Sequence[Mapping[str, Any]]
"""The manifest's rows of an image."""


@dataclass(frozen=True)
class Chosen:
    """Which classifier of a run explains an image."""

    fold: int | None  # its number; `None` of a run without folds
    note: str  # why this one
    lung_mask: Path | None = None  # the manifest's mask of the image, where it has one
    bits: int | None = None  # the manifest's depth of the image
    of_set: int | None = None  # the commonest depth of the manifest's images


def choose_classifier(
    run: FinishedRun, image: Path, *, manifest: Manifest | None = None, fold: int | None = None, seen: bool = False
) -> Chosen:
    """The classifier that was neither trained nor tuned on the image; the first fold's for an image of no fold.

    The image is looked up in the run's manifest by its bytes. Where it stands there more than once, a classifier must
    have held out all copies.

    Args:
        run: whose classifiers there are.
        image: the file.
        manifest: that the run ran on; `None` to look for it as `find_manifest` does.
        fold: the fold to take, whether it was trained on the image or not.
        seen: where no classifier is known to have held the image out, take the first instead of raising.

    Raises:
        ConfigError: the run has no such fold.
        ImageError: the file cannot be read.
        InputError, MismatchError: the manifest is not found, or the one given is another one.
        LeakError: every classifier was trained or tuned on the image.
    """
    if fold is not None:
        run.require_fold(fold)
    if manifest is not None:
        run.require_manifest(manifest)
    content = hashlib.sha256(read_bytes(image)).hexdigest()
    is_frozen = not run.has_learned
    try:
        own = manifest or find_manifest(run)
        copies = own.rows_of(content)
    except (InputError, ManifestError, MismatchError):
        if not (is_frozen or seen or fold is not None):
            raise
        chosen = run.folds[0] if fold is None else fold
        may = "is not trained" if is_frozen else "may have been trained on this image"
        return Chosen(chosen, f"{_name(chosen)}, which {may}")
    use = dict.fromkeys(run.folds, "") if is_frozen else {each: _use(copies, each) for each in run.folds}
    unused = sorted((each for each in run.folds if not use[each]), key=lambda each: not _held_out(copies, each))
    if not unused and not seen and fold is None:
        named = (row["split"] if row["fold"] is None else f"fold {row['fold']}" for row in copies)
        where = ", ".join(sorted({name for name in named if name}))
        raise LeakError(
            f"{image}: {run.folder} was {use[run.folds[0]]} this image ({where}); explain one that was held out, or "
            "this one all the same with --seen"
        )
    chosen = fold if fold is not None else (unused or run.folds)[0]
    if use[chosen]:
        reason = f", which was {use[chosen]} this image"
    elif _held_out(copies, chosen):
        reason = ", which held this image out"
    elif is_frozen or fold is not None or chosen is None:
        reason = ", which is not trained" if is_frozen else "" if fold is None else ", as asked"
    else:
        reason = ", the first: the image is in no fold of the run's manifest"
    bits = next((row["bits"] for row in copies if isinstance(row.get("bits"), int)), None)
    return Chosen(chosen, _name(chosen) + reason, own.lung_mask_of(copies), bits, own.usual_bits)


def _name(fold: int | None) -> str:
    return "the run's classifier" if fold is None else f"fold {fold}"


def _use(copies: Copies, fold: int | None) -> str:
    """What a fold's classifier, or that of a split (`None`), did with an image; empty where it held all copies out."""
    labelled = [row for row in copies if row["label"] is not None]
    if fold is not None:
        held = (-1 if row["fold"] is None and row["split"] == "train" else row["fold"] for row in labelled)
        return "trained or tuned on" if any(other not in (None, fold) for other in held) else ""
    splits = {row["split"] for row in labelled}
    return "trained on" if "train" in splits else "tuned on" if "val" in splits else ""


def _held_out(copies: Copies, fold: int | None) -> bool:
    return any(row["split"] == "test" if fold is None else row["fold"] == fold for row in copies)
