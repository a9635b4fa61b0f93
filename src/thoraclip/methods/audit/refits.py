"""What is fitted anew for an audit: probes on the features of a view, and the control on shuffled labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from thoraclip.data.splits import assign_groups
from thoraclip.dtypes import Floats, Ints
from thoraclip.evaluation.shortcuts import Answers
from thoraclip.methods.audit.probes import probe_answers, tree_answers
from thoraclip.methods.audit.sample import AuditSample
from thoraclip.methods.audit.scoring import ViewScores

__all__ = ["held_out_folds", "refit", "shuffled_answers", "shuffled_labels"]

_PERMUTATIONS = 10
"""Of the labels, for what is fitted on shuffled ones."""


def refit(sample: AuditSample, view: ViewScores, target: Ints, fold: Ints, *, l2: float) -> Ints:
    """i64[N]: answers of probes on the features of a view, each image answered by those that were fitted without it."""
    same: dict[tuple[str, ...], list[Ints]] = {}
    for classifier, own in sample.classifiers:
        same.setdefault(classifier.features_key, []).append(own)
    answer = np.full(len(target), -1, dtype=np.int64)
    for parts in same.values():
        rows = np.concatenate(parts)
        answer[rows] = probe_answers(view.features[rows], target[rows], fold[rows], l2=l2)
    return answer


def shuffled_answers(
    sample: AuditSample, original: ViewScores, features: Floats, *, folds: int, l2: float, seed: int
) -> Iterator[Answers]:
    """What probes and trees answer where the labels were shuffled before fitting, in folds that hold the shuffled
    classes in equal shares.

    In folds of other shares a class that is rare in one is frequent in all others, so that what is fitted there names
    it too seldom, and the answers fall below chance.
    """
    for number in range(_PERMUTATIONS):
        target = shuffled_labels(sample.target, sample.groups, [seed, 2, number])
        fold = held_out_folds(target, sample.groups, folds, seed)
        named = {
            "shuffled probe": refit(sample, original, target, fold, l2=l2),
            "shuffled trees": tree_answers(features, target, fold, seed=seed),
        }
        yield Answers(target, sample.groups, named, len(sample.labels))


def held_out_folds(target: Ints, groups: Ints, folds: int, seed: int) -> Ints:
    """i64[N]: the fold in which each image is held out."""
    return assign_groups(target, [str(group) for group in groups], [1 / folds] * folds, seed=seed)


def shuffled_labels(target: Ints, groups: Ints, seed: Sequence[int]) -> Ints:
    """The labels dealt out anew, whole groups together: each group gets the first label of another group."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(target[first])[number], dtype=np.int64)
