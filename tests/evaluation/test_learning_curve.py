"""Learning curves: the entry of a report by hand, coverage by simulation, and what the words and the figure say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.coverage import FewShotStudy, covered_by_curves
from sklearn.metrics import f1_score
from tests.evaluation.tables import CLASSES, method, predictions

from thoraclip.errors import MismatchError
from thoraclip.evaluation.figures import learning_figure
from thoraclip.evaluation.learning_curve import FewShot, learning_notes
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.report import judge, write_report
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.trainings import DRAWS, Variance, draw_variance

SIGNALS = {1: 0.3, 4: 1.4, 16: 2.4}
POOL = dict(zip(CLASSES, (40, 60, 100), strict=True))


def table(signal: float, seed: int) -> Any:
    return predictions(240, signal=signal, seed=seed, patients=120)


def made(**more: Any) -> FewShot:
    runs = {
        ("probe", shots): method(f"probe, {shots}", *(table(signal, 10 * shots + draw) for draw in range(3)))
        for shots, signal in SIGNALS.items()
    }
    known = {"runs": runs, "draws": 3, "unit": "patient", "patients": POOL, "labelled": POOL, "with_all": True}
    return FewShot(**{**known, **more})


def judged(few: FewShot | None) -> dict[str, Any]:
    methods = [method("probe", table(3.0, 1)), method("zero-shot", table(1.0, 2), kind="zeroshot", is_trained=False)]
    return judge(methods, title="t", resamples=300, few_shot=few)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return judged(made())


def test_the_variance_over_draws_by_hand() -> None:
    values, patients = np.array([0.5, 0.6, 0.7]), [40, 60, 120]
    pool = 3 / (1 / 40 + 1 / 60 + 1 / 120)
    assert pool == pytest.approx(60)
    assert draw_variance(values, shots=20, patients=patients) == Variance(
        pytest.approx(0.01 * (1 / 3 + 20 / 40)), 2, DRAWS
    )
    assert draw_variance(values, shots=20, patients=patients, folds=4).value == pytest.approx(0.01 * (1 / 3 + 4 / 2))
    assert draw_variance(values[:1], shots=20, patients=patients) is None
    assert draw_variance(values, shots=60, patients=patients) is None, "nothing is left that could have been drawn"


def test_draws_and_patients_explain_the_spread_over_pools() -> None:
    """The mean of k draws from N normal values: its variance over all pools, against the mean of the estimates."""
    rng, k, pool, draws = np.random.default_rng(0), 8, 24, 4
    means, estimates = [], []
    for _ in range(3000):
        x = rng.normal(size=pool)
        values = np.array([rng.permutation(x)[:k].mean() for _ in range(draws)])
        means.append(values.mean())
        estimates.append(draw_variance(values, shots=k, patients=[pool]).value)
    assert np.mean(estimates) == pytest.approx(np.var(means), rel=0.08)
    assert np.var(means) == pytest.approx((1 / k - 1 / pool) / draws + 1 / pool, rel=0.08)


@pytest.mark.parametrize("study", [FewShotStudy(), FewShotStudy(pool=(60, 60, 60), folds=3)], ids=["split", "folds"])
def test_coverage(study: FewShotStudy) -> None:
    """Nominal 95 %, of 250 studies; test patients alone cover one shot in about half."""
    points, gains, alone = covered_by_curves(study, sets=250, resamples=100)
    assert (points >= 0.93).all() and (gains >= 0.92).all(), (points, gains)
    assert alone[0] < 0.85 < points[0] - 0.05, alone


def test_resampled_answers_are_those_of_all_metrics() -> None:
    rng, groups = np.random.default_rng(3), np.repeat(np.arange(40), 2)
    tables = [Scored(rng.integers(0, 3, 80), rng.random((80, 3))) for _ in range(2)]
    slow = replicate(tables, groups, resamples=100, seed=5)
    quick = replicate(tables, groups, resamples=100, seed=5, names=("accuracy", "macro_f1"))
    for one, whole in zip(quick, slow, strict=True):
        assert set(one.headline) == {"accuracy", "macro_f1"}
        for name, values in one.headline.items():
            np.testing.assert_allclose(values, whole.headline[name], atol=1e-12)


def test_every_point_is_the_mean_of_its_draws(report: dict[str, Any]) -> None:
    curve = report["learning_curve"]
    (probe,) = curve["methods"]
    assert [point["shots"] for point in probe["points"]] == [1, 4, 16, "all"]
    for point, signal in zip(probe["points"], SIGNALS, strict=False):
        tables = [table(SIGNALS[signal], 10 * signal + draw) for draw in range(3)]
        each = [f1_score(t.target, t.scores.argmax(axis=1), average="macro") for t in tables]
        assert point["trainings"] == pytest.approx(each) and point["value"] == pytest.approx(np.mean(each))
        assert point["low"] < point["value"] < point["high"] and point["counts_training"]
    row = next(m for m in report["methods"] if m["name"] == "probe")
    last, full = probe["points"][-1], row["metrics"]["macro_f1"]
    assert [last[k] for k in ("value", "low", "high")] == [full[k] for k in ("value", "low", "high")]
    assert not last["counts_training"], "one training"
    values = [point["value"] for point in probe["points"]]
    assert [(g["from"], g["to"]) for g in probe["gains"]] == [(1, 4), (4, 16), (16, "all")]
    assert [g["difference"] for g in probe["gains"]] == pytest.approx(np.diff(values))
    assert all(g["low"] < g["difference"] < g["high"] for g in probe["gains"])
    assert curve["floor"] == "zero-shot" and [row["name"] for row in curve["untrained"]] == ["zero-shot"]
    leads = [point["lead"]["difference"] for point in probe["points"]]
    assert leads == pytest.approx([value - curve["untrained"][0]["value"] for value in values])


def test_more_spread_of_the_draws_is_a_wider_interval(report: dict[str, Any]) -> None:
    few = made()
    runs = {**few.runs, ("probe", 16): method("probe, 16", *(table(signal, 5) for signal in (1.4, 2.4, 3.4)))}
    wide, narrow = (
        one["learning_curve"]["methods"][0]["points"][2] for one in (judged(replace(few, runs=runs)), report)
    )
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_what_failed_is_told_and_not_drawn() -> None:
    few = made(with_all=False)
    runs = {**few.runs, ("probe", 4): method("probe, 4", failed="no memory")}
    curve = judged(replace(few, runs=runs))["learning_curve"]
    assert [point["shots"] for point in curve["methods"][0]["points"]] == [1, 16], "and no last point of all labels"
    assert curve["failed"] == [{"name": "probe", "shots": 4, "error": "no memory"}]
    assert learning_notes(curve)[-1] == "Failed, and so not drawn: probe with 4 (no memory)."
    other = {("probe", 1): method("probe, 1", *(predictions(60, seed=d) for d in range(2)))}
    with pytest.raises(MismatchError, match="other images"):
        judged(made(runs=other))


def point(shots: Any, value: float, lead: float) -> dict[str, Any]:
    ends = {"value": value, "low": value - 0.02, "high": value + 0.02}
    return {"shots": shots, **ends, "trainings": [value], "counts_training": True,
            "lead": {"difference": lead, "low": lead - 0.05, "high": lead + 0.05}}  # fmt: skip


def gain(a: Any, b: Any, value: float) -> dict[str, Any]:
    return {"from": a, "to": b, "difference": value, "low": value - 0.03, "high": value + 0.03}


def test_the_words_answer_how_many_labels_are_needed() -> None:
    floor = {"name": "zero-shot", "value": 0.61, "low": 0.58, "high": 0.64}
    about = {
        "unit": "patient",
        "labelled": {"a": 90, "b": 1200},
        "untrained": [floor],
        "floor": "zero-shot",
        "failed": [],
    }
    rising = {"name": "A", "points": [point(1, 0.5, -0.11), point(8, 0.7, 0.09)], "gains": [gain(1, 8, 0.2)]}
    flat = {"name": "B", "points": [point(1, 0.5, -0.11), point(8, 0.6, -0.01), point("all", 0.61, 0.0)],
            "gains": [gain(1, 8, 0.1), gain(8, "all", 0.01)]}  # fmt: skip
    assert learning_notes({**about, "methods": [rising, flat]}) == [
        "With 8 labelled patients of each class, A reaches a macro F1 of 70.0 [68.0, 72.0] %. "
        "From 1 to 8 the gain is +20.0 points [+17.0, +23.0]: more labels still help. "
        "It beats zero-shot, which needs no labels (61.0 %), from 8 patients of each class on.",
        "With all labels (90 to 1,200 patients of each class), B reaches a macro F1 of 61.0 [59.0, 63.0] %. "
        "From 8 to all the gain is +1.0 points [\u22122.0, +4.0]: it may be chance. "
        "The last step with a gain that is more than chance is from 1 to 8. "
        "It cannot be shown to beat zero-shot, which needs no labels (61.0 %).",
    ]


def test_the_pages_show_the_curve_and_old_reports_have_none(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    value = f"{100 * report['learning_curve']['methods'][0]['points'][1]['value']:.1f}"
    assert "How many labels?" in page and "## How many labels?" in text
    assert value in page and re.search(rf"\| probe \|.* {value} \[", text)
    assert "Hollow: one training" in page
    assert any(sentence.startswith("Learning curve: With all labels") for sentence in report["reading"])
    assert "delete-d jackknife" in report["statistics"]
    old = judged(None)
    assert "learning_curve" not in old
    write_report(old, tmp_path)
    assert "How many labels?" not in (tmp_path / "report.html").read_text() + (tmp_path / "report.md").read_text()


def test_the_figure_has_a_tick_for_every_number_of_shots(report: dict[str, Any]) -> None:
    drawing = learning_figure(report["learning_curve"])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert [tick for tick in ("1", "4", "16", "all") if tick not in texts] == []
    assert {"probe", "zero-shot", "labelled patients of each class"} <= set(texts)
