"""What int8 may do, by numbers that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from thoraclip.bundle.parity import compare_answers, compare_scores, require_alike, require_equal
from thoraclip.errors import ParityError


def scores(answers: np.ndarray, classes: int = 3) -> np.ndarray:
    return np.where(np.arange(classes) == answers[:, None], 0.8, 0.2 / (classes - 1))


def made(n: int, better: int, worse: int, between: int = 0, *, seed: int = 0) -> dict:  # type: ignore[type-arg]
    """n images, all of class 0; the original is wrong (1) on a fifth; int8 mends `better`, spoils `worse`, changes 1 to 2."""
    original = np.where(np.arange(n) < n // 5, 1, 0)
    exported = original.copy()
    exported[:better] = 0
    exported[better : better + between] = 2
    exported[n // 5 : n // 5 + worse] = 1
    target = np.zeros(n, np.int64)
    return compare_answers(scores(original), scores(exported), target, np.arange(n), seed=seed)


def test_flips_and_accuracy_are_counted() -> None:
    found = made(1000, 3, 5, 2)
    assert found["other_answers"] == 10 and found["share"] == 0.01
    assert found["accuracy"]["original"] == 0.8 and found["accuracy"]["change"] == pytest.approx(-0.002)
    assert found["share_high"] == pytest.approx(float(beta.ppf(0.975, 11, 990)), rel=0.02), "nearly the exact one"


def test_the_paired_interval_is_that_of_the_differences() -> None:
    """Against the normal approximation: the variance of a difference that is -1, 0 or 1."""
    n, better, worse = 6000, 30, 20
    found = made(n, better, worse)["accuracy"]
    mean = (better - worse) / n
    half = 1.96 * np.sqrt(((better + worse) / n - mean**2) / n)
    assert [found["low"], found["high"]] == pytest.approx([mean - half, mean + half], abs=2e-4)


def test_patients_widen_the_interval() -> None:
    original, exported = scores(np.zeros(400, int)), scores((np.arange(400) < 8).astype(int))
    target = np.zeros(400, np.int64)
    alone = compare_answers(original, exported, target, np.arange(400), seed=0)
    together = compare_answers(original, exported, target, np.arange(400) // 8, seed=0)
    assert together["share_high"] > 2 * alone["share_high"]
    alone, together = alone["accuracy"], together["accuracy"]
    assert together["patients"] == 50 and together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_what_is_allowed() -> None:
    require_alike(made(6000, 30, 20), "run")
    for found, message in (
        (
            made(6000, 60, 60, 10),
            "run: in int8 130 of 6000 test images get another answer, more than 2 %; export without",
        ),
        (made(6000, 0, 40), r"change of accuracy, -0.67 \[.*\] points, is not within 0.5 points .*; export without"),
        (made(6000, 40, 0), r"change of accuracy, \+0.67 \[.*\] points, is not within 0.5 points"),
        (made(225, 0, 2), "with so few test images this cannot be shown; export without --int8; nothing was"),
    ):
        with pytest.raises(ParityError, match=message):
            require_alike(found, "run")


def test_fp32_is_equal_or_refused_and_nan_is_not_equal() -> None:
    one = scores(np.array([0, 1, 2]))
    require_equal(compare_scores(one, one + 5e-5), "run")
    for other in (one + 2e-4, one * np.nan):
        with pytest.raises(ParityError, match="run: the exported model's probabilities differ by .* nothing was"):
            require_equal(compare_scores(one, other), "run")
