"""Every metric against scikit-learn called in another way, or against a slow oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk
from tests.conftest import examples
from tests.evaluation.tables import headline

from thoraclip.evaluation.calibration import ece, equal_mass_bins, reliability_bins
from thoraclip.evaluation.metrics import METRICS, PER_CLASS, Scored, confusion, per_class, roc
from thoraclip.proportions import patient_share, wilson


@st.composite
def tables(draw: st.DrawFn) -> Scored:
    """Two to six classes, some without images, few distinct scores so that there are ties."""
    classes, n = draw(st.integers(2, 6)), draw(st.integers(1, 25))
    grid = st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any)
    scores = np.array(draw(st.lists(grid, min_size=n, max_size=n)), dtype=np.float64)
    target = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), dtype=np.int64)
    return Scored(target, scores)


@examples(30)
@given(tables())
def test_decisions_equal_scikit_learn(scored: Scored) -> None:
    found, labels = headline(scored), list(range(scored.class_count))
    true, said = scored.target, np.array([int(np.flatnonzero(row == row.max())[0]) for row in scored.scores])
    assert found["accuracy"] == pytest.approx(np.mean(true == said))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(true, said))
    present = sorted(set(true.tolist()))
    for average, of in (("macro", present), ("weighted", labels)):
        options = {"labels": of, "average": average, "zero_division": 0}
        assert found[f"{average}_f1"] == pytest.approx(sk.f1_score(true, said, **options))
        assert found[f"{average}_precision"] == pytest.approx(sk.precision_score(true, said, **options))
        assert found[f"{average}_recall"] == pytest.approx(sk.recall_score(true, said, **options))
    recalls = [np.mean(said[true == c] == c) for c in labels if (true == c).any()]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert (confusion(scored) == sk.confusion_matrix(true, said, labels=labels)).all()


@examples(30)
@given(tables())
def test_scores_equal_the_definitions(scored: Scored) -> None:
    found, (n, classes) = headline(scored), scored.scores.shape
    losses = [-math.log(min(max(scored.scores[i, t], 2.220446049250313e-16), 1 - 2.220446049250313e-16))
              for i, t in enumerate(scored.target)]  # fmt: skip
    assert found["log_loss"] == pytest.approx(sum(losses) / n)
    brier = sum((scored.scores[i, c] - (c == t)) ** 2 for i, t in enumerate(scored.target) for c in range(classes)) / n
    assert found["brier"] == pytest.approx(brier)
    areas = [_pairwise_auroc(scored, c) for c in range(classes)]
    known = [area for area in areas if area is not None]
    assert found["auroc"] == (pytest.approx(sum(known) / len(known)) if known else None)
    assert per_class(scored)["auroc"] == [None if a is None else pytest.approx(a) for a in areas]


def _pairwise_auroc(scored: Scored, c: int) -> float | None:
    """Mann-Whitney by counting every pair."""
    wins = [
        (p > q) + (p == q) / 2
        for p in scored.scores[scored.target == c, c]
        for q in scored.scores[scored.target != c, c]
    ]
    return sum(wins) / len(wins) if wins else None


def test_a_class_without_images_has_no_auroc() -> None:
    scored = Scored(np.array([0, 1, 0]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]))
    found = per_class(scored)
    assert found["auroc"] == [1.0, 1.0, None] and found["average_precision"][2] is None and found["recall"][2] is None
    only = Scored(np.array([0, 0]), np.array([[0.8, 0.2], [0.3, 0.7]]))
    assert headline(only)["auroc"] is None and per_class(only)["auroc"] == [None, None]
    assert per_class(only)["specificity"] == [None, 0.5]


def test_a_sure_and_right_answer_loses_as_little_as_in_scikit_learn() -> None:
    assert headline(Scored(np.array([0]), np.array([[1.0, 0.0]])))["log_loss"] == pytest.approx(2.2e-16, rel=0.1)


def test_specificity_is_true_negatives_over_negatives() -> None:
    scored = Scored(np.array([0, 0, 1, 1, 2]), np.eye(3)[[0, 1, 1, 0, 2]] * 0.7 + 0.1)
    assert per_class(scored)["specificity"] == [pytest.approx(v) for v in (2 / 3, 2 / 3, 1.0)]


def test_the_curve_has_a_point_at_its_corners_only() -> None:
    """The first threshold is always one of them."""
    for count, corners in ((2, [0, 1 / 2, 1]), (3, [0, 1 / 3, 1]), (5, [0, 1 / 5, 1])):
        false, true = roc(np.array([True, False] * count), np.repeat(np.arange(count), 2)[::-1].astype(float))
        assert false.tolist() == true.tolist() == corners
    false, true = roc(np.array([True, True, False, True, False]), np.array([5.0, 4, 3, 2, 1]))
    assert (false.tolist(), true.tolist()) == ([0, 0, 0, 0.5, 0.5, 1], [0, 1 / 3, 2 / 3, 2 / 3, 1, 1])


def test_rows_are_scaled_to_a_sum_of_one_and_right_ones_left_alone() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), size=9)
    np.testing.assert_allclose(Scored(np.zeros(9, np.int64), 1.5 * rows).scores, rows)
    assert (Scored(np.zeros(9, np.int64), rows).scores == rows).all()


def test_names_of_the_registries() -> None:
    scored = Scored(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert tuple(per_class(scored)) == tuple(PER_CLASS)
    bounds = {name: metric.bounds for name, metric in METRICS.items() if metric.bounds != (0.0, 1.0)}
    assert bounds == {"mcc": (-1.0, 1.0), "log_loss": (0.0, math.inf), "brier": (0.0, 2.0)}


@examples(40)
@given(tables(), st.integers(1, 20))
def test_ece_equals_a_slow_oracle(scored: Scored, bins: int) -> None:
    assert ece(scored.confidence, scored.correct, bins) == pytest.approx(_slow_ece(scored, bins), abs=1e-12)


def _slow_ece(scored: Scored, bins: int) -> float:
    n, members = len(scored.target), {}
    for i, c in enumerate(scored.confidence):
        rank = sum(1 for other in scored.confidence if other < c)
        members.setdefault(math.floor(bins * rank / n), []).append(i)
    total = 0.0
    for rows in members.values():
        right = sum(bool(scored.correct[i]) for i in rows) / len(rows)
        sure = sum(float(scored.confidence[i]) for i in rows) / len(rows)
        total += len(rows) / n * abs(right - sure)
    return total


@examples(40)
@given(tables(), st.integers(1, 9))
def test_reliability_bins_hold_every_image_and_give_the_ece(scored: Scored, patients: int) -> None:
    owners = np.arange(len(scored.target)) % patients
    bins = reliability_bins(scored.confidence, scored.correct, owners)
    (one,) = reliability_bins(scored.confidence, scored.correct, owners, 1)
    assert (one["low"], one["high"]) == patient_share(scored.correct, owners)
    assert sum(b["count"] for b in bins) == len(scored.target)
    total = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(scored.target)
    assert total == pytest.approx(headline(scored)["ece"], abs=1e-12)
    assert all(b["low"] <= b["accuracy"] <= b["high"] for b in bins)


def test_equal_mass_bins_are_equal_and_do_not_split_ties() -> None:
    assert np.bincount(equal_mass_bins(np.linspace(0.3, 1, 60), 15)).tolist() == [4] * 15
    assert len(set(equal_mass_bins(np.full(40, 0.5)).tolist())) == 1


def test_wilson_by_hand() -> None:
    low, high = wilson(8, 10)  # Newcombe 1998, Stat. Med. 17:857, method 3
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    for n in range(1, 60):
        assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1
        assert all(wilson(k, n)[0] <= k / n <= wilson(k, n)[1] for k in range(n + 1))
