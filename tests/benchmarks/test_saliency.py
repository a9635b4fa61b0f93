"""Measures of heat maps against slow re-tellings of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.saliency import (
    POINTING_TOLERANCE,
    curve_area,
    mass_share,
    mean_with_interval,
    points_at,
    rank_correlation,
    ratio_with_interval,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr, t

from thoraclip.errors import MismatchError


@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(4, 40), st.floats(0, 0.5))
def test_pointing_is_a_search_around_the_hottest_pixel(seed: int, height: int, width: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    heat, mask = rng.random((height, width)), rng.random((height, width)) < 0.05
    y, x = divmod(int(heat.argmax()), width)
    expected = any(
        (r - y) ** 2 + (c - x) ** 2 <= (tolerance * max(height, width)) ** 2
        for r in range(height)
        for c in range(width)
        if mask[r, c]
    )
    assert points_at(heat, mask, tolerance=tolerance) is expected


def test_the_tolerance_is_three_pixels_of_a_hundred() -> None:
    mask = np.zeros((100, 80), bool)
    mask[50, 40] = True
    for distance, hit in ((0, True), (3, True), (4, False)):
        heat = np.zeros((100, 80))
        heat[50 + distance, 40] = 1
        assert points_at(heat, mask) is hit
        assert not points_at(heat, np.zeros_like(mask)), "there is nothing to point at"
    assert POINTING_TOLERANCE == 0.03
    assert not points_at(np.ones((100, 80)), np.ones((100, 80), bool)), "a flat map points at nothing"


@given(st.integers(0, 10_000))
def test_the_masses_of_a_mask_and_of_the_rest_are_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heat, mask = rng.random((9, 7)).astype(np.float32), rng.random((9, 7)) < 0.4
    by_hand = sum(float(h) for h, m in zip(heat.ravel(), mask.ravel(), strict=True) if m) / float(heat.sum())
    assert mass_share(heat, mask) == pytest.approx(by_hand, rel=1e-5)
    assert mass_share(heat, mask) + mass_share(heat, ~mask) == pytest.approx(1)
    assert mass_share(np.ones_like(heat), mask) == pytest.approx(mask.mean()), "a flat map has the area's share"
    assert mass_share(np.zeros_like(heat), mask) == 0


def test_the_area_of_a_straight_line_and_of_a_step() -> None:
    assert curve_area(np.linspace(1, 0, 9)) == pytest.approx(0.5)
    assert curve_area(np.array([1.0, 0, 0, 0, 0])) == pytest.approx(0.125)
    points = np.random.default_rng(0).random(12)
    assert curve_area(points) == pytest.approx(np.trapezoid(points, np.linspace(0, 1, 12)))


@given(st.integers(0, 10_000))
def test_the_correlation_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, (6, 6)).astype(float), rng.random((6, 6))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-12)
    assert rank_correlation(b, 3 * b + 1) == pytest.approx(1)
    assert rank_correlation(a, np.zeros((6, 6))) == 0


def test_intervals_cover_the_mean_and_the_ratio() -> None:
    """Over 300 sets of 60 images; 95 % within what 300 sets can tell."""
    rng = np.random.default_rng(3)
    covered = {"hits": 0, "mass": 0, "ratio": 0}
    for number in range(300):
        area = rng.uniform(0.02, 0.3, 60)
        mass = 2 * area * rng.uniform(0.5, 1.5, 60)
        hits = (rng.random(60) < 0.4).astype(float)
        found = {
            "hits": (mean_with_interval(hits, is_share=True, resamples=300, seed=number), 0.4),
            "mass": (mean_with_interval(mass, resamples=300, seed=number), 0.32),
            "ratio": (ratio_with_interval(mass, area, resamples=300, seed=number), 2.0),
        }
        for name, (interval, truth) in found.items():
            assert interval.low is not None and interval.high is not None
            covered[name] += interval.low <= truth <= interval.high
    assert all(0.9 <= count / 300 <= 0.99 for count in covered.values()), covered


def test_all_hits_get_a_bound_and_one_image_none() -> None:
    every = mean_with_interval(np.ones(30), is_share=True)
    assert (every.value, every.high) == (1.0, 1.0)
    bound = 30 / (30 + t.ppf(0.975, 29) ** 2)
    assert every.low == pytest.approx(bound)
    none = mean_with_interval(np.zeros(30), is_share=True)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - bound))
    assert mean_with_interval(np.zeros(30)).reason is not None, "of what is no share, the bound is not known"
    alone, single = ratio_with_interval(np.array([0.2]), np.array([0.1])), mean_with_interval(np.array([0.2]))
    assert (alone.value, alone.low, single.low) == (2.0, None, None)


@pytest.mark.parametrize("given", [{}, {"resamples": 300, "seed": 4}])
def test_intervals_are_percentiles_over_images_drawn_by_the_seed(given: dict[str, int]) -> None:
    """Two thousand resamples and seed 0, where nothing else is said."""
    resamples, seed = given.get("resamples", 2000), given.get("seed", 0)
    for count in (2, 20):
        one, two = np.random.default_rng(0).uniform(0.1, 0.5, (2, count))
        drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, count, size=(resamples, count))
        for found, values in (
            (mean_with_interval(one, **given), one[drawn].mean(axis=1)),
            (ratio_with_interval(one, two, **given), one[drawn].sum(axis=1) / two[drawn].sum(axis=1)),
        ):
            assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_shapes_must_agree() -> None:
    for measure in (points_at, mass_share, rank_correlation):
        with pytest.raises(MismatchError, match=r"map \[3, 4\] and \[4, 3\]: both must have the same"):
            measure(np.ones((3, 4)), np.ones((4, 3), bool))
