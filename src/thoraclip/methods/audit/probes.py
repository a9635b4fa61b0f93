"""The tests of an audit: of the classifier on views, of probes fitted on each view, and of trees on the background.

Each image is answered by a classifier that was fitted without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.background import (
    BACKGROUND,
    STROKES,
    background_features,
    edge_strokes,
    file_features,
    shown_features,
)
from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.views import VIEWS
from thoraclip.dtypes import Floats, Greys, Ints, Masks
from thoraclip.evaluation.shortcuts import ShortcutTest
from thoraclip.imaging import decode
from thoraclip.labels import LabelSet
from thoraclip.methods.audit.sample import AuditSample
from thoraclip.methods.audit.scoring import ViewScores
from thoraclip.models.heads import fit_lbfgs

__all__ = [
    "across_sources",
    "answer_held_out",
    "attribute_answers",
    "background_answers",
    "background_values",
    "probe_answers",
    "probe_tests",
    "stroke_answers",
    "tree_answers",
    "view_tests",
]

Features = npt.NDArray[np.floating[Any]]

_TREES, _LEAF = 32, 3
_STROKES, _COLUMNS = 64, 8192
"""Pixels by which trees name a class, and those that are compared at once."""
_ATTRIBUTES = ("source", "view", "sex", "format")
"""Columns of a manifest that a classifier's features are asked for."""
_LIKE = "random-removed"
"""The control of what replaces as many pixels or more in the same ways."""
_FEWEST = 20
"""Images of a value below which it is not asked for."""


def probe_answers(features: Features, target: Ints, fold: Ints, *, l2: float) -> Ints:
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


def tree_answers(features: Features, target: Ints, fold: Ints, *, seed: int) -> Ints:
    """i64[N]: the class that extremely randomised trees (Geurts et al. 2006, Mach. Learn. 63:3) name."""

    def named(train: Ints, test: Ints) -> Ints:
        return _trees(features[train], target[train], features[test], seed)

    return answer_held_out(target >= 0, target, fold, named)


def _trees(train: npt.NDArray[Any], target: Ints, test: npt.NDArray[Any], seed: int) -> Ints:
    from sklearn.ensemble import ExtraTreesClassifier

    model = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF, class_weight="balanced", random_state=seed, n_jobs=1)
    return np.asarray(model.fit(train, target).predict(test), dtype=np.int64)


def answer_held_out(asked: Masks, target: Ints, part: Ints, named: Any) -> Ints:
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


def stroke_answers(strokes: npt.NDArray[np.int8], target: Ints, fold: Ints, *, seed: int) -> Ints:
    """i64[N]: the class that trees name by the pixels i8[N, K] that tell the training images' classes apart best, by
    the F of an analysis of variance."""

    def named(train: Ints, test: Ints) -> Ints:
        one_hot = (target[train] == np.unique(target[train])[:, None]).astype(np.float32)  # [C, N]
        count, best = one_hot.sum(axis=1, keepdims=True), []
        for columns in np.array_split(np.arange(strokes.shape[1]), max(1, strokes.shape[1] // _COLUMNS)):
            values = strokes[np.ix_(train, columns)].astype(np.float32)
            mean = values.mean(axis=0)
            between = (count * ((one_hot @ values) / count - mean) ** 2).sum(axis=0)
            best.append(between / np.maximum(((values - mean) ** 2).sum(axis=0) - between, 1.0))
        chosen = np.argsort(-np.concatenate(best), kind="stable")[:_STROKES]
        return _trees(strokes[np.ix_(train, chosen)], target[train], strokes[np.ix_(test, chosen)], seed)

    return answer_held_out(target >= 0, target, fold, named)


def background_values(
    sample: AuditSample, greys: Greys, lungs: Masks
) -> tuple[dict[str, Floats], npt.NDArray[np.int8]]:
    """Group -> f64[N, K] of what is measured outside the lungs, and of all groups; and the strokes, i8[N, K]."""
    paths, hashes, bits = sample.manifest.paths(), sample.manifest.column("sha256"), sample.manifest.bits
    all_known = bool(lungs.any(axis=(1, 2)).all())  # else one rule for all: what is left out must not tell the class

    def measure(row: int) -> tuple[dict[str, list[float]], npt.NDArray[np.int8]]:
        data = read_indexed(paths[row], hashes[row])
        pixels, mask = decode(data, bits=bits[row]).pixels, lungs[row] if all_known else None
        return file_features(pixels, len(data) / 1000) | shown_features(greys[row], mask), edge_strokes(pixels)

    measured = [one for _, block in in_batches(measure, len(paths), batch_size=64) for one in block]
    groups = background_features([features for features, _ in measured])
    groups["all"] = np.concatenate(list(groups.values()), axis=1)
    return groups, np.stack([strokes for _, strokes in measured])


def background_answers(
    groups: Mapping[str, Floats], strokes: npt.NDArray[np.int8], target: Ints, fold: Ints, *, seed: int
) -> tuple[dict[str, Ints], list[ShortcutTest]]:
    """Trees on each group of features outside the lungs, on all, and on the strokes (see `background_values`)."""
    titles = dict(BACKGROUND) | {"all": ", ".join(list(BACKGROUND)[:-1]) + f" and {list(BACKGROUND)[-1]} together"}
    titles["strokes"] = STROKES
    answers = {f"background {name}": tree_answers(values, target, fold, seed=seed) for name, values in groups.items()}
    answers["background strokes"] = stroke_answers(strokes, target, fold, seed=seed)
    tests = [
        ShortcutTest(f"background {name}", title, "data", "trees", f"background {name}", finds=title)
        for name, title in titles.items()
    ]
    return answers, tests


def across_sources(
    sample: AuditSample, original: ViewScores, fold: Ints, *, l2: float
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
    asked = ShortcutTest(
        "across-sources", title, "data", "probe", "across sources", "within sources", finds="the source"
    )
    return answers, [asked]


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


def view_tests(named: Collection[str]) -> list[ShortcutTest]:
    """What is asked of the classifier as it is; controls come last."""
    tests = [
        ShortcutTest(
            *(view.trial or (name, view.title)),
            asks="classifier" if view.counts else "control",
            by="classifier",
            after=name,
            before="" if view.is_alone else view.before,
            finds=view.finds if view.counts else "",
            control=_LIKE if view.is_alone else "",
        )
        for name, view in VIEWS.items()
        if name in named and (view.is_alone or view.before)
    ]
    return sorted(tests, key=lambda test: test.asks)


def probe_tests(answers: Collection[str]) -> list[ShortcutTest]:
    """What is asked of probes that are fitted on the views; controls, compared with the originals, come last."""
    tests = []
    for name, view in VIEWS.items():
        if f"refitted {name}" not in answers or view.refits == "no":
            continue
        counts = view.refits == "yes"
        before = "" if view.is_alone else f"refitted {view.before if counts else 'original'}"
        tests.append(
            ShortcutTest(
                f"refitted {name}",
                view.title,
                asks="data" if counts else "control",
                by="probe",
                after=f"refitted {name}",
                before=before,
                finds=view.finds if counts else "",
                control=f"refitted {_LIKE}" if view.is_alone else "",
            )
        )
    return sorted(tests, key=lambda test: test.asks != "data")
