"""Probes and trees that are fitted anew: each image by those that have not seen it, and nothing where nothing can be said."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

from thoraclip.data.splits import assign_groups
from thoraclip.methods.audit.probes import answer_held_out, probe_answers, tree_answers
from thoraclip.methods.audit.refits import shuffled_labels


def problem(n: int = 140, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, three classes that are not equally frequent, and four folds."""
    rng = np.random.default_rng(seed)
    target = np.array([0, 0, 0, 0, 1, 1, 2])[np.arange(n) % 7]
    features = rng.normal(size=(n, 8)).astype(np.float32)
    features[:, 0] += 2.0 * target
    return features, target.astype(np.int64), rng.integers(0, 4, n).astype(np.int64)


def test_each_image_is_answered_by_scikit_learns_classifier_of_the_other_folds() -> None:
    """A penalised logistic regression, and extremely randomised trees, which do not train on what has no label either."""
    features, target, fold = problem()
    named, unknown = probe_answers(features, target, fold, l2=0.1), np.where(np.arange(140) < 20, -1, target)
    by_tree = tree_answers(features, unknown, fold, seed=7)
    assert (by_tree[:20] == -1).all()
    for number in range(4):
        train, test = fold != number, fold == number
        mean, scale = features[train].mean(axis=0), features[train].std(axis=0)
        model = LogisticRegression(C=1 / (0.1 * train.sum()), max_iter=5000, tol=1e-8, class_weight="balanced")
        model.fit((features[train] - mean) / scale, target[train])
        assert (named[test] == model.predict((features[test] - mean) / scale)).mean() > 0.98
        train, test = train & (unknown >= 0), test & (unknown >= 0)
        trees = ExtraTreesClassifier(32, min_samples_leaf=3, class_weight="balanced", random_state=7)
        assert np.array_equal(by_tree[test], trees.fit(features[train], target[train]).predict(features[test]))


def test_who_is_not_asked_has_no_answer_and_trains_nobody() -> None:
    features, target, fold = problem()
    without = features.copy()
    without[::7, 2] = np.nan
    named = probe_answers(without, target, fold, l2=0.1)
    assert (named[::7] == -1).all() and (np.delete(named, np.s_[::7]) >= 0).all()
    kept = np.setdiff1d(np.arange(140), np.arange(0, 140, 7))
    assert np.array_equal(named[kept], probe_answers(features[kept], target[kept], fold[kept], l2=0.1))
    unknown = np.where(np.arange(140) < 30, -1, target)
    assert (probe_answers(features, unknown, fold, l2=0.1)[:30] == -1).all()


def test_a_class_that_the_training_part_lacks_is_never_named_and_one_class_alone_names_nothing() -> None:
    target = np.array([0, 0, 0, 1, 1, 1])
    part = np.array([0, 0, 0, 1, 1, 1])
    assert (answer_held_out(np.ones(6, bool), target, part, lambda train, test: 1 / 0) == -1).all()
    features, target, fold = problem()
    lacking = np.where((target == 2) & (fold != 0), 1, target)
    assert set(probe_answers(features, lacking, fold, l2=0.1)[fold == 0]) == {0, 1}


def test_groups_stay_together_when_parts_and_labels_are_dealt_out() -> None:
    target = (np.arange(90) // 3 % 3).astype(np.int64)
    groups = (np.arange(90) // 3).astype(np.int64)
    fold, other = (assign_groups(target, [str(g) for g in groups], [0.2] * 5, seed=seed) for seed in (0, 1))
    assert np.bincount(fold).tolist() == [18] * 5 and (fold != other).any()
    shuffled = shuffled_labels(target, groups, [0])
    for group in range(30):
        own = groups == group
        assert len(set(fold[own])) == 1 and len(set(shuffled[own])) == 1
    assert np.array_equal(np.bincount(shuffled), np.bincount(target)) and (shuffled != target).any()
    assert np.array_equal(shuffled, shuffled_labels(target, groups, [0]))
