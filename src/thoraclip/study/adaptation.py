r"""The adaptation curve of an external set: its labelled patients join the training of every probe, a few or many.

images of the set --cut by patient--> pool --drawn, `draws` times--> study's training images + drawn --> heads
                                 \--> test half ----------------------------------------------------> scores
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thoraclip.data.splits import draw_patients, hold_out, independent_groups, patient_counts
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.errors import ManifestError, ThoraclipError, first_line
from thoraclip.evaluation.adaptation import Adaptation, Labels
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.methods import find_method
from thoraclip.methods.adapters import with_adapter
from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.probe import fit_fold, fold_inputs
from thoraclip.methods.running import RunContext, pooled_predictions
from thoraclip.runs import RunFolder
from thoraclip.study.images import External
from thoraclip.study.settings import MethodEntry, Study, StudyConfig
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["adapt_set", "adaptation_seconds"]

_TEST_SHARE = 0.5
"""Of the patients of a set; the others are the pool that labels are drawn from."""


@dataclass(frozen=True)
class _Halves:
    """An external set, cut."""

    images: Manifest  # all that are scored
    labels: LabelSet  # of the study
    target: Ints  # i64[M]
    groups: Ints  # i64[M], whose image each is
    pool: Ints  # i64 rows
    test: Ints  # i64 rows


@dataclass(frozen=True)
class _Job:
    """One training of a method."""

    labels: Labels
    config: Any  # of the method
    drawn: Ints  # i64 rows of the set that join the training


def adapt_set(study: Study, external: External, images: Manifest, result: ExternalResult) -> ExternalResult:
    """The result with its adaptation curve, where the set asks for one.

    The encoder stays as it is; a head is fitted on the training images of the study and the drawn ones together. Within
    each class both weigh the same, but no image more than 10 times the mean (`weighting.source_weights`); the penalty
    is chosen on the study's validation images. Images of patients that the study has, too, are in neither half.

    Args:
        study: its methods have run.
        external, images, result: the set, its images that are scored, and what `external.score_set` gave.

    Raises:
        ManifestError: a class has fewer than two patients there.
    """
    if not external.adapt:
        return result
    halves, shared = _cut(study, external, images)
    outside, inside, why = dict[tuple[str, Labels], MethodResult](), dict[tuple[str, Labels], MethodResult](), {}
    plain = {method.name: method for method in result.methods}
    for method in study.methods:
        if method.name not in plain:
            why[method.name] = result.not_scored.get(method.name, "not scored there")
        elif not find_method(method.kind).fits_head:
            why[method.name] = "its network would have to be trained again"
        elif method.config.erase != "none":
            why[method.name] = "it erases the sources of the study"
        else:
            study.log(f"external {result.name}: adapting {method.name}")
            own = [table.take(halves.test) for table in plain[method.name].predictions]
            facts: dict[str, Any] = {"kind": method.kind, "is_trained": True}
            outside[method.name, 0] = MethodResult(name=method.name, predictions=tuple(own), **facts)
            try:
                found = _adapted(study, method, halves, external, result.name)
            except ThoraclipError as error:
                outside[method.name, "all"] = MethodResult(name=method.name, failed=first_line(error), **facts)
                continue
            for labels, tables in found.items():
                name = f"{method.name}, {labels}"
                for place, side in ((outside, 0), (inside, 1)):
                    several = tuple(table for pair in tables for table in pair[side])
                    place[method.name, labels] = MethodResult(name=name, predictions=several, **facts)
    if not outside:
        return result
    counts = patient_counts(halves.target[halves.pool], halves.groups[halves.pool], len(halves.labels))
    has_patients = any(patient is not None for patient in images.column("patient"))
    made = Adaptation(
        outside=outside,
        inside=inside,
        draws=study.config.draws,
        unit="patient" if has_patients else "image",
        patients=dict(zip(halves.labels.names, counts.tolist(), strict=True)),
        images=len(halves.pool),
        shared=shared,
        not_adapted=why,
    )
    return replace(result, adaptation=made)


def adaptation_seconds(config: StudyConfig, external: External, methods: Sequence[MethodEntry]) -> float:
    """About how long the adaptation curve of a set takes for each training image of the study, on one core."""
    trainings = sum(config.draws if labels != "all" else len(config.seeds) for labels in external.adapt if labels)
    return trainings * sum(find_method(m.kind).fit_seconds for m in methods if find_method(m.kind).keeps_classifier)


def _cut(study: Study, external: External, images: Manifest) -> tuple[_Halves, int]:
    """The halves, and how many images are in neither."""
    labels = study.manifest.label_set(study.config.classes)
    target, groups = images.targets(labels), independent_groups(images)
    known = set(study.manifest.column("patient")) - {None}
    is_shared = np.array([patient in known for patient in images.column("patient")])
    rows = np.flatnonzero(~np.isin(groups, groups[is_shared]))
    counts = patient_counts(target[rows], groups[rows], len(labels))
    present = np.unique(target)
    if (counts[present] < 2).any():
        name = labels.names[present[np.argmin(counts[present])]]
        raise ManifestError(
            f"external '{external.name}': adapt: class '{name}' has {counts[present].min()} patients there, and one "
            "for each half is needed; leave adapt out, or give more images"
        )
    is_test = hold_out(target[rows], groups[rows], fraction=_TEST_SHARE, seed=study.config.seeds[0])
    halves = _Halves(images, labels, target, groups, pool=rows[~is_test], test=rows[is_test])
    return halves, len(images) - len(rows)


def _adapted(
    study: Study, method: MethodEntry, halves: _Halves, external: External, name: str
) -> dict[Labels, list[tuple[list[Predictions], list[Predictions]]]]:
    """Number of labels -> of each training, its tables of the test half (one a fold) and of the judged images."""
    found: dict[Labels, list[tuple[list[Predictions], list[Predictions]]]] = {}
    known = study.manifest.targets(halves.labels)
    for number, (_, config, folder) in enumerate(method.runs(study.out)):
        jobs = list(_jobs(study, config, halves, external, is_first=number == 0))
        outside: list[list[Predictions]] = [[] for _ in jobs]
        rows, scores = list[Ints](), [list[Floats]() for _ in jobs]
        context = RunContext(study.manifest, RunFolder(folder), study.out / "embeddings", study.pixels, log=study.log)
        for part, features, texts in fold_inputs(config, context, halves.labels):
            there = _features(study, with_adapter(config, part.fold), halves, name)
            rows.append(part.test)
            for place, job in enumerate(jobs):
                whole, count = np.concatenate([features, there[job.drawn]]), len(features)
                target = np.concatenate([known, halves.target[job.drawn]])
                joined = replace(part, train=np.concatenate([part.train, count + np.arange(len(job.drawn))]))
                source = (np.arange(len(whole)) >= count).astype(np.int64)
                head = fit_fold(job.config, (joined, whole, texts), target, halves.labels, source)[0]
                outside[place].append(_table(halves, head.predict(there[halves.test]), part.fold))
                scores[place].append(head.predict(features[part.test]))
        for job, tables, own in zip(jobs, outside, scores, strict=True):
            inside = pooled_predictions(study.manifest, halves.labels, rows, own)
            found.setdefault(job.labels, []).append((tables, [inside]))
    order = sorted(found, key=lambda labels: (isinstance(labels, str), labels))
    return {labels: found[labels] for labels in order}


def _jobs(study: Study, config: Any, halves: _Halves, external: External, *, is_first: bool) -> Iterator[_Job]:
    """The trainings of one run: all labels with every seed; the draws, with the first seed alone."""
    config = replace(config, class_weight="source")
    for labels in dict.fromkeys(external.adapt):
        if labels == "all":
            yield _Job(labels, config, halves.pool)
        elif isinstance(labels, int) and labels and is_first:
            for draw in range(study.config.draws):
                seed = (study.config.seeds[0] + draw) % 2**32
                target, groups = halves.target[halves.pool], halves.groups[halves.pool]
                drawn = halves.pool[draw_patients(target, groups, shots=labels, seed=seed)]
                yield _Job(labels, replace(config, seed=seed), drawn)


def _features(study: Study, config: Any, halves: _Halves, name: str) -> Singles:
    """f32[M, D] of the set by the encoder of a fold."""
    own = EncoderConfig(batch_size=study.config.batch_size, runtime=study.config.runtime)
    cache = study.out / "external" / name / "embeddings"
    kept = cached_embeddings(own, halves.images, cache, encoder=load_encoder(config), pixels=study.pixels)
    return np.asarray(getattr(kept, config.features)[kept.rows_for(halves.images)])


def _table(halves: _Halves, scores: Floats, fold: int | None) -> Predictions:
    """Scores of the test half, as those of `external.score_set`."""
    images, count = halves.images.take(halves.test), len(halves.test)
    return Predictions(
        labels=halves.labels,
        image_id=tuple(images.column("image_id")),
        target=halves.target[halves.test],
        scores=scores,
        split=(None,) * count,
        fold=(fold,) * count,
        patient=tuple(images.column("patient")),
    )
