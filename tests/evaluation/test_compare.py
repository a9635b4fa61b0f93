"""Paired tests against SciPy and slow oracles."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from tests.conftest import examples

from thoraclip.evaluation.compare import (
    METHODS,
    MODELS,
    Contestant,
    compare,
    holm,
    mcnemar_p,
    t_test,
)
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.resampling import PreparedTable, replicate, resample_weights
from thoraclip.evaluation.trainings import FOLDS, PATIENTS, SEEDS, Variance


@examples(100)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    expected = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(a, b, np.arange(len(a))) == pytest.approx(expected)


@examples(60)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=1, max_size=30))
def test_mcnemar_with_patients_is_the_sign_flip_test(rows: list[tuple[bool, bool, int]]) -> None:
    """Against the enumeration of all signs."""
    a, b, groups = (np.array(column) for column in zip(*rows, strict=True))
    lead = [int(a[groups == g].sum()) - int(b[groups == g].sum()) for g in range(7)]
    sums = [sum(s * d for s, d in zip(signs, lead, strict=True)) for signs in itertools.product((-1, 1), repeat=7)]
    assert mcnemar_p(a, b, groups) == pytest.approx(np.mean([abs(s) >= abs(sum(lead)) for s in sums]))


@examples(100)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_equals_a_slow_oracle(p: list[float]) -> None:
    m = len(p)
    ranked = sorted(range(m), key=lambda i: p[i])
    expected = [max(min(1.0, (m - j) * p[ranked[j]]) for j in range(ranked.index(i) + 1)) for i in range(m)]
    assert holm(p) == pytest.approx(expected)


def _values(table: Scored) -> dict[str, float]:
    return {
        name: float(row[0])
        for name, row in PreparedTable(table).metrics(np.ones((len(table.target), 1))).headline.items()
    }


def _contestants(rng: np.random.Generator, n: int, chances: list[float]) -> list[Contestant]:
    target = rng.integers(0, 3, n)
    tables = []
    for chance in chances:
        said = np.where(rng.random(n) < chance, target, (target + 1) % 3)
        tables.append(Scored(target, np.eye(3)[said] * 0.7 + 0.1))
    drawn = replicate(tables, np.arange(n), resamples=499, seed=1)
    return [
        _contestant(f"m{k}", table, found.headline) for k, (table, found) in enumerate(zip(tables, drawn, strict=True))
    ]


def _contestant(name: str, table: Scored, drawn: dict[str, Any]) -> Contestant:
    """Of one training."""
    values = _values(table)
    return Contestant(name, values, drawn, table.correct, {key: np.array([[value]]) for key, value in values.items()})


def test_families_signs_and_pairs() -> None:
    rows = compare(_contestants(np.random.default_rng(0), 300, [0.9, 0.88, 0.5]), intervals=True, groups=np.arange(300))
    assert [(r["metric"], r["a"], r["b"]) for r in rows[:3]] == [
        ("accuracy", "m0", "m1"), ("accuracy", "m0", "m2"), ("accuracy", "m1", "m2"),
    ]  # fmt: skip
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows)
    for start in (0, 3):
        family = rows[start : start + 3]
        assert [row["p_holm"] for row in family] == pytest.approx(holm([row["p"] for row in family]))
    assert max(rows[1]["p"], rows[1]["mcnemar_p"]) < 1e-6 and rows[0]["p"] > 0.05
    assert all(row["mcnemar_p"] is None for row in rows[3:])


def test_only_what_the_resamples_of_two_methods_do_not_share_is_their_difference() -> None:
    """Resample by resample; and the exact test flips the signs of patients, not of images."""
    rng, target, groups = np.random.default_rng(2), np.arange(90) % 3, np.arange(90) // 3
    first = np.where(rng.random(90) < 0.7, target, (target + 1) % 3)
    second = np.where(np.arange(90) < 6, (target + 1) % 3, first)
    tables = [Scored(target, np.eye(3)[said] * 0.7 + 0.1) for said in (first, second)]
    drawn = replicate(tables, groups, resamples=200, seed=3)
    pair = [_contestant(n, t, d.headline) for n, t, d in zip("ab", tables, drawn, strict=True)]
    row = compare(pair, intervals=True, groups=groups)[0]
    weights = np.concatenate(list(resample_weights(groups, resamples=200, seed=3)), axis=1)
    lead = (tables[0].correct.astype(float) - tables[1].correct) @ weights / 90
    reach = t.ppf(0.975, 29) * max(lead.std(ddof=1) * np.sqrt(30 / 29), 1 / 30)
    assert (row["low"], row["high"]) == pytest.approx((row["difference"] - reach, row["difference"] + reach))
    assert row["p"] == pytest.approx(2 * t.sf(abs(row["difference"]) * t.ppf(0.975, 29) / reach, 29))
    assert row["mcnemar_p"] == mcnemar_p(tables[0].correct, tables[1].correct, groups)
    assert row["mcnemar_p"] > mcnemar_p(tables[0].correct, tables[1].correct, np.arange(90))


@pytest.mark.parametrize(("patients", "each"), [(2, 10), (4, 10), (8, 10), (150, 1)])
def test_false_alarms_are_as_rare_as_promised(patients: int, each: int) -> None:
    """Of two classifiers that err on other images of the same patients; percentiles called 46 % of 2 patients different."""
    rng, alarms, groups = np.random.default_rng(4), 0, np.repeat(np.arange(patients), each)
    for _ in range(120):
        hard = rng.beta(1, 1, (2, patients))[:, groups]
        target = rng.integers(0, 3, len(groups))
        tables = [
            Scored(target, np.eye(3)[np.where(rng.random(len(groups)) < one, target, (target + 1) % 3)] * 0.7 + 0.1)
            for one in hard
        ]
        drawn = replicate(tables, groups, resamples=199, seed=1)
        pair = [_contestant(n, x, d.headline) for n, x, d in zip("ab", tables, drawn, strict=True)]
        alarms += compare(pair, intervals=True, groups=groups)[0]["p"] < 0.05
    assert alarms / 120 < 0.1


def test_where_every_patient_gives_the_same_difference_the_next_one_need_not() -> None:
    target, groups = np.arange(20) % 2, np.repeat([0, 1], 10)
    tables = [
        Scored(target, np.eye(2)[said] * 0.8 + 0.1)
        for said in (target, np.where(np.arange(20) % 10 < 6, 1 - target, target))
    ]
    drawn = replicate(tables, groups, resamples=100, seed=1)
    pair = [_contestant(n, x, d.headline) for n, x, d in zip("ab", tables, drawn, strict=True)]
    row = compare(pair, intervals=True, groups=groups)[0]
    assert row["difference"] == pytest.approx(0.6) and (row["low"], row["high"]) == (-1.0, 1.0) and row["p"] > 0.3


def test_what_cannot_be_tested_is_null() -> None:
    pair = _contestants(np.random.default_rng(0), 50, [0.9, 0.6])
    assert all(row["p"] is None and row["low"] is None for row in compare(pair, intervals=False, groups=np.arange(50)))
    seeds = [pair[0], replace(pair[1], correct=None)]
    assert compare(seeds, intervals=True, groups=np.arange(50))[0]["mcnemar_p_holm"] is None


def _trained(pair: list[Contestant], *values: list[list[float]], trained: bool = True) -> list[Contestant]:
    """A pair whose accuracies over seeds and folds are these."""
    return [
        replace(one, trainings={name: np.array(v) for name in one.values}, trained=trained)
        for one, v in zip(pair, values, strict=True)
    ]


def test_a_difference_is_one_of_methods_only_where_trainings_can_vary() -> None:
    pair = _contestants(np.random.default_rng(0), 200, [0.85, 0.8])
    groups = np.arange(200)
    (single, *_) = compare(pair, intervals=True, groups=groups)
    assert (single["claim"], single["source"], single["seeds_needed"]) == (MODELS, PATIENTS, None)
    (frozen, *_) = compare([replace(one, trained=False) for one in pair], intervals=True, groups=groups)
    assert frozen == single | {"claim": METHODS}, "nothing was trained, so nothing varies"
    (half, *_) = compare([pair[0], replace(pair[1], trained=False)], intervals=True, groups=groups)
    assert half["claim"] == MODELS
    seeds = _trained(pair, [[0.85], [0.81], [0.89]], [[0.80], [0.80001], [0.79999]])
    (row, *_) = compare(seeds, intervals=True, groups=groups)
    drawn = pair[0].replicates["accuracy"] - pair[1].replicates["accuracy"]
    v, own = drawn.var(ddof=1) * 200 / 199, 0.04**2 / 3
    df = (v + own) ** 2 / (v**2 / 199 + own**2 / 2)
    assert (row["claim"], row["source"]) == (METHODS, SEEDS)
    assert row["p"] == pytest.approx(2 * t.sf(abs(row["difference"]) / np.sqrt(v + own), df))
    assert row["high"] - row["difference"] == pytest.approx(t.ppf(0.975, df) * np.sqrt(v + own))
    (same, *_) = compare(_trained(pair, [[0.85], [0.85]], [[0.8], [0.8]]), intervals=True, groups=groups)
    assert same["claim"] == MODELS, "seeds that change nothing are one training"
    (lonely, *_) = compare([seeds[0], pair[1]], intervals=True, groups=groups)
    assert lonely["claim"] == MODELS, "the second was trained once"
    (kept, *_) = compare([seeds[0], replace(pair[1], trained=False)], intervals=True, groups=groups)
    assert (kept["claim"], kept["p"]) == (METHODS, pytest.approx(row["p"]))


def test_folds_are_paired() -> None:
    """Both methods find the second fold hard: that is no difference between them."""
    pair = _contestants(np.random.default_rng(0), 200, [0.85, 0.8])
    folds = [[0.95, 0.55, 0.95]], [[0.90, 0.50, 0.90]]
    (row, *_) = compare(_trained(pair, *folds), intervals=True, groups=np.arange(200))
    drawn = pair[0].replicates["accuracy"] - pair[1].replicates["accuracy"]
    assert row["source"] == FOLDS
    reach = t.ppf(0.975, 4) * drawn.std(ddof=1) * np.sqrt(200 / 199)
    assert row["high"] - row["difference"] == pytest.approx(reach), "not less than the patients give"


def test_a_difference_of_shares_is_between_minus_one_and_one() -> None:
    pair = _contestants(np.random.default_rng(0), 60, [0.99, 0.02])
    rows = compare(_trained(pair, [[0.95], [0.99]], [[0.01], [0.2]]), intervals=True, groups=np.arange(60))
    assert rows[0]["high"] == 1.0
    turned = compare(_trained(pair[::-1], [[0.01], [0.2]], [[0.95], [0.99]]), intervals=True, groups=np.arange(60))
    assert turned[0]["low"] == -1.0


def test_the_seeds_that_would_settle_it_do() -> None:
    pair = _contestants(np.random.default_rng(3), 4000, [0.84, 0.80])
    wide = _trained(pair, [[0.80], [0.88]], [[0.77], [0.83]])
    (row, *_) = compare(wide, intervals=True, groups=np.arange(4000))
    assert row["p"] > 0.05 and 3 <= row["seeds_needed"] <= 30
    for seeds, is_enough in ((row["seeds_needed"], True), (row["seeds_needed"] - 1, False)):
        spread = [np.linspace(-1, 1, seeds)[:, None] for _ in pair]
        of = [s / s.std(ddof=1) * sd for s, sd in zip(spread, (0.04 * 2**0.5, 0.03 * 2**0.5), strict=True)]
        (then, *_) = compare(_trained(pair, *(s.tolist() for s in of)), intervals=True, groups=np.arange(4000))
        assert (then["p"] < 0.05) == is_enough
    alike = _trained(_contestants(np.random.default_rng(3), 100, [0.8, 0.8]), [[0.8], [0.8]], [[0.8], [0.8001]])
    assert compare(alike, intervals=True, groups=np.arange(100))[0]["seeds_needed"] is None


def test_students_t_by_hand() -> None:
    assert t_test(2.0, Variance(1.0)) == pytest.approx(0.0455, abs=1e-4)
    assert t_test(-4.302653, Variance(1.0, 2)) == pytest.approx(0.05, abs=1e-6)
    assert t_test(0.0, Variance(0.01)) == 1.0
