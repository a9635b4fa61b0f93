"""The scores that the out-of-distribution score is compared with, against slow oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmarks.ood_kinds import fit_knn, fit_relative
from sklearn.neighbors import NearestNeighbors
from tests.posthoc.test_ood import mahalanobis_oracle, toy

from thoraclip.posthoc.ood import threshold_of

KINDS = {"knn": fit_knn, "relative": fit_relative}


@pytest.mark.parametrize("k", [1, 5, 17])
def test_knn_is_the_brute_force_distance_to_the_kth_neighbour(k: int) -> None:
    train, strange = toy()[0], toy(seed=5)[0] * np.linspace(-1, 3, 6, dtype=np.float32)
    score = fit_knn(train, held_out=toy(seed=1)[0], neighbours=k).score(strange)
    unit = [row / np.sqrt((row.astype(float) ** 2).sum()) for row in train]
    for row, found in zip(strange, score, strict=True):
        one = row / np.sqrt((row.astype(float) ** 2).sum())
        assert found == pytest.approx(sorted(float(np.linalg.norm(one - other)) for other in unit)[k - 1], abs=2e-4)


def test_the_relative_score_is_that_of_the_explicit_inverses() -> None:
    features, targets = toy()
    strange = toy(seed=5)[0] * np.linspace(-1, 3, 6, dtype=np.float32)
    wide = features.astype(float)
    means, middle = [wide[targets == c].mean(axis=0) for c in range(3)], wide.mean(axis=0)
    own = mahalanobis_oracle(strange, np.stack([r - means[t] for r, t in zip(wide, targets, strict=True)]), means)
    background = mahalanobis_oracle(strange, wide - middle, [middle])
    score = fit_relative(features, targets=targets, held_out=toy(seed=1)[0]).score(strange)
    np.testing.assert_allclose(score, np.subtract(own, background), rtol=1e-3, atol=1e-4 * max(background))


@pytest.mark.parametrize("fit", KINDS.values(), ids=KINDS)
def test_order_and_company_do_not_matter(fit: Callable[..., Any]) -> None:
    (features, targets), held, strange = toy(), toy(seed=1)[0], toy(n=2100, seed=2)[0]
    order = np.random.default_rng(1).permutation(120)
    first = fit(features, targets=targets, held_out=held)
    again = fit(features[order], targets=targets[order], held_out=held[::-1])
    scores = first.score(strange)
    np.testing.assert_allclose(again.score(strange), scores, rtol=1e-4, atol=1e-4)
    assert again.threshold == pytest.approx(first.threshold, rel=1e-4)
    np.testing.assert_allclose(first.score(strange[1000:1100]), scores[1000:1100], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fit", KINDS.values(), ids=KINDS)
def test_the_threshold_is_that_of_the_held_out_scores(fit: Callable[..., Any]) -> None:
    (features, targets), held = toy(), toy(n=37, seed=1)[0]
    fitted = fit(features, targets=targets, held_out=held, false_positive_rate=0.1)
    assert fitted.threshold == threshold_of(fitted.score(held), 0.1)
    assert fitted.is_flagged(fitted.score(held)).sum() == 37 - 35, "the threshold itself is not beyond it"


def test_the_reference_rows_calibrate_knn_by_leaving_each_out() -> None:
    features = toy(n=900, d=12)[0]
    fitted = fit_knn(features, held_out=None, neighbours=3, false_positive_rate=0.05)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = NearestNeighbors(n_neighbors=4).fit(unit).kneighbors(unit)[0][:, 3]  # the first neighbour is the row itself
    assert fitted.threshold == pytest.approx(threshold_of(near, 0.05), abs=1e-4)


def test_the_reference_is_bounded_and_drawn_by_the_seed() -> None:
    train, held = toy(n=300)[0], toy(seed=1)[0]
    first, again, other = (fit_knn(train, held_out=held, max_rows=100, seed=seed).score(train) for seed in (1, 1, 2))
    assert np.isclose(fit_knn(train, held_out=held, neighbours=1, max_rows=100).score(train), 0, atol=1e-3).sum() == 100
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
