"""Which adapter scores which images: never one that was trained on them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.errors import InputError, LeakError
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.methods.parts import Part, require_folds
from thoraclip.models.files import adapter_folders, read_note, require_adapter
from thoraclip.tables.manifest import Manifest

__all__ = ["by_adapter", "follow_adapter", "refuse_trained_on", "with_adapter"]

C = TypeVar("C", bound=EncoderConfig)


def with_adapter(config: C, fold: int | None) -> C:
    """The config with the one adapter folder that may score a held-out fold (`None`: the test split).

    Raises:
        InputError: no adapter there, or none for this fold.
    """
    if not config.adapter:
        return config
    folders = require_adapter(config.adapter)
    chosen = folders.get(None, folders.get(fold))
    if chosen is None:
        part = "this split" if fold is None else f"fold {fold}"
        raise InputError(
            f"adapter '{config.adapter}': no adapter for {part}; name a PEFT adapter folder, or the run folder of a "
            "finished thoraclip finetune"
        )
    return dataclasses.replace(config, adapter=str(chosen))


def by_adapter(config: C, manifest: Manifest) -> Iterator[tuple[C, Ints]]:
    """(config with one adapter, the rows that it scores): one pair, or one a fold where each fold has its own adapter.

    Raises:
        InputError: as in `with_adapter`.
        ManifestError: `only_folds` names a fold that the manifest does not have.
        LeakError: an adapter was trained on a row that will be judged.
    """
    folds = np.array([-1 if f is None else f for f in manifest.column("fold")])
    known = sorted(set(folds[folds >= 0].tolist()))
    require_folds(config.only_folds, known)
    wanted = [f for f in known if not config.only_folds or f in config.only_folds]
    if config.adapter and None not in adapter_folders(Path(config.adapter)):
        pairs = [(with_adapter(config, fold), np.flatnonzero(folds == fold)) for fold in wanted or [None]]
    else:
        rows = np.flatnonzero(np.isin(folds, wanted)) if config.only_folds else np.arange(len(manifest))
        pairs = [(with_adapter(config, None), rows)]
    named = manifest.parts()
    judged = np.array([part not in (None, "train", "val") for part in named]) | (not any(named))  # as in a report
    for chosen, rows in pairs:
        refuse_trained_on(chosen, manifest, rows[judged[rows]])
        yield chosen, rows


def refuse_trained_on(config: EncoderConfig, manifest: Manifest, rows: Ints) -> None:
    """Raise LeakError where the config's adapter was trained, or chosen, on one of the pictures that are to be judged.

    Images that are more than once in the manifest are passed over: where they are on both sides of its own split, the
    split leaks and not the adapter, and the study and `check` say so.
    """
    used = set().union(*_used(config))
    if not used:
        return
    names, contents = manifest.column("image_id"), manifest.column("sha256")
    single = {content for content, count in Counter(contents).items() if count == 1 and content in used}
    leaked = [row for row in rows.tolist() if contents[row] in single]
    if leaked:
        raise LeakError(
            f"adapter '{config.adapter}': was trained or chosen on {len(leaked)} of the {len(rows)} images to be "
            f"judged, first '{names[leaked[0]]}'; name the run folder of the training, so that every fold is judged by "
            "its own adapter"
        )


def follow_adapter(config: EncoderConfig, manifest: Manifest, part: Part) -> Part:
    """The part with the adapter's own validation images, so that nothing is chosen on images that it was trained on.

    A picture that stands on both sides of its training is for training; where all do, the part stays as it is.
    """
    refuse_trained_on(config, manifest, part.test)
    trained, chosen = _used(config)
    pool = np.sort(np.concatenate([part.train, part.val]))
    contents = manifest.column("sha256")
    held = np.array([contents[row] in chosen - trained for row in pool.tolist()], dtype=bool)
    return part if not held.any() else dataclasses.replace(part, train=pool[~held], val=pool[held])


def _used(config: EncoderConfig) -> tuple[set[str], set[str]]:
    """Contents of the pictures that the config's adapter was trained on, and chosen on; empty where it does not say."""
    note = read_note(Path(config.adapter)) if config.adapter else None
    facts = note.facts if note else {}
    return set(facts.get("trained_on", ())), set(facts.get("chosen_on", ()))
