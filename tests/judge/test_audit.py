"""The audit's content from answers alone: circumstances, subgroups, what cannot be told, and the pages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thoraclip.judge.audit import Facts, audit_report
from thoraclip.judge.audit_page import write_audit
from thoraclip.judge.report import NOT_AUDITED, MethodResult, judge, with_audits
from thoraclip.judge.shortcuts import Answers, Trial
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))
N = 240


def facts(right: float = 0.8, behind: float = 1 / 3, **columns: list[Any]) -> Facts:
    """A classifier that is right so often, and so often without lungs."""
    rng = np.random.default_rng(0)
    target = (np.arange(N) % 3).astype(np.int64)

    def names(share: float) -> np.ndarray:
        wrong = (target + rng.integers(1, 3, N)) % 3
        return np.where(rng.random(N) < share, target, wrong).astype(np.int64)

    rows = [
        {"image_id": f"i{i}", "path": f"{i}.png", "sha256": f"c{i}", "label": LABELS.names[target[i]]}
        | {name: values[i] for name, values in columns.items()}
        for i in range(N)
    ]
    named = {"original": names(right), "lungs-removed-mean": names(behind), "background frame": names(behind)}
    trials = [
        Trial("lungs-removed-mean", "the lungs replaced", "classifier", after="lungs-removed-mean", finds="the rest"),
        Trial("background frame", "the frame", "data", after="background frame", finds="the frame"),
    ]
    manifest = Manifest.from_rows(rows, Path("/nowhere"))
    attributes = []
    for column in ("source", "view"):
        values = manifest.column(column)
        found = sorted({v for v in values if v is not None})
        codes = np.array([found.index(v) if v in found else -1 for v in values], dtype=np.int64)
        attributes.append(
            {"column": column, "values": found, "asked": found, "codes": codes, "named": codes if found else None}
        )
    return Facts(
        run="runs/probe", kind="probe", labels=LABELS, manifest=manifest, trials=trials, attributes=attributes,
        answers=Answers(target, np.arange(N), named, 3), lungs={"words": "The lung regions are the given masks."},
        sham={"images": 64, "largest_change": 0.0, "other_answers": 0}, saliency=None, without_duplicates=None,
        has_masks=True,
    )  # fmt: skip


def test_a_clean_and_a_shortcut() -> None:
    clean = audit_report(facts(), resamples=500, seed=0)
    assert clean["overall"] == "none" and clean["reading"][0] == "No sign of reliance on non-lung content."
    found = audit_report(facts(behind=0.75), resamples=500, seed=0)
    assert found["overall"] == "strong" and "Strong reliance" in found["reading"][0]
    assert any("without looking at a lung: trees on the frame reach" in s for s in found["reading"])
    names = [t["name"] for t in found["tests"]]
    assert names == ["lungs-removed-mean", "background frame", "shared-errors"]
    assert {"schema", "overall", "tests"} <= set(found) and found["schema"] == 1
    for test in found["tests"]:
        assert {"name", "effect", "low", "high", "p", "verdict"} <= set(test)


def test_the_design_of_the_file_holds_and_pages_are_drawn(tmp_path: Path) -> None:
    content = audit_report(facts(behind=0.75, source=["a"] * N, view=["PA", "AP"] * 120), resamples=200, seed=0)
    write_audit(content, tmp_path)
    read = json.loads((tmp_path / "audit.json").read_text())
    assert read["overall"] in {"none", "some", "strong", "cannot_tell"}
    for name in ("audit.md", "audit.html"):
        text = (tmp_path / name).read_text()
        assert "Research use only, not for diagnosis" in text and "Strong reliance on non-lung content" in text
        assert "http://" not in text.replace("http://www.w3.org", "") and "<script" not in text
    before = (tmp_path / "audit.html").read_bytes()
    write_audit(content, tmp_path)
    assert (tmp_path / "audit.html").read_bytes() == before


def test_where_source_and_class_coincide_it_is_said() -> None:
    sources = ["clinic" if i % 3 == 0 else "archive" if i % 3 == 1 else "store" for i in range(N)]
    content = audit_report(facts(source=sources), resamples=200, seed=0)
    row = next(r for r in content["attributes"] if r["column"] == "source")
    assert row["coincides"] and "cannot be told" in row["words"]
    assert any("Every source holds one class only" in sentence for sentence in content["reading"])
    mixed = audit_report(facts(source=["a", "b"] * 120), resamples=200, seed=0)
    assert not any("holds one class only" in sentence for sentence in mixed["reading"])
    partly = audit_report(
        facts(source=["clinic" if i % 3 == 0 and i < 90 else "archive" for i in range(N)]), resamples=200, seed=0
    )
    assert not next(r for r in partly["attributes"] if r["column"] == "source")["coincides"]
    some = audit_report(facts(view=["PA", "AP", None] * 80), resamples=200, seed=0)
    assert next(r for r in some["attributes"] if r["column"] == "view")["accuracy"]["value"] == 1, (
        "of those that are known"
    )


def test_one_source_none_and_a_group_of_two_images() -> None:
    one = audit_report(facts(source=["only"] * N), resamples=200, seed=0)
    assert "the same one, 'only'" in next(r for r in one["attributes"] if r["column"] == "source")["words"]
    assert not [r for r in one["subgroups"] if r["column"] == "source"]
    none = audit_report(facts(), resamples=200, seed=0)
    assert "is not known" in next(r for r in none["attributes"] if r["column"] == "source")["words"]
    two = audit_report(facts(sex=["F"] * 2 + ["M"] * (N - 2)), resamples=200, seed=0)
    small = next(r for r in two["subgroups"] if r["value"] == "F")
    assert small["images"] == 2 and small["is_small"] and small["high"] - small["low"] > 0.5
    assert any("the smallest is sex 'F' with 2 images" in sentence for sentence in two["reading"])
    ten = audit_report(facts(sex=["F"] * 10 + ["M"] * (N - 10)), resamples=200, seed=0)
    assert not any(row["is_small"] for row in ten["subgroups"])


def test_age_bands() -> None:
    ages = [5.0, 17.9, 18.0, 39.0, 40.0, 60.0, 79.9, 80.0, 95.0, None] * 24
    rows = [r for r in audit_report(facts(age_years=ages), resamples=200, seed=0)["subgroups"] if r["column"] == "age"]
    assert {r["value"]: r["images"] for r in rows} == {
        "00 to 17": 48, "18 to 39": 48, "40 to 59": 24, "60 to 79": 48, "80+": 48,
    }  # fmt: skip


def test_a_sham_that_changes_answers_is_said() -> None:
    broken = dataclasses.replace(facts(), sham={"images": 64, "largest_change": 0.4, "other_answers": 3})
    assert any("no test here can be trusted" in s for s in audit_report(broken, resamples=200, seed=0)["reading"])


def test_shuffled_labels_that_are_named_are_a_leak() -> None:
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(np.repeat([0, 1, 2], [200, 30, 10])).astype(np.int64)

    def told(guessed: np.ndarray) -> list[str]:
        answers = Answers(shuffled, np.arange(N), {"refitted shuffled": guessed.astype(np.int64)}, 3)
        content = audit_report(dataclasses.replace(facts(), shuffled=answers), resamples=200, seed=0)
        assert content["tests"][2]["name"] == "refitted shuffled" and content["tests"][2]["verdict"] == "control"
        return [s for s in content["reading"] if "name shuffled labels" in s]

    assert told(np.where(rng.random(N) < 0.8, shuffled, 0))
    assert not told(np.zeros(N)), "the commonest label is no knowledge"
    assert not told(rng.permutation(shuffled)), "nor is guessing at its shares"


def test_saliency_is_weighed_against_the_area() -> None:
    found = {"method": "occlusion", "inside": [0.6, 0.7, 0.65, 0.7], "area": [0.3, 0.3, 0.35, 0.3]}
    row = audit_report(dataclasses.replace(facts(), saliency=found), resamples=500, seed=0)["saliency"]
    assert row["effect"] == pytest.approx(np.mean(found["inside"]) - np.mean(found["area"]))
    assert row["low"] > 0 and "more than chance" in row["words"]
    doubt = {**found, "inside": [0.1, 0.9, 0.2, 0.9]}
    told = audit_report(dataclasses.replace(facts(), saliency=doubt), resamples=500, seed=0)["saliency"]
    assert told["effect"] > 0 > told["low"] and "no more and no less than chance" in told["words"]


def test_a_classifier_that_may_be_guessing_cannot_be_told() -> None:
    content = audit_report(facts(right=0.4), resamples=500, seed=0)
    accuracy = content["balanced_accuracy"]
    assert accuracy["value"] > accuracy["chance"] > accuracy["low"] and content["overall"] == "cannot_tell"
    assert "not shown to be better than chance" in content["reading"][1]


def test_a_report_says_whether_it_was_audited() -> None:
    target = (np.arange(60) % 3).astype(np.int64)
    nothing = (None,) * 60
    scores = np.full((60, 3), 0.1)
    scores[np.arange(60), target] = 0.8
    table = Predictions(LABELS, tuple(f"i{i}" for i in range(60)), target, scores, nothing, nothing, nothing)
    report = judge([MethodResult(name="probe", kind="probe", predictions=(table,))], title="t", resamples=100)
    assert report["reading"][1] == NOT_AUDITED and report["audits"] == {}
    audited = with_audits(report, {"probe": audit_report(facts(behind=0.75), resamples=200, seed=0)})
    assert audited["reading"][1] == "Audit of probe: strong reliance on non-lung content."
    assert NOT_AUDITED not in audited["reading"] and audited["audits"]["probe"]["overall"] == "strong"
