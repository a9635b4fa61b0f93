"""External test sets of a study.

External --labelled images, under the study's class names--> select --images that the study does not have-->
    prepare_sets --the classifiers that the runs have kept--> score_set --tables of scores--> evaluation.external
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.data.batches import grey_batches
from thoraclip.data.overlap import COPIES, IDENTICAL, NEAR, UNREADABLE, find_overlap
from thoraclip.documents import kept_json
from thoraclip.dtypes import Floats
from thoraclip.errors import (
    ConfigError,
    InputError,
    ManifestError,
    MissingExtraError,
    ThoraclipError,
    did_you_mean,
    first_line,
)
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.external_reading import left_out_words
from thoraclip.evaluation.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.methods import find_method
from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.runs import digest, file_sha256, fold_file, unforeseen_errors, write_json
from thoraclip.study.images import External
from thoraclip.study.settings import Study
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import Predictions, read_predictions, write_predictions

__all__ = ["Selection", "errors_named", "listed_count", "prepare_sets", "score_set", "select"]

UNMAPPED, UNLABELLED, OTHER_SPLITS = "label not in the mapping", "unlabelled", "other splits"

_SCHEMA = 1
_RULES = 1
"""Number of the rules of scoring; what was scored under another number is scored again."""
_REASONS = (IDENTICAL, NEAR, COPIES, UNREADABLE, UNMAPPED, UNLABELLED, OTHER_SPLITS)
_NOTHING_LEFT = "no image is left to judge ({}); take images that are not in the study"
_BATCH = 64
"""Images per forward pass."""


def listed_count(external: External, study: Manifest, labels: LabelSet) -> int:
    """How many images have a class of the study and, where the hashes are known, are not in the study, without opening
    one; raises ThoraclipError as `prepare_sets` does."""
    with errors_named(f"external '{external.name}'"):
        known = set(study.column("sha256")) - {None}
        contents = select(external, external.list_images(), labels).images.column("sha256")
        identical = sum(content in known for content in contents)
        if identical == len(contents):
            raise ManifestError(_NOTHING_LEFT.format(left_out_words({IDENTICAL: identical})))
        return len(contents) - identical


def prepare_sets(study: Study) -> list[tuple[Manifest, ExternalResult]]:
    """Of every set the images that are scored, and the result without scores.

    `out/external/NAME/` gets `left-out.json` and `manifest.parquet` (the images that are scored).

    Raises:
        ConfigError: the labels of a set do not fit, see `select`.
        ManifestError: every image of a set is in the study, too, or none is readable.
        ThoraclipError: the images cannot be had.
    """
    labels, read = study.manifest.label_set(study.config.classes), []
    for external in study.config.external:
        with errors_named(f"external '{external.name}'"):
            images, set_aside = external.read(study.out / "external" / external.name, study.progress)
            read.append((external, select(external, images, labels), set_aside))
    return [_leave_out(study, *each) for each in read]


def _leave_out(
    study: Study, external: External, selection: Selection, set_aside: Sequence[tuple[str, str]]
) -> tuple[Manifest, ExternalResult]:
    own, images = study.out / "external" / external.name, selection.images
    study.log(f"external {external.name}: looking for the study's pictures among {len(images):,} images")
    overlap = find_overlap(images, study.manifest, own, study.out / "inspection", progress=study.progress)
    counts = Counter(row["reason"] for row in overlap) + Counter(selection.left_out)
    counts[UNREADABLE] += len(set_aside)
    left_out = {reason: counts[reason] for reason in _REASONS}
    their_label = images.by_id("their_label")
    content = {
        "schema": _SCHEMA,
        "counts": left_out,
        "labels_not_in_the_mapping": dict(sorted(selection.unmapped.items())),
        "images": [{**row, "label": their_label[row["image_id"]]} for row in overlap],
        "not_indexed": [{"path": path, "reason": reason} for path, reason in set_aside],
    }
    write_json(own / "left-out.json", content)
    gone, words = {row["image_id"] for row in overlap}, left_out_words(left_out)
    if len(gone) == len(images):
        nothing_left = _NOTHING_LEFT.format(f"{words}, see {own / 'left-out.json'}")
        raise ManifestError(f"external '{external.name}': {nothing_left}")
    kept = images.take(np.flatnonzero([name not in gone for name in images.column("image_id")]))
    write_manifest(own / "manifest.parquet", kept)
    known = set(study.manifest.column("patient")) - {None}
    shared = Counter(patient for patient in kept.column("patient") if patient in known)
    warning = f"; warning: {len(shared):,} patients have an id that the study has, too" if shared else ""
    study.log(f"external {external.name}: {len(kept):,} images are judged{words and f', left out: {words}'}{warning}")
    return kept, ExternalResult(
        name=external.name,
        note=external.note,
        left_out=left_out,
        splits=selection.splits,
        patients_shared=len(shared),
        images_of_shared=shared.total(),
    )


@contextlib.contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Errors begin with what they are of."""
    try:
        yield
    except MissingExtraError:
        raise
    except ThoraclipError as error:
        raise type(error)(f"{what}: {error}") from error


@dataclass(frozen=True)
class Selection:
    """Images of an external set that have a class of the study."""

    images: Manifest  # under the study's labels; those of the set are in the column `their_label`; no split, no fold
    left_out: Mapping[str, int]  # reason -> images, of the others
    unmapped: Mapping[str, int]  # label -> images, of those whose label is no class
    splits: tuple[str, ...]  # that the images are from; `()` where the set names none


def select(external: External, manifest: Manifest, labels: LabelSet) -> Selection:
    """The images that count by split and label.

    Args:
        external: the set.
        manifest: all its images.
        labels: the study's classes.

    Raises:
        ConfigError: a mapping from a label that no image has or to a class that the study does not have, a split
            without an image, or no label in common.
        ManifestError: no image has a label.
    """
    theirs, splits = manifest.column("label"), manifest.column("split")
    known = set(theirs) - {None}
    classes = _classes(external, known, labels)
    if external.split and external.split not in splits:
        named = ", ".join(sorted(set(splits) - {None}))
        has_none = f"split = '{external.split}', and its images name no split; leave split out to take all"
        raise ConfigError(f"no image of split '{external.split}'; its splits are {named}" if named else has_none)

    def left_out(label: str | None, split: str | None) -> str | None:
        if external.split and split != external.split:
            return OTHER_SPLITS
        if label is None:
            return UNLABELLED
        return None if label in classes else UNMAPPED

    reasons = [left_out(label, split) for label, split in zip(theirs, splits, strict=True)]
    if all(reasons):
        raise _nothing_in_common(external, known, labels)
    images = manifest.take(np.flatnonzero([reason is None for reason in reasons]))
    their_label, nothing = images.column("label"), [None] * len(images)
    ours = [classes[label] for label in their_label]
    return Selection(
        images=images.with_columns(label=ours, split=nothing, fold=nothing, their_label=their_label),
        left_out=Counter(reason for reason in reasons if reason),
        unmapped=Counter(label for label, reason in zip(theirs, reasons, strict=True) if reason == UNMAPPED),
        splits=tuple(sorted(set(images.column("split")) - {None})),
    )


def _classes(external: External, theirs: set[str], labels: LabelSet) -> dict[str, str]:
    """Label of the set -> class of the study, of those that have one."""
    for label, ours in external.labels:
        if label not in theirs:
            raise ConfigError(f"labels: no image has the label '{label}'{did_you_mean(label, theirs)}")
        if ours and ours not in labels.names:
            raise ConfigError(
                f"labels: '{label}' = '{ours}', which is no class of the study{did_you_mean(ours, labels.names)}"
            )
    classes = {label: label for label in theirs if label in labels.names} | dict(external.labels)
    return {label: ours for label, ours in classes.items() if ours}


def _nothing_in_common(external: External, known: set[str], labels: LabelSet) -> ThoraclipError:
    if not known:
        return ManifestError("no image has a label; an external set needs labels to judge by")
    if external.split and known & {*labels.names, *(theirs for theirs, ours in external.labels if ours)}:
        return ConfigError(f"no image of split '{external.split}' has a class of the study; take another split")
    theirs = sorted(known)
    return ConfigError(
        f"no label in common: its labels are {', '.join(theirs)}, the study's classes {', '.join(labels.names)}; "
        f'add labels = {{ "{theirs[0]}" = "{labels.names[0]}" }} to [external.{external.name}], a class for each label'
    )


def score_set(study: Study, images: Manifest, result: ExternalResult, failed: Collection[str]) -> ExternalResult:
    """The result with the scores of every method that kept its classifiers, a table for each seed and fold.

    A method that cannot be scored is named with its reason, and does not lose the others.

    Args:
        study: its methods have run.
        images, result: of the set, from `external.prepare_sets`.
        failed: names of the methods that failed.
    """
    results, not_scored, name = list[MethodResult](), dict[str, str](), result.name
    for method in study.methods:
        try:
            if method.name in failed:
                raise InputError("failed in the study")
            if not find_method(method.kind).keeps_classifier:
                not_scored[method.name] = "keeps no model"
                continue
            with unforeseen_errors(study.out / "runs" / method.folder / f"external-{name}-error.txt", study.out):
                runs = [read_run(folder) for _, _, folder in method.runs(study.out)]
                tables = [_score_fold(study, run, fold, images, name) for run in runs for fold in run.distinct_folds]
        except (ThoraclipError, ModuleNotFoundError) as error:
            not_scored[method.name] = first_line(error)
            study.log(f"external {name}: {method.name} is not scored: {first_line(error)}")
        else:
            facts: dict[str, Any] = {"kind": method.kind, "is_trained": method.is_trained}
            results.append(MethodResult(name=method.name, predictions=tuple(tables), **facts))
    return dataclasses.replace(result, methods=tuple(results), not_scored=not_scored)


def _score_fold(study: Study, run: FinishedRun, fold: int | None, images: Manifest, name: str) -> Predictions:
    """The table of one classifier, in the folder of its run; made again where anything that it depends on changed."""
    file = run.folder / fold_file(f"external-{name}.parquet", fold)
    fingerprint = digest([_SCHEMA, _RULES, run.fingerprint, images.fingerprint, fold])
    note: Mapping[str, Any] = kept_json(file.with_suffix(".json"))
    with contextlib.suppress(OSError, ThoraclipError):
        if note.get("fingerprint") == fingerprint and note.get("sha256") == file_sha256(file):
            return read_predictions(file)
    place = run.folder.relative_to(study.out / "runs")
    study.log(f"external {name}: {place}{'' if fold is None else f', fold {fold}'}")
    classifier, count = run.classifier(fold, run.label_set(study.manifest)), len(images)
    table = Predictions(
        labels=classifier.labels,
        image_id=tuple(images.column("image_id")),
        target=images.targets(classifier.labels),
        scores=_scores(study, classifier, images, study.out / "external" / name / "embeddings"),
        split=(None,) * count,
        fold=(fold,) * count,
        patient=tuple(images.column("patient")),
    )
    write_predictions(file, table)
    note = {"schema": _SCHEMA, "fingerprint": fingerprint, "sha256": file_sha256(file)}
    write_json(file.with_suffix(".json"), note)
    return table


def _scores(study: Study, classifier: Any, images: Manifest, cache: Path) -> Floats:
    """f64[N, C]; the features of a dual encoder are kept, so that all heads on them share one pass."""
    given: dict[str, Any] = {"pixels": study.pixels, "progress": study.progress}
    if isinstance(classifier, EncoderClassifier):
        config = EncoderConfig(batch_size=study.config.batch_size, runtime=study.config.runtime)
        kept = cached_embeddings(config, images, cache, encoder=classifier.encoder, **given)
        return classifier.head.predict(np.array(kept.pooled if classifier.features == "pooled" else kept.projected))
    scores = []
    for first, greys in grey_batches(images, classifier.preprocess, batch_size=_BATCH, **given):
        scores.append(classifier.look(greys)[1])
        if study.progress:
            study.progress(first + len(greys), len(images))
    return np.concatenate(scores)
