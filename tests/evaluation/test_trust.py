"""What a report says about calibration: fitted on validation images only, fold by fold, joined by id and class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from thoraclip.errors import ConfigError, LeakError, ManifestError, MismatchError
from thoraclip.evaluation.methods_text import statistical_methods
from thoraclip.evaluation.reading import reading
from thoraclip.evaluation.render import markdown_page
from thoraclip.evaluation.report import MethodResult, judge
from thoraclip.labels import LabelSet
from thoraclip.posthoc.conformal import fit_thresholds
from thoraclip.posthoc.operating import chance_of_goal, choose_threshold
from thoraclip.posthoc.scaling import fit_temperature, fit_vector
from thoraclip.proportions import patient_share
from thoraclip.tables.predictions import Predictions

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def table(
    n: int, *, seed: int, split: str | None = "test", fold: int | None = None, sharp: float = 2.5, prefix: str = "t"
) -> Predictions:
    """Scores that are `sharp` times too sure; three images a patient."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (chance.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1).astype(np.int64)
    scores = np.exp(sharp * logits)
    ids = tuple(f"{prefix}{i:04d}" for i in range(n))
    return Predictions(
        LabelSet(CLASSES), ids, target, scores / scores.sum(axis=1, keepdims=True), (split,) * n, (fold,) * n,
        tuple(f"{prefix}{i // 3}" for i in range(n)),
    )  # fmt: skip


def joined(*tables: Predictions) -> Predictions:
    return Predictions(
        tables[0].labels, sum((t.image_id for t in tables), ()), np.concatenate([t.target for t in tables]),
        np.concatenate([t.scores for t in tables]), sum((t.split for t in tables), ()), sum((t.fold for t in tables), ()),
        sum((t.patient for t in tables), ()),
    )  # fmt: skip


def trust(*tables: Predictions, validation: Any = (), **more: Any) -> dict[str, Any]:
    method = MethodResult(name="a", kind="probe", predictions=tables, validation=validation, **more)
    report = judge([method], title="t", resamples=200)
    found = next(m for m in report["methods"] if m["name"] == "a")["trust"]
    assert next(m for m in report["methods"] if m["name"] == "majority")["trust"] is None
    return {**found, "reading": " ".join(report["reading"])}


def test_what_is_fitted_on_validation_is_measured_on_the_rest() -> None:
    test, val = table(900, seed=0), table(400, seed=1, split="val", prefix="v")
    found = trust(test, validation=((val,),))
    temperature = fit_temperature(val.scores, val.target)
    assert found["temperature"] == {"reason": None, "fitted": [temperature.temperature]}
    assert 2 < temperature.temperature < 3, "planted: 2.5"
    vector = fit_vector(val.scores, val.target)
    assert found["vector"]["scale"] == {name: [vector.scale[c]] for c, name in enumerate(CLASSES)}
    scaled = temperature.apply(test.scores)
    assert found["after_temperature"]["brier"]["value"] == pytest.approx(
        ((scaled - np.eye(3)[test.target]) ** 2).sum(axis=1).mean()
    )
    for name in ("after_temperature", "after_vector"):
        for metric in ("ece", "brier", "log_loss"):
            assert found[name]["change"][metric]["high"] < 0, "scores that are 2.5 times too sure get better"
    assert found["after_temperature"]["accuracy"] == found["before"]["accuracy"]
    thresholds, row = (
        fit_thresholds(val.scores, val.target, patients=val.groups()),
        found["conformal"]["classes"]["Normal"],
    )
    normal = test.target == 2
    sets = thresholds.sets(test.scores)
    right, of = int(sets[normal, 2].sum()), int(normal.sum())
    owners = test.groups()
    low, high = patient_share(sets[normal, 2], owners[normal])
    assert row["coverage"] == {"value": right / of, "low": low, "high": high, "of": of}
    assert row["threshold"] == [thresholds.threshold[2]] and row["images"] == [int((val.target == 2).sum())]
    people = len({p for p, c in zip(val.patient, val.target, strict=True) if c == 2})
    assert row["patients"] == found["operating_point"]["classes"]["Normal"]["patients"] == [people] != row["images"]
    assert found["conformal"]["mean_size"] == pytest.approx(sets.sum(axis=1).mean())
    assert found["conformal"]["single"] == pytest.approx((sets.sum(axis=1) == 1).mean())
    assert (
        sum(found["conformal"]["sizes"]) == 900 and found["conformal"]["sizes"][0] == found["conformal"]["empty"] * 900
    )
    point = found["operating_point"]["classes"]["COVID-19"]
    assert point["validation"]["sensitivity"]["value"] >= 0.95 and point["reason"] is None
    assert point["chance"] == [chance_of_goal(point["patients"][0])]
    called = test.scores[:, 0] >= point["threshold"][0]
    assert point["test"]["sensitivity"]["value"] == pytest.approx(called[test.target == 0].mean())
    others = test.target != 0
    bounds = patient_share(~called[others], owners[others])
    assert (point["test"]["specificity"]["low"], point["test"]["specificity"]["high"]) == bounds
    curve = found["selective"]["curve"]
    assert len(curve["coverage"]) == len(curve["accuracy"]) == 50 and curve["coverage"][0] == 0.05
    at = {row["coverage"]: row for row in found["selective"]["at"]}
    assert at[1.0]["value"] == pytest.approx(found["before"]["accuracy"]["value"])
    assert at[1.0]["low"] == pytest.approx(found["before"]["accuracy"]["low"])
    assert at[0.5]["low"] <= at[0.5]["value"] <= at[0.5]["high"] and at[0.5]["value"] > at[1.0]["value"]


def test_each_fold_is_treated_by_its_own_validation_images() -> None:
    """Fold 0 is three times too sure, fold 1 not sure enough: one temperature for both would mend neither."""
    first, second = (table(450, seed=k, fold=k, sharp=sharp, prefix=f"t{k}-") for k, sharp in ((0, 3.0), (1, 0.5)))
    vals = tuple(
        table(300, seed=5 + k, fold=k, sharp=sharp, split="val", prefix=f"v{k}-") for k, sharp in ((0, 3.0), (1, 0.5))
    )
    found = trust(joined(first, second), validation=(vals[::-1],))
    values = dict(zip(found["validation"]["folds"], found["temperature"]["fitted"], strict=True))
    assert values[0] == pytest.approx(3, rel=0.25) and values[1] == pytest.approx(0.5, rel=0.25)
    parts = [
        fit_temperature(v.scores, v.target).apply(t.scores) - np.eye(3)[t.target]
        for t, v in zip((first, second), vals, strict=True)
    ]
    assert found["after_temperature"]["brier"]["value"] == pytest.approx(
        (np.concatenate(parts) ** 2).sum(axis=1).mean()
    )
    for c, name in enumerate(CLASSES):
        thresholds = [fit_thresholds(v.scores, v.target, patients=v.groups()) for v in vals]
        assert found["conformal"]["classes"][name]["threshold"] == [t.threshold[c] for t in thresholds[::-1]]
        sets = np.concatenate(
            [f.sets(t.scores)[t.target == c, c] for f, t in zip(thresholds, (first, second), strict=True)]
        )
        assert found["conformal"]["classes"][name]["coverage"]["value"] == sets.mean()
        point = found["operating_point"]["classes"][name]
        called = [t.scores[t.target == c, c] >= p for t, p in zip((second, first), point["threshold"], strict=True)]
        assert point["test"]["sensitivity"]["value"] == np.concatenate(called).mean()
    lonely = trust(joined(first, second), validation=((vals[0],),))
    assert lonely["reason"].startswith("450 judged images have no validation scores of their fold")
    assert "temperature" not in lonely and lonely["selective"]["at"]


@pytest.mark.parametrize("folds", [1, 5])
def test_one_number_has_one_interval(folds: int) -> None:
    """In the table of methods, before scaling, and where all images are answered."""
    test = table(600, seed=0)
    fold = tuple(i // 3 % folds for i in range(600)) if folds > 1 else (None,) * 600
    vals = tuple(
        table(200, seed=9 + k, split="val", fold=k if folds > 1 else None, prefix=f"v{k}-") for k in range(folds)
    )
    method = MethodResult(
        name="a", kind="probe", predictions=(dataclasses.replace(test, fold=fold),), validation=(vals,)
    )
    found = judge([method], title="t", resamples=200)["methods"][0]
    for metric in ("accuracy", "ece", "brier", "log_loss"):
        assert found["trust"]["before"][metric] == pytest.approx(found["metrics"][metric], abs=1e-12), metric
    accuracy, last = found["metrics"]["accuracy"], found["trust"]["selective"]["at"][-1]
    assert {k: last[k] for k in ("value", "low", "high")} == pytest.approx(accuracy)


def test_a_patient_who_calibrates_two_folds_is_one_patient() -> None:
    """Validation images of the second fold are those of the first."""
    test = table(600, seed=0)
    test = dataclasses.replace(test, fold=tuple(i // 3 % 2 for i in range(600)))
    val = table(300, seed=9, split="val", prefix="v")
    vals = tuple(dataclasses.replace(val, fold=(k,) * 300) for k in range(2))
    found = trust(test, validation=(vals,))["operating_point"]["classes"]["Normal"]
    (threshold, again), normal = found["threshold"], val.target == 2
    assert threshold == again
    once = patient_share(val.scores[normal, 2] >= threshold, val.groups()[normal])
    assert (found["validation"]["sensitivity"]["low"], found["validation"]["sensitivity"]["high"]) == once


def test_the_surest_answers_are_those_of_a_part_of_the_patients() -> None:
    """All right at half of the images: bounded as a perfect score of half of the patients is."""
    sure = table(300, seed=0, sharp=9.0)
    right = np.eye(3)[sure.target] * 0.96 + 0.01
    scores = np.where((np.arange(300) // 3 % 2 == 0)[:, None], right, 1 / 3 + 1e-3 * (np.arange(3) == 0))
    half = trust(dataclasses.replace(sure, scores=scores / scores.sum(axis=1, keepdims=True)), is_trained=False)
    at = {row["coverage"]: row for row in half["selective"]["at"]}
    assert at[0.5]["value"] == 1.0
    assert at[0.5]["low"] == pytest.approx(50 / (50 + t.ppf(0.975, 99) ** 2), abs=0.01)


def test_a_promise_that_is_not_kept_is_said() -> None:
    """Validation images that are easier than those that are judged."""
    test, val = table(600, seed=0), table(300, seed=1, split="val", prefix="v")
    easy = np.eye(3)[val.target] * 0.9 + 0.03
    told = trust(test, validation=((dataclasses.replace(val, scores=easy / easy.sum(axis=1, keepdims=True)),),))
    assert "The promise is not kept for COVID-19 (" in told["reading"]
    for seed in (1, 2, 3):
        fair = trust(test, validation=((table(300, seed=seed, split="val", prefix="v"),),))
        for name, row in fair["conformal"]["classes"].items():
            assert (f"{name} ({100 * row['coverage']['value']:.1f} %" in fair["reading"]) == (
                row["coverage"]["high"] < 0.9
            )


def test_classes_are_joined_by_name() -> None:
    test, val = table(600, seed=0), table(300, seed=1, split="val", prefix="v")
    order = [2, 0, 1]
    turned = dataclasses.replace(
        val, labels=LabelSet(tuple(CLASSES[c] for c in order)), scores=val.scores[:, order],
        target=np.argsort(order)[val.target],
    )  # fmt: skip
    assert trust(test, validation=((turned,),)) == trust(test, validation=((val,),))


def test_rows_of_split_val_serve_where_no_file_does() -> None:
    test, val = table(600, seed=0), table(300, seed=1, split="val", prefix="v")
    assert trust(joined(test, val)) == trust(test, validation=((val,),))
    bare = trust(test)
    assert "the run kept none" in bare["reason"] and set(bare) == {"seed", "reason", "selective", "reading"}
    assert "Temperature scaling" not in bare["reading"]


def test_few_images_are_said_and_not_hidden() -> None:
    test, val = table(300, seed=0), table(400, seed=1, split="val", prefix="v")
    val = dataclasses.replace(val, patient=(None,) * 400)
    kept = np.concatenate([np.flatnonzero(val.target == c)[:k] for c, k in enumerate((20, 9, 8))])
    found = trust(test, validation=((val.take(kept),),))
    sets, points = found["conformal"], found["operating_point"]["classes"]
    assert [row["reason"] for row in sets["classes"].values()] == [
        None, None, "in every set: 8 validation patients of the class, and 9 are needed: 1 more",
    ]  # fmt: skip
    assert points["Normal"]["threshold"] == [None] and points["Normal"]["test"] is None
    assert sets["fewest"] == 8 and sets["classes"]["Normal"]["threshold"] == [None]
    assert sets["classes"]["Normal"]["coverage"]["value"] == 1
    assert [row["reason"] for row in points.values()] == [
        None, *(f"no threshold: {k} validation patients of the class, and 19 are needed: {19 - k} more" for k in (9, 8)),
    ]  # fmt: skip
    part = trust(test.take(np.flatnonzero(test.target < 2)), validation=((val,),))
    assert part["conformal"]["classes"]["Normal"]["coverage"]["value"] is None and "hold it in" in part["reading"]
    flat = dataclasses.replace(val, scores=np.full((400, 3), 1 / 3))
    refused = trust(test, validation=((flat,),))
    assert "equal scores for all classes" in refused["temperature"]["reason"] and refused["after_temperature"] is None


@pytest.mark.parametrize("case", ["few patients", "all right"])
def test_a_method_that_is_not_calibrated_is_said_to_be(case: str) -> None:
    """In the entry, the reading and the table; what needs no temperature is fitted all the same."""
    test, val = table(300, seed=0), table(90, seed=1, split="val", prefix="v")
    if case == "few patients":  # 29, three or four images each
        val, reason = dataclasses.replace(val, patient=tuple(f"v{i % 29}" for i in range(90))), "29 validation patients"
    else:
        val = dataclasses.replace(val, target=val.scores.argmax(axis=1))
        reason = "the best temperature of 90 validation images is not inside 0.05 to 20 (it reaches 0.05): too few"
    method = MethodResult(name="a", kind="probe", predictions=(test,), validation=((val,),))
    report = judge([method], title="t", resamples=200)
    found = report["methods"][0]["trust"]
    for kind in ("temperature", "vector"):
        assert found[kind]["reason"].startswith(f"not calibrated: {reason}") and found[f"after_{kind}"] is None
    assert f"The probabilities of a are not calibrated: {reason}" in " ".join(report["reading"])
    assert markdown_page(report).count(f"not calibrated: {reason}") == 7, "two in each of three tables, one sentence"
    assert "were fitted: class-conditional prediction sets" in statistical_methods(report)
    assert found["conformal"]["mean_size"] > 0 and found["before"]["ece"]["value"] > 0
    enough = dataclasses.replace(val, patient=tuple(f"v{i % 30}" for i in range(90)))
    assert case != "few patients" or trust(test, validation=((enough,),))["temperature"]["reason"] is None


def test_one_fold_with_too_few_patients_leaves_all_uncalibrated() -> None:
    first, second = (table(90, seed=k, fold=k, prefix=f"t{k}-") for k in (0, 1))
    vals = tuple(table(n, seed=5 + k, fold=k, split="val", prefix=f"v{k}-") for k, n in ((0, 90), (1, 60)))
    found = trust(joined(first, second), validation=(vals,))
    assert found["temperature"]["reason"].startswith("not calibrated: 20 validation patients, and 30 are needed")


def test_thresholds_are_those_of_the_validation_images() -> None:
    test, val = table(300, seed=0), table(200, seed=1, split="val", prefix="v")
    found = trust(test, validation=((val,),))
    thresholds = fit_thresholds(val.scores, val.target, patients=val.groups()).threshold
    for c, name in enumerate(CLASSES):
        assert found["conformal"]["classes"][name]["threshold"] == [thresholds[c]]
        chosen = choose_threshold(val.scores[:, c], val.target == c, patients=val.groups())
        assert found["operating_point"]["classes"][name]["threshold"] == [chosen]
    assert (found["conformal"]["promised"], found["operating_point"]["goal"]) == (0.9, 0.95)


def test_the_first_of_several_seeds_is_shown() -> None:
    tables = [table(300, seed=0, sharp=s) for s in (2.5, 1.0)]
    vals = [table(200, seed=1, split="val", prefix="v", sharp=s) for s in (2.5, 1.0)]
    found = trust(*tables, validation=((vals[0],), (vals[1],)), seeds=(7, 8))
    assert found["seed"] == 7
    assert found["temperature"]["fitted"] == [fit_temperature(vals[0].scores, vals[0].target).temperature]


def test_two_patients_have_intervals_and_ten_images_a_curve() -> None:
    for patients, number in ((1, 10), (2, 10), (2, 60)):
        few = dataclasses.replace(table(number, seed=0), patient=tuple(f"p{i % patients}" for i in range(number)))
        found = trust(few)["selective"]
        assert (found["at"][0]["low"] is None) == (patients == 1)
        assert len(found["curve"]["coverage"]) == min(number, 50) and found["curve"]["coverage"][-1] == 1
        assert found["curve"]["coverage"][0] == pytest.approx(max(1, number // 20) / number)


def test_wrong_validation_scores_are_refused() -> None:
    test, val = table(90, seed=0), table(60, seed=1, split="val", prefix="v")
    with pytest.raises(
        LeakError, match="method 'a': 't0000' is among its validation images and among those that it is judged"
    ):
        trust(test, validation=((test,),))
    with pytest.raises(ConfigError, match="method 'a': validation scores for 1 of 2 predictions"):
        trust(test, test, validation=((val,),))
    other = dataclasses.replace(val, labels=LabelSet(("COVID-19", "Non-COVID", "healthy")))
    with pytest.raises(MismatchError, match=r"method 'a': its validation scores have the classes .*'healthy'"):
        trust(test, validation=((other,),))
    unknown = dataclasses.replace(val, target=np.where(np.arange(60) == 3, -1, val.target))
    with pytest.raises(ManifestError, match="method 'a': a validation image has no label"):
        trust(test, validation=((unknown,),))
    with pytest.raises(ManifestError, match="method 'a': a validation image has no label"):
        trust(test, validation=((val.take(np.arange(0)),),))
    numbered = dataclasses.replace(val, fold=(0,) * 60)
    for tables in ((numbered, numbered), (val, numbered), (dataclasses.replace(val, fold=(0, 1) * 30),)):
        with pytest.raises(ConfigError, match=r"method 'a': validation scores for the folds \["):
            trust(test, validation=(tables,))


def test_a_patient_who_is_validated_and_judged_is_refused() -> None:
    test, val = table(90, seed=0), table(60, seed=1, split="val", prefix="v")
    known = ("t3", "t1", "t3", *val.patient[3:])
    leaking, anonymous = dataclasses.replace(val, patient=known), dataclasses.replace(val, patient=(None,) * 60)
    told = r"method 'a': patient 't1' is among its validation images and among those .* \(2 such patients\)"
    for tables, kept in (((test,), ((leaking,),)), ((joined(test, leaking),), ())):
        with pytest.raises(LeakError, match=told):
            trust(*tables, validation=kept)
    nameless = dataclasses.replace(test, patient=(None,) * 90)
    assert trust(nameless, validation=((anonymous,),))["reason"] is None


def test_a_patient_may_be_validated_in_one_fold_and_judged_in_another() -> None:
    test = table(180, seed=0)
    test = dataclasses.replace(test, fold=tuple(i // 3 % 2 for i in range(180)))
    whose = {fold: tuple(f"t{2 * (i // 3) + fold}" for i in range(90)) for fold in (0, 1)}
    vals = [table(90, seed=k, fold=k, split="val", prefix=f"v{k}-") for k in (0, 1)]
    kept = tuple(dataclasses.replace(v, patient=whose[1 - k]) for k, v in enumerate(vals))
    assert trust(test, validation=(kept,))["reason"] is None
    with pytest.raises(LeakError, match=r"\(30 such patients\)"):
        trust(test, validation=((kept[0], dataclasses.replace(vals[1], patient=whose[1])),))


def test_a_report_of_an_earlier_version_is_drawn_without_calibration() -> None:
    report = judge(
        [MethodResult(name="bare", kind="probe", predictions=(table(90, seed=0),))], title="t", resamples=100
    )
    for entry in report["methods"]:
        del entry["trust"]
    assert "Answering only when sure" not in markdown_page(report)


@pytest.mark.parametrize(
    ("low", "high", "certain"),
    [(-0.2, -0.1, True), (0.1, 0.2, True), (-0.1, 0.0, False), (0.0, 0.1, False), (None, None, True)],
)  # fmt: skip
def test_a_change_of_the_calibration_error_that_may_be_chance_is_said_to_be(low: Any, high: Any, certain: bool) -> None:
    test, val = table(90, seed=0), table(90, seed=1, split="val", prefix="v")
    report = judge(
        [MethodResult(name="a", kind="probe", predictions=(test,), validation=((val,),))], title="t", resamples=100
    )
    gain = report["methods"][0]["trust"]["after_temperature"]["change"]["ece"]
    gain |= {"value": 0.1, "low": low, "high": high}
    (said,) = [sentence for sentence in reading(report) if sentence.startswith("Temperature scaling changes")]
    assert ("which may be chance" in said) != certain
