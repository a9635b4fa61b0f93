"""Scaling: planted parameters come back, no harm is done, and what cannot be fitted is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from benchmarks.coverage import Training, with_temperature
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from tests.conftest import examples

from thoraclip.errors import InputError
from thoraclip.evaluation.intervals import Estimate
from thoraclip.evaluation.metrics import METRICS, Scored, brier_terms
from thoraclip.evaluation.recalibration import _mover, recalibration
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.posthoc.scaling import MAX_TEMPERATURE, MIN_TEMPERATURE, PATIENTS_NEEDED, fit_temperature, fit_vector

Floats = npt.NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(seed: int, n: int, temperature: float = 1.0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(scores that are right after division of their logits by `temperature`, the true classes)."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3)) + np.array([0.5, 0.0, -0.4])
    chance = softmax(logits)
    target = (chance.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(temperature * logits), target


def log_loss(scores: Floats, target: npt.NDArray[np.int64]) -> float:
    return float(-np.log(np.maximum(scores[np.arange(len(target)), target], 1e-15)).mean())


@examples(16)
@given(st.integers(0, 10**6), st.floats(0.3, 4), st.integers(PATIENTS_NEEDED, 200))
def test_no_other_temperature_has_a_smaller_loss(seed: int, planted: float, n: int) -> None:
    scores, target = draw(seed, n, planted)
    scores = np.maximum(scores, 1e-12)  # as documented
    found = fit_temperature(scores, target)
    slow = minimize_scalar(
        lambda t: log_loss(softmax(np.log(scores) / np.exp(t)), target), method="bounded",
        bounds=np.log([MIN_TEMPERATURE, MAX_TEMPERATURE]), options={"xatol": 1e-9},
    )  # fmt: skip
    best = log_loss(found.apply(scores), target)
    assert best <= slow.fun + 1e-9 and best <= log_loss(scores, target) + 1e-12
    assert (found.apply(scores).argmax(axis=1) == scores.argmax(axis=1)).all()
    np.testing.assert_allclose(found.apply(scores).sum(axis=1), 1)


@pytest.mark.parametrize("apart", [0.06, 0.1, 1, 15, 21])
def test_the_temperature_of_three_right_of_four(apart: float) -> None:
    """Logits that lie `apart`: a chance of 3/4 asks for apart / T = ln 3."""
    scores = softmax(np.array([[apart, 0.0]] * 32))
    assert fit_temperature(scores, np.tile([0, 0, 1, 0], 8)).temperature == pytest.approx(apart / np.log(3), rel=1e-6)


def test_the_vector_is_where_the_slope_is_zero() -> None:
    """Central differences of the objective, written down anew."""
    scores, target = draw(3, 150, 2.0)
    temperature, found = fit_temperature(scores, target).temperature, fit_vector(scores, target)

    def objective(scale: Floats, bias: Floats) -> float:
        pull = ((temperature * scale - 1) ** 2).sum() + (bias**2).sum()
        return log_loss(softmax(np.log(scores) * scale + bias), target) + pull / (2 * len(target))

    for c in range(3):
        step = 1e-4 * np.eye(3)[c]
        for w, b in ((step, 0 * step), (0 * step, step)):
            slope = (objective(found.scale + w, found.bias + b) - objective(found.scale - w, found.bias - b)) / 2e-4
            assert abs(slope) < 1e-5


RIGHT = np.tile([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6]], (10, 1))


@pytest.mark.parametrize(
    ("answers", "reaches"), [([0, 1, 2], r"0.05\): too few of them are wrong"), ([1, 2, 0], r"20\): their scores tell")]
)
def test_a_temperature_at_its_bound_is_none(answers: list[int], reaches: str) -> None:
    """All right: the smaller, the better. All wrong: the larger, the better."""
    assert (MIN_TEMPERATURE, MAX_TEMPERATURE) == (0.05, 20.0)
    target = np.tile(answers, 10)
    for fit in (fit_temperature, fit_vector):
        with pytest.raises(
            InputError, match=rf"best temperature of 30 .* not inside 0.05 to 20 \(it reaches {reaches}"
        ):
            fit(RIGHT, target)
    target[:15] = np.tile([0, 1, 2], 5)
    target[15:17] = [1, 2]
    assert MIN_TEMPERATURE < fit_temperature(RIGHT, target).temperature < MAX_TEMPERATURE


@pytest.mark.parametrize(("patients", "gains"), [(10, False), (PATIENTS_NEEDED, True)])
def test_a_temperature_needs_patients_to_help_new_ones(patients: int, *, gains: bool) -> None:
    """A classifier that is right in 75 % of images and 1.5 times too sure; the means of 200 fits."""
    algorithm = Training(quality=0, shift=0, alike=0.8)
    before, after, none = with_temperature(algorithm, 1.5, patients, 200)
    assert (after[0] - before[0] < -0.005) if gains else (after[0] - before[0] > 0.03)
    assert none < 0.2


def test_patients_are_counted_not_images() -> None:
    scores, target = draw(0, 90)
    assert PATIENTS_NEEDED == 30
    by_image = fit_temperature(scores, target)
    assert fit_temperature(scores, target, patients=np.arange(90) // 3) == by_image, "30 patients are enough"
    for fit in (fit_temperature, fit_vector):
        with pytest.raises(InputError, match="^29 validation patients, and 30 are needed .an image of unknown patient"):
            fit(scores, target, patients=np.minimum(np.arange(90) // 3, 28))
        with pytest.raises(InputError, match="^29 validation patients"):
            fit(scores[:29], target[:29])
    assert np.isfinite(fit_vector(scores, target, patients=np.arange(90) // 3).scale).all()


def test_what_cannot_be_scaled_is_refused() -> None:
    one_wrong = np.tile([0, 1, 2], 10)
    one_wrong[0] = 1
    vector = fit_vector(RIGHT, one_wrong)
    assert np.isfinite(vector.scale).all() and np.isfinite(vector.bias).all()
    hard = np.tile([[1.0, 0.0], [0.0, 1.0]], (20, 1))
    zero = fit_temperature(hard, np.array([0, 1] * 18 + [1, 0] * 2))
    assert np.isfinite(zero.apply(np.array([[1.0, 0.0]]))).all() and zero.temperature > 1
    with pytest.raises(InputError, match="each of 40 validation images has equal scores for all classes"):
        fit_temperature(np.full((40, 3), 1 / 3), np.tile([0, 1, 2, 0], 10))
    flat = np.concatenate([np.full((30, 3), 1 / 3), [[0.4, 0.3, 0.3]] * 3])
    assert fit_temperature(flat, np.array([0] * 32 + [1])).temperature > 0, (
        "a few images that tell something are enough"
    )
    with pytest.raises(InputError, match="^0 validation patients"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    with pytest.raises(InputError, match="class 'Normal' has no validation image"):
        fit_vector(RIGHT, np.tile([0, 1, 1], 10), names=("COVID-19", "Non-COVID", "Normal"))
    with pytest.raises(InputError, match="class number 0 has no"):
        fit_vector(RIGHT, np.tile([2, 1, 1], 10))
    assert fit_temperature(RIGHT, np.tile([0, 1, 1], 10)).temperature > 0, "one number needs no image of every class"


def test_recalibration_agrees_with_the_metrics_of_the_report() -> None:
    scores, target = draw(4, 1500, 2.5)
    before = Scored(target, scores)
    after = Scored(target, fit_temperature(*draw(5, 300, 2.5)).apply(scores))
    found = recalibration({"before": before, "after": after}, np.arange(1500), resamples=200, seed=0)
    for name, table in (("before", before), ("after", after)):
        for metric in ("ece", "brier", "log_loss", "accuracy"):
            entry = found[name][metric]
            assert entry["value"] == pytest.approx(METRICS[metric].point(table)) and entry["low"] <= entry["value"]
    change = found["after"]["change"]["ece"]
    assert change["value"] == pytest.approx(found["after"]["ece"]["value"] - found["before"]["ece"]["value"])
    assert change["high"] < 0, "far too sure: the gain is no luck"
    groups = np.arange(1500) // 3
    paired = recalibration({"before": before, "after": after}, groups, resamples=200, seed=0)["after"]
    weights = np.concatenate(list(resample_weights(groups, resamples=200, seed=0)), axis=1)
    gain = brier_terms(after) - brier_terms(before)
    drawn = np.quantile(gain @ weights / weights.sum(axis=0), [0.025, 0.975])
    assert [paired["change"]["brier"][side] for side in ("low", "high")] == pytest.approx(drawn.tolist())
    for count in (1, 2):
        perfect = Scored(target[:4], np.eye(3)[target[:4]])
        still = recalibration({"before": perfect, "after": perfect}, np.arange(4) % count, resamples=9, seed=0)["after"]
        assert [still[m]["value"] for m in ("ece", "brier", "accuracy")] == [0, 0, 1]
        assert still["change"]["ece"] == {"value": 0, "low": None, "high": None}
    two = recalibration({"before": before, "after": after}, np.arange(1500) % 2, resamples=9, seed=0)
    assert two["after"]["change"]["brier"]["low"] is not None
    alone = recalibration({"before": before, "after": after}, np.zeros(1500, dtype=np.int64), resamples=200, seed=0)
    assert alone["after"]["change"]["ece"]["low"] is None and alone["before"]["ece"]["low"] is None


def test_the_interval_of_a_difference_by_hand() -> None:
    """Together: the reaches subtract. Apart: they add as the sides of a right angle. Against each other: they add."""
    # reaches: down 0.04 and up 0.03; up 0.03 and down 0.02
    after, before = Estimate(0.10, 0.06, 0.13), Estimate(0.20, 0.18, 0.23)
    wave = 0.1 * np.array([1.0, -1.0, 1.0, -1.0])
    for other, low, high in (
        (wave, 0.01, 0.01),
        (0.1 * np.array([1.0, 1.0, -1.0, -1.0]), 0.05, np.hypot(0.03, 0.02)),
        (-wave, 0.07, 0.05),
        (np.ones(4), 0.05, np.hypot(0.03, 0.02)),
    ):
        assert _mover(after, before, (wave, other)) == (pytest.approx(-0.10 - low), pytest.approx(-0.10 + high))
    assert _mover(Estimate(0.0, 0.0, 0.03), Estimate(0.0, 0.0, 0.04), (wave, -wave)) == (-0.04, 0.03)
    for half in (Estimate(0.1, 0.1), Estimate(0.1, None, 0.1), Estimate(0.1)):
        assert _mover(half, before, (wave, wave)) is _mover(after, half, (wave, wave)) is None
