"""Intervals of shares: covered as often as stated, by image and by patient; monotone up to the perfect share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.proportions import patient_share, share_interval, t_quantile, wilson


def test_it_is_wilsons_interval_where_the_variance_is_binomial() -> None:
    """For a share off the ends and infinite degrees of freedom."""
    for right, of in ((500, 1000), (300, 400)):
        share = right / of
        found = share_interval(share, share * (1 - share) / of, clusters=of, df=np.inf)
        assert found == pytest.approx(wilson(right, of), abs=1e-12)
    assert t_quantile(np.inf) == pytest.approx(1.959964, abs=1e-6) and t_quantile(2) == pytest.approx(
        4.302653, abs=1e-6
    )


@examples(100)
@given(st.integers(2, 400), st.integers(1, 20), st.integers(1, 30), st.integers(0, 10**6))
def test_no_share_has_a_higher_lower_bound_than_a_perfect_one(patients: int, each: int, wrong: int, seed: int) -> None:
    owners = np.repeat(np.arange(patients), each)
    perfect = patient_share(np.ones(len(owners), dtype=bool), owners)
    right = np.ones(len(owners), dtype=bool)
    right[np.random.default_rng(seed).integers(0, len(owners), wrong)] = False
    low, high = patient_share(right, owners)
    assert low <= perfect[0] + 1e-12 and perfect[1] == 1.0 > perfect[0]
    assert patient_share(~right, owners) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert 0 <= low <= right.mean() <= high <= 1


def test_one_patient_tells_nothing() -> None:
    assert patient_share(np.ones(50, dtype=bool), np.zeros(50, dtype=np.int64)) == (0.0, 1.0)


@pytest.mark.parametrize(("truth", "spread"), [(0.5, 2.0), (0.9, 2.0), (0.98, 2.0), (0.7, 0.0)])
def test_it_covers_the_share_of_new_patients(truth: float, spread: float) -> None:
    """30 patients of 10 images each, whose images are alike (`spread` of their logits); 600 samples. Wilson's interval,
    image by image, covers 55 to 75 % of such."""
    rng = np.random.default_rng(5)
    logits = np.linspace(-12, 12, 4001)
    pool = rng.normal(0, spread, 20000)
    means = np.array([(1 / (1 + np.exp(-(centre + pool)))).mean() for centre in logits])
    centre, owners, covered = float(np.interp(truth, means, logits)), np.repeat(np.arange(30), 10), []
    for _ in range(600):
        chance = 1 / (1 + np.exp(-(centre + rng.normal(0, spread, 30))))
        low, high = patient_share(rng.random(300) < chance[owners], owners)
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.995
