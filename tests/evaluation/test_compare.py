"""Paired tests against SciPy and slow oracles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from tests.conftest import examples

from thoraclip.evaluation.compare import Contestant, bootstrap_p, compare, holm, mcnemar_p, resamples_needed
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.resampling import replicate, resample_weights, weighted_metrics


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


def test_bootstrap_p_by_hand() -> None:
    assert bootstrap_p(np.array([0.1] * 97 + [-0.1] * 2)) == pytest.approx(2 * 3 / 100)
    assert bootstrap_p(np.full(99, 0.1)) == pytest.approx(0.02)
    assert bootstrap_p(np.zeros(99)) == 1.0


def _values(table: Scored) -> dict[str, float]:
    return {
        name: float(row[0]) for name, row in weighted_metrics(table, np.ones((len(table.target), 1))).headline.items()
    }


def _contestants(rng: np.random.Generator, n: int, chances: list[float]) -> list[Contestant]:
    target = rng.integers(0, 3, n)
    tables = []
    for chance in chances:
        said = np.where(rng.random(n) < chance, target, (target + 1) % 3)
        tables.append(Scored(target, np.eye(3)[said] * 0.7 + 0.1))
    drawn = replicate(tables, np.arange(n), resamples=499, seed=1, confusion_only=True)
    return [
        Contestant(f"m{k}", _values(table), found.headline, table.correct)
        for k, (table, found) in enumerate(zip(tables, drawn, strict=True))
    ]


def test_families_signs_and_pairs() -> None:
    rows = compare(_contestants(np.random.default_rng(0), 300, [0.9, 0.88, 0.5]), intervals=True, groups=np.arange(300))
    assert [(r["metric"], r["a"], r["b"]) for r in rows[:3]] == [
        ("accuracy", "m0", "m1"), ("accuracy", "m0", "m2"), ("accuracy", "m1", "m2"),
    ]  # fmt: skip
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows)
    for start in (0, 3):
        family = rows[start : start + 3]
        assert [row["p_holm"] for row in family] == pytest.approx(holm([row["p"] for row in family]))
    assert rows[1]["p"] == pytest.approx(0.004) and rows[1]["mcnemar_p"] < 1e-6 and rows[0]["p"] > 0.05
    assert all(row["mcnemar_p"] is None for row in rows[3:])


def test_only_what_the_resamples_of_two_methods_do_not_share_is_their_difference() -> None:
    """Resample by resample; and the exact test flips the signs of patients, not of images."""
    rng, target, groups = np.random.default_rng(2), np.arange(90) % 3, np.arange(90) // 3
    first = np.where(rng.random(90) < 0.7, target, (target + 1) % 3)
    second = np.where(np.arange(90) < 6, (target + 1) % 3, first)
    tables = [Scored(target, np.eye(3)[said] * 0.7 + 0.1) for said in (first, second)]
    drawn = replicate(tables, groups, resamples=200, seed=3, confusion_only=True)
    pair = [Contestant(n, _values(t), d.headline, t.correct) for n, t, d in zip("ab", tables, drawn, strict=True)]
    row = compare(pair, intervals=True, groups=groups)[0]
    weights = np.concatenate(list(resample_weights(groups, resamples=200, seed=3)), axis=1)
    lead = (tables[0].correct.astype(float) - tables[1].correct) @ weights / 90
    assert (row["low"], row["high"]) == (
        pytest.approx(np.quantile(lead, 0.025)),
        pytest.approx(np.quantile(lead, 0.975)),
    )
    assert row["mcnemar_p"] == mcnemar_p(tables[0].correct, tables[1].correct, groups)
    assert row["mcnemar_p"] > mcnemar_p(tables[0].correct, tables[1].correct, np.arange(90))


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng, alarms = np.random.default_rng(4), 0
    for _ in range(120):
        rows = compare(_contestants(rng, 150, [0.8, 0.8]), intervals=True, groups=np.arange(150))
        alarms += rows[0]["p"] < 0.05
    assert alarms / 120 < 0.1


def test_what_cannot_be_tested_is_null() -> None:
    pair = _contestants(np.random.default_rng(0), 50, [0.9, 0.6])
    assert all(row["p"] is None and row["low"] is None for row in compare(pair, intervals=False, groups=np.arange(50)))
    seeds = [pair[0], Contestant("s", pair[1].values, pair[1].replicates, None)]
    assert compare(seeds, intervals=True, groups=np.arange(50))[0]["mcnemar_p_holm"] is None


def test_enough_resamples_for_the_smallest_corrected_p() -> None:
    assert all(2 * (k * (k - 1) // 2) / (resamples_needed(k) + 1) <= 0.002 for k in range(2, 15))
