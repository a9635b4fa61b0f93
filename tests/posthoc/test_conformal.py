"""Prediction sets: thresholds by a slow oracle, and the promise over many random splits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.errors import ConfigError
from thoraclip.posthoc.conformal import fit_thresholds, set_patients_needed


@examples(60)
@given(
    st.integers(0, 10**6), st.integers(1, 60), st.sampled_from(["1/10", "1/20", "1/5", "3/10", "1/3", "1/2", "9/10"])
)
def test_thresholds_equal_a_slow_oracle(seed: int, n: int, share: str) -> None:
    """Counted in fractions, so that no rounding can hide; few distinct scores, so that there are ties."""
    rng, alpha = np.random.default_rng(seed), Fraction(share)
    scores = rng.integers(1, 6, size=(n, 3)).astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    target, new = rng.integers(0, 3, n), np.concatenate([rng.dirichlet(np.ones(3), size=5), scores])
    found = fit_thresholds(scores, target, alpha=float(alpha))
    sets = found.sets(new)
    for c in range(3):
        strange = sorted(1 - float(row[c]) for row, t in zip(scores, target, strict=True) if t == c)
        rank = math.ceil((len(strange) + 1) * (1 - alpha))
        assert found.images[c] == found.patients[c] == len(strange)
        if rank > len(strange):
            assert (
                np.isinf(found.threshold[c]) and sets[:, c].all() and len(strange) < set_patients_needed(float(alpha))
            )
        else:
            assert found.threshold[c] == strange[rank - 1] and len(strange) >= set_patients_needed(float(alpha))
            assert [1 - float(row[c]) <= strange[rank - 1] for row in new] == sets[:, c].tolist()


def test_a_class_with_too_few_patients_is_in_every_set() -> None:
    assert [set_patients_needed(a) for a in (0.1, 0.05, 0.2, 0.15, 0.5)] == [9, 19, 4, 6, 1]
    target, scores = np.repeat([0, 1], [9, 8]), np.tile([0.7, 0.3], (17, 1))
    found = fit_thresholds(scores, target)
    assert np.isfinite(found.threshold[0]) and np.isinf(found.threshold[1])
    assert found.sets(np.array([[1.0, 0.0], [0.5, 0.5]])).tolist() == [[True, True], [False, True]]
    one = fit_thresholds(scores, target, patients=np.repeat([0, 1, 2], [9, 4, 4]))
    assert np.isinf(one.threshold).all() and one.images.tolist() == [9, 8], "nine images of one patient are one patient"
    assert one.patients.tolist() == [1, 2]
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=f"alpha = {alpha}"):
            fit_thresholds(scores, target, alpha=alpha)
