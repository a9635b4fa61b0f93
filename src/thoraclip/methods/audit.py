"""`audit`: does a classifier read lungs or shortcuts?

    run + manifest -> images that it has not seen -> altered views -> its answers --+
                           |            +-> features --> probes fitted anew --------+--> judge.shortcuts -> audit.json
                           +-> background (frame, marks, exposure, grain, file) ----+

What re-scores the model is here; what is made of the answers is in `judge.shortcuts`, which never sees a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.background import BACKGROUND, background_features, file_features, shown_features
from thoraclip.data.batches import grey_batches, in_batches, pixel_cache, read_indexed
from thoraclip.data.lungs.regions import LungRegions, lung_masks, require_mask_source
from thoraclip.data.splits import independent_groups
from thoraclip.data.views import Scene
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.imaging import DECODING, Preprocess, decode
from thoraclip.judge.audit import Facts, audit_report
from thoraclip.judge.shortcuts import Answers, Trial
from thoraclip.labels import LabelSet
from thoraclip.methods.altered import Seen, choose_partners, look_at_views
from thoraclip.methods.retrained import by_trees, held_out, retrained
from thoraclip.methods.subject import Subject
from thoraclip.methods.trials import trials_of_views, trials_refitted
from thoraclip.predictor import Looker
from thoraclip.proportions import wilson
from thoraclip.runs import Progress, digest
from thoraclip.tables.manifest import Manifest

__all__ = ["AuditConfig", "audit"]

Ints = npt.NDArray[np.int64]

_ATTRIBUTES = ("source", "view", "sex", "format")
"""Columns of a manifest that a classifier's features are asked for."""
_RULES = 1
"""Number of the rules by which pictures are altered; answers to views of another number are asked for again."""
_FEWEST = 20
"""Images of a value below which it is not asked for."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What one audit needs."""

    images: int = 1000
    """Images at most, drawn from those that the classifier has not seen, the classes in their own shares; 0 for all."""
    masks: str = "auto"
    """Where the lungs are: auto (the manifest's masks where every image has one, else estimate), given, estimate (one usual
    region for all), none, or a folder with a segmentation model of your own in Transformers format."""
    folds: int = 5
    """Parts in which what is fitted anew is held out."""
    l2: float = 0.1
    """Penalty of the probes that are fitted anew, on the mean log-loss."""
    batch_size: int = 64
    """Images per forward pass."""
    resamples: int = 1000
    """Bootstrap resamples of patients behind every interval."""
    saliency: int = 24
    """Images whose heat maps are compared with the lungs; 0 for none."""
    duplicates: bool = True
    """Whether near duplicates are looked for, and the score given without them; every picture of the manifest is looked at."""
    seed: int = 0
    """Of the images, the held-out parts, the partners and the resamples."""

    def __post_init__(self) -> None:
        for name, least in (
            ("images", 0),
            ("folds", 2),
            ("batch_size", 1),
            ("resamples", 100),
            ("saliency", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: {least} or more is needed")
        require_mask_source(self.masks, "masks")
        if self.l2 <= 0:
            raise ConfigError(f"l2 = {self.l2}: must be positive")


@dataclass(frozen=True)
class _Sample:
    """The N images of an audit.

    Args:
        manifest: of these images alone, in the order of the whole one.
        classifiers: (classifier, i64 rows of the sample that it judges).
        labels, target: classes, i64[N].
        groups: i64[N], images that share a patient or a picture have the same number.
    """

    manifest: Manifest
    classifiers: Sequence[tuple[Looker, Ints]]
    labels: LabelSet
    target: Ints
    groups: Ints

    @property
    def parts(self) -> Ints:
        """i64[N]: number of the classifier that judges each image."""
        part = np.full(len(self.target), -1, dtype=np.int64)
        for number, (_, rows) in enumerate(self.classifiers):
            part[rows] = number
        return part

    @property
    def keys(self) -> list[str]:
        """The groups as text."""
        return [str(group) for group in self.groups]


def audit(
    run: Subject,
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
        inspection: folder of what was measured of every picture, see `data.check.inspect`; in `out` where it is not given.
        progress: called with (done, total).
        announce: gets a line at every stage.

    Raises:
        ManifestError: no image to judge, or fewer classes than two.
        InputError: the run keeps no classifier.
    """
    sample = _draw(run, manifest, config)
    n = len(sample.target)
    announce(f"{n} images that the classifier has not seen")
    spec = sample.classifiers[0][0].preprocess
    greys = _pictures(sample, manifest, spec, pixels)
    lungs = _find_lungs(sample, spec, config, progress)
    announce(lungs.words)
    usable = lungs.usable
    same, other, any_ = choose_partners(sample.target, sample.groups, sample.parts, usable, seed=config.seed)
    scene = Scene(greys, lungs.masks, round(float(greys.mean())), same, other, any_, config.seed)
    token = digest(
        [
            _RULES, DECODING, run.fingerprint, sample.manifest.fingerprint, spec.as_dict(), config.seed, scene.level,
            [list(classifier.features_key[1:]) for classifier, _ in sample.classifiers],
            [array.tobytes().hex() for array in (np.packbits(lungs.masks), same, other, any_)],
        ]
    )  # fmt: skip
    seen = look_at_views(
        scene, sample.classifiers, batch_size=config.batch_size, manifest=sample.manifest, cache=out / "cache" / "views",
        token=token, progress=progress,
    )  # fmt: skip
    named = {name: one.named for name, one in seen.items()}
    trials = trials_of_views(named)
    fold = held_out(sample.target, sample.keys, folds=config.folds, seed=config.seed)
    refitted, shuffled = _refit(run, sample, seen, fold, config)
    named |= refitted
    trials += trials_refitted(refitted, run.is_retrainable)
    announce("what can be told without lungs")
    behind, trees = _background(sample, greys, lungs.masks, fold, config)
    named |= behind
    trials += trees
    across, more = _across_sources(sample, seen["original"], fold, config, counts=run.is_retrainable)
    named |= across
    trials += more
    answers = Answers(sample.target, sample.groups, named, len(sample.labels))
    facts = Facts(
        shuffled=shuffled, run=run.name, kind=run.kind, labels=sample.labels, manifest=sample.manifest, answers=answers, trials=trials,
        attributes=_attributes(sample, seen["original"], fold, config), lungs=lungs.as_json(),
        sham=_sham(seen), saliency=_saliency(sample, greys, lungs.masks, named["original"], config, announce),
        without_duplicates=_without_duplicates(run, manifest, config, inspection or out / "cache" / "inspection", progress),
        has_masks=bool(usable.any()),
    )  # fmt: skip
    return audit_report(facts, resamples=config.resamples, seed=config.seed)


def _draw(run: Subject, manifest: Manifest, config: AuditConfig) -> _Sample:
    """The labelled images that the run's classifiers have not seen, or so many of each class as there is room for."""
    labels = run.label_set(manifest)
    targets = manifest.targets(labels)
    parts = list(run.parts(manifest))
    rows = np.sort(np.concatenate([own for _, own in parts]))
    if not len(rows):
        raise ManifestError(
            "manifest: no labelled image that the run may be judged on; name the manifest that it ran on"
        )
    if config.images and len(rows) > config.images:
        rng, kept = np.random.default_rng([config.seed, 0]), []
        for number in range(len(labels)):
            own = rows[targets[rows] == number]
            kept.append(rng.permutation(own)[: max(2, round(config.images * len(own) / len(rows)))])
        rows = np.sort(np.concatenate(kept))
    if len(np.unique(targets[rows])) < 2:
        raise ManifestError(
            f"manifest: only images of '{labels.names[targets[rows[0]]]}' to judge; two classes are needed"
        )
    taken = manifest.take(rows)
    _, groups = np.unique(np.array(independent_groups(taken)), return_inverse=True)
    used = [(fold, np.flatnonzero(np.isin(rows, own))) for fold, own in parts]
    classifiers = [(run.classifier(fold, labels), own) for fold, own in used if len(own)]
    return _Sample(taken, classifiers, labels, targets[rows], groups.astype(np.int64))


def _pictures(sample: _Sample, manifest: Manifest, spec: Preprocess, pixels: Path | None) -> npt.NDArray[np.uint8]:
    """u8[N, S, S] of the sample, out of the whole manifest's pixel cache where there is a folder for it."""
    if pixels is None:
        return np.concatenate([greys for _, greys in grey_batches(sample.manifest, spec, batch_size=256)])
    row = {image: number for number, image in enumerate(manifest.column("image_id"))}
    rows = np.array([row[image] for image in sample.manifest.column("image_id")], dtype=np.int64)
    return np.array(pixel_cache(manifest, spec, pixels).pixels[rows])


def _find_lungs(sample: _Sample, spec: Preprocess, config: AuditConfig, progress: Progress | None) -> LungRegions:
    """Where the lungs of every image are, by the way that the settings ask for."""
    estimate = None
    source = config.masks
    if source not in {"auto", "given", "estimate", "none"}:
        from thoraclip.models.segmenter import load_segmenter

        estimate, source = load_segmenter(source).estimate, "model"
    return lung_masks(sample.manifest, spec, source=source, estimate=estimate, progress=progress)


def _refit(
    run: Subject, sample: _Sample, seen: Mapping[str, Seen], fold: Ints, config: AuditConfig
) -> tuple[dict[str, Ints], Answers]:
    """Probes on the features of every view, each image answered by those that were fitted without it.

    Returns:
        Answers by view, and those of probes of shuffled labels to the shuffled labels.
    """
    classes = len(sample.labels)
    same: dict[tuple[str, ...], list[Ints]] = {}
    for classifier, own in sample.classifiers:
        same.setdefault(classifier.features_key, []).append(own)
    answers: dict[str, Ints] = {}
    shuffled = _shuffled(sample.target, sample.groups, config.seed)
    for name, one in seen.items():
        if name == "sham":
            continue
        told = np.full(len(sample.target), -1, dtype=np.int64)
        for parts in same.values():
            rows = np.concatenate(parts)
            told[rows] = retrained(one.features[rows], sample.target[rows], fold[rows], classes=classes, l2=config.l2)
        answers[f"refitted {name}"] = told
    known = seen["original"].features
    guessed = np.full(len(sample.target), -1, dtype=np.int64)
    for parts in same.values():
        rows = np.concatenate(parts)
        guessed[rows] = retrained(known[rows], shuffled[rows], fold[rows], classes=classes, l2=config.l2)
    return answers, Answers(shuffled, sample.groups, {"refitted shuffled": guessed}, classes)


def _shuffled(target: Ints, groups: Ints, seed: int) -> Ints:
    """The labels dealt out anew, whole groups together: each group gets the first label of another group."""
    first = {int(group): int(target[row]) for row, group in reversed(list(enumerate(groups)))}
    names = sorted(first)
    dealt = np.random.default_rng([seed, 2]).permutation([first[name] for name in names])
    return np.array([dealt[names.index(int(group))] for group in groups], dtype=np.int64)


def _background(
    sample: _Sample, greys: npt.NDArray[np.uint8], lungs: npt.NDArray[np.bool_], fold: Ints, config: AuditConfig
) -> tuple[dict[str, Ints], list[Trial]]:
    """Trees on each group of features outside the lungs, and on all."""
    paths, hashes = sample.manifest.paths(), sample.manifest.column("sha256")
    all_known = bool(lungs.any(axis=(1, 2)).all())  # else one rule for all: what is left out must not tell the class

    def measure(row: int) -> dict[str, list[float]]:
        data = read_indexed(paths[row], hashes[row])
        mask = lungs[row] if all_known else None
        return file_features(decode(data).pixels, len(data) / 1000) | shown_features(greys[row], mask)

    measured = [one for _, block in in_batches(measure, len(paths), batch_size=64) for one in block]
    groups = background_features(measured)
    groups["all"] = np.concatenate(list(groups.values()), axis=1)
    titles = dict(BACKGROUND) | {"all": ", ".join(list(BACKGROUND)[:-1]) + f" and {list(BACKGROUND)[-1]} together"}
    answers, trials = {}, []
    for name, values in groups.items():
        answers[f"background {name}"] = by_trees(values, sample.target, fold, seed=config.seed)
        trials.append(Trial(f"background {name}", titles[name], "data", after=f"background {name}", finds=titles[name]))
    return answers, trials


def _across_sources(
    sample: _Sample, original: Seen, fold: Ints, config: AuditConfig, *, counts: bool
) -> tuple[dict[str, Ints], list[Trial]]:
    """Probes of the other sources against probes of all, on the sources that have two classes or more.

    Only images are asked whose class stands in another of these sources too: nobody can name a class from elsewhere that is
    nowhere else.
    """
    source = np.array([s or "" for s in sample.manifest.column("source")])
    mixed = []
    for name in sorted(set(source.tolist()) - {""}):
        per_class = np.bincount(sample.target[source == name], minlength=len(sample.labels))
        if (per_class >= _FEWEST // 2).sum() > 1:
            mixed.append(name)
    rows = np.flatnonzero(np.isin(source, mixed))
    if len(mixed) < 2 or len({c.features_key for c, _ in sample.classifiers}) > 1:
        return {}, []
    places: dict[int, set[str]] = {}
    for row in rows.tolist():
        places.setdefault(int(sample.target[row]), set()).add(str(source[row]))
    shared = np.array([len(places[int(sample.target[row])]) > 1 for row in rows.tolist()], dtype=bool)
    if not shared.any():
        return {}, []
    features, target = original.features[rows], sample.target[rows]
    part = np.array([mixed.index(name) for name in source[rows]], dtype=np.int64)
    answers = {}
    for name, held in (("within sources", fold[rows]), ("across sources", part)):
        told = np.full(len(sample.target), -1, dtype=np.int64)
        named = retrained(features, target, held, classes=len(sample.labels), l2=config.l2)
        told[rows[shared]] = named[shared]
        answers[name] = told
    title = f"the images of a source ({', '.join(mixed)}) answered by a probe of the other sources alone"
    finds = "the source"
    return answers, [
        Trial("across-sources", title, "features", "across sources", "within sources", counts=counts, finds=finds)
    ]


def _attributes(sample: _Sample, original: Seen, fold: Ints, config: AuditConfig) -> list[dict[str, Any]]:
    """For each column: its values, and what a probe on the classifier's features makes of them; or why there is none."""
    found: list[dict[str, Any]] = []
    for column in _ATTRIBUTES:
        values = sample.manifest.column(column)
        names = sorted({str(v) for v in values if v is not None})
        frequent = [name for name in names if sum(v == name for v in values) >= _FEWEST]
        codes = np.array([frequent.index(v) if v in frequent else -1 for v in values], dtype=np.int64)
        one: dict[str, Any] = {"column": column, "values": names, "asked": frequent, "codes": codes, "named": None}
        if len(frequent) > 1 and len({c.features_key for c, _ in sample.classifiers}) == 1:
            one["named"] = retrained(original.features, codes, fold, classes=len(frequent), l2=config.l2)
        found.append(one)
    return found


def _sham(seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Whether nothing happens where nothing is replaced."""
    before, after = seen["original"], seen["sham"]
    shown = after.named >= 0
    changed = float(np.abs(after.scores[shown] - before.scores[shown]).max())
    flips = int((after.named[shown] != before.named[shown]).sum())
    return {"images": int(shown.sum()), "largest_change": changed, "other_answers": flips}


def _saliency(
    sample: _Sample,
    greys: npt.NDArray[np.uint8],
    lungs: npt.NDArray[np.bool_],
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
    run: Subject,
    manifest: Manifest,
    config: AuditConfig,
    inspection: Path,
    progress: Progress | None,
) -> dict[str, Any] | None:
    """Accuracy of the run's own predictions, with all images and with one of each picture that no other part shows too."""
    own = run.own_predictions(manifest)
    if not config.duplicates or own is None:
        return None
    from thoraclip.data.check import duplicate_clusters

    clusters = duplicate_clusters(manifest, inspection, progress=progress).by_id("duplicate_cluster")
    part = dict(zip(manifest.column("image_id"), manifest.parts(), strict=True))
    parts_of: dict[str, set[str | None]] = {}
    for image, cluster in clusters.items():
        if cluster is not None:
            parts_of.setdefault(cluster, set()).add(part[image])
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
    n, hits = len(kept), int(right[kept].sum())
    low, high = wilson(hits, n) if n else (0.0, 1.0)
    return {
        "images": len(judged), "accuracy": float(right.mean()), "left_out": len(judged) - n,
        "across_parts": sum(len(found) > 1 for found in parts_of.values()),
        "accuracy_without": hits / n if n else None, "low": low, "high": high,
    }  # fmt: skip
