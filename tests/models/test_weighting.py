"""Weights of images by class and source: totals, the cap, and that every fit uses them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from tests.conftest import examples

from thoraclip.labels import LabelSet
from thoraclip.methods.training.sampler import Sampler
from thoraclip.models.heads import fit_adamw, fit_lbfgs, fit_text_informed
from thoraclip.models.weighting import LARGEST_WEIGHT, class_weights, image_weights, source_weights


def filled(total: Fraction, most: list[Fraction]) -> list[Fraction]:
    """Slow oracle: raise all shares alike; whoever is full stops, and its rest goes to the others."""
    shares, is_open = [Fraction(0)] * len(most), set(range(len(most)))
    while total and is_open:
        step = min([total / len(is_open), *(most[k] - shares[k] for k in is_open)])
        for k in is_open:
            shares[k] += step
        total -= step * len(is_open)
        is_open = {k for k in is_open if shares[k] < most[k]}
    return shares


@examples(80)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1, 0, 0, 0, 0, 0, 0, 5])), min_size=1, max_size=90))
def test_weights_are_those_of_a_slow_oracle(images: list[tuple[int, int]]) -> None:
    targets, sources = np.array(images).T
    cap, names = Fraction(LARGEST_WEIGHT), sorted(set(targets.tolist()))
    weights = source_weights(targets, sources)
    in_class = filled(Fraction(len(images)), [cap * int((targets == name).sum()) for name in names])
    for name, total in zip(names, in_class, strict=True):
        own = sorted(set(sources[targets == name].tolist()))
        sizes = [int(((targets == name) & (sources == source)).sum()) for source in own]
        for source, size, share in zip(own, sizes, filled(total, [cap * size for size in sizes]), strict=True):
            np.testing.assert_allclose(weights[(targets == name) & (sources == source)], float(share / size))
    assert weights.mean() == pytest.approx(1) and weights.max() <= LARGEST_WEIGHT * (1 + 1e-12)


def test_no_image_weighs_more_than_ten_means() -> None:
    """Of 1000 images of one class 4 are of a small source: half of the weight would be 125 means each."""
    targets, sources = np.zeros(1000, dtype=np.int64), np.repeat([0, 1], [996, 4])
    weights = source_weights(targets, sources)
    assert weights[-1] == 10 and weights[0] == pytest.approx(960 / 996)


def test_the_other_kinds_are_those_of_the_class() -> None:
    targets = np.array([0, 0, 0, 1])
    for kind in ("none", "balanced"):
        assert image_weights(targets, 2, kind).tolist() == class_weights(targets, 2, kind)[targets].tolist()
    with pytest.raises(ValueError, match="needs the source"):
        image_weights(targets, 2, "source")


def case(seed: int = 0) -> tuple[Any, Any, Any, LabelSet]:
    rng = np.random.default_rng(seed)
    targets, sources = rng.choice(3, 160, p=[0.6, 0.3, 0.1]), rng.choice([-1, 0, 1], 160, p=[0.1, 0.3, 0.6])
    features = rng.normal(size=(160, 5)) + targets[:, None] * [1, 0.5, 0, 0, 0] + sources[:, None] * [0, 0, 2, 0, 0]
    return features.astype(np.float32), targets, sources, LabelSet(("a", "b", "c"))


def test_logistic_regression_is_scikit_learns_with_these_weights() -> None:
    features, targets, sources, labels = case()
    (head,) = fit_lbfgs(features, targets, labels, l2=[0.05], weighting="source", sources=sources)
    z = (features - head.mean) / head.scale
    theirs = LogisticRegression(C=1 / (0.05 * len(z)), tol=1e-10, max_iter=5000)
    theirs.fit(z, targets, sample_weight=source_weights(targets, sources))
    np.testing.assert_allclose(head.predict(features), theirs.predict_proba(z), atol=1e-4)


SOLVERS: list[Callable[..., Any]] = [
    lambda *given, **named: fit_lbfgs(*given, l2=[0.1], **named),
    lambda *given, **named: fit_adamw(*given, epochs=2, batch_size=16, learning_rate=0.01, seed=1, **named),
    lambda *given, **named: fit_text_informed(*given, texts=np.eye(3, 5), logit_scale=1.0, l2=[0.1], **named),
]


@pytest.mark.parametrize("fit", SOLVERS)
def test_with_one_source_it_is_balanced_and_with_several_it_is_not(fit: Callable[..., Any]) -> None:
    features, targets, sources, labels = case()
    balanced = fit(features, targets, labels, weighting="balanced")[-1].predict(features)
    alike = fit(features, targets, labels, weighting="source", sources=np.full(160, 7))[-1].predict(features)
    np.testing.assert_allclose(alike, balanced, atol=1e-4)
    assert (
        np.abs(
            fit(features, targets, labels, weighting="source", sources=sources)[-1].predict(features) - balanced
        ).max()
        > 0.01
    )


def test_an_image_is_drawn_as_often_as_it_weighs() -> None:
    """On average over epochs; within an epoch the images of a group differ by one draw at most."""
    _, targets, sources, _ = case()
    rows = np.arange(160) * 2 + 1
    of = Sampler(rows, targets, total=400, batch_size=10, sampling="source", seed=3, sources=sources)
    assert of.steps_per_epoch == 16
    drawn = np.zeros(160)
    for epoch in range(40):
        batches = [of.batch(epoch * 16 + step) for step in range(16)]
        samples = np.concatenate([batch.samples for batch in batches])
        own = np.bincount((np.concatenate([batch.rows for batch in batches]) - 1) // 2, minlength=160)
        assert len(np.unique(samples)) == 160 and own.sum() == 160
        for target in range(3):
            for source in (-1, 0, 1):
                counts = own[(targets == target) & (sources == source)]
                assert counts.max() - counts.min() <= 1
        drawn += own
    weights = source_weights(targets, sources)
    for target in range(3):
        for source in (-1, 0, 1):
            group = (targets == target) & (sources == source)
            assert abs(drawn[group].sum() / 40 - weights[group].sum()) < 1
    with pytest.raises(ValueError, match="needs the source"):
        Sampler(rows, targets, total=400, batch_size=10, sampling="source")
