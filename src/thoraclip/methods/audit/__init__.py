"""`audit`: does a classifier read lungs or shortcuts?

    run + manifest -> images it has not seen -> altered views -> its answers -------+
                         |            +-> features --> probes fitted anew ----------+-> evaluation.shortcuts
                         +-> background (frame, marks, exposure, grain, file, strokes) -> trees    -> audit.json

What re-scores the model is here; what is made of the answers is in `evaluation.shortcuts`, which never sees a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from thoraclip.config import Settings
from thoraclip.data.lungs import SOURCES, LungRegions, lung_masks, require_mask_source
from thoraclip.data.splits import independent_groups
from thoraclip.data.views import VIEWS, Scene
from thoraclip.dtypes import Greys, Ints, Masks
from thoraclip.evaluation.audit import Facts, audit_report
from thoraclip.evaluation.shortcuts import Answers
from thoraclip.imaging import DECODING, Preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods.audit.probes import (
    across_sources,
    attribute_answers,
    background_answers,
    background_values,
    probe_tests,
    view_tests,
)
from thoraclip.methods.audit.refits import held_out_folds, refit, shuffled_answers
from thoraclip.methods.audit.sample import AuditSample, AuditTarget, choose_images, draw_sample, sample_images
from thoraclip.methods.audit.scoring import ViewScores, choose_partners, fills_in_turn, score_views
from thoraclip.pages import counted
from thoraclip.proportions import patient_share
from thoraclip.ranges import AuditImages, BatchSize, FoldCount, ImageCount, Range, Resamples, Seed
from thoraclip.runs import Progress, digest
from thoraclip.tables.manifest import Manifest

__all__ = ["AuditConfig", "audit", "audit_passes"]


_RULES = 3
"""Number of the rules by which pictures are altered; answers to views of another number are asked for again."""

_TESTS = sum(test.asks == "classifier" for test in view_tests(dict.fromkeys(VIEWS))) + 1
"""Tests of the classifier, with that of shared errors."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Settings):
    """What one audit needs."""

    images: AuditImages = "auto"
    """Images that the classifier has not seen, drawn by patient, the classes in their own shares: auto (of the fewest
    patients that can show an effect of 10 points beyond the margin), all, or a number at most."""
    masks: str = "auto"
    """Where the lungs are: auto (the manifest's masks where every image has one, else estimate), given, estimate (one
    usual region for all), none, or a folder with a segmentation model of your own in Transformers format."""
    folds: FoldCount = 5
    """Parts in which what is fitted anew is held out."""
    l2: Annotated[float, Range(0, 1_000_000, above=True)] = 0.1
    """Penalty of the probes that are fitted anew, on the mean log-loss."""
    batch_size: BatchSize = 64
    """Images per forward pass."""
    resamples: Resamples = 1000
    """Bootstrap resamples of patients behind every interval."""
    saliency: ImageCount = 4
    """Images whose heat maps are compared with the lungs; 0 for none."""
    duplicates: bool = False
    """Whether near duplicates are looked for, and the score given without them; every picture of the manifest is looked
    at, some 10 ms each. In no verdict; a study looks for them by group_duplicates."""
    seed: Seed = 0
    """Of the images, the held-out parts, the partners and the resamples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_mask_source(self.masks, "masks")


def audit(
    run: AuditTarget,
    manifest: Manifest,
    config: AuditConfig,
    out: Path,
    *,
    pixels: Path | None = None,
    inspection: Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Audit a run on images that it has not seen; returns the content of `audit.json`.

    Args:
        run: a finished run of a kind that keeps its classifier, or a bundle.
        manifest: the run's own, or another one with the same classes.
        config: settings.
        out: folder whose `cache` keeps the answers, so that a killed audit goes on.
        pixels: folder of decoded pictures.
        inspection: folder of what was measured of every picture, see `data.check.inspect`; in `out` where it is not
            given.
        progress: called with (done, total).
        announce: gets a line at every stage.

    Raises:
        ManifestError: no image to judge, or fewer classes than two.
        InputError: the run keeps no classifier.
    """
    sample = draw_sample(run, manifest, images=config.images, seed=config.seed, tests=_TESTS)
    announce(
        f"{len(sample.target):,} images of {counted(int(sample.groups.max()) + 1, 'independent group')}, of "
        f"{sample.available:,} that the classifier has not seen"
    )
    spec = sample.classifiers[0][0].preprocess
    greys = sample_images(sample, manifest, spec, pixels)
    lungs = _find_lungs(sample, spec, config, progress)
    announce(lungs.words)
    usable = lungs.usable
    same, other, any_ = choose_partners(sample.target, sample.groups, sample.parts, usable, seed=config.seed)
    turn = fills_in_turn(sample.target, seed=config.seed)
    scene = Scene(greys, lungs.masks, round(float(greys.mean())), same, other, any_, turn, config.seed)
    token = digest(
        [
            _RULES,
            DECODING,
            run.fingerprint,
            sample.manifest.fingerprint,
            spec.as_dict(),
            config.seed,
            scene.level,
            [list(classifier.features_key[1:]) for classifier, _ in sample.classifiers],
            [array.tobytes().hex() for array in (np.packbits(lungs.masks), same, other, any_, turn)],
        ]
    )
    seen = score_views(
        scene,
        sample.classifiers,
        batch_size=config.batch_size,
        manifest=sample.manifest,
        cache=out / "cache" / "views",
        token=token,
        kept=lambda classifier, rows: run.kept_answers(classifier, manifest, sample.manifest.take(rows)),
        progress=progress,
    )
    named = {name: view.named for name, view in seen.items()}
    trials = view_tests(named)
    fold = held_out_folds(sample.target, sample.groups, config.folds, config.seed)
    refitted = {
        f"refitted {name}": refit(sample, view, sample.target, fold, l2=config.l2)
        for name, view in seen.items()
        if name == "original" or VIEWS[name].refits != "no"
    }
    named |= refitted
    trials += probe_tests(refitted)
    announce("what can be told without lungs")
    values, strokes = background_values(sample, greys, lungs.masks)
    for more, tests in (
        background_answers(values, strokes, sample.target, fold, seed=config.seed),
        across_sources(sample, seen["original"], fold, l2=config.l2),
    ):
        named |= more
        trials += tests
    answers = Answers(sample.target, sample.groups, named, len(sample.labels))
    facts = Facts(
        shuffled=list(
            shuffled_answers(
                sample, seen["original"], values["all"], folds=config.folds, l2=config.l2, seed=config.seed
            )
        ),
        run=run.name,
        kind=run.kind,
        labels=sample.labels,
        manifest=sample.manifest,
        answers=answers,
        tests=trials,
        attributes=attribute_answers(sample, seen["original"], fold, l2=config.l2),
        lungs=lungs.as_json(),
        sham=_sham(seen),
        saliency=_saliency(sample, greys, lungs.masks, named["original"], config, announce),
        without_duplicates=_without_duplicates(
            run, manifest, config, inspection or out / "cache" / "inspection", progress
        ),
        has_masks=bool(usable.any()),
        available=sample.available,
    )
    return audit_report(facts, resamples=config.resamples, seed=config.seed)


def audit_passes(manifest: Manifest, labels: LabelSet, images: int | str) -> int:
    """Images through the network in an audit of as many, were none of the labelled ones seen; an upper bound."""
    target = manifest.targets(labels)
    rows = np.flatnonzero(target >= 0)
    n = len(rows)
    if images != "all":
        n = len(choose_images(target[rows], independent_groups(manifest.take(rows)), images, seed=0, tests=_TESTS))
    return sum(min(n, view.most or n) for view in VIEWS.values())


def _find_lungs(sample: AuditSample, spec: Preprocess, config: AuditConfig, progress: Progress | None) -> LungRegions:
    """Where the lungs of every image are, by the way that the settings ask for."""
    estimate = None
    if config.masks not in SOURCES:
        from thoraclip.models.segmenter import load_segmenter

        estimate = load_segmenter(config.masks).estimate
    return lung_masks(sample.manifest, spec, source=config.masks, estimate=estimate, progress=progress)


def _sham(seen: Mapping[str, ViewScores]) -> dict[str, Any]:
    """Whether nothing happens where nothing is replaced."""
    before, after = seen["original"], seen["sham"]
    shown = after.named >= 0
    changed = float(np.abs(after.scores[shown] - before.scores[shown]).max())
    flips = int((after.named[shown] != before.named[shown]).sum())
    return {"images": int(shown.sum()), "largest_change": changed, "other_answers": flips}


def _saliency(
    sample: AuditSample,
    greys: Greys,
    lungs: Masks,
    named: Ints,
    config: AuditConfig,
    announce: Callable[[str], None],
) -> dict[str, Any] | None:
    """Of some images: the share of the heat for the named class that lies inside the lungs, and the lungs' share."""
    usable = np.flatnonzero(lungs.any(axis=(1, 2)))
    if not config.saliency or not len(usable):
        return None
    from thoraclip.heatmaps import default_map, heat_map

    method = default_map(sample.classifiers[0][0])
    announce(f"heat maps by {method}")
    rows = usable[np.unique(np.linspace(0, len(usable) - 1, min(config.saliency, len(usable))).astype(np.int64))]
    inside, area = [], []
    for classifier, own in sample.classifiers:
        for row in np.intersect1d(rows, own):
            heat = heat_map(classifier, greys[row], int(named[row]), method=method, seed=config.seed)
            total = float(heat.sum())
            if total > 0:
                inside.append(float(heat[lungs[row]].sum()) / total)
                area.append(float(lungs[row].mean()))
    return {"method": method, "inside": inside, "area": area}


def _without_duplicates(
    run: AuditTarget, manifest: Manifest, config: AuditConfig, inspection: Path, progress: Progress | None
) -> dict[str, Any] | None:
    """Accuracy of the run's own predictions, with all images and with one of each picture that no other part shows
    too, with an interval by patient; the latter `None` where no image is left out, or none is left."""
    own = run.own_predictions(manifest)
    if not config.duplicates or own is None:
        return None
    from thoraclip.data.check import duplicate_clusters

    clusters = duplicate_clusters(manifest, inspection, progress=progress).by_id("duplicate_cluster")
    parts_of: dict[str, set[str | None]] = {}
    for image, part in zip(manifest.column("image_id"), manifest.parts(), strict=True):
        if clusters[image] is not None:
            parts_of.setdefault(clusters[image], set()).add(part)
    judged = own.judged()
    right = judged.scores.argmax(axis=1) == judged.target
    seen: set[str] = set()
    kept = []
    for row, image in enumerate(judged.image_id):
        cluster = clusters.get(image)
        if cluster is None or (len(parts_of[cluster]) == 1 and cluster not in seen):
            kept.append(row)
        if cluster is not None:
            seen.add(cluster)
    n = len(kept)
    has_own = 0 < n < len(judged)  # where nothing is left out, the score is the report's
    low, high = patient_share(right[kept], judged.groups()[kept]) if has_own else (None, None)
    return {
        "images": len(judged),
        "accuracy": float(right.mean()),
        "left_out": len(judged) - n,
        "across_parts": sum(len(found) > 1 for found in parts_of.values()),
        "accuracy_without": float(right[kept].mean()) if has_own else None,
        "low": low,
        "high": high,
    }
