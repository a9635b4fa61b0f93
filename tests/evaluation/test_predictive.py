"""Predictive values: Bayes by counting, coverage by simulation, the edges, and refused prevalences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.evaluation.tables import CLASSES, method, predictions

from thoraclip.errors import ConfigError
from thoraclip.evaluation.predictive import predictive_values, read_prevalence, require_classes
from thoraclip.evaluation.render import html_page
from thoraclip.evaluation.report import judge
from thoraclip.proportions import wilson


def rate(right: int, of: int) -> dict[str, float]:
    low, high = wilson(right, of)
    return {"value": right / of, "low": low, "high": high}


def test_at_the_prevalence_of_the_sample_they_are_counts() -> None:
    """30 of 40 sick and 90 of 100 healthy: 30 of 40 positive answers are right, and 90 of 100 negative ones."""
    found = predictive_values({"sensitivity": rate(30, 40), "specificity": rate(90, 100)}, 40 / 140)
    assert found["ppv"]["value"] == pytest.approx(30 / 40) and found["npv"]["value"] == pytest.approx(90 / 100)
    rare = predictive_values({"sensitivity": rate(30, 40), "specificity": rate(90, 100)}, 0.01)
    assert rare["ppv"]["value"] == pytest.approx(0.75 * 0.01 / (0.75 * 0.01 + 0.1 * 0.99))
    assert rare["npv"]["value"] == pytest.approx(0.9 * 0.99 / (0.9 * 0.99 + 0.25 * 0.01))


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "share", "positives", "negatives"),
    [(0.9, 0.95, 0.05, 100, 300), (0.9, 0.998, 0.01, 60, 500), (0.99, 0.9, 0.3, 40, 80), (0.05, 0.95, 0.3, 30, 100)],
)
def test_coverage(sensitivity: float, specificity: float, share: float, positives: int, negatives: int) -> None:
    """Of 400 sets; the percentiles of resampled patients cover the second's PPV in 62 % and the third's NPV in 33 %."""
    rng, sets, covered = np.random.default_rng(1), 400, {"ppv": 0, "npv": 0}
    sick, well = sensitivity * share, specificity * (1 - share)
    truth = {"ppv": sick / (sick + (1 - specificity) * (1 - share)), "npv": well / (well + (1 - sensitivity) * share)}
    for _ in range(sets):
        found = predictive_values(
            {
                "sensitivity": rate(int(rng.binomial(positives, sensitivity)), positives),
                "specificity": rate(int(rng.binomial(negatives, specificity)), negatives),
            },
            share,
        )
        for name, value in truth.items():
            one: Any = found[name]
            covered[name] += one["value"] is None or one["low"] - 1e-12 <= value <= one["high"] + 1e-12
            assert one["value"] is None or 0 <= one["low"] <= one["value"] <= one["high"] <= 1
    assert all(0.92 <= count / sets <= 0.995 for count in covered.values()), covered


def test_edges() -> None:
    perfect = predictive_values({"sensitivity": rate(40, 40), "specificity": rate(100, 100)}, 0.1)
    assert perfect["ppv"]["value"] == perfect["ppv"]["high"] == 1 and 0.5 < perfect["ppv"]["low"] < 0.9
    assert perfect["npv"]["value"] == 1 and 0.98 < perfect["npv"]["low"] < 1
    never = predictive_values({"sensitivity": rate(0, 40), "specificity": rate(100, 100)}, 0.1)
    assert never["ppv"] == {"value": None, "low": None, "high": None} and never["npv"]["value"] == pytest.approx(0.9)
    wrong = predictive_values({"sensitivity": rate(0, 40), "specificity": rate(90, 100)}, 0.1)
    assert wrong["ppv"]["value"] == wrong["ppv"]["low"] == 0 < wrong["ppv"]["high"] < 0.2
    nothing: dict[str, Any] = {"value": None, "low": None, "high": None}
    assert predictive_values({"sensitivity": nothing, "specificity": rate(9, 10)}, 0.1)["ppv"]["value"] is None
    bare = {"value": 0.9, "low": None, "high": None}
    assert predictive_values({"sensitivity": bare, "specificity": bare}, 0.5)["ppv"] == pytest.approx(
        {"value": 0.9, "low": None, "high": None}
    )


def test_a_report_has_them_at_both_prevalences_and_both_points() -> None:
    table, val = predictions(150, signal=1.5), predictions(150, signal=1.5, seed=5, prefix="v")
    report = judge([method("a", table, validation=((val,),))], title="t", resamples=100, prevalence={"COVID-19": 0.05})
    entry = report["methods"][0]
    found = entry["predictive_values"]
    assert [found[name]["stated"] is None for name in CLASSES] == [False, True, True]
    assert found["COVID-19"]["study"]["prevalence"] == pytest.approx(1 / 3)
    for name in CLASSES:  # at the sample's prevalence the PPV is the precision
        precision = entry["per_class"][name]["precision"]["value"]
        assert found[name]["study"]["predicted"]["ppv"]["value"] == pytest.approx(precision)
    at = entry["trust"]["operating_point"]["classes"]["COVID-19"]["test"]
    sick, healthy = 0.05 * at["sensitivity"]["value"], 0.95 * (1 - at["specificity"]["value"])
    stated = found["COVID-19"]["stated"]["operating_point"]["ppv"]
    assert stated["value"] == pytest.approx(sick / (sick + healthy))
    assert "At the operating point</th>" in html_page(report, None, None)
    said = next(sentence for sentence in report["reading"] if sentence.startswith("Where 5.0 % have COVID-19"))
    assert f"{100 * found['COVID-19']['stated']['predicted']['npv']['value']:.1f} %" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["COVID-19"], "prevalence = 'COVID-19' must be CLASS=SHARE, such as COVID-19=0.05"),
        (["=0.1"], "must be CLASS=SHARE"),
        (["COVID-19=five"], "prevalence of 'COVID-19' = five: a number between 0 and 1 is needed"),
        (["COVID-19="], r"prevalence of 'COVID-19' = \(nothing\)"),
        (["COVID-19=nan"], "= nan: a number between 0 and 1"),
        (["COVID-19=0.1", "COVID-19=0.2"], "prevalence of 'COVID-19' is given twice"),
        ({"COVID-19": 0}, "= 0: a number between 0 and 1"),
        ({"COVID-19": 1.0}, r"= 1\.0: a number between 0 and 1"),
        ({"COVID-19": True}, "= True: a number between 0 and 1"),
        ({"COVID": 0.1}, "prevalence of 'COVID': no such class; did you mean 'COVID-19'"),
        ({"COVID-19": 0.6, "Normal": 0.6}, r"the stated prevalences sum to 1\.2"),
    ],
)
def test_what_is_no_prevalence_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_classes(read_prevalence(given), CLASSES)


def test_the_reading_says_why_a_predictive_value_does_not_exist() -> None:
    def said(targets: Any, answered: Any, name: str = "COVID-19", patients: int | None = None) -> str:
        table = predictions(targets=targets, patients=patients)
        scores = np.eye(3)[np.broadcast_to(answered, len(table))]
        report = judge(
            [method("a", dataclasses.replace(table, scores=scores))], title="t", resamples=100, prevalence={name: 0.05}
        )
        (found,) = [sentence for sentence in report["reading"] if sentence.startswith(f"Where 5.0 % have {name}")]
        assert "\u2013" not in found
        return found

    three = np.arange(90) % 3
    none = said(three, np.where(three == 0, 1, three))
    assert (
        "how often an answer \u201cCOVID-19\u201d of a is right is not known, since no image gets it, and any" in none
    )
    always = said(three, 0)
    assert "and how often any other answer is right is not known, since no image gets one." in always
    assert "not known: there is none among the judged images." in said(three % 2, three % 2, "Normal")
    assert "not known: there is no other image among the judged images." in said(np.zeros(30, dtype=int), 0)
    assert "% (without an interval), and any other" in said(three, np.roll(three, 9) % 3, patients=1)


def test_a_class_may_hold_an_equals_sign() -> None:
    assert (
        read_prevalence(["a=b=0.25"]) == {"a=b": 0.25} == read_prevalence({"a=b": 0.25}) == read_prevalence("a=b=0.25")
    )
