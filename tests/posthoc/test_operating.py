"""Operating points: the highest threshold that finds enough, by trying them all."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ConfigError
from thoraclip.posthoc.operating import Counts, choose_threshold, count, positives_needed


@examples(80)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["19/20", "9/10", "1/2", "99/100"]),
)
def test_the_threshold_is_the_highest_that_reaches_the_goal(rows: list[tuple[int, bool]], goal: str) -> None:
    score, positive = np.array([s / 8 for s, _ in rows]), np.array([p for _, p in rows])
    found = choose_threshold(score, positive, goal=float(Fraction(goal)))
    own = [s for s, p in zip(score.tolist(), positive, strict=True) if p]
    if not own:
        assert found is None
        return
    reached = [t for t in set(score.tolist()) if Fraction(sum(s >= t for s in own), len(own)) >= Fraction(goal)]
    assert found == max(reached)


def test_counts_by_hand_and_their_sum() -> None:
    score, positive = np.array([0.9, 0.4, 0.5, 0.1, 0.5]), np.array([True, True, False, False, True])
    assert count(score, positive, 0.5) == Counts(found=2, positives=3, cleared=1, negatives=2)
    assert count(score, positive, 0.5) + count(score, positive, 0.0) == Counts(5, 6, 1, 4)


def test_how_many_positives_a_goal_needs() -> None:
    assert [positives_needed(g) for g in (0.95, 0.9, 0.99, 0.5)] == [20, 10, 100, 2]
    for goal in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=f"sensitivity = {goal}"):
            choose_threshold(np.array([0.5]), np.array([True]), goal=goal)
