"""External sets: the drop against a slow bootstrap by hand, its symmetry, correction, words and pages."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t
from sklearn import metrics as sk
from tests.evaluation import tables
from tests.evaluation.tables import method

from thoraclip.errors import MismatchError
from thoraclip.evaluation.align import Aligned, align
from thoraclip.evaluation.compare import holm
from thoraclip.evaluation.external import DROPS, ExternalResult, Sample, difference, measure
from thoraclip.evaluation.external_reading import external_notes, external_reading, is_change, left_out_words
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.render import markdown_page
from thoraclip.evaluation.report import judge, write_report
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.labels import LabelSet
from thoraclip.proportions import share_interval
from thoraclip.tables.predictions import Predictions

CLASSES = ("covid", "normal", "pneumonia")


predictions = partial(tables.predictions, classes=CLASSES)


def sample(found: Aligned, *, seed: int, classes: tuple[int, ...] = (0, 1, 2), resamples: int = 150) -> Sample:
    rows = np.isin(found.target, classes)
    chosen = [Scored(found.target[rows], table.scores[rows]) for table in found.scored["a"]]
    return measure(chosen, found, rows, fold_of=None, resamples=resamples, seed=seed)


def report(external: list[ExternalResult], **more: Any) -> dict[str, Any]:
    inside = [method("a", predictions(90)), method("b", predictions(90, signal=0.5, seed=1))]
    return judge(inside, title="a study", resamples=100, external=external, **more)


def by_hand(own: list[Predictions], seed: int, resamples: int, classes: list[int]) -> dict[str, list[float]]:
    """Metric -> its mean over the tables in each resample; rows are repeated, and scikit-learn counts."""
    first = own[0]
    keep = np.flatnonzero(np.isin(first.target, classes))
    groups = np.unique(first.groups()[keep], return_inverse=True)[1]
    weights = np.concatenate(list(resample_weights(groups, resamples=resamples, seed=seed)), axis=1)
    found: dict[str, list[float]] = {name: [] for name in DROPS}
    for r in range(resamples):
        rows = np.repeat(keep, weights[:, r].astype(int))
        each = [_slow_metrics(table.target[rows], table.scores[rows]) for table in own]
        for name in DROPS:
            found[name].append(float(np.mean([one[name] for one in each])))
    return found


def _slow_metrics(target: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]) -> dict[str, float]:
    predicted, present = scores.argmax(axis=1), sorted(set(target.tolist()))
    areas = [sk.roc_auc_score(target == c, scores[:, c]) for c in present if len(present) > 1]
    return {
        "accuracy": float(np.mean(predicted == target)),
        "balanced_accuracy": float(np.mean([np.mean(predicted[target == c] == c) for c in present])),
        "macro_f1": float(sk.f1_score(target, predicted, labels=present, average="macro", zero_division=0)),
        "auroc": float(np.mean(areas)) if areas else np.nan,
    }


def test_the_drop_is_that_of_a_bootstrap_by_hand() -> None:
    """Of two classifiers inside and two outside, where one class of three has no image."""
    present, resamples = [0, 2], 30
    inside = [predictions(60, patients=25), predictions(60, patients=25, seed=5)]
    outside = [predictions(signal=0.8, seed=s, targets=[0, 2] * 20, patients=15) for s in (2, 3)]
    here = sample(align([method("a", *inside)]), seed=7, classes=(0, 2), resamples=resamples)
    there = sample(align([method("a", *outside)]), seed=8, classes=(0, 2), resamples=resamples)
    slow_here, slow_there = by_hand(inside, 7, resamples, present), by_hand(outside, 8, resamples, present)
    keep = np.isin(inside[0].target, present)
    for name in DROPS:
        found = difference(here, there, name)
        value_here = np.mean([_slow_metrics(t.target[keep], t.scores[keep])[name] for t in inside])
        value_there = np.mean([_slow_metrics(t.target, t.scores)[name] for t in outside])
        assert found["value"] == pytest.approx(value_here - value_there)
        sides = (value_here, slow_here[name], inside[0]), (value_there, slow_there[name], outside[0])
        (i, i_low, i_high, v, g), (o, o_low, o_high, w, h) = (_by_patient(name, *side, present) for side in sides)
        assert found["low"] == pytest.approx(i - o - np.hypot(i - i_low, o_high - o))
        assert found["high"] == pytest.approx(i - o + np.hypot(i_high - i, o - o_low))
        df = (v + w) ** 2 / (v**2 / (g - 1) + w**2 / (h - 1))
        assert found["p"] == pytest.approx(2 * t.sf(abs(i - o) / np.sqrt(v + w), df))


def _by_patient(
    name: str, value: float, drawn: list[float], table: Predictions, present: list[int]
) -> tuple[float, float, float, float, float]:
    """(value, low, high, variance, clusters), counted with sets."""
    owners = [{p for p, c in zip(table.patient, table.target, strict=True) if c == one} for one in present]
    clusters = len(set.union(*owners)) if name == "accuracy" else len(present) ** 2 / sum(1 / len(o) for o in owners)
    variance = max(float(np.var(drawn, ddof=1)) * clusters / (clusters - 1), 1 / clusters**2)
    return value, *share_interval(value, variance, clusters=clusters, df=clusters - 1), variance, clusters


def test_the_same_scores_on_both_sides_are_two_samples_all_the_same() -> None:
    found = report([ExternalResult(name="x", methods=(method("a", predictions(90, prefix="other")),))])
    drop = found["external"][0]["methods"][0]["drop"]
    for name in DROPS:
        assert drop[name]["value"] == 0 and drop[name]["low"] < 0 < drop[name]["high"], "independent, not paired"
    assert re.search(r", 0\.0 points \[.*\] less than inside \(p", found["reading"][-1])


def test_a_perfect_score_is_not_certain() -> None:
    perfect, half = predictions(40, signal=50), predictions(40, signal=0.5, seed=3)
    here, there = sample(align([method("a", perfect)]), seed=0), sample(align([method("a", half)]), seed=1)
    found = difference(here, there, "accuracy")
    outside, bound = there.values["accuracy"], 40 / (40 + t.ppf(0.975, 39) ** 2)
    assert outside.value is not None and outside.low is not None and outside.high is not None
    assert found["value"] == pytest.approx(1 - outside.value) and found["p"] < 1e-3
    assert found["low"] == pytest.approx(1 - outside.value - np.hypot(1 - bound, outside.high - outside.value))
    assert found["high"] == pytest.approx(1 - outside.value + outside.value - outside.low)
    mean = 9 / (1 / 14 + 1 / 13 + 1 / 13)
    assert here.values["macro_f1"].low == pytest.approx(mean / (mean + t.ppf(0.975, mean - 1) ** 2)), "of three classes"
    assert here.recall["covid"].low == pytest.approx(14 / (14 + t.ppf(0.975, 13) ** 2))
    both = difference(here, sample(align([method("a", perfect)]), seed=1), "accuracy")
    assert both["value"] == 0 and both["low"] == pytest.approx(bound - 1) and both["high"] == pytest.approx(1 - bound)


def test_a_drop_is_at_most_everything() -> None:
    wrong, right = predictions(40, signal=-50), predictions(40, signal=50)
    none, every = sample(align([method("a", wrong)]), seed=0), sample(align([method("a", right)]), seed=1)
    lost, gained = difference(every, none, "accuracy"), difference(none, every, "accuracy")
    assert lost["value"] == lost["high"] == 1 and gained["value"] == gained["low"] == -1
    assert 0 < lost["low"] < 1 and gained["high"] == -lost["low"]


@pytest.mark.parametrize("patients", [1, 2])
def test_two_patients_outside_have_an_interval_and_one_has_none(patients: int) -> None:
    (found,) = report([ExternalResult(name="x", methods=(method("a", predictions(12, patients=patients)),))])[
        "external"
    ]
    drop = found["methods"][0]["drop"]["accuracy"]
    assert drop["value"] is not None and (drop["low"] is None) == (patients == 1)


def test_a_set_with_all_classes_is_measured_as_the_report_measures() -> None:
    table = predictions(60, signal=1.0, patients=20)
    here = sample(align([method("a", table)]), seed=0)
    judged = judge([method("a", table, is_trained=False)], title="t", resamples=150, seed=0)["methods"][0]["metrics"]
    for name in (*DROPS, "ece"):
        entry, found = judged[name], here.values[name]
        assert (found.value, found.low, found.high) == pytest.approx((entry["value"], entry["low"], entry["high"])), (
            name
        )


def test_the_spread_over_classifiers_counts_outside() -> None:
    """Two seeds of three folds: the folds' classifiers share most of their images, so more than a sixth of s^2."""
    tables = [predictions(300, signal=s, seed=2) for s in (1.0, 0.2, 0.7, 0.9, 0.4, 0.5)]
    found = align([method("a", *tables)])
    everything, none = np.ones(300, dtype=bool), np.zeros(300, dtype=np.int64)
    means = np.array([np.mean(x.scores.argmax(axis=1) == x.target) for x in tables]).reshape(2, 3).mean(axis=0)
    by_folds = {
        folds: measure(found.scored["a"], found, everything, fold_of=none, folds=folds, resamples=150, seed=1)
        for folds in (1, 3)
    }
    alone = measure(found.scored["a"], found, everything, fold_of=None, resamples=150, seed=1)
    more = by_folds[3].values["accuracy"].variance.value - alone.values["accuracy"].variance.value
    assert more == pytest.approx((1 / 3 + 1 / 2) * means.var(ddof=1))
    assert alone.values["accuracy"].variance.value < by_folds[1].values["accuracy"].variance.value


def test_one_class_has_a_recall_and_no_auroc() -> None:
    whole = ExternalResult(name="w", methods=(method("a", predictions(30)),))
    one = ExternalResult(name="x", methods=(method("a", predictions(targets=[1] * 12)),))
    (found,), (_, again) = report([one])["external"], report([whole, one])["external"]
    assert again == found, "whatever other sets there are"
    entry = found["methods"][0]
    assert entry["metrics"]["auroc"]["value"] is None and entry["drop"]["auroc"]["value"] is None
    assert entry["metrics"]["balanced_accuracy"]["value"] == entry["metrics"]["accuracy"]["value"]


def test_classes_in_another_order_are_the_same_classes() -> None:
    table = predictions(30, signal=1.0)
    order = [2, 0, 1]
    turned = Predictions(
        LabelSet(tuple(CLASSES[c] for c in order)), table.image_id, np.argsort(order)[table.target], table.scores[:, order],
        table.split, table.fold, table.patient,
    )  # fmt: skip
    one, other = (report([ExternalResult(name="x", methods=(method("a", t),))]) for t in (table, turned))
    (one,), (other,) = one["external"], other["external"]
    assert one["images_per_class"] == other["images_per_class"]
    one, other = (found["methods"][0] for found in (one, other))
    for name in DROPS:
        assert one["drop"][name] == pytest.approx(other["drop"][name])
    for name in CLASSES:
        assert one["per_class"][name]["recall"] == pytest.approx(other["per_class"][name]["recall"])


def test_p_is_corrected_over_the_methods_of_a_set() -> None:
    methods = (method("a", predictions(45, signal=1.2)), method("b", predictions(45, signal=0.3, seed=9)))
    (found,) = report([ExternalResult(name="x", methods=methods)])["external"]
    for name in DROPS:
        drops = [entry["drop"][name] for entry in found["methods"]]
        assert [drop["p_holm"] for drop in drops] == holm([drop["p"] for drop in drops])


def test_external_sets_change_nothing_else() -> None:
    plain, more = report([]), report([ExternalResult(name="x", methods=(method("a", predictions(30)),))])
    assert plain["external"] == [] and len(more["external"]) == 1
    assert more["reading"][: len(plain["reading"])] == plain["reading"]
    assert more["statistics"].startswith(plain["statistics"].strip()) and "external" in more["statistics"]
    for key in set(plain) - {"external", "reading", "statistics"}:
        assert plain[key] == more[key]
    assert json.loads(json.dumps(more, allow_nan=False)) == more


def test_what_does_not_belong_to_the_study_is_refused() -> None:
    with pytest.raises(MismatchError, match="external 'x': its methods or classes are not those of the study"):
        report([ExternalResult(name="x", methods=(method("c", predictions(30)),))])
    with pytest.raises(MismatchError, match="external 'x'"):
        other = predictions(30, classes=("covid", "normal", "tb"))
        report([ExternalResult(name="x", methods=(method("a", other),))])


@pytest.mark.parametrize(
    ("p", "low", "high", "so"),
    [(0.049, -1, 1, True), (0.05, 0.1, 0.2, False), (None, 0.1, 0.2, True), (None, -0.2, -0.1, True),
     (None, 0.0, 0.1, False), (None, -0.1, 0.0, False), (None, None, None, False)],
)  # fmt: skip
def test_a_change_goes_by_the_corrected_p_and_else_by_the_interval(p: Any, low: Any, high: Any, so: bool) -> None:
    assert is_change({"p_holm": p, "low": low, "high": high}) is so


@pytest.mark.parametrize(("images", "said"), [(29, True), (30, False)])
def test_fewer_than_thirty_groups_are_said_to_be_few(images: int, said: bool) -> None:
    (found,) = report([ExternalResult(name="x", methods=(method("a", predictions(images)),))])["external"]
    assert ("Only 29 images: the intervals are rough and may be too narrow." in external_notes(found)) == said


def test_what_was_left_out_is_told_by_its_reason() -> None:
    gone = {"identical": 3000, "near": 1, "copies": 2, "unreadable": 0, "label not in the mapping": 4, "odd": 5}
    assert left_out_words(gone) == (
        "3,000 identical to a picture of the study, 1 nearly identical to a picture of the study, "
        "2 showing the picture of another image of the set, 4 with a label that is no class here, 5 odd"
    )


def test_the_pages_have_a_section_that_is_escaped_and_none_in_an_older_report(tmp_path: Path) -> None:
    sets = [
        ExternalResult(name="x", note='<script>alert("1")</script> | _a_', methods=(method("a", predictions(30)),),
                       not_scored={"b": "<oops>"}),
        ExternalResult(name="y", methods=(method("a", predictions(targets=[1] * 8)),)),
    ]  # fmt: skip
    told = report(sets)
    write_report(json.loads(json.dumps(told)), tmp_path)
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "On images from elsewhere" in page and "<script>" not in page and "&lt;oops&gt;" in page
    assert "### x" in text and "\\| \\_a\\_" in text and "b (&lt;oops&gt;)" in text
    told.pop("external")
    assert external_reading(told) == [] and "images from elsewhere" not in markdown_page(told)
