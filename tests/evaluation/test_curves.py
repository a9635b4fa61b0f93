"""Curves and bands against slow loops over resampled rows, with scikit-learn's curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve
from tests.evaluation.tables import method, predictions

from thoraclip.evaluation.curves import SHARES, THRESHOLDS, _longest_run, curve_entry
from thoraclip.evaluation.metrics import Scored, precision_recall
from thoraclip.evaluation.report import judge
from thoraclip.evaluation.resampling import resample_weights

NAMES = ("a", "b", "c")


def table(n: int, *, ties: bool, seed: int = 0) -> Scored:
    made = predictions(n, signal=1.0, seed=seed)
    scores = np.round(made.scores * 8) + 0.5 if ties else made.scores
    return Scored(made.target, scores / scores.sum(axis=1, keepdims=True))


def slow(positive: Any, score: Any) -> tuple[Any, Any, Any, Any]:
    """Sensitivity at `SHARES`, precision at `SHARES`, net benefit and its gain at `THRESHOLDS`, from the rows alone."""
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    at_fpr = []
    for share in SHARES:
        j = np.flatnonzero(fpr <= share + 1e-12)[-1]  # of a vertical step its upper end
        rise = 0.0 if fpr[j] > share - 1e-12 else (tpr[j + 1] - tpr[j]) * (share - fpr[j]) / (fpr[j + 1] - fpr[j])
        at_fpr.append(tpr[j] + rise)
    precision, recall, _ = precision_recall_curve(positive, score)
    precision, recall = precision[-2::-1], recall[-2::-1]  # from the highest threshold down, without the made-up point
    at_recall = [precision[np.flatnonzero(recall >= max(share, 1e-9) - 1e-12)[0]] for share in SHARES]
    benefit = []
    for p in THRESHOLDS:
        called = score >= p
        benefit.append(((called & positive).sum() - (called & ~positive).sum() * p / (1 - p)) / len(score))
    default = [max(0, positive.mean() - (~positive).mean() * p / (1 - p)) for p in THRESHOLDS]
    return np.array(at_fpr), np.array(at_recall), np.array(benefit), np.array(benefit) - default


@pytest.mark.parametrize("ties", [False, True])
def test_bands_are_the_quantiles_of_resampled_rows(ties: bool) -> None:
    scored, groups, resamples = table(60, ties=ties), np.arange(60) // 2, 120
    found = curve_entry(scored, NAMES, groups, resamples=resamples, seed=3)
    (weights,) = resample_weights(groups, resamples=resamples, seed=3)
    for c, name in enumerate(NAMES):
        drawn = []
        for column in weights.T:
            rows = np.repeat(np.arange(60), column.astype(int))
            drawn.append(slow(scored.target[rows] == c, scored.scores[rows, c]))
        of_roc, of_pr, benefit, gain = (
            np.quantile(np.array(one), [0.025, 0.975], axis=0) for one in zip(*drawn, strict=True)
        )
        benefits = found["net_benefit"][name]
        bands = (found["roc_band"][name], found["pr"][name]["band"], benefits, benefits["gain"])
        for band, expected in zip(bands, (of_roc, of_pr, benefit, gain), strict=True):
            assert np.allclose([band["low"], band["high"]], expected, atol=6e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_the_curves_are_those_of_the_rows(ties: bool) -> None:
    scored = table(90, ties=ties)
    found = curve_entry(scored, NAMES, np.arange(90), resamples=100, seed=0)
    for c, name in enumerate(NAMES):
        positive, score = scored.target == c, scored.scores[:, c]
        curve, benefit = found["pr"][name], found["net_benefit"][name]
        precision, recall, _ = precision_recall_curve(positive, score)
        ours = precision_recall(positive, score)
        assert np.allclose(ours[0], precision[-2::-1]) and np.allclose(ours[1], recall[-2::-1])
        drawn = set(zip(np.round(recall, 4), np.round(precision, 4), strict=True))
        assert set(zip(curve["recall"], curve["precision"], strict=True)) <= drawn
        assert curve["recall"][-1] == 1 and sorted(curve["recall"]) == curve["recall"]
        _, _, value, gain = slow(positive, score)
        assert np.allclose(benefit["value"], value, atol=6e-5) and np.allclose(
            benefit["gain"]["value"], gain, atol=6e-5
        )
        share = positive.mean()
        treat_all = [share - (1 - share) * p / (1 - p) for p in THRESHOLDS]
        assert np.allclose(benefit["treat_all"], treat_all, atol=6e-5)
        everybody = slow(positive, np.ones(90))[2]
        assert np.allclose(treat_all, everybody), "treating all is a score of 1 for everybody"


def test_one_patient_has_no_band_and_an_absent_class_no_curve() -> None:
    made = predictions(targets=[0, 1] * 20)
    scored = Scored(made.target, made.scores)
    alone = curve_entry(scored, NAMES, np.zeros(40, dtype=np.int64), resamples=100, seed=0)
    assert alone["pr"]["a"]["band"] is None and alone["roc_band"]["a"] is None
    assert alone["net_benefit"]["a"]["low"] is None and len(alone["net_benefit"]["a"]["value"]) == len(THRESHOLDS)
    assert alone["pr"]["c"] is alone["net_benefit"]["c"] is alone["roc_band"]["c"] is None


def test_scores_below_every_threshold_have_no_benefit_and_no_harm() -> None:
    scores = np.tile([0.001, 0.999], (20, 1))
    scored = Scored(np.arange(20) % 2, scores)
    assert set(curve_entry(scored, ("a", "b"), np.arange(20), resamples=100, seed=0)["net_benefit"]["a"]["value"]) == {
        0
    }


def test_a_report_has_them_of_every_method_but_the_majority() -> None:
    report = judge([method("a", predictions(60))], title="t", resamples=100)
    entry, majority = report["methods"]
    assert list(entry["net_benefit"]) == report["classes"] == list(entry["pr"]) == list(entry["roc_band"])
    assert majority["net_benefit"] is majority["pr"] is majority["subgroups"] is majority["predictive_values"] is None
    assert entry["subgroups"] is None, "there is no manifest"


@pytest.mark.parametrize(
    ("holds", "ends"),
    [([], None), ([0, 1], [0.01, 0.02]), ([3, 50, 51, 52, 98], [0.51, 0.53]), ([97, 98], [0.98, 0.99])],
)
def test_the_useful_thresholds_are_the_longest_run(holds: list[int], ends: Any) -> None:
    assert _longest_run(np.isin(np.arange(99), holds)) == ends


def test_guessing_is_seldom_useful() -> None:
    """Of 60 sets of 150 images whose scores know nothing but the shares, those with ten thresholds or more."""
    runs = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scored = Scored(rng.integers(0, 2, 150), rng.dirichlet([8, 8], 150))
        found = curve_entry(scored, ("a", "b"), np.arange(150), resamples=200, seed=seed)["net_benefit"]["a"]["useful"]
        runs.append(0 if found is None else found[1] - found[0])
    assert np.mean(np.array(runs) > 0.1) <= 0.1
