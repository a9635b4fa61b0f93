"""Coverage by simulation, and the edges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from tests.conftest import examples

from thoraclip.evaluation import calibration
from thoraclip.evaluation.intervals import Estimate, estimate
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.resampling import PreparedTable, replicate, resample_weights
from thoraclip.evaluation.trainings import SEEDS, Variance

RESAMPLES, N = 200, 200


def _draw(rng: np.random.Generator, n: int, sharpness: float) -> tuple[Scored, npt.NDArray[np.float64]]:
    """Three classes of unequal size; `sharpness` 1 is perfectly calibrated. Also the true class probabilities."""
    logits = 1.6 * rng.normal(size=(n, 3)) + np.array([0.6, 0.0, -0.5])
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return Scored(target, np.exp(sharpness * (logits - logits.max(axis=1, keepdims=True)))), truth


def _true_ece(rng: np.random.Generator, sharpness: float) -> float:
    scored, truth = _draw(rng, 200_000, sharpness)
    member = calibration.equal_mass_bins(scored.confidence)
    chance = truth[np.arange(len(truth)), scored.predicted]
    return float(np.abs(np.bincount(member, weights=chance - scored.confidence)).sum() / len(truth))


def test_coverage() -> None:
    """Of 150 sets of a calibrated model, within what so many can tell of 95 %."""
    rng, sets, sharpness = np.random.default_rng(20), 150, 1.0
    large, _ = _draw(rng, 200_000, sharpness)
    truth = {name: METRICS[name].point(large) for name in ("accuracy", "macro_f1", "auroc", "log_loss")}
    truth["ece"] = _true_ece(rng, sharpness)
    covered = dict.fromkeys(truth, 0)
    for number in range(sets):
        scored, _ = _draw(rng, N, sharpness)
        values = PreparedTable(scored).metrics(np.ones((N, 1))).headline
        (drawn,) = replicate([scored], np.arange(N), resamples=RESAMPLES, seed=number)
        for name in truth:
            metric = METRICS[name]
            found = estimate(float(values[name][0]), drawn.headline[name], clusters=N, bounds=metric.bounds,
                             higher_is_better=metric.higher_is_better, noise=drawn.noise.get(name))  # fmt: skip
            assert found.low <= found.value <= found.high
            covered[name] += found.low <= truth[name] <= found.high
    share = {name: count / sets for name, count in covered.items()}
    assert all(0.9 <= share[name] <= 0.99 for name in ("accuracy", "macro_f1", "auroc")), share
    assert all(0.87 <= share[name] <= 1 for name in ("log_loss", "ece")), share


@pytest.mark.parametrize(("truth", "patients", "each"), [(0.984, 200, 1), (0.995, 300, 1), (0.95, 40, 10)])
def test_coverage_near_the_ceiling(truth: float, patients: int, each: int) -> None:
    """Of accuracies and macro F1 values near 1, by image and by patient; percentiles cover 81 to 87 % there."""
    rng, sets, covered = np.random.default_rng(8), 200, np.zeros(2)
    owners, target = np.repeat(np.arange(patients), each), np.arange(patients * each) // each % 2
    for number in range(sets):
        wrong = rng.beta(0.3, 0.3 * truth / (1 - truth), patients)[owners] if each > 1 else 1 - truth
        right = rng.random(len(owners)) >= wrong
        scored = Scored(target, np.eye(2)[np.where(right, target, 1 - target)] * 0.8 + 0.1)
        (drawn,) = replicate([scored], owners, resamples=RESAMPLES, seed=number)
        for place, name in enumerate(("accuracy", "macro_f1")):
            value = METRICS[name].point(scored)
            found = estimate(value, drawn.headline[name], clusters=patients)
            covered[place] += found.low <= truth <= found.high
    assert (covered / sets >= 0.91).all(), covered / sets


@examples(40)
@given(st.integers(5, 400), st.integers(1, 6), st.integers(1, 30), st.integers(0, 10**6))
def test_no_score_has_a_higher_lower_bound_than_a_perfect_one(patients: int, each: int, wrong: int, seed: int) -> None:
    owners, rng = np.repeat(np.arange(patients), each), np.random.default_rng(seed)
    right = np.ones(len(owners), dtype=bool)
    right[rng.integers(0, len(owners), wrong)] = False
    weights = np.concatenate(list(resample_weights(owners, resamples=100, seed=1)), axis=1)
    drawn = right @ weights / weights.sum(axis=0)
    found = estimate(float(right.mean()), drawn, clusters=patients)
    perfect = estimate(1.0, np.ones(100), clusters=patients)
    assert (
        found.low <= perfect.low + 1e-12
        and perfect.high == 1.0 > perfect.low
        and found.low <= found.value <= found.high <= 1
    )


def test_what_never_varies() -> None:
    perfect = estimate(1.0, np.ones(200), clusters=50)
    t2 = t.ppf(0.975, 49) ** 2
    assert (perfect.value, perfect.high) == (1.0, 1.0) and perfect.low == pytest.approx(50 / (50 + t2))
    assert estimate(0.0, np.zeros(200), clusters=50).high == pytest.approx(1 - perfect.low)
    half = estimate(0.0, np.zeros(200), clusters=50, bounds=(-1.0, 1.0))
    assert half.low == pytest.approx(-half.high) and 0 < half.high < 0.5, "a correlation of 0"
    for value, noise in ((0.0, None), (0.0, np.zeros(200))):
        unknown = estimate(value, np.zeros(200), clusters=50, higher_is_better=False, noise=noise)
        assert unknown.low is None and "0 in every resample" in str(unknown.reason)
    assert estimate(0.4, np.full(200, 0.4), clusters=50, exact=True) == Estimate(0.4, 0.4, 0.4)
    assert estimate(0.4, np.linspace(0.3, 0.5, 200), clusters=50, exact=True).low < 0.4


def test_trainings_widen_every_interval() -> None:
    drawn, seeds = np.random.default_rng(0).normal(0.8, 0.02, 500), Variance(0.03**2, 2, SEEDS)
    for more in ({}, {"higher_is_better": False}, {"higher_is_better": False, "noise": np.full(500, 0.001)}):
        plain = estimate(0.8, drawn, clusters=300, **more)
        wide = estimate(0.8, drawn, clusters=300, training=seeds, **more)
        assert wide.low < plain.low - 0.02 and wide.high > plain.high + 0.02
        assert wide.variance is not None and wide.variance.source == SEEDS
        assert wide.variance.value == pytest.approx(drawn.var(ddof=1) * 300 / 299 + 0.03**2)
    loss = {
        k: estimate(0.8, drawn, clusters=300, higher_is_better=False, training=v) for k, v in ((0, None), (1, seeds))
    }
    reach = np.hypot(loss[0].high - 0.8, t.ppf(0.975, 2) * 0.03)
    assert loss[1].high - 0.8 == pytest.approx(reach), "both sources add in squares"


def test_what_does_not_exist_is_null_with_a_reason() -> None:
    assert estimate(None, None, clusters=5).as_json()["value"] is None
    alone = estimate(0.5, None, clusters=1).as_json()
    assert alone["value"] == 0.5 and alone["low"] is None and "nothing to resample" in str(alone["reason"])
    rare = estimate(0.7, np.array([np.nan, np.nan, 0.7]), clusters=9)
    assert rare.low is None and rare.reason is not None
    assert estimate(0.7, np.array([np.nan, np.nan, 0.6, 0.7]), clusters=9).low is not None, "half of them do"


def test_the_value_lies_inside_the_interval() -> None:
    loss = estimate(0.9, np.linspace(0.5, 0.8, 100), clusters=50, higher_is_better=False)
    assert loss.high == 0.9 and loss.low == pytest.approx(0.5075)
    beyond = estimate(0.99, np.linspace(0.9, 1.2, 100), clusters=50, bounds=(-1.0, 1.0))
    assert beyond.low < 0.99 <= beyond.high <= 1
    wide = estimate(0.5, np.linspace(-0.5, 1.5, 100), clusters=50, higher_is_better=False)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_the_interval_of_the_calibration_error_by_hand() -> None:
    """Reflected below, not above; from 0 on where sampling alone gives as much."""
    drawn, noise = np.linspace(0.10, 0.20, 1001), np.linspace(0, 0.08, 1001)
    sure = estimate(0.12, drawn, clusters=50, noise=noise, higher_is_better=False)
    assert (sure.low, sure.high) == (pytest.approx(0.24 - 0.1975), pytest.approx(0.12 + 0.095 / 2))
    for more in (2 * noise, np.full(9, 0.12)):
        assert estimate(0.12, drawn, clusters=50, noise=more, higher_is_better=False).low == 0
