"""Operating points: the highest threshold whose sensitivity for new patients is as asked for on average."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ConfigError
from thoraclip.posthoc.operating import chance_of_goal, choose_threshold, positives_needed


@examples(80)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["19/20", "9/10", "1/2", "2/3"]),
)
def test_the_threshold_is_that_of_its_rank(rows: list[tuple[int, bool]], goal: str) -> None:
    """Counted in fractions; every image a patient."""
    score, positive = np.array([s / 8 for s, _ in rows]), np.array([p for _, p in rows])
    found = choose_threshold(score, positive, goal=float(Fraction(goal)))
    own = sorted((s for s, p in zip(score.tolist(), positive, strict=True) if p), reverse=True)
    rank = math.ceil(Fraction(goal) * (len(own) + 1))
    assert found == (own[rank - 1] if rank <= len(own) else None)
    assert (found is None) == (len(own) < positives_needed(float(Fraction(goal))))


def test_how_many_patients_a_goal_needs() -> None:
    assert [positives_needed(g) for g in (0.95, 0.9, 0.99, 0.5)] == [19, 9, 99, 1]
    nineteen = np.linspace(0, 1, 19)
    assert choose_threshold(nineteen, np.ones(19, dtype=bool)) == 0.0
    assert choose_threshold(nineteen, np.ones(19, dtype=bool), patients=np.arange(19) // 2) is None
    for goal in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match=f"sensitivity = {goal}"):
            choose_threshold(np.array([0.5]), np.array([True]), goal=goal)


@pytest.mark.parametrize("patients", [20, 33, 59])
def test_the_goal_is_met_on_average_and_as_often_as_said(patients: int) -> None:
    """The ceil(goal P)-th highest score, which was taken once, finds .904 of P = 20 on average."""
    rng, found = np.random.default_rng(patients), []
    for _ in range(3000):
        threshold = choose_threshold(rng.random(patients), np.ones(patients, dtype=bool))
        assert threshold is not None
        found.append(1 - threshold)  # of uniform scores
    assert 0.95 - 0.003 <= np.mean(found) <= 0.95 + 1 / (patients + 1) + 0.003
    assert chance_of_goal(patients) == pytest.approx(np.mean(np.array(found) >= 0.95), abs=0.03)
