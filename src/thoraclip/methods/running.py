"""What every method's run shares: its folder, its predictions, and skipping what is already done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thoraclip.cards import data_facts
from thoraclip.cards.model_card import TrainedRun, write_model_card
from thoraclip.config import config_toml
from thoraclip.documents import LARGE, read_json
from thoraclip.dtypes import Floats, Ints
from thoraclip.errors import MismatchError, ThoraclipError
from thoraclip.labels import LabelSet
from thoraclip.methods import find_method, require_shared_work
from thoraclip.methods.parts import Part
from thoraclip.methods.sources import balances_sources
from thoraclip.methods.tracking import send_run
from thoraclip.runs import (
    Progress,
    RunFolder,
    digest,
    end_sets,
    fold_file,
    is_main_process,
    provenance,
    remove_file,
    write_json,
    writes,
    written_together,
)
from thoraclip.tables.arrays import is_valid
from thoraclip.tables.codes import columns_digest
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint, embeddings_folder
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import VALIDATION, Predictions, read_predictions, write_predictions

if TYPE_CHECKING:
    from thoraclip.methods.encoders import EncoderConfig
    from thoraclip.models.vision_encoder import VisionEncoder
    from thoraclip.tables.embeddings import Embeddings

__all__ = ["MethodOutput", "RunContext", "is_done", "pooled_predictions", "require_classes", "run_method"]

_ABSENT = {"shots": "all", "remedy": "none", "erase": "none"}
_SCHEMA, _FOLD_SCHEMA = 2, 1
"""Of a run's files (2: with validation scores), and of the weights of a fold, which are the same as before."""


@dataclass(frozen=True)
class RunContext:
    """Where one run happens."""

    manifest: Manifest  # the images
    folder: RunFolder  # the run's own folder
    cache: Path  # folder for embeddings, shared by the runs of a study
    pixels: Path | None = None  # folder for decoded images, shared by the runs of a study; `None` keeps none
    progress: Progress | None = None  # draws (done, total); `None` for silence
    log: Callable[[str], None] = lambda _: None  # gets a line of what the user should know
    # of all that the result of a fold depends on, so not of which folds are run; checkpoints and weights carry it
    fingerprint: str = ""
    is_followed: bool = False  # a later run reads from `cache` what an encoder that this one trains makes of all images

    def embeddings(self, config: EncoderConfig, encoder: VisionEncoder, rows: Ints | None = None) -> Embeddings:
        """The features of all images, or of some rows where those of all are neither there nor read later; see
        `embed.cached_embeddings`."""
        from thoraclip.methods.embed import cached_embeddings  # with torch

        if rows is not None:
            made = encoder.description, encoder.preprocess.as_dict()
            folder, every = embeddings_folder(self.cache, *made), embeddings_fingerprint(self.manifest, *made)
            rows = None if self.is_followed or is_valid(folder, EMBEDDINGS, every) else rows
        given: dict[str, Any] = {"pixels": self.pixels, "progress": self.progress, "announce": self.log}
        return cached_embeddings(config, self.manifest, self.cache, rows=rows, encoder=encoder, **given)

    def keep_validation(self, part: Part, labels: LabelSet, scores: Floats) -> None:
        """Write the scores of a part's validation images into the run folder, as predictions of split `val`.

        Args:
            part: its `fold`, the held-out one, becomes the column `fold`, not the folds of the images themselves.
            labels: of the run.
            scores: f64[V, C] for `part.val`, by a classifier that was not fitted on these images.
        """
        if len(np.intersect1d(part.train, part.val)):  # too few shots to hold any out
            return
        count = len(part.val)
        table = _predictions(self.manifest.take(part.val), labels, scores, ["val"] * count, [part.fold] * count)
        write_predictions(self.folder.file(fold_file(VALIDATION, part.fold)), table)


def _predictions(images: Manifest, labels: LabelSet, scores: Floats, split: Iterable[Any], fold: Any) -> Predictions:
    image_id, patient = tuple(images.column("image_id")), tuple(images.column("patient"))
    target = images.targets(labels)
    return Predictions(labels, image_id, target, scores, split=tuple(split), fold=tuple(fold), patient=patient)


@dataclass(frozen=True)
class MethodOutput:
    """What the `run` of a method gives."""

    predictions: Predictions  # of the images that were scored, all folds together
    details: Mapping[str, Any]  # JSON-able; written to `details.json`
    metrics: Sequence[Mapping[str, object]]  # the rows of `metrics.jsonl`


def require_classes(folder: Path, trained: LabelSet, manifest: LabelSet) -> None:
    """Raise MismatchError where a run was trained on other classes than those of a manifest."""
    if trained != manifest:
        raise MismatchError(
            f"{folder}: was trained on the classes {list(trained.names)}, and these are {list(manifest.names)}; "
            "name the manifest that it was trained on"
        )


def pooled_predictions(
    manifest: Manifest, labels: LabelSet, rows: Sequence[Ints], scores: Sequence[Floats]
) -> Predictions:
    """A predictions table for some rows of a manifest, in its order; pooled folds are the test split.

    Args:
        manifest, labels: of the run.
        rows: i64[R_k] of every part, disjoint.
        scores: f64[R_k, C] of every part.
    """
    together = np.concatenate(rows)
    order = np.argsort(together, kind="stable")
    images = manifest.take(together[order])
    fold = images.column("fold")
    split = ("test" if f is not None else s for f, s in zip(fold, images.column("split"), strict=True))
    return _predictions(images, labels, np.concatenate(scores)[order], split, fold)


@writes(may_only_read=True)
def run_method(
    kind: str,
    config: Any,
    manifest: Manifest,
    out: Path | str,
    *,
    cache: Path | str | None = None,
    pixels: Path | str | None = None,
    is_followed: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> tuple[Predictions, Mapping[str, Any]] | None:
    """Run one method into a folder, or read the result when the same run is already there and complete.

    Args:
        kind: a name in `METHODS`.
        config: an instance of the method's `Config`.
        manifest: the images, split.
        out: the run folder.
        cache: folder for embeddings; inside `out` when not given.
        pixels: folder for decoded images; `None` keeps none.
        is_followed: a later run with this cache uses the adapters of this one.
        progress: draws (done, total).
        announce: gets a line of what the user should know.

    Returns:
        The predictions, and the method's details (JSON-able); `None` in all but the first of several processes.

    Raises:
        ConfigError: several processes were started for a method that runs in one.
        ThoraclipError: it cannot run; `checking.check_method` says most of that before anything is written.
    """
    require_shared_work(kind)
    out, cache, pixels = Path(out), Path(cache) if cache else None, Path(pixels) if pixels else None
    folder, method = RunFolder(out), find_method(kind)
    facts, fingerprint, of_a_fold = _identity(kind, config, manifest)
    if is_main_process():
        end_sets(out)
    if not folder.is_done(fingerprint):
        is_new = not out.exists()
        if is_main_process():
            folder.start(f'kind = "{kind}"\n' + config_toml(config), facts | _manifest_file(manifest, out))
            for stale in out.glob("validation*.parquet"):  # of a run on other folds
                if re.fullmatch(r"validation(-fold-\d+)?\.parquet", stale.name):
                    remove_file(stale)
        embeddings = cache or out / "embeddings"
        context = RunContext(manifest, folder, embeddings, pixels, progress, announce, of_a_fold, is_followed)
        try:
            output: MethodOutput | None = import_module(method.module).run(config, context)
        except ThoraclipError:  # before the first result, as of damaged weights: nothing is left behind
            if is_main_process():
                folder.give_up(is_new=is_new)
            raise
        if output is not None:
            with written_together(out, "run"):
                write_predictions(folder.file("predictions.parquet"), output.predictions)
                write_json(folder.file("details.json"), output.details)
                folder.write_metrics(output.metrics)
                if method.is_trained:
                    about: dict[str, Any] = {"data": data_facts(manifest), "images": manifest.root, "provenance": facts}
                    made: dict[str, Any] = {"predictions": output.predictions, "details": output.details}
                    write_model_card(out, TrainedRun(kind=kind, config=config, **made, **about))
                folder.finish(fingerprint)
    if not is_main_process():
        return None
    remedy = "remove done.json and run the same command again"
    details = read_json(folder.file("details.json"), remedy=remedy, limits=LARGE)
    predictions = read_predictions(folder.file("predictions.parquet"))
    if getattr(config, "trackers", ()):
        send_run(config, predictions, out, of_a_fold=of_a_fold, fingerprint=fingerprint, log=announce)
    return predictions, details


def is_done(kind: str, config: Any, manifest: Manifest, out: Path) -> bool:
    """True when `run_method` would only read what is there."""
    return RunFolder(out).is_done(_identity(kind, config, manifest)[1])


def _manifest_file(manifest: Manifest, out: Path) -> dict[str, str]:
    """For `provenance.json`: where the manifest lies, relative to the run's folder where both can be moved together:
    below one of the three folders above the run's. From elsewhere, both ways."""
    if manifest.file is None:
        return {}
    file, folder = manifest.file.resolve(), out.resolve()
    beside = Path(os.path.relpath(file, folder)).as_posix()
    if file.is_relative_to(list(folder.parents)[:3][-1]):
        return {"manifest_file": beside}
    return {"manifest_file": str(file), "manifest_beside": beside}


def _identity(kind: str, config: Any, manifest: Manifest) -> tuple[dict[str, object], str, str]:
    """Provenance of a run, the fingerprint of all that its result depends on, and the one of all that a fold's does."""
    inputs = {"manifest": manifest.fingerprint, **config.inputs()}
    if balances_sources(config):  # which are not in the manifest's fingerprint
        inputs["sources"] = columns_digest([manifest.values("source")])
    facts = provenance(seed=getattr(config, "seed", None), inputs=inputs)
    unseen = (*getattr(config, "NOT_IN_THE_RESULT", ()), *inputs)  # of what is read, the content counts, not its name
    # at these values a setting that came later adds nothing to the identity of a run
    unseen += tuple(name for name, value in _ABSENT.items() if getattr(config, name, value) == value)

    def fingerprint(schema: int, *skip: str) -> str:
        settings = config_toml(config, skip=(*unseen, *skip))
        about = {"schema": schema, "kind": kind, "config": settings, "inputs": inputs, "versions": facts["versions"]}
        return digest(about)

    return facts, fingerprint(_SCHEMA), fingerprint(_FOLD_SCHEMA, "only_folds")
