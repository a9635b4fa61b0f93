"""Coverage by simulation, and the edges."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from thoraclip.evaluation import calibration
from thoraclip.evaluation.intervals import Estimate, estimate
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.resampling import replicate, weighted_metrics

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
        values = weighted_metrics(scored, np.ones((N, 1))).headline
        (drawn,) = replicate([scored], np.arange(N), resamples=RESAMPLES, seed=number)
        for name in truth:
            found = estimate(name, float(values[name][0]), drawn.headline[name], trials=10,
                             bounds=METRICS[name].bounds, noise=drawn.noise.get(name))  # fmt: skip
            assert found.low <= found.value <= found.high
            covered[name] += found.low <= truth[name] <= found.high
    share = {name: count / sets for name, count in covered.items()}
    assert all(0.9 <= share[name] <= 0.99 for name in ("accuracy", "macro_f1", "auroc")), share
    assert all(0.87 <= share[name] <= 1 for name in ("log_loss", "ece")), share


def test_a_perfect_score_gets_the_exact_bound() -> None:
    found = estimate("accuracy", 1.0, np.ones(200), trials=50)
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.9288783, abs=1e-6)
    nothing = estimate("recall", 0.0, np.zeros(200), trials=50)
    assert nothing.high == pytest.approx(1 - 0.9288783, abs=1e-6)
    unknown = estimate("precision", 0.0, np.zeros(200), trials=50)
    assert unknown.low is None and unknown.reason is not None
    assert estimate("accuracy", 1.0, np.ones(200), trials=1).low == pytest.approx(0.025), "one group is one, too"
    for name, value, bounds, is_higher in (
        ("log_loss", 1.0, (0.0, np.inf), False), ("ece", 1.0, (0.0, 1.0), False), ("f1", 0.5, (0.0, 1.0), True),
        ("ratio", 1.0, (0.0, np.inf), True),
    ):  # fmt: skip
        found = estimate(name, value, np.full(200, value), trials=9, bounds=bounds, higher_is_better=is_higher)
        assert found == Estimate(value, value, value)


def test_what_does_not_exist_is_null_with_a_reason() -> None:
    assert estimate("auroc", None, None, trials=5).as_json()["value"] is None
    alone = estimate("accuracy", 0.5, None, trials=1).as_json()
    assert alone["value"] == 0.5 and alone["low"] is None and "nothing to resample" in str(alone["reason"])
    rare = estimate("auroc", 0.7, np.array([np.nan, np.nan, 0.7]), trials=1)
    assert rare.low is None and rare.reason is not None
    assert estimate("auroc", 0.7, np.array([np.nan, np.nan, 0.6, 0.7]), trials=1).low is not None, "half of them do"


def test_the_value_lies_inside_the_interval() -> None:
    found = estimate("macro_f1", 0.9, np.linspace(0.5, 0.8, 100), trials=5)
    assert found.high == 0.9 and found.low is not None and found.low < 0.6
    beyond = estimate("mcc", 0.99, np.linspace(0.9, 1.2, 100), trials=5, bounds=(-1.0, 1.0))
    assert beyond.high == 1
    assert estimate("f1", 0.5, np.linspace(-0.5, 1.5, 100), trials=5) == Estimate(0.5, 0.0, 1.0)


def test_the_interval_of_the_calibration_error_by_hand() -> None:
    """Reflected below, not above; from 0 on where sampling alone gives as much."""
    drawn, noise = np.linspace(0.10, 0.20, 1001), np.linspace(0, 0.08, 1001)
    sure = estimate("ece", 0.12, drawn, trials=5, noise=noise)
    assert (sure.low, sure.high) == (pytest.approx(0.24 - 0.1975), pytest.approx(0.12 + 0.095 / 2))
    for more in (2 * noise, np.full(9, 0.12)):
        assert estimate("ece", 0.12, drawn, trials=5, noise=more).low == 0
