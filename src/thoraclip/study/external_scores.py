"""Score an external set with every classifier that the runs of a study have kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import grey_batches
from thoraclip.errors import ThoraclipError, first_line
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.results import MethodResult
from thoraclip.methods import find_method
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.runs import Progress, digest, file_sha256, fold_file, unforeseen_errors, write_json
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions

__all__ = ["NO_MODEL", "score_set"]

NO_MODEL = "keeps no model"

_SCHEMA = 1
_RULES = 1
"""Number of the rules of scoring; what was scored under another number is scored again."""
_BATCH = 64
"""Images per forward pass."""


def score_set(
    images: Manifest,
    result: ExternalResult,
    methods: Sequence[MethodEntry],
    failed: set[str],
    config: StudyConfig,
    study: Manifest,
    out: Path,
    *,
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> ExternalResult:
    """The result with the scores of every method that kept its classifiers, a table for each seed and fold.

    A method that cannot be scored is named with its reason, and does not lose the others.

    Args:
        images, result: of the set, from `external.prepare_sets`.
        methods: of the study, run.
        failed: names of those that failed.
        config: settings of the study.
        study: its images.
        out: its folder.
        log: gets a line for each classifier.
        progress: called with (done, total).
    """
    results: list[MethodResult] = []
    not_scored: dict[str, str] = {}
    for method in methods:
        if method.name in failed or not find_method(method.kind).keeps_classifier:
            not_scored[method.name] = "failed in the study" if method.name in failed else NO_MODEL
            continue
        try:
            with unforeseen_errors(out / "runs" / method.folder / f"external-{result.name}-error.txt", out):
                runs = [read_run(folder) for _, _, folder in method.runs(out / "runs")]
                tables = tuple(
                    _score_fold(run, fold, images, result.name, config, study, out, log, progress)
                    for run in runs
                    for fold in run.distinct_folds
                )
        except (ThoraclipError, ModuleNotFoundError) as error:
            not_scored[method.name] = first_line(error)
        else:
            results.append(MethodResult(name=method.name, kind=method.kind, predictions=tables))
    for name, reason in not_scored.items():
        if reason != NO_MODEL:
            log(f"external {result.name}: {name} is not scored: {reason}")
    return dataclasses.replace(result, methods=tuple(results), not_scored=not_scored)


def _score_fold(
    run: FinishedRun,
    fold: int | None,
    images: Manifest,
    name: str,
    config: StudyConfig,
    study: Manifest,
    out: Path,
    log: Callable[[str], None],
    progress: Progress | None,
) -> Predictions:
    """The table of one classifier, in the folder of its run; made again where anything that it depends on changed."""
    file = run.folder / fold_file(f"external-{name}.parquet", fold)
    fingerprint = digest([_SCHEMA, _RULES, run.fingerprint, images.fingerprint, fold])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ThoraclipError):
        note = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if note["fingerprint"] == fingerprint and note["sha256"] == file_sha256(file):
            return read_predictions(file)
    log(f"external {name}: {run.folder.relative_to(out / 'runs')}{'' if fold is None else f', fold {fold}'}")
    classifier, count = run.classifier(fold, run.label_set(study)), len(images)
    table = Predictions(
        labels=classifier.labels,
        image_id=tuple(images.column("image_id")),
        target=images.targets(classifier.labels),
        scores=_scores(classifier, images, out / "external" / name / "embeddings", config, out, progress),
        split=(None,) * count,
        fold=(fold,) * count,
        patient=tuple(images.column("patient")),
    )
    write_predictions(file, table)
    note = {"schema": _SCHEMA, "fingerprint": fingerprint, "sha256": file_sha256(file)}
    write_json(file.with_suffix(".json"), note)
    return table


def _scores(
    classifier: Any, images: Manifest, features: Path, config: StudyConfig, out: Path, progress: Progress | None
) -> npt.NDArray[np.float64]:
    """f64[N, C]; the features of a dual encoder are kept, so that all heads on them share one pass."""
    from thoraclip.methods.embed import embed
    from thoraclip.models.classifiers import EncoderClassifier

    pixels = out / "pixels" if config.pixel_cache else None
    if isinstance(classifier, EncoderClassifier):
        encoder = classifier.encoder
        place = features / digest([encoder.description, encoder.preprocess.as_dict()])[:12]
        kept = embed(images, encoder, place, batch_size=config.batch_size, pixels=pixels, progress=progress)
        return classifier.head.predict(np.array(kept.pooled if classifier.features == "pooled" else kept.projected))
    scores = []
    for first, greys in grey_batches(
        images, classifier.preprocess, batch_size=_BATCH, pixels=pixels, progress=progress
    ):
        scores.append(classifier.look(greys)[1])
        if progress:
            progress(first + len(greys), len(images))
    return np.concatenate(scores)
