"""Score an external set with every classifier that the runs of a study have kept."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import grey_batches
from thoraclip.errors import InputError, ThoraclipError, first_line
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.runs import Progress, digest, file_sha256, fold_file, write_json, write_text
from thoraclip.study.external.sets import ExternalSet
from thoraclip.study.settings import MethodEntry
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions

__all__ = ["NO_MODEL", "Scoring", "score_file", "score_fingerprint", "score_set"]

NO_MODEL = "keeps no model"

_SCHEMA = 1
_RULES = 1
"""Number of the rules of scoring; what was scored under another number is scored again."""
_BATCH = 64
"""Images per forward pass of a network that is no dual encoder."""


@dataclass(frozen=True)
class Scoring:
    """Where scores are made.

    Args:
        study: its images.
        out: its folder.
        pixels: folder of decoded pictures; `None` keeps none.
        batch_size: images per forward pass of a dual encoder.
        announce: gets a line for each method.
        progress: called with (done, total).
    """

    study: Manifest
    out: Path
    pixels: Path | None = None
    batch_size: int = 64
    announce: Callable[[str], None] = lambda _: None
    progress: Progress | None = None


def score_set(one: ExternalSet, methods: Sequence[MethodEntry], failed: set[str], scoring: Scoring) -> ExternalResult:
    """Scores of every method that kept its classifiers, a table for each seed and fold.

    A method that cannot be scored is named with its reason, and does not lose the others.

    Args:
        one: the set.
        methods: of the study, run.
        failed: names of those that failed.
        scoring: where.
    """
    results: list[MethodResult] = []
    not_scored: dict[str, str] = {}
    for method in methods:
        if method.name in failed:
            not_scored[method.name] = "failed in the study"
            continue
        try:
            tables = _score_method(one, method, scoring)
        except (ThoraclipError, ModuleNotFoundError) as error:
            not_scored[method.name] = first_line(error)
        except Exception as error:  # a method that breaks must not lose the others
            place = _traceback(one, method)
            write_text(scoring.out / place, "".join(traceback.format_exception(error)))
            not_scored[method.name] = f"{type(error).__name__}: {first_line(error)}; where it happened: {place}"
        else:
            if tables:
                results.append(MethodResult(name=method.name, kind=method.kind, predictions=tables))
            else:
                not_scored[method.name] = NO_MODEL
    for name in (name for name in not_scored if not_scored[name] != NO_MODEL):
        scoring.announce(f"external {one.external.name}: {name} is not scored: {not_scored[name]}")
    return ExternalResult(
        name=one.external.name,
        note=one.external.note,
        methods=tuple(results),
        left_out=one.left_out,
        splits=one.splits,
        patients_shared=one.patients_shared,
        images_of_shared=one.images_of_shared,
        not_scored=not_scored,
    )


def _traceback(one: ExternalSet, method: MethodEntry) -> str:
    """Below the study folder: what a method left that broke in a way that nobody foresaw."""
    return f"runs/{method.folder}/external-{one.external.name}-error.txt"


def _score_method(one: ExternalSet, method: MethodEntry, scoring: Scoring) -> tuple[Predictions, ...]:
    """A table for each classifier; `()` where the kind of method keeps none."""
    tables: list[Predictions] = []
    labels = scoring.study.label_set(getattr(method.config, "classes", ()))
    (scoring.out / _traceback(one, method)).unlink(missing_ok=True)
    for _, _, folder in method.runs(scoring.out / "runs"):
        run = read_run(folder)
        if not run.method.keeps_classifier:
            return ()
        for fold in run.distinct_folds:
            file = score_file(folder, one.external.name, fold)
            fingerprint = score_fingerprint(folder, one.images, fold)
            found = _kept(file, fingerprint)
            if found is None:
                told = "" if fold is None else f", fold {fold}"
                scoring.announce(f"external {one.external.name}: {folder.relative_to(scoring.out / 'runs')}{told}")
                found = _score(one, run, fold, labels, scoring)
                write_predictions(file, found)
                note = {"schema": _SCHEMA, "fingerprint": fingerprint, "sha256": file_sha256(file)}
                write_json(file.with_suffix(".json"), note)
            tables.append(found)
    return tuple(tables)


def score_file(run: Path, name: str, fold: int | None) -> Path:
    """The table of one classifier's scores, in the folder of its run."""
    return run / fold_file(f"external-{name}.parquet", fold)


def score_fingerprint(run: Path, images: Manifest, fold: int | None) -> str:
    """SHA-256 over what the scores depend on: the finished run, the external images and their labels, the fold."""
    try:
        done = json.loads((run / "done.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run}: the run is not finished; run the study again") from error
    return digest([_SCHEMA, _RULES, done, images.fingerprint, fold])


def _kept(file: Path, fingerprint: str) -> Predictions | None:
    """The table that an earlier call left, where it is whole and was made from exactly this."""
    try:
        note = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if note["fingerprint"] != fingerprint or note["sha256"] != file_sha256(file):
            return None
        return read_predictions(file)
    except (OSError, ValueError, KeyError, TypeError, ThoraclipError):
        return None


def _score(one: ExternalSet, run: FinishedRun, fold: int | None, labels: LabelSet, scoring: Scoring) -> Predictions:
    images, count = one.images, len(one.images)
    classifier = run.classifier(fold, labels)
    return Predictions(
        labels=classifier.labels,
        image_id=tuple(images.column("image_id")),
        target=images.targets(classifier.labels),
        scores=_scores(classifier, one, scoring),
        split=(None,) * count,
        fold=(fold,) * count,
        patient=tuple(images.column("patient")),
    )


def _scores(classifier: Any, one: ExternalSet, scoring: Scoring) -> npt.NDArray[np.float64]:
    """f64[N, C]; the features of a dual encoder are kept, so that all heads on them share one pass."""
    from thoraclip.methods.embed import embed
    from thoraclip.models.classifiers import EncoderClassifier

    if isinstance(classifier, EncoderClassifier):
        encoder = classifier.encoder
        place = scoring.out / "external" / one.external.name / "embeddings"
        features = embed(
            one.images,
            encoder,
            place / digest([encoder.description, encoder.preprocess.as_dict()])[:12],
            batch_size=scoring.batch_size,
            pixels=scoring.pixels,
            progress=scoring.progress,
        )
        return classifier.head.predict(
            np.array(features.pooled if classifier.features == "pooled" else features.projected)
        )
    batches = grey_batches(
        one.images, classifier.preprocess, batch_size=_BATCH, pixels=scoring.pixels, progress=scoring.progress
    )
    found: list[npt.NDArray[np.float64]] = []
    for first, greys in batches:
        found.append(classifier.look(greys)[1])
        if scoring.progress:
            scoring.progress(first + len(greys), len(one.images))
    return np.concatenate(found)
