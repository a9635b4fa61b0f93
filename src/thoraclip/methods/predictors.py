"""From the folder of a finished run to its classifiers: one per fold, each for the images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thoraclip.config import build_config
from thoraclip.documents import read_json, read_toml
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.errors import ConfigError, InputError, LeakError, ManifestError, MismatchError
from thoraclip.labels import LabelSet
from thoraclip.methods import METHODS, Method, find_method
from thoraclip.models.files import adapter_folders
from thoraclip.shapes import Check, check, one_of, table, text
from thoraclip.tables.arrays import is_valid
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint, embeddings_folder, read_embeddings
from thoraclip.tables.manifest import Manifest, read_fingerprint, read_manifest
from thoraclip.tables.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    from thoraclip.models.classifiers import Classifier

__all__ = ["FinishedRun", "find_manifest", "read_run"]

_RETIRED = ("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma", "noise", "mirror", "mixup")
"""Settings of version 0.1.0 that only changed how a network was trained."""


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that `run_method` has finished."""

    folder: Path  # of the run
    kind: str  # a name in `METHODS`
    config: Any  # of the method, as it ran
    manifest: str  # fingerprint of the manifest that it ran on
    fingerprint: str  # of all that its result depends on
    folds: tuple[int | None, ...]  # numbers of the folds that it held out; `(None,)` with a train/val/test split
    manifest_file: Path | None = None  # where that manifest was; `None` of a run of 0.1.0, or of a table without a file

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.folder.name

    @property
    def method(self) -> Method:
        """Entry of `METHODS`."""
        return find_method(self.kind)

    def require_classifier(self) -> None:
        """Raise InputError where the kind of method leaves nothing that scores other images."""
        if not self.method.keeps_classifier:
            able = ", ".join(kind for kind, method in METHODS.items() if method.keeps_classifier)
            raise InputError(
                f"{self.folder}: a run of '{self.kind}' keeps no classifier of pictures; name a run of {able}"
            )

    def require_fold(self, fold: int) -> None:
        """Raise ConfigError where the run has no such fold."""
        if fold not in self.folds:
            names = ", ".join(str(f) for f in self.folds if f is not None) or "none"
            raise ConfigError(f"--fold {fold}: {self.folder} has no such fold; its folds: {names}")

    def require_manifest(self, manifest: Manifest) -> None:
        """Raise MismatchError unless this is the manifest that the run ran on."""
        if manifest.fingerprint != self.manifest:
            raise MismatchError(
                f"{self.folder}: ran on another manifest than this one, and which images it learned from stands in "
                "its own; name that one with --manifest"
            )

    @property
    def has_learned(self) -> bool:
        """True where the run, or the adapter that it uses, was fitted to images."""
        return self.method.is_trained or bool(getattr(self.config, "adapter", ""))

    @property
    def distinct_folds(self) -> tuple[int | None, ...]:
        """The folds whose classifiers differ; `(None,)` where one frozen classifier scored all of them."""
        adapter = getattr(self.config, "adapter", "")
        is_one = not self.method.is_trained and (not adapter or None in adapter_folders(Path(adapter)))
        return (None,) if is_one else self.folds

    def label_set(self, manifest: Manifest) -> LabelSet:
        """The classes of a manifest, as the run's settings name them."""
        return manifest.label_set(self.config.classes)

    def own_predictions(self, manifest: Manifest) -> Predictions | None:
        """The run's predictions, where this is the manifest that it ran on."""
        if manifest.fingerprint != self.manifest:
            return None
        return read_predictions(self.folder / "predictions.parquet")

    def classifier(self, fold: int | None, labels: LabelSet) -> Classifier:
        """What scores the images of a held-out fold (`None`: the test split).

        Raises:
            InputError: the kind keeps no model, or a file of the run is gone.
        """
        self.require_classifier()
        loaded: Classifier = import_module(self.method.module).load_classifier(self.config, self.folder, fold, labels)
        return loaded

    def kept_answers(self, classifier: Any, manifest: Manifest, images: Manifest) -> tuple[Singles, Floats] | None:
        """What `Looker.look` gives for some images of a manifest, from the features of it that the run, or its study,
        has kept; `None` where there are none."""
        if not hasattr(classifier, "encoder"):
            return None
        made = classifier.encoder.description, classifier.encoder.preprocess.as_dict()
        for cache in (self.folder, self.folder.resolve().parent.parent):
            folder = embeddings_folder(cache / "embeddings", *made)
            if is_valid(folder, EMBEDDINGS, embeddings_fingerprint(manifest, *made)):
                kept = read_embeddings(folder)
                features = np.array(kept.arrays[classifier.features][kept.rows_for(images)])
                return features, classifier.head.predict(features)
        return None

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, Ints]]:
        """(fold, i64 rows that its classifier may be judged on) for this manifest.

        Of the run's own manifest these are the labelled images that each fold held out, or the test split. Of another
        one they are the labelled images of its test split (all, where it names no split): pictures that the run's
        manifest has, too, by the fold that held them out, or left out where they were trained on; all others by the
        classifier of the first fold.

        Raises:
            LeakError: another manifest has images of the run, and the run's own, which names its parts, is not there.
            ManifestError: no image is left.
        """
        known = np.array([label is not None for label in manifest.column("label")])
        if self.folds != (None,) and manifest.fingerprint == self.manifest:
            folds = np.array([-1 if f is None else f for f in manifest.column("fold")])
            for fold in self.folds:
                yield fold, np.flatnonzero(known & (folds == fold))
            return
        split = np.array([s or "" for s in manifest.column("split")])
        known &= split == "test" if (split != "").any() else np.ones(len(manifest), dtype=bool)
        held_by, judged = self._held_by(manifest), 0
        for fold in self.folds:
            own = np.array([held == fold or (held == "new" and fold == self.folds[0]) for held in held_by])
            rows = np.flatnonzero(known & own)
            judged += len(rows)
            if len(rows):
                yield fold, rows
        if not judged:
            raise ManifestError(
                "manifest: no labelled image, of split 'test' where it names splits, that the run has not seen"
            )

    def _held_by(self, manifest: Manifest) -> list[int | str | None]:
        """Of every image of a manifest the fold that may score it (`None`: the test split), or `new`, or `trained`."""
        if manifest.fingerprint == self.manifest:
            return [None] * len(manifest)
        try:
            own = find_manifest(self)
        except (InputError, MismatchError) as error:
            shared = set(read_predictions(self.folder / "predictions.parquet").image_id) & set(
                manifest.column("image_id")
            )
            if shared:
                raise LeakError(
                    f"{self.folder}: ran on another manifest than this one, which has {len(shared)} of the same "
                    "images, and which of the others were trained on is not known; name the manifest that the run "
                    "ran on"
                ) from error
            return ["new"] * len(manifest)
        parts: dict[str, int | str | None] = {}
        for content, fold, part in zip(*(own.column(n) for n in ("sha256", "fold", "split")), strict=True):
            held: int | str | None = "trained"
            if fold is not None and fold in self.folds:
                held = fold
            elif part == "test" and None in self.folds:
                held = None
            parts[content] = held if parts.get(content, held) == held else "trained"
        return [parts.get(content, "new") for content in manifest.column("sha256")]


def read_run(folder: Path) -> FinishedRun:
    """Open a run folder.

    Raises:
        InputError: no run there, or one that is not finished.
    """
    if (folder / "runs").is_dir():
        names = sorted(place.name for place in (folder / "runs").iterdir() if place.is_dir())
        raise InputError(f"{folder}: is a study; name one of its runs, as in {folder / 'runs' / names[0]}")
    if not (folder / "config.toml").is_file() or not (folder / "provenance.json").is_file():
        raise InputError(f"{folder}: no run there; name the folder of a finished run, such as study/runs/linear-probe")
    if not (folder / "done.json").is_file():
        raise InputError(f"{folder}: the run is not finished; run the same command again")
    values = read_toml(folder / "config.toml")
    kind = str(values.pop("kind", ""))
    if not kind:
        raise InputError(f"{folder / 'config.toml'}: names no method; remove done.json and run the same command again")
    values = _current_settings(values) | _moved(folder, values)
    config = build_config(find_method(kind).config_type, values, where=str(folder / "config.toml"))
    facts = _noted(
        folder / "provenance.json", table(inputs=table(manifest=text), manifest_file=text, may=["manifest_file"])
    )
    _require_same_files(folder, config, facts["inputs"])
    held_out = {fold for fold in read_predictions(folder / "predictions.parquet").fold if fold is not None}
    folds: tuple[int | None, ...] = tuple(sorted(held_out)) or (None,)
    done = _noted(folder / "done.json", table(fingerprint=text, schema=one_of(1), may=["schema"]))
    places = [folder.resolve() / facts[name] for name in ("manifest_file", "manifest_beside") if facts.get(name)]
    file = next((place for place in places if place.is_file()), places[0] if places else None)
    return FinishedRun(folder, kind, config, str(facts["inputs"]["manifest"]), str(done["fingerprint"]), folds, file)


def _noted(path: Path, shape: Check) -> Mapping[str, Any]:
    remedy = "remove done.json and run the same command again"
    content: Mapping[str, Any] = read_json(path, remedy=remedy)
    check(content, shape, path, remedy=remedy)
    return content


def _current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a finished run, under the names of this version; those of version 0.1.0 are read for ever."""
    kept = {name: value for name, value in values.items() if name not in _RETIRED}
    if isinstance(kept.get("augmentation"), bool):
        kept["augmentation"] = "standard" if kept["augmentation"] else "none"
    return kept


def _require_same_files(folder: Path, config: Any, then: Mapping[str, str]) -> None:
    """Raise MismatchError where the model, an adapter or the prompts are others than when the run ran."""
    for name, now in config.inputs().items():
        if then.get(name) != now:
            raise MismatchError(
                f"{folder}: its {name} ('{getattr(config, name, name)}') is not the one that it ran with; put that one "
                "back, or run the method again"
            )


def _moved(folder: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """The adapter of a study that was moved since: the run of the same name beside this one."""
    adapter = Path(str(values.get("adapter", "")))
    if not adapter.name or adapter.exists():
        return {}
    beside = (folder.parent / adapter.name, folder.parent.parent / adapter.parent.name / adapter.name)
    return next(({"adapter": str(place)} for place in beside if place.is_dir()), {})


def find_manifest(run: FinishedRun) -> Manifest:
    """The manifest that the run ran on: the file that it recorded, else any in the three folders above the run's.

    Raises:
        InputError: none there.
        MismatchError: only others are there.
    """
    files = [run.manifest_file] if run.manifest_file else []
    for folder in list(run.folder.resolve().parents)[:3]:
        files += sorted(folder.glob("*.parquet"))
    others: list[str] = []
    for file in files:
        try:
            fingerprint = read_fingerprint(file)
        except (InputError, ManifestError):  # gone, or another table
            continue
        if fingerprint == run.manifest:
            return read_manifest(file)
        others.append(str(file))
    if others:
        raise MismatchError(
            f"{', '.join(others)}: not the manifest that {run.folder} ran on; name that one with --manifest"
        )
    raise InputError(f"{run.folder}: its manifest is not beside it; name it with --manifest")
