"""The smallest effect that an audit can show: drawn answers with a known truth, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from tests.evaluation.tables import audit

from thoraclip.evaluation.audit_power import BEYOND, POWER, largest_error, power, smallest_effect
from thoraclip.evaluation.audit_reading import MARGIN, POSITIVE
from thoraclip.evaluation.render import write_audit
from thoraclip.evaluation.shortcuts import Answers, ShortcutTest, measure_tests, with_verdicts

TESTS, CLASSES = 7, 3


def found(effects: list[float], per_class: int, sets: int) -> Any:
    """bool[sets, tests]: which tests are positive, where each has a true effect, beyond chance."""
    rng, target = np.random.default_rng(3), np.arange(CLASSES * per_class) % CLASSES
    asked = [ShortcutTest(str(k), str(k), "classifier", "classifier", str(k)) for k in range(len(effects))]
    rows = []
    for seed in range(sets):
        wrong = (target + rng.integers(1, CLASSES, (len(effects), len(target)))) % CLASSES
        is_right = rng.random(wrong.shape) < 1 / CLASSES + np.array(effects)[:, None]
        named = {str(k): answer for k, answer in enumerate(np.where(is_right, target, wrong))}
        answers = Answers(target, np.arange(len(target)), named, CLASSES)
        judged = with_verdicts(measure_tests(asked, answers, resamples=100, seed=seed))
        rows.append([row["verdict"] in POSITIVE for row in judged])
    return np.array(rows)


def test_an_effect_of_the_smallest_size_is_found_at_the_stated_power_and_none_at_the_stated_rate() -> None:
    """With the fewest images that the formula asks for; the other tests have the largest effect that is no reliance."""
    enough = next(
        n for n in range(10, 999)
        if smallest_effect(largest_error(np.full(CLASSES, n), np.full(CLASSES, n)), TESTS) <= MARGIN + BEYOND
    )  # fmt: skip
    assert CLASSES * enough == 273
    told = found([MARGIN + BEYOND] + [MARGIN] * (TESTS - 1), enough, sets=200)
    assert POWER - 0.07 < told[:, 0].mean() < POWER + 0.08
    assert told[:, 1:].any(axis=1).mean() < 0.05 + 0.035
    assert found([MARGIN + BEYOND] + [MARGIN] * (TESTS - 1), enough // 2, sets=60)[:, 0].mean() < POWER - 0.2


def test_no_balanced_accuracy_spreads_more_than_the_largest_error() -> None:
    """Patients of two images with one answer count once."""
    rng, spread = np.random.default_rng(0), {}
    per_class = np.array([20, 40, 80])
    for share in (0.1, 0.5, 0.8):
        recalls = [rng.binomial(n, share, 20_000) / n for n in per_class]
        spread[share] = np.mean(recalls, axis=0).std()
    largest = float(largest_error(2 * per_class, 4 * per_class))
    assert largest == pytest.approx(float(largest_error(per_class, per_class))) == pytest.approx(spread[0.5], rel=0.03)
    assert max(spread.values()) == spread[0.5]
    assert math.isinf(largest_error(np.array([3, 0]), np.array([3, 0])))


def test_the_formula_is_that_of_a_normal_test() -> None:
    for tests in (1, 7):
        effect = float(smallest_effect(0.02, tests))
        limit = MARGIN + norm.isf(0.05 / tests) * 0.02
        assert norm.sf(limit, loc=effect, scale=0.02) == pytest.approx(0.8, abs=1e-9)


def row(**changed: Any) -> dict[str, Any]:
    return {
        "asks": "classifier", "error": 0.02, "is_constant": False, "is_small": False, "doubt": "",
    } | changed  # fmt: skip


def test_the_weakest_test_that_can_tell_says_what_could_have_been_shown() -> None:
    blind = [row(error=0.5, doubt="x"), row(error=0.5, is_small=True), row(error=0.5, is_constant=True)]
    told = power([row(), row(error=0.03), *blind, row(asks="data", error=0.5)], images=90, groups=80, available=90)
    assert told["effect"] == pytest.approx(float(smallest_effect(0.03, 5))) and told["tests"] == 5
    assert told["beyond"] == pytest.approx(told["effect"] - MARGIN) and told["power"] == 0.8
    assert told["words"].endswith("There are no more images that the classifier has not seen.")
    more = power([row()], images=90, groups=1, available=1231)
    assert "90 images of 1 independent group were" in more["words"] and "Raise `images`" in more["words"]
    assert "1,231 are there, `all` takes them" in more["words"]
    none = power(blind, images=90, groups=80, available=90)
    assert none["effect"] is none["beyond"] is None and "no test of the classifier can tell" in none["words"]


def test_pages_say_what_could_have_been_shown(tmp_path: Path) -> None:
    content = audit(1 / 3, available=1000)
    assert content["power"]["images"] == 150 and content["power"]["words"] in content["reading"]
    write_audit(content, tmp_path)
    for page in ("audit.html", "audit.md"):
        assert "1,000 are there" in (tmp_path / page).read_text(encoding="utf-8")
    write_audit({name: value for name, value in content.items() if name != "power"}, tmp_path / "before")
