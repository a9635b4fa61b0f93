"""Selective prediction against loops, with ties and weights."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.evaluation.calibration import accuracy_at, accuracy_curve, aurc

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


@examples(50)
@given(ANSWERS)
def test_the_curve_is_the_mean_over_all_orders_of_equal_images(rows: list[tuple[int, bool]]) -> None:
    confidence, correct = np.array([c / 3 for c, _ in rows]), np.array([r for _, r in rows])
    orders = [o for o in permutations(range(len(rows))) if all(rows[a][0] >= rows[b][0] for a, b in pairwise(o))]
    slow = [
        sum(sum(bool(correct[i]) for i in order[:k]) / k for order in orders) / len(orders)
        for k in range(1, len(rows) + 1)
    ]
    np.testing.assert_allclose(accuracy_curve(confidence, correct), slow)
    assert aurc(confidence, correct) == pytest.approx(1 - sum(slow) / len(slow))
    shares = [k / len(rows) for k in range(1, len(rows) + 1)]
    np.testing.assert_allclose(accuracy_at(confidence, correct, coverages=shares)[:, 0], slow)


@examples(50)
@given(ANSWERS, st.integers(0, 10**6))
def test_weights_are_repeated_rows(rows: list[tuple[int, bool]], seed: int) -> None:
    confidence, correct = np.array([c / 3 for c, _ in rows]), np.array([r for _, r in rows])
    weights = np.random.default_rng(seed).integers(0, 4, size=(len(rows), 3))
    weights[0] += 1
    found = accuracy_at(confidence, correct, weights.astype(np.float64), coverages=(0.3, 0.5, 1.0))
    for column in range(3):
        again = np.repeat(np.arange(len(rows)), weights[:, column])
        plain = accuracy_at(confidence[again], correct[again], coverages=(0.3, 0.5, 1.0))
        np.testing.assert_allclose(found[:, column], plain[:, 0])
