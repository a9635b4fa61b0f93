"""The audit's content from answers alone: what cannot be told, what cannot be trusted, small groups, attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.evaluation.tables import answers, audit, method, predictions

from thoraclip.evaluation.audit import _leaking
from thoraclip.evaluation.render import audit_context
from thoraclip.evaluation.report import NOT_AUDITED, judge, with_audits
from thoraclip.evaluation.shortcuts import Answers

N = 150


def row(content: dict[str, Any], column: str) -> dict[str, Any]:
    return next(r for r in content["attributes"] if r["column"] == column)


def test_what_coincides_with_the_class_cannot_be_told_from_it() -> None:
    """Neither where every value holds one class, nor where it is unknown or the only one; one mixed value is enough."""
    told = row(audit(1 / 3), "source")
    assert told["coincides"] and told["words"] == (
        "Every source holds one class only, so whether the classifier tells the class or the source cannot be told on "
        "this set."
    )
    partly = ["clinic" if i % 3 == 0 and i < 90 else "archive" for i in range(N)]
    assert not row(audit(1 / 3, columns={"source": partly}), "source")["coincides"]
    one, none = (row(audit(1 / 3, columns={"source": [value] * N}), "source") for value in ("only", None))
    assert one["words"] == "All images of known source have the same one, 'only'." and not one["coincides"]
    assert none["words"] == "The source of the images is not known." and not none["coincides"]


def test_a_group_of_fewer_than_ten_images_is_small() -> None:
    for number, small in ((9, 1), (10, 0)):
        content = audit(1 / 3, columns={"sex": ["F"] * number + ["M"] * (N - number)})
        assert sum(r["is_small"] for r in content["subgroups"]) == small
        assert any("the smallest is sex 'F' with 9 images" in s for s in content["reading"]) == bool(small)
    assert not [r for r in audit(1 / 3, columns={"sex": ["F"] * N})["subgroups"] if r["column"] == "sex"]


def test_shuffled_labels_that_are_named_are_a_leak() -> None:
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(np.repeat([0, 1, 2], [110, 30, 10])).astype(np.int64)

    def told(guessed: Any) -> list[str]:
        fitted = Answers(shuffled, np.arange(N), {"refitted shuffled": guessed.astype(np.int64)}, 3)
        return [s for s in audit(1 / 3, shuffled=fitted)["reading"] if "name shuffled labels" in s]

    assert told(answers(0.8, shuffled, 0))
    assert not told(np.zeros(N)), "the commonest label is no knowledge"
    assert not told(rng.permutation(shuffled)), "nor is guessing at its shares"
    rows = [{"name": name, "effect": 0.2, "p": p} for name in ("refitted shuffled", "refitted") for p in (0.0099, 0.01)]
    assert [_leaking([r]) != [] for r in rows] == [True, False, False, False]


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ([0.6, 0.5], "more than"),
        ([0.3, 0.2], "less than"),
        ([0.1, 0.9], "no more and no less than"),
        ([0.4, 0.4], "no more and no less than"),
    ],
)
def test_heat_is_weighed_against_the_area(inside: list[float], said: str) -> None:
    found = audit(1 / 3, saliency={"method": "occlusion", "inside": inside, "area": [0.4, 0.4]})["saliency"]
    assert f": {said} chance" in found["words"]
    assert found["effect"] == pytest.approx(np.mean(inside) - 0.4) and found["low"] <= found["effect"] <= found["high"]
    assert audit(1 / 3, saliency={"method": "occlusion", "inside": [], "area": []})["saliency"] is None


def test_a_classifier_that_may_be_guessing_cannot_be_told() -> None:
    content = audit(1 / 3, right=0.4)
    accuracy = content["balanced_accuracy"]
    assert accuracy["value"] > accuracy["chance"] > accuracy["low"] and content["overall"] == "cannot_tell"
    assert "not shown to be better than chance" in content["reading"][1]


def test_a_page_has_a_table_for_each_level_that_was_tested() -> None:
    content = audit(1 / 3)
    levels = {
        level: [t for t in content["tests"] if t["level"] == level] for level in ("classifier", "features", "data")
    }
    assert audit_context(content)["tests"] == levels
    for level in levels:
        assert audit_context(content | {"tests": levels[level]})["tests"] == {level: levels[level]}


def test_a_report_says_whether_it_was_audited() -> None:
    report = judge([method("probe", predictions(60))], title="t", resamples=100)
    assert report["reading"][1] == NOT_AUDITED and report["audits"] == {}
    content = audit(0.75)
    audited = with_audits(report, {"probe": content})
    assert audited["reading"][1] == "Audit of probe: strong reliance on non-lung content."
    assert audited["reading"][2:5] == content["reading"][1:4] and audited["reading"][5:] == report["reading"][2:]
    assert NOT_AUDITED not in audited["reading"] and audited["audits"]["probe"]["overall"] == "strong"
