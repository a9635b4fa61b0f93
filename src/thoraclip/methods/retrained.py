"""Classifiers that an audit fits anew, on some of its images, to ask what the others can be told apart by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.splits import assign_groups
from thoraclip.labels import LabelSet
from thoraclip.models.heads import fit_lbfgs

__all__ = ["across_parts", "by_trees", "held_out", "retrained"]

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

_TREES, _LEAF = 32, 3


def held_out(target: Ints, groups: Sequence[str], *, folds: int, seed: int) -> Ints:
    """i64[N]: the fold in which each image is held out; whole groups together, classes in equal shares."""
    return assign_groups(target, groups, [1 / folds] * folds, seed=seed)


def retrained(features: Floats, target: Ints, fold: Ints, *, classes: int, l2: float) -> Ints:
    """i64[N]: the class that a linear probe of the other folds names (see `heads.fit_lbfgs`).

    Args:
        features: f32[N, D]; a row with a NaN is not asked, and gets -1.
        target: i64[N], -1 where unknown.
        fold: i64[N].
        classes: C.
        l2: penalty on the mean log-loss.

    Returns:
        -1 in a fold whose training images have one class only.
    """

    def named(train: Ints, test: Ints) -> Ints:
        return _linear(features[train], target[train], features[test], classes=classes, l2=l2)

    return across_parts(np.isfinite(features).all(axis=1) & (target >= 0), target, fold, named)


def by_trees(features: Floats, target: Ints, fold: Ints, *, seed: int) -> Ints:
    """i64[N]: the class that extremely randomised trees of the other folds name (Geurts et al. 2006, Mach. Learn. 63:3)."""
    from sklearn.ensemble import ExtraTreesClassifier

    def named(train: Ints, test: Ints) -> Ints:
        model = ExtraTreesClassifier(
            _TREES, min_samples_leaf=_LEAF, class_weight="balanced", random_state=seed, n_jobs=1
        )
        return np.asarray(model.fit(features[train], target[train]).predict(features[test]), dtype=np.int64)

    return across_parts(target >= 0, target, fold, named)


def across_parts(asked: npt.NDArray[np.bool_], target: Ints, part: Ints, named: Any) -> Ints:
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


def _linear(x: Floats, y: Ints, unseen: Floats, *, classes: int, l2: float) -> Ints:
    present = np.unique(y)
    position: Mapping[int, int] = {int(name): number for number, name in enumerate(present)}
    labels = LabelSet(tuple(str(name) for name in present))
    codes = np.array([position[int(name)] for name in y], dtype=np.int64)
    head = fit_lbfgs(x.astype(np.float32), codes, labels, l2=[l2], weighting="balanced")[0]
    return np.asarray(present[head.predict(unseen.astype(np.float32)).argmax(axis=1)], dtype=np.int64)
