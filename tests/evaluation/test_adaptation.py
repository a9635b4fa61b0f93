"""Adaptation to an external set: its entry by hand, coverage by simulation, and reports without it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tests.evaluation.tables import CLASSES, method, predictions

from thoraclip.errors import MismatchError
from thoraclip.evaluation.adaptation import Adaptation, Labels, Place, Point
from thoraclip.evaluation.adaptation_reading import adaptation_notes, adaptation_words
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.curve_figures import adaptation_figure
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.report import judge, write_report
from thoraclip.evaluation.trainings import SEEDS, draw_variance
from thoraclip.labels import LabelSet
from thoraclip.tables.predictions import Predictions

OUTSIDE: dict[Labels, float] = {0: 0.4, 4: 1.2, 16: 2.2, "all": 2.6}
INSIDE: dict[Labels, float] = {4: 2.8, 16: 2.6, "all": 2.5}
POOL = dict(zip(CLASSES, (20, 60, 100), strict=True))


def outside(labels: Labels) -> list[Predictions]:
    draws = 3 if labels in (4, 16) else 1
    return [predictions(180, signal=OUTSIDE[labels], seed=70 + draw, patients=90) for draw in range(draws)]


def inside(labels: Labels) -> list[Predictions]:
    draws = 3 if labels in (4, 16) else 1
    return [predictions(240, signal=INSIDE[labels], seed=30 + draw, patients=120) for draw in range(draws)]


def made(**more: Any) -> Adaptation:
    known: dict[str, Any] = {
        "outside": {("probe", k): method(f"probe, {k}", *outside(k)) for k in OUTSIDE},
        "inside": {("probe", k): method(f"probe, {k}", *inside(k)) for k in INSIDE},
        "draws": 3, "unit": "patient", "patients": POOL, "images": 180, "not_adapted": {"zero": "is not trained"},
    }  # fmt: skip
    return Adaptation(**{**known, **more})


def judged(adaptation: Adaptation | None) -> dict[str, Any]:
    study = method("probe", predictions(240, signal=3.0, seed=30, patients=120))
    there = method("probe", predictions(360, signal=0.4, seed=70, patients=180))
    one = ExternalResult(name="b", methods=(there,), adaptation=adaptation)
    report = judge([study], title="t", resamples=200, external=[one])
    return dict(report["external"][0])


def f1(table: Predictions) -> float:
    return float(f1_score(table.target, table.scores.argmax(axis=1), average="macro"))


def test_every_point_is_the_mean_of_its_trainings_outside_and_inside() -> None:
    entry = judged(made())["adaptation"]
    (probe,) = entry["methods"]
    assert [point["labels"] for point in probe["points"]] == [0, 4, 16, "all"]
    plain = {"out": np.mean([f1(t) for t in outside(0)]), "in": f1(predictions(240, signal=3.0, seed=30, patients=120))}
    for point in probe["points"]:
        k = point["labels"]
        there, home = [f1(t) for t in outside(k)], [f1(t) for t in inside(k)] if k else [plain["in"]]
        assert point["trainings"] == pytest.approx(there) and point["value"] == pytest.approx(np.mean(there))
        assert point["low"] < point["value"] < point["high"]
        assert point["counts_training"] == (k in (4, 16))
        assert point["inside"]["value"] == pytest.approx(np.mean(home))
        assert point["inside"]["low"] < point["inside"]["value"] < point["inside"]["high"]
        if not k:
            assert point["change"] is None and point["inside"]["change"] is None
            continue
        assert point["change"]["difference"] == pytest.approx(np.mean(there) - plain["out"])
        assert point["inside"]["change"]["difference"] == pytest.approx(np.mean(home) - plain["in"])
    values = [point["value"] for point in probe["points"]]
    assert [(g["from"], g["to"]) for g in probe["gains"]] == [(0, 4), (4, 16), (16, "all")]
    assert [g["difference"] for g in probe["gains"]] == pytest.approx(np.diff(values))
    assert entry["test"] == {"n": 180, "unit": "patient", "groups": 90} and entry["patients"] == POOL
    assert entry["not_adapted"] == [{"name": "zero", "reason": "is not trained"}] and entry["failed"] == []


def test_a_set_without_it_has_no_such_entry() -> None:
    plain, adapted = judged(None), judged(made())
    assert "adaptation" not in plain
    adapted.pop("adaptation")
    assert plain == adapted, "and with it, nothing else changes"


def test_what_failed_is_told_and_other_images_are_refused() -> None:
    runs = {**made().outside, ("probe", 4): method("probe, 4", failed="no memory")}
    entry = judged(made(outside=runs))["adaptation"]
    assert [point["labels"] for point in entry["methods"][0]["points"]] == [0, 16, "all"]
    assert entry["failed"] == [{"name": "probe", "labels": 4, "error": "no memory"}]
    with pytest.raises(MismatchError, match="other images"):
        judged(made(inside={("probe", k): method(f"probe, {k}", predictions(60, seed=1)) for k in INSIDE}))


def ends(difference: float, reach: float = 0.05) -> dict[str, float]:
    return {"difference": difference, "low": difference - reach, "high": difference + reach}


def told(changes: dict[Labels, float], home: float) -> dict[str, Any]:
    """A method of an entry, whose steps are the differences of its changes."""
    every = {0: 0.0, **changes}
    rows = [
        {"labels": k, "value": 0.4 + c, "low": 0.35 + c, "high": 0.45 + c, "change": ends(c) if k else None,
         "inside": {"value": 0.9, "change": ends(home) if k else None}}
        for k, c in every.items()
    ]  # fmt: skip
    gains = [{"from": a, "to": b, **ends(every[b] - every[a])} for a, b in pairwise(every)]
    return {"name": "probe", "points": rows, "gains": gains}


def test_the_words_say_no_more_than_is_shown() -> None:
    entry = {"unit": "patient"}
    rising, flat = told({5: 0.02, 30: 0.2, "all": 0.3}, -0.02), told({5: 0.1, 30: 0.06, "all": 0.04}, -0.08)
    assert adaptation_words(entry, "b", rising) == (
        "With all labelled patients from b in its training, probe has a macro F1 of 70.0 [65.0, 75.0] % on the test "
        "half of b, +30.0 points [+25.0, +35.0] against none. It is better than without from 30 patients of each class "
        "on. From 30 to all the gain is +10.0 points [+5.0, +15.0]: more labels still help. "
        "Inside that is \u22122.0 points [\u22127.0, +3.0], which may be chance."
    )
    words = adaptation_words(entry, "b", flat)
    assert "+4.0 points [\u22121.0, +9.0], which may be chance, against none." in words
    assert "It cannot be shown to be better than without." in words, "30 was, and all are not"
    assert "From 30 to all the gain is \u22122.0 points [\u22127.0, +3.0]: it may be chance." in words
    assert words.endswith("Inside that is \u22128.0 points [\u221213.0, \u22123.0].")
    assert "with 5 labelled patients of each class" in adaptation_words(entry, "b", told({5: 0.1}, 0.0)).lower()
    assert adaptation_words(entry, "b", told({}, 0.0)) == ""


def test_the_report_tells_the_best_one_inside_and_how_the_set_was_cut() -> None:
    study = method("probe", predictions(240, signal=3.0, seed=30, patients=120))
    there = method("probe", predictions(360, signal=0.4, seed=70, patients=180))
    for adaptation in (made(shared=2), None):
        one = ExternalResult(name="b", methods=(there,), adaptation=adaptation)
        report = judge([study], title="t", resamples=200, external=[one])
        said = [line for line in report["reading"] if line.startswith("With all labelled patients from b")]
        assert len(said) == (adaptation is not None)
    first, short, shared, left = adaptation_notes(
        judged(made(shared=2, patients={**POOL, CLASSES[0]: 12}))["adaptation"], "b"
    )
    assert "(180 images)" in first and "3 draws" in first
    assert short == f"A class with fewer patients than are asked for gives all it has: {CLASSES[0]} (12)."
    assert shared.startswith("2 images of patients whose id") and left == "Not adapted: zero (is not trained)."


def test_the_pages_draw_it(tmp_path: Path) -> None:
    study = method("probe", predictions(240, signal=3.0, seed=30, patients=120))
    there = method("probe", predictions(360, signal=0.4, seed=70, patients=180))
    one = ExternalResult(name="b", methods=(there,), adaptation=made())
    report = judge([study], title="t", resamples=200, external=[one])
    write_report(report, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    point = report["external"][0]["adaptation"]["methods"][0]["points"][2]
    values = [f"{100 * row['value']:.1f}" for row in (point, point["inside"])]
    assert re.search(rf"\| probe \| 16 \| {values[0]} \[.*\| {values[1]} \[", text)
    assert "b: with labels from there" in page and all(value in page for value in values)
    drawing = adaptation_figure(report["external"][0]["adaptation"], "b")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert {"0", "4", "16", "all", "probe", "labelled patients of each class from b"} <= set(texts)


def place(patients: tuple[int, ...], folds: int = 1) -> tuple[Place, Point]:
    target = np.repeat(np.arange(3), 40)
    aligned = Aligned(LabelSet(("a", "b", "c")), tuple(map(str, range(120))), target, np.arange(120), "image", {}, (),
                      np.zeros(120, dtype=np.int64), (), {})  # fmt: skip
    by_fold = np.array([[0.5, 0.54], [0.6, 0.62], [0.7, 0.76]])[:, :folds]
    drawn = np.random.default_rng(0).normal(0.6, 0.03, 200)
    return Place(aligned, patients, all_folds=True), Point(30, by_fold.mean(axis=1), by_fold, drawn)


def test_a_class_that_gives_all_its_patients_counts_no_draws() -> None:
    one, point = place((20, 60, 120))
    assert one.trainings(point) == [draw_variance(point.values, shots=30, patients=(60, 120))]
    assert one.trainings(replace(point, labels=200)) == []


def test_folds_share_a_draw_and_add_their_own_spread() -> None:
    one, point = place((60, 60, 60), folds=2)
    draws, folds = one.trainings(point)
    assert draws == draw_variance(point.values, shots=30, patients=(60, 60, 60), folds=1)
    spread = np.var(point.by_fold.mean(axis=0), ddof=1)
    assert (folds.value, folds.df, folds.source) == (pytest.approx((1 / 2 + 1) * spread), 1, SEEDS)


STUDY = np.array([[0.6, 0.5, 0.0, 0.0], [0.5, 0.6, 0.0, 0.3], [0.0, 0.3, 0.6, 0.4]])
"""Class means as the study has them, f64[3, 4]: shifted from those of the external set."""
SHOTS, DRAWS = (0, 4, 12), 3


def patients(rng: np.random.Generator, each: int) -> tuple[Any, Any]:
    label = np.repeat(np.arange(3), each)
    return label, 1.1 * np.eye(3, 4)[label] + rng.normal(scale=0.9, size=(len(label), 4))


def trained(rng: np.random.Generator, label: Any, x: Any) -> list[Any]:
    """f64[3, 4] means for each number of shots; the drawn patients count as half of each, nested."""
    order = [rng.permutation(np.flatnonzero(label == c)) for c in range(3)]
    return [STUDY, *((STUDY + np.stack([x[one[:k]].mean(axis=0) for one in order])) / 2 for k in SHOTS[1:])]


def table(means: Any, label: Any, x: Any) -> Scored:
    scores = np.exp(x @ means.T - 0.5 * (means**2).sum(axis=1))
    return Scored(label, scores / scores.sum(axis=1, keepdims=True))


def test_coverage_of_points_and_changes() -> None:
    """Nominal 95 %, over 200 pools and test halves, the study's training being given."""
    rng = np.random.default_rng(1)
    many = [[table(m, *patients(rng, 300)) for m in trained(rng, *patients(rng, SHOTS[-1]))] for _ in range(400)]
    truth = np.mean([[METRICS["macro_f1"].point(one) for one in row] for row in many], axis=0)
    points, changes, gains, alone = (np.zeros(size) for size in (3, 2, 2, 3))
    for number in range(200):
        rng = np.random.default_rng([7, number])
        pool, (target, x) = patients(rng, 40), patients(rng, 50)
        draws = [trained(rng, *pool) for _ in range(DRAWS)]
        tables = {
            ("m", k): [table(draw[n], target, x) for draw in (draws if k else draws[:1])] for n, k in enumerate(SHOTS)
        }
        aligned = Aligned(LabelSet(("a", "b", "c")), tuple(map(str, range(len(x)))), target, np.arange(len(x)),
                          "patient", {}, (), np.zeros(len(x), dtype=np.int64), (), {})  # fmt: skip
        one = Place(aligned, (40, 40, 40), all_folds=True)
        found = list(one.points(tables, folds=1, resamples=100, seed=number).values())
        none = Place(aligned, (0, 0, 0), all_folds=True)  # nothing to draw from: test patients alone
        for share, rows, true in (
            (points, [one.entry(point) for point in found], truth),
            (changes, [one.difference(found[0], point) for point in found[1:]], truth[1:] - truth[0]),
            (gains, [one.difference(a, b) for a, b in pairwise(found)], np.diff(truth)),
            (alone, [none.entry(point) for point in found], truth),
        ):
            share += [row["low"] <= value <= row["high"] for row, value in zip(rows, true, strict=True)]
    assert (points >= 0.93 * 200).all() and (changes >= 0.92 * 200).all() and (gains >= 0.92 * 200).all(), (
        points, changes, gains,
    )  # fmt: skip
    assert alone[1] < points[1] - 0.03 * 200, (alone, points)
