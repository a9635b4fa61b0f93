"""The audit's content from answers alone: what cannot be told, what cannot be trusted, small groups, attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.tables import answers, audit, method, predictions

from thoraclip.errors import InputError
from thoraclip.evaluation.render import audit_context, markdown_page, write_audit
from thoraclip.evaluation.report import NOT_AUDITED, judge, with_audits
from thoraclip.evaluation.shortcuts import Answers, ShortcutTest

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


def test_shuffled_labels_that_are_named_stop_the_verdict() -> None:
    rng = np.random.default_rng(1)
    shuffled = [rng.permutation(np.repeat([0, 1, 2], [100, 30, 20])).astype(np.int64) for _ in range(8)]

    def told(guess: Any) -> dict[str, Any]:
        named = [{"shuffled probe": guess(labels), "shuffled trees": np.zeros(N, np.int64)} for labels in shuffled]
        fitted = [Answers(labels, np.arange(N), names, 3) for labels, names in zip(shuffled, named, strict=True)]
        return audit(0.75, shuffled=fitted)

    leak = told(lambda labels: answers(0.8, labels, 0))
    assert leak["overall"] == leak["classifier"] == leak["data"] == "cannot_tell"
    assert leak["reading"][0].startswith("A control failed: a probe fitted anew")
    for guess in (lambda _: np.zeros(N, np.int64), lambda labels: rng.permutation(labels)):
        fine = told(guess)
        assert fine["overall"] == fine["data"] == "strong", "the commonest label is no knowledge, nor are its shares"
        assert {t["verdict"] for t in fine["tests"] if t["name"].startswith("shuffled")} == {"none"}


@pytest.mark.parametrize(("changed", "stops"), [(0, False), (3, False), (4, True)])
def test_a_classifier_that_answers_twice_in_two_ways_stops_the_verdict(changed: int, stops: bool) -> None:
    """From 5 % of the images on."""
    content = audit(0.75, sham={"images": 64, "largest_change": 0.1, "other_answers": changed})
    assert (content["overall"] == "cannot_tell") is stops
    assert content["reading"][0].startswith("A control failed: 4 answers of 64 changed") is stops


def test_what_a_file_reads_of_schema_2() -> None:
    content = audit(0.75)
    assert content["schema"] == 2 and content["overall"] == content["classifier"]
    verdicts = {"none", "some", "strong", "cannot_tell"}
    assert {content["classifier"], content["data"], *(t["verdict"] for t in content["tests"])} <= verdicts
    assert {t["asks"] for t in content["tests"]} == {"classifier", "data", "control"}
    assert all({"name", "effect", "low", "high", "p"} <= set(t) for t in content["tests"])
    data = audit(0.75, tests=[ShortcutTest("background file", "b", "data", "trees", "background file")])
    assert (data["classifier"], data["data"]) == ("cannot_tell", "strong"), "what the data offer accuses no classifier"


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
    assert "not shown to be better than chance" in content["reading"][0]


def test_an_audit_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = audit(1 / 3) | {"schema": 1}
    with pytest.raises(InputError, match="schema 1, but 2 is read; make it anew with thoraclip audit"):
        write_audit(old, tmp_path)
    assert not list(tmp_path.iterdir())
    report = with_audits(judge([method("probe", predictions(60))], title="t", resamples=100), {"probe": old})
    with pytest.raises(InputError, match="audit of runs/probe: schema 1"):
        markdown_page(report)


def test_a_page_has_a_table_for_all_that_was_asked() -> None:
    content = audit(1 / 3)
    tables = {asks: [t for t in content["tests"] if t["asks"] == asks] for asks in ("classifier", "data", "control")}
    assert audit_context(content)["tests"] == tables
    for asks in tables:
        assert audit_context(content | {"tests": tables[asks]})["tests"] == {asks: tables[asks]}


def test_a_report_says_whether_it_was_audited() -> None:
    report = judge([method("probe", predictions(60))], title="t", resamples=100)
    assert report["reading"][1] == NOT_AUDITED and report["audits"] == {}
    content = audit(0.75)
    audited = with_audits(report, {"probe": content})
    assert "strong reliance on non-lung content." in " ".join(audited["reading"][1:4]).lower()
    assert audited["reading"][2:5] == content["reading"][1:4] and audited["reading"][6:] == report["reading"][2:]
    assert audited["reading"][5] == content["power"]["words"] not in content["reading"][:4]
    old = with_audits(report, {"probe": {name: value for name, value in content.items() if name != "power"}})
    assert old["reading"] == audited["reading"][:5] + audited["reading"][6:]
    assert NOT_AUDITED not in audited["reading"] and audited["audits"]["probe"]["overall"] == "strong"


@pytest.mark.parametrize("left_out", [0, 4])
def test_a_page_gives_the_score_without_copies_where_there_are_any_and_says_how_intervals_are_made(
    left_out: int, tmp_path: Path
) -> None:
    copies = {"left_out": left_out, "images": 150, "across_parts": 1, "accuracy": 0.8}
    found = copies | dict(zip(("accuracy_without", "low", "high"), (0.79, 0.7, 0.85), strict=True))
    content = audit(
        0.75, without_duplicates=found if left_out else copies | dict.fromkeys(found.keys() - copies.keys())
    )
    write_audit(content, tmp_path)
    for page in ("audit.html", "audit.md"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert ("without them 79.0 %" in text) is ("Copies:" in text) is bool(left_out)
        assert "Statistical methods of the audit" in text
        assert "100 bootstrap resamples of 75 independent groups (patients and copies together; seed 3)" in text
    write_audit({name: value for name, value in content.items() if name != "statistics"}, tmp_path / "before")
