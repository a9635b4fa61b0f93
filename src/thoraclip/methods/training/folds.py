"""One training per fold: its images, its files, and the predictions of all folds together.

parts of the manifest -> FoldTraining -> train(training) -> files in its folder -> score(training) -> pooled
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from thoraclip.data.batches import pixel_cache
from thoraclip.documents import parse_json
from thoraclip.dtypes import Floats, Greys, Ints
from thoraclip.errors import InputError
from thoraclip.evaluation.figures import training_figure
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods.parts import Part, parts_of
from thoraclip.methods.running import MethodOutput, RunContext, pooled_predictions
from thoraclip.methods.sources import sources_of
from thoraclip.methods.tracking import TrackedRun
from thoraclip.methods.training.checkpoint import Checkpoint, TrainingProgress
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Sampler
from thoraclip.methods.training.settings import TrainingSettings
from thoraclip.models.files import holds_weights
from thoraclip.models.weighting import class_weights, source_weights
from thoraclip.runs import canonical_json, digest, fold_folder, remove_file, write_text, written_together

__all__ = ["FoldTraining", "sampler_of", "train_folds"]

_WEIGHTS = ("adapter", "last", "model")
_FILES = ("head.safetensors", "metrics.jsonl", "training.svg", "training.safetensors")
"""What a training leaves in its folder."""
C = TypeVar("C", bound=TrainingSettings)


@dataclass(frozen=True)
class FoldTraining(Generic[C]):
    """The training of one fold, or of the split."""

    config: C  # of the method
    context: RunContext  # of the run
    part: Part  # the training, validation and test rows
    labels: LabelSet  # the classes
    group: ProcessGroup  # the processes
    title: str = ""  # which of how many folds, for messages: `fold 2 of 3, `; empty where there is one training
    tracked: TrackedRun | None = None  # the run in the trackers

    @property
    def folder(self) -> Path:
        """Of this training's files: the run folder, or one in it for each fold."""
        return fold_folder(self.context.folder.path, self.part.fold)

    @property
    def token(self) -> str:
        """Equal for trainings that must end with the same weights."""
        return digest([self.context.fingerprint, self.part.fold])

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Of the training, while it lasts."""
        file = self.folder / "training.safetensors"
        return Checkpoint(file, token=self.token, minutes=self.config.checkpoint_minutes)

    @cached_property
    def targets(self) -> Ints:
        """i64[N]: the class of every row of the manifest, -1 where unknown."""
        return self.context.manifest.targets(self.labels)

    @cached_property
    def sources(self) -> Ints | None:
        """i64[N]: the source of every row of the manifest; `None` where the settings balance no sources."""
        return sources_of(self.config, self.context.manifest)

    def weights(self) -> Floats:
        """f64[N]: how much every row of the manifest weighs in the loss; 0 for one that is not trained on, where
        sources are balanced."""
        rows, kind = self.part.train, self.config.class_weight
        if self.sources is None or kind != "source":
            return np.asarray(class_weights(self.targets[rows], len(self.labels), kind)[self.targets])
        weights = np.zeros(len(self.targets))
        weights[rows] = source_weights(self.targets[rows], self.sources[rows])
        return weights

    @property
    def metrics(self) -> list[Mapping[str, object]]:
        """The rows of `metrics.jsonl`, with the fold."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{"fold": self.part.fold, **parse_json(line, self.folder)} for line in lines]

    def sampler(self) -> Sampler:
        """The order of the training images."""
        return sampler_of(self.config, self.part, self.targets, self.sources)

    def images(self, spec: Preprocess) -> Greys:
        """u8[N, S, S] from the pixel cache."""
        folder = self.context.pixels or self.context.folder.path / "pixels"
        return pixel_cache(self.context.manifest, spec, folder, progress=self.context.progress).arrays["pixels"]

    def shared_images(self, spec: Preprocess) -> Greys:
        """The same in all processes, of which the first one makes the cache."""
        if not self.group.is_main:
            self.group.wait()
        images = self.images(spec)
        if self.group.is_main:
            self.group.wait()
        return images

    def write_curve(self, progress: TrainingProgress, *, validated: str = "validation") -> None:
        """Write `metrics.jsonl` and `training.svg`; `validated` is what the figure calls a validation's scores."""
        rows, step = progress.rows, progress.kept_step
        with written_together(self.folder, "training"):
            write_text(self.folder / "metrics.jsonl", "".join(canonical_json(row) + "\n" for row in rows))
            write_text(self.folder / "training.svg", training_figure(rows, best_step=step, validated=validated))

    def note(self, progress: TrainingProgress, step: int) -> dict[str, Any]:
        """What stands beside weights: which training they are of, which step, and which images they depend on."""
        contents = self.context.manifest.column("sha256")
        validations = {row["step"]: row for row in progress.rows if "val_macro_f1" in row}
        return {
            "token": self.token,
            "fold": self.part.fold,
            "batch_size": self.config.batch_size,
            "steps": progress.step,
            "step": step,
            "validation": validations.get(step),
            "trained_on": sorted(contents[row] for row in self.part.train if contents[row]),
            "chosen_on": sorted(contents[row] for row in self.part.val if contents[row]),
        }


def sampler_of(config: TrainingSettings, part: Part, targets: Ints, sources: Ints | None = None) -> Sampler:
    """The order of the training images of a part; few shots are one batch where they fill none.

    Args:
        config: of the method.
        part: its training rows.
        targets: i64[N], the class of every row of the manifest.
        sources: i64[N], its source, where sources are balanced.

    Raises:
        ConfigError: the batch is larger than the training set, and no shots are drawn.
    """
    rows, size = part.train, config.batch_size
    size = size if config.shots == "all" else min(size, len(rows))
    given = {"total": len(targets), "batch_size": size, "seed": config.seed}
    own = None if sources is None else sources[rows]
    return Sampler(rows, targets[rows], sampling=config.sampling, sources=own, **given)


def train_folds(
    kind: str,
    config: Any,
    context: RunContext,
    *,
    read_note: Callable[[Path], Mapping[str, Any]],
    train: Callable[[FoldTraining[C]], None],
    score: Callable[[FoldTraining[C]], tuple[Floats, Floats]],
) -> MethodOutput | None:
    """Train once per fold (or once for the split), score its test images, pool.

    Args:
        kind: of the method, for its messages.
        config, context: of the run; the config is a `TrainingSettings` and a `ModelConfig`.
        read_note: folder of a training -> the note beside the weights that were kept; empty, or InputError, before.
        train: writes the files of a training; not called where they are there.
        score: f64[T, C] for the T test rows, and f64[V, C] for the V validation rows.

    Returns:
        As every method, with what was chosen by fold under `chosen`; `None` in all but the first of several processes.
    """
    group = ProcessGroup(wanted=config.processes)
    if group.count > 1 and group.is_main:
        context.log(f"{kind}: {group.count} processes")
    if config.chunk_size > config.batch_size and group.is_main:
        sizes = f"chunk_size = {config.chunk_size} exceeds batch_size = {config.batch_size}"
        context.log(f"{kind}: {sizes}; chunks are whole batches")
    manifest, rows, scores, chosen = context.manifest, [], [], []
    labels = manifest.label_set(config.classes)
    metrics: list[Mapping[str, object]] = []
    folds = list(parts_of(config, manifest, labels))
    if group.is_main:
        _remove_others(context)
    names = config.trackers if group.is_main else ()
    settings = dataclasses.asdict(config)
    with TrackedRun(names, context.folder.path, fingerprint=context.fingerprint, settings=settings) as tracked:
        for number, part in enumerate(folds, start=1):
            title = f"fold {number} of {len(folds)}, " if len(folds) > 1 else ""
            training: FoldTraining[C] = FoldTraining(config, context, part, labels, group, title, tracked)
            if not group.first(_is_trained(training, read_note)):
                train(training)
            group.wait()
            if group.is_main:
                training.checkpoint.remove()
                metrics += training.metrics
                note = read_note(training.folder)
                chosen.append({"fold": part.fold, **{name: note[name] for name in ("step", "steps", "validation")}})
                test, validation = score(training)
                rows.append(part.test)
                scores.append(test)
                context.keep_validation(part, labels, validation)
            group.wait()  # an error in the next fold then meets all at once, not the first one in the midst of scoring
    if not group.is_main:
        return None
    return MethodOutput(pooled_predictions(manifest, labels, rows, scores), {"chosen": chosen}, metrics)


def _is_trained(training: FoldTraining[C], read_note: Callable[[Path], Mapping[str, Any]]) -> bool:
    """True where the weights of this very training are there."""
    try:
        return bool(read_note(training.folder).get("token") == training.token)
    except InputError:
        return False


def _remove_others(context: RunContext) -> None:
    """Remove what a run on another split left: an adapter or network of all images, or of folds that are no more."""
    folder, folds = context.folder.path, {fold for fold in context.manifest.column("fold") if fold is not None}
    kept = {f"fold-{fold}" for fold in folds}
    folders = [place for place in folder.glob("fold-*") if place.name.removeprefix("fold-").isdigit()]
    stale = [place for place in folders if place.name not in kept]
    for place in (*stale, *((folder,) if folds else ())):
        for weights in filter(holds_weights, (place / name for name in _WEIGHTS)):
            shutil.rmtree(weights, ignore_errors=True)
    for place in stale:
        for name in _FILES:
            remove_file(place / name)
        with suppress(OSError):  # something else lies there
            place.rmdir()
