"""What stops a study, found before its first second of work: the dry run and the run ask the same questions.

No image is decoded, no weights are loaded, and no output is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from thoraclip.config import toml_value
from thoraclip.data.splits import split_folds
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.checking import check_method, check_model
from thoraclip.methods.parts import require_folds
from thoraclip.methods.tracking import require_trackers
from thoraclip.study.external import errors_named, listed_count
from thoraclip.study.few_shot import few_shot_entries, require_shots
from thoraclip.study.settings import CAPTIONS, MethodEntry, StudyConfig
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["check_study"]


def check_study(config: StudyConfig, methods: Sequence[MethodEntry], out: Path) -> Manifest:
    """The images of a study as they are listed, where nothing that it names stops it.

    What is wrong with a class in one part of the split is left to the methods: the others can still be compared.

    Raises:
        ThoraclipError: the first mistake, with the study's part that has it: `out`, the images and their split, a
            model, adapter, caption file, embeddings, prompts, an external set, or a missing package.
    """
    _check_out(config, out)
    require_trackers(config.trackers, installed=True)
    manifest = read_manifest(Path(config.manifest)) if config.manifest else config.list_images()
    config.stated_prevalence(manifest)
    if all(label is None for label in manifest.column("label")):
        raise ManifestError("manifest: no labelled image; a study needs labels to judge by")
    _check_split(config, manifest)
    if config.shots and not few_shot_entries(config, methods):
        raise ConfigError(
            f"shots = {toml_value(config.shots)}: nothing is trained on few labels; name a number of patients, and a "
            "method that trains"
        )
    if config.shots:  # raises where a class has too few training patients
        is_split = any(manifest.parts())
        require_shots(config, manifest if is_split else split_folds(manifest, folds=config.folds, seed=config.seeds[0]))
    for method in methods:
        with errors_named(f"method '{method.name}'"):
            check_method(method.kind, method.config, manifest, later=_made_later(method, out))
    if config.captioner and CAPTIONERS[config.captioner].reads_images:
        with errors_named(f"captioner '{config.captioner}'"):
            check_model(config.caption_model, config.geometry)
    if config.captioner == "column" and (column := config.caption_column) not in manifest.table.column_names:
        raise ConfigError(f"caption_column = '{column}': the manifest has no such column; name one of its")
    for external in config.external:
        listed_count(external, manifest, manifest.label_set(config.classes))
    return manifest


def _check_out(config: StudyConfig, out: Path) -> None:
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not place.is_dir():
        raise InputError(f"{out}: cannot be written ({place} is a file, not a folder); choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot be written (no permission in {place}); choose another --out")
    if config.folder and out.resolve().is_relative_to(Path(config.folder).resolve()):
        raise InputError(f"{out}: lies inside the images' folder {config.folder}; choose an --out elsewhere")


def _check_split(config: StudyConfig, manifest: Manifest) -> None:
    """Raise ManifestError where no image can be judged; a study makes folds where there are no parts at all."""
    named = set(manifest.parts()) - {None}
    if named and named <= {"train", "val"}:
        raise ManifestError(
            "manifest: no test image, its images are of split train or val alone; split it again: thoraclip split "
            "MANIFEST --folds 5 --out FILE"
        )
    folds = set(manifest.column("fold")) - {None} or (set() if named else set(range(config.folds)))
    require_folds(config.only_folds, sorted(folds))


def _made_later(entry: MethodEntry, out: Path) -> set[str]:
    """Settings of a method whose files the study makes."""
    config, runs = entry.config, out.resolve() / "runs"
    later = {"captions"} if entry.has_own_captions or getattr(config, "captions", "") == str(out / CAPTIONS) else set()
    adapter = getattr(config, "adapter", "")
    return later | ({"adapter"} if entry.after or (adapter and Path(adapter).resolve().is_relative_to(runs)) else set())
