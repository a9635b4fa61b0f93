"""The tests of an audit: of the classifier on views, of probes fitted on each view, and of trees on the background.

Each image is answered by a classifier that was fitted without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.background import BACKGROUND, background_features, file_features, shown_features
from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.views import VIEWS
from thoraclip.evaluation.shortcuts import ShortcutTest
from thoraclip.imaging import decode
from thoraclip.labels import LabelSet
from thoraclip.methods.audit.sample import AuditSample, Ints
from thoraclip.methods.audit.scoring import ViewScores
from thoraclip.models.heads import fit_lbfgs

__all__ = [
    "across_sources",
    "answer_held_out",
    "attribute_answers",
    "background_answers",
    "probe_answers",
    "probe_tests",
    "tree_answers",
    "view_tests",
]

Floats = npt.NDArray[np.floating[Any]]

_TREES, _LEAF = 32, 3
_ATTRIBUTES = ("source", "view", "sex", "format")
"""Columns of a manifest that a classifier's features are asked for."""
_FEWEST = 20
"""Images of a value below which it is not asked for."""


def probe_answers(features: Floats, target: Ints, fold: Ints, *, l2: float) -> Ints:
    """i64[N]: the class that a linear probe of the other folds names (see `heads.fit_lbfgs`).

    Args:
        features: f32[N, D]; a row with a NaN is not asked, and gets -1.
        target: i64[N], -1 where unknown.
        fold: i64[N].
        l2: penalty on the mean log-loss.

    Returns:
        -1 in a fold whose training images have one class only.
    """

    def named(train: Ints, test: Ints) -> Ints:
        present, codes = np.unique(target[train], return_inverse=True)
        labels = LabelSet(tuple(str(name) for name in present))
        (head,) = fit_lbfgs(features[train].astype(np.float32), codes, labels, l2=[l2], weighting="balanced")
        return np.asarray(present[head.predict(features[test].astype(np.float32)).argmax(axis=1)], dtype=np.int64)

    return answer_held_out(np.isfinite(features).all(axis=1) & (target >= 0), target, fold, named)


def tree_answers(features: Floats, target: Ints, fold: Ints, *, seed: int) -> Ints:
    """i64[N]: the class that extremely randomised trees (Geurts et al. 2006, Mach. Learn. 63:3) name."""
    from sklearn.ensemble import ExtraTreesClassifier

    def named(train: Ints, test: Ints) -> Ints:
        model = ExtraTreesClassifier(
            _TREES, min_samples_leaf=_LEAF, class_weight="balanced", random_state=seed, n_jobs=1
        )
        return np.asarray(model.fit(features[train], target[train]).predict(features[test]), dtype=np.int64)

    return answer_held_out(target >= 0, target, fold, named)


def answer_held_out(asked: npt.NDArray[np.bool_], target: Ints, part: Ints, named: Any) -> Ints:
    """i64[N]: every part answered by a classifier of all others; -1 where it cannot be, or an image is not asked.

    Args:
        asked: bool[N].
        target: i64[N].
        part: i64[N].
        named: (training rows, test rows) -> i64 classes of the test rows.
    """
    answers = np.full(len(target), -1, dtype=np.int64)
    for number in np.unique(part[asked]):
        train, test = np.flatnonzero(asked & (part != number)), np.flatnonzero(asked & (part == number))
        if len(np.unique(target[train])) > 1:
            answers[test] = named(train, test)
    return answers


def background_answers(
    sample: AuditSample, greys: npt.NDArray[np.uint8], lungs: npt.NDArray[np.bool_], fold: Ints, *, seed: int
) -> tuple[dict[str, Ints], list[ShortcutTest]]:
    """Trees on each group of features outside the lungs, and on all."""
    paths, hashes = sample.manifest.paths(), sample.manifest.column("sha256")
    all_known = bool(lungs.any(axis=(1, 2)).all())  # else one rule for all: what is left out must not tell the class

    def measure(row: int) -> dict[str, list[float]]:
        data = read_indexed(paths[row], hashes[row])
        mask = lungs[row] if all_known else None
        return file_features(decode(data).pixels, len(data) / 1000) | shown_features(greys[row], mask)

    measured = [features for _, block in in_batches(measure, len(paths), batch_size=64) for features in block]
    groups = background_features(measured)
    groups["all"] = np.concatenate(list(groups.values()), axis=1)
    titles = dict(BACKGROUND) | {"all": ", ".join(list(BACKGROUND)[:-1]) + f" and {list(BACKGROUND)[-1]} together"}
    answers, trials = {}, []
    for name, values in groups.items():
        answers[f"background {name}"] = tree_answers(values, sample.target, fold, seed=seed)
        trials.append(
            ShortcutTest(f"background {name}", titles[name], "data", after=f"background {name}", finds=titles[name])
        )
    return answers, trials


def across_sources(
    sample: AuditSample, original: ViewScores, fold: Ints, *, l2: float, counts: bool
) -> tuple[dict[str, Ints], list[ShortcutTest]]:
    """Probes of the other sources against probes of all, on the sources that have two classes or more.

    Only images whose class is in another of these sources too are asked: else no probe of the others can name it.
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
        answer = np.full(len(sample.target), -1, dtype=np.int64)
        named = probe_answers(features, target, held, l2=l2)
        answer[rows[shared]] = named[shared]
        answers[name] = answer
    title = f"the images of a source ({', '.join(mixed)}) answered by a probe of the other sources alone"
    finds = "the source"
    return answers, [
        ShortcutTest(
            "across-sources", title, "features", "across sources", "within sources", counts=counts, finds=finds
        )
    ]


def attribute_answers(sample: AuditSample, original: ViewScores, fold: Ints, *, l2: float) -> list[dict[str, Any]]:
    """For each column: its values, and the ones that a probe on the classifier's features names."""
    columns: list[dict[str, Any]] = []
    for column in _ATTRIBUTES:
        values = sample.manifest.column(column)
        names = sorted({str(v) for v in values if v is not None})
        frequent = [name for name in names if sum(v == name for v in values) >= _FEWEST]
        codes = np.array([frequent.index(v) if v in frequent else -1 for v in values], dtype=np.int64)
        entry: dict[str, Any] = {"column": column, "values": names, "asked": frequent, "codes": codes, "named": None}
        if len(frequent) > 1 and len({c.features_key for c, _ in sample.classifiers}) == 1:
            entry["named"] = probe_answers(original.features, codes, fold, l2=l2)
        columns.append(entry)
    return columns


def view_tests(named: Mapping[str, Ints]) -> list[ShortcutTest]:
    """What is asked of the classifier as it is; controls come last."""
    tests = [
        ShortcutTest(
            *(view.trial or (name, view.title)),
            "classifier",
            after=name,
            before="" if view.is_alone else view.before,
            counts=view.counts,
            finds=view.finds if view.counts else "",
        )
        for name, view in VIEWS.items()
        if name in named and (view.is_alone or view.before)
    ]
    return sorted(tests, key=lambda test: not test.counts)


def probe_tests(answers: Mapping[str, Ints], counts: bool) -> list[ShortcutTest]:
    """What is asked of probes that are fitted on the views; they count where the classifier is such a probe."""
    tests = []
    for name, view in VIEWS.items():
        after = f"refitted {name}"
        if after not in answers or view.refits == "no":
            continue
        if view.refits == "control":  # compared with the originals
            tests.append(ShortcutTest(after, view.title, "features", after, "refitted original", counts=False))
            continue
        before = "" if view.is_alone else "refitted original"
        tests.append(
            ShortcutTest(after, view.title, "features", after=after, before=before, counts=counts, finds=view.finds)
        )
    return tests
