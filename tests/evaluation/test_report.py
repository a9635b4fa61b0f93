"""The report: schema, joining, refusals, the reading, several seeds, one group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from tests.evaluation.tables import CLASSES, method, predictions

from thoraclip.errors import ConfigError, InputError, ManifestError, MismatchError
from thoraclip.evaluation.reading import points, probability, reading, share, verdict, versus
from thoraclip.evaluation.report import MethodResult, judge, plain, write_report
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.labels import LabelSet
from thoraclip.proportions import share_interval
from thoraclip.tables.predictions import Predictions


def report(*methods: MethodResult, resamples: int = 200, **more: Any) -> dict[str, Any]:
    return judge(methods, title="a study", resamples=resamples, **more)


def entry(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in found["methods"] if m["name"] == name)


def test_the_order_of_rows_and_columns_plays_no_part() -> None:
    table, other = predictions(), predictions(signal=1.0, seed=1)
    rows = np.random.default_rng(1).permutation(len(other))
    shuffled = other.take(rows)
    turned = Predictions(
        LabelSet(tuple(CLASSES[k] for k in (1, 2, 0))), shuffled.image_id, (shuffled.target + 2) % 3,
        shuffled.scores[:, [1, 2, 0]],
        shuffled.split, shuffled.fold, shuffled.patient,
    )  # fmt: skip
    assert report(method("a", table), method("b", other)) == report(method("a", table), method("b", turned))
    assert report(method("b", other)) == report(method("b", shuffled))


def test_other_images_truths_classes_and_patients_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"2 ids differ, such as 'img0120' \(in 'b' only\)"):
        report(method("a", predictions()), method("b", predictions(122)))
    with pytest.raises(MismatchError, match=r"1 ids differ, such as 'img0119' \(in 'a' only\)"):
        report(method("a", predictions()), method("b", predictions(119)))
    with pytest.raises(MismatchError, match="true class of 119 images: 'img0001'"):
        report(method("a", predictions()), method("b", predictions(targets=[0] * 2 + [0, 1, 2] * 39 + [0])))
    with pytest.raises(MismatchError, match="same task"):
        report(method("a", predictions()), method("b", predictions(classes=("COVID-19", "Non-COVID", "healthy"))))
    with pytest.raises(MismatchError, match="patient"):
        report(method("a", predictions(patients=7)), method("b", predictions(patients=9)))


def test_other_refusals() -> None:
    with pytest.raises(InputError, match="no method"):
        report()
    with pytest.raises(ConfigError, match="resamples = 99: a whole number from 100 to 100,000"):
        report(method("a", predictions()), resamples=99)
    with pytest.raises(ConfigError, match="two methods are called 'a'"):
        report(method("a", predictions()), method("a", predictions()))
    with pytest.raises(ConfigError, match=r"accuracy = 92\.44: a number from 0 to 1"):
        report(method("a", predictions()), published=[{"name": "theirs", "accuracy": 92.44}])
    with pytest.raises(ConfigError, match="not both"):
        MethodResult(name="a", kind="probe")
    with pytest.raises(ConfigError, match="method 'majority': the report adds this row by itself"):
        method("majority", predictions())
    with pytest.raises(ConfigError, match="2 seeds for 1 predictions"):
        method("a", predictions(), seeds=(0, 1))
    with pytest.raises(ManifestError, match="method 'a': predictions: no labelled row"):
        report(method("a", predictions(targets=[-1] * 120)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x", "acuracy": 0.9}, "published 'x': unknown setting 'acuracy'; did you mean 'accuracy'"),
        ({"name": "x", "of": "lora"}, "published 'x': of = 'lora' names no method; did you mean 'LoRA'"),
        ({"name": "x", "of": "majority"}, "of = 'majority' names no method; known: LoRA"),
        ({"name": "x", "accuracy": 1.01}, r"accuracy = 1\.01: a number from 0 to 1"),
        ({"name": "x", "macro_f1": -0.1}, r"macro_f1 = -0\.1: a number from 0 to 1"),
        ({"name": "x", "macro_recall": float("nan")}, "macro_recall = nan: a number from 0 to 1"),
        ({"name": "x", "accuracy": "0.9"}, "accuracy = '0.9': a number from 0 to 1"),
        ({"accuracy": 0.9}, "published 1: setting 'name' is needed; add name"),
        ({"name": " "}, "published 1: name is empty; give the name"),
        ("x", "must be one \\[\\[published\\]\\] table or more"),
        ([{"name": "x"}, "x"], "must be one \\[\\[published\\]\\] table or more"),
    ],
)
def test_a_wrong_published_row_is_named(row: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"report 'a study', .*{message}" if isinstance(row, dict) else message):
        report(method("LoRA", predictions()), published=row if isinstance(row, list) else [row])


_MODELS = (
    "a real difference between these two trained models on 120 images, not between the methods. Another training could "
    "turn it round: folds, or three seeds where the seed matters, would tell."
)
_OPEN = (
    "the two cannot be told apart on these 120 images. They are single trainings; folds, or three seeds where the "
    "seed matters, would ask about the methods."
)


@pytest.mark.parametrize(
    ("tied", "tail", "more"),
    [
        ([], _MODELS, ""),
        (["c"], _MODELS, "It cannot be told apart from c."),
        (["c", "d"], _MODELS, "It cannot be told apart from c and d."),
        (["b"], _OPEN, ""),
        (["b", "c"], f"{_OPEN} Nor can it be told apart from c.", ""),
        (["b", "c", "d"], f"{_OPEN} Nor can it be told apart from c and d.", ""),
    ],
)
def test_the_reading_names_all_that_cannot_be_told_apart(tied: list[str], tail: str, more: str) -> None:
    found = report(*(method(name, predictions(signal=3 - k / 2)) for k, name in enumerate("abcd")), resamples=100)
    told = reading(found | {"verdict": found["verdict"] | {"best": "a", "runner_up": "b", "tied": tied}})
    assert told[1].startswith("It leads the runner-up, b, by ") and told[1].partition("correction): ")[2] == tail
    assert told[2].startswith(more or "It beats always answering")


@pytest.mark.parametrize(
    ("trained", "seeds", "folds", "gap", "said"),
    [
        (False, 1, 1, 2.0, ": a real difference between the methods, over images."),
        (True, 3, 1, 2.0, ": a real difference between the methods, over images and seeds."),
        (True, 1, 5, 2.0, ": a real difference between the methods, over images and folds."),
        (True, 3, 1, 0.1, " seeds of each would settle it, if it is as large as it seems."),
        (True, 3, 1, 0.0, "More seeds would not settle it if it is as small as it seems; more patients might."),
        (True, 1, 5, 0.0, ": the two cannot be told apart on these 600 images."),
    ],
)
def test_the_reading_says_what_a_difference_is_one_of(
    trained: bool, seeds: int, folds: int, gap: float, said: str
) -> None:
    def tables(signal: float) -> list[Predictions]:
        each = [predictions(600, signal=signal + (k - 1) * 0.12, seed=k) for k in range(seeds)]
        fold = tuple(i // 3 % folds for i in range(600)) if folds > 1 else (None,) * 600
        return [replace(table, fold=fold) for table in each]

    pair = [
        method(name, *tables(signal), seeds=tuple(range(seeds)), is_trained=trained)
        for name, signal in (("a", 1.0 + gap), ("b", 1.0))
    ]
    found = report(*pair, resamples=200)
    assert said in found["reading"][2]
    told = found["statistics"]
    assert ("mean over seeds was added" in told) == (seeds > 1)
    assert ("over folds exceeds" in told) == (folds > 1)
    once = "no interval of a and b, trained once" in told, "compares two trained models and not the methods" in told
    assert set(once) == {trained and seeds == folds == 1}


def test_the_precision_of_a_class_that_is_never_named_has_no_interval() -> None:
    table = predictions(90)
    scores = table.scores * [1, 1, 0] + 1e-9
    found = entry(report(method("a", replace(table, scores=scores / scores.sum(axis=1, keepdims=True)))), "a")
    assert found["per_class"]["Normal"]["precision"] == {
        "value": 0.0, "low": None, "high": None, "reason": "the class is never named",
    }  # fmt: skip
    assert found["per_class"]["COVID-19"]["precision"]["low"] is not None


@pytest.mark.parametrize("folds", [1, 5])
def test_every_interval_of_a_trained_method_is_wider(folds: int) -> None:
    """Of the same scores, as those of one that is not: by seeds, or by folds of which one is hard."""
    tables = [predictions(300, signal=s, seed=2) for s in ((0.5, 1.5, 2.5) if folds == 1 else (1.5,))]
    if folds > 1:
        fold = np.arange(300) // 3 % folds
        hard = np.where((fold == 0)[:, None], 1 / 3, tables[0].scores)
        tables = [replace(tables[0], scores=hard, fold=tuple(fold.tolist()))]
    widths = []
    for trained in (True, False):
        found = entry(report(method("a", *tables, is_trained=trained)), "a")
        rows = {**found["metrics"], **{f"{c} {m}": v for c, row in found["per_class"].items() for m, v in row.items()}}
        widths.append({name: row["high"] - row["low"] for name, row in rows.items() if isinstance(row, dict)})
    assert len(widths[0]) > 25 and all(widths[0][name] > widths[1][name] + 0.001 for name in widths[0]), widths


def test_a_fold_without_a_class_has_no_say_in_what_counts_classes() -> None:
    """Its macro means are of other classes; accuracy still varies over the folds."""
    table = predictions(300, signal=1.0)
    fold = np.where(table.target == 2, 1 + np.arange(300) % 2, np.arange(300) // 3 % 3)
    given = method("a", replace(table, fold=tuple(fold.tolist())))
    found, frozen = report(given), report(replace(given, is_trained=False))
    assert found["sample"]["lacking"] == {"0": ["Normal"]}
    assert "Fold 0 has no image of Normal: what counts classes has no spread over folds." in found["reading"]
    one, other = entry(found, "a"), entry(frozen, "a")
    assert one["metrics"]["macro_f1"] == other["metrics"]["macro_f1"]
    assert one["per_class"]["Normal"] == other["per_class"]["Normal"]
    assert one["per_class"]["COVID-19"]["recall"] != other["per_class"]["COVID-19"]["recall"]
    assert {row["metric"]: row["claim"] for row in found["comparisons"]} == {
        "accuracy": "methods",
        "macro_f1": "models",
    }
    assert report(method("a", predictions()))["sample"]["lacking"] == {}


def test_one_answer_to_all_is_said_and_is_not_certain() -> None:
    table = predictions(90)
    found = report(method("a", replace(table, scores=np.tile([0.5, 0.3, 0.2], (90, 1))), is_trained=False))
    assert "a gave every image the same answer, COVID-19." in found["reading"]
    recall = entry(found, "a")["metrics"]["macro_recall"]
    assert recall["high"] - recall["low"] > 3 / 90


def test_the_statistical_methods_name_what_was_computed() -> None:
    """And nothing else."""
    single = report(method("a", predictions(patients=40)), method("b", predictions(patients=40, seed=3)))
    told = single["statistics"]
    assert "on 120 images of 40 patients" in told and "200 bootstrap resamples of patients (seed 0)" in told
    assert "compares two trained models and not the methods" in told and "McNemar" in told and "Holm" in told
    assert not any(word in told for word in ("seeds", "folds", "external", "validation images"))
    val = replace(predictions(90, seed=5, prefix="v"), split=("val",) * 90)
    held = report(method("a", predictions(), validation=((val,),)))["statistics"]
    assert "whose patients are not known" in held and "prediction sets (90 %" in held and "sensitivity 95 %" in held
    alone = report(method("a", predictions(12, patients=1)))["statistics"]
    assert "bootstrap" not in alone and "compared" not in alone
    assert report(MethodResult(name="broken", kind="baseline", failed="out of memory"))["statistics"] == ""


def test_published_values_change_nothing_that_is_measured() -> None:
    without, beside = (
        report(method("a", predictions()), method("b", predictions(signal=1.0, seed=1)), published=rows)
        for rows in ([], [{"name": "theirs", "of": "b", "accuracy": 1, "macro_f1": 0.0}])
    )
    assert beside.pop("published") == [
        {
            "name": "theirs", "of": "b", "accuracy": 1.0, "macro_f1": 0.0, "macro_precision": None,
            "macro_recall": None, "source": None, "note": None,
        }
    ]  # fmt: skip
    assert without.pop("published") == [] and beside == without


@pytest.mark.parametrize(
    ("trees", "network", "said", "so"),
    [
        (0.5, 3.0, "network beats trees, trees that see no anatomy, by ", False),
        (3.0, 3.0, "No network can be shown to beat trees", True),
        (0.0, 0.0, "No network can be shown to beat trees", False),
    ],
)
def test_the_reading_says_whether_the_lungs_are_needed(trees: float, network: float, said: str, so: bool) -> None:
    found = report(
        method("trees", predictions(600, signal=trees, seed=1), kind="trivial"),
        method("network", predictions(600, signal=network, seed=2)),
    )
    text = " ".join(found["reading"])
    assert said in text and ("without reading the lungs" in text) == so
    assert "without reading" not in " ".join(report(method("network", predictions()))["reading"])


def test_every_interval_is_that_of_patients_drawn_with_replacement() -> None:
    """All images of a patient right, or all wrong; against weights and quantiles by hand."""
    table = predictions(120, signal=0.0, patients=30)
    right = np.random.default_rng(1).random(30)[np.arange(120) % 30] < 0.7
    scores = np.eye(3)[np.where(right, table.target, (table.target + 1) % 3)] * 0.8 + 0.1
    found = entry(report(method("a", replace(table, scores=scores / scores.sum(axis=1, keepdims=True)))), "a")
    weights = np.concatenate(list(resample_weights(np.arange(120) % 30, resamples=200, seed=0)), axis=1)
    variance = float(np.var(right @ weights / 120, ddof=1)) * 30 / 29
    accuracy = found["metrics"]["accuracy"]
    bounds = share_interval(float(right.mean()), variance, clusters=30, df=29)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(bounds)


def test_bounds_of_a_perfect_score_count_patients() -> None:
    """28 patients of one class each: 8, 10 and 10."""
    table = predictions(signal=60, patients=30)
    dropped = set(sorted({p for p, c in zip(table.patient, table.target, strict=True) if c == 0})[:2])
    table = table.take(np.array([row for row, patient in enumerate(table.patient) if patient not in dropped]))
    found = entry(report(method("a", table)), "a")
    mean = 9 / (1 / 8 + 1 / 10 + 1 / 10)
    bounds = {"accuracy": 28, "macro_recall": mean, "auroc": mean}

    def bound(clusters: float) -> Any:
        return pytest.approx(clusters / (clusters + t.ppf(0.975, clusters - 1) ** 2))

    for name, clusters in bounds.items():
        assert found["metrics"][name]["low"] == bound(clusters), name
    assert found["per_class"]["Normal"]["recall"]["low"] == bound(10)
    assert found["per_class"]["Normal"]["specificity"]["low"] == bound(18)


def test_the_roc_curve_and_the_mistakes_are_those_of_the_scores() -> None:
    table = predictions(400, signal=0.6)
    found = entry(report(method("a", table)), "a")
    assert len(found["mistakes"]) == 24 < found["mistake_count"]
    for label, curve in found["roc"].items():
        area = np.trapezoid(curve["tpr"], curve["fpr"])
        assert area == pytest.approx(found["per_class"][label]["auroc"]["value"], abs=2e-3)
        assert len(curve["fpr"]) == 60 and (curve["fpr"][0], curve["tpr"][-1]) == (0, 1)
    wrong = np.flatnonzero(table.scores.argmax(axis=1) != table.target)
    sure = sorted((round(float(table.scores[i].max()), 4) for i in wrong), reverse=True)
    assert [row["score"] for row in found["mistakes"]] == sure[: len(found["mistakes"])]


def test_the_verdict_goes_by_corrected_p_and_both_metrics() -> None:
    def row(a: str, b: str, metric: str, difference: float, p: float, p_holm: float) -> dict[str, Any]:
        return {"a": a, "b": b, "metric": metric, "difference": difference, "low": difference - 0.1, "high": difference + 0.2,
                "p": p, "p_holm": p_holm}  # fmt: skip

    methods = [
        {"name": n, "metrics": {"macro_f1": {"value": v}}} for n, v in (("b", 0.6), ("a", 0.8), ("majority", 0.9))
    ]
    rows = [row("b", "a", "macro_f1", -0.2, 0.03, 0.05), row("a", "majority", "macro_f1", 0.5, 0.001, 0.002)]
    against = row("majority", "a", "accuracy", 0.3, 0.001, 0.002)
    assert verdict(methods, [*rows, against]) == {
        "metric": "macro_f1", "best": "a", "runner_up": "b", "tied": ["b"], "beats_majority": False,
    }  # fmt: skip
    assert verdict(methods, [*rows, against | {"difference": -0.3}])["beats_majority"]
    for other in ({"difference": 0.0}, {"difference": -0.3, "p_holm": 0.05}, {"difference": -0.3, "p_holm": None}):
        assert not verdict(methods, [*rows, against | other])["beats_majority"]
    assert verdict(methods, [rows[0] | {"p_holm": 0.049}, rows[1], against])["tied"] == []
    turned = versus(rows, "a", "b")
    assert (turned["low"], turned["difference"], turned["high"]) == (pytest.approx(0.0), 0.2, pytest.approx(0.3))
    assert [probability(p) for p in (None, 0.0009, 0.001, 0.0123)] == [
        "p not known",
        "p < 0.001",
        "p = 0.001",
        "p = 0.012",
    ]


def test_a_zero_has_no_minus_and_one_of_a_thing_no_plural() -> None:
    assert [points(v) for v in (-1e-4, -0.0, 1e-4, -6e-4, 0.031)] == ["+0.0", "+0.0", "+0.0", "\u22120.1", "+3.1"]
    assert [share(v) for v in (-1e-4, -6e-4)] == ["0.0", "\u22120.1"]
    found = " ".join(report(method("a", predictions(1, patients=1)))["reading"])
    assert "on 1 image of 1 patient." in found
    assert "No image here is of the classes Non-COVID and Normal: means over the classes leave them out." in found
    found = " ".join(report(method("a", predictions(targets=[0, 1, 0, 1])))["reading"])
    assert "No image here is of the class Normal: means over the classes leave it out." in found


@pytest.mark.parametrize(("patients", "said"), [(29, True), (30, False)])
def test_patients_are_the_unit_where_known_and_fewer_than_thirty_are_few(patients: int, said: bool) -> None:
    found = report(method("a", predictions()), method("b", predictions(patients=patients, seed=1)))
    assert found["sample"]["unit"] == "patient" and found["sample"]["groups"] == patients
    assert ("Only 29 patients: the intervals are rough and may be too narrow." in found["reading"]) == said
    assert report(method("a", predictions()))["sample"]["unit"] == "image"


def test_two_thousand_resamples_and_seed_0_where_nothing_else_is_said() -> None:
    found = judge([method("a", predictions(9))], title="t")["bootstrap"]
    assert (found["resamples"], found["seed"]) == (2000, 0)


def test_where_every_method_failed_the_report_says_so(tmp_path: Path) -> None:
    found = report(MethodResult(name="broken", kind="baseline", failed="out of memory"))
    assert found["methods"] == [] and found["verdict"] is None
    assert found["reading"] == [
        "No method gave predictions, so there is nothing to compare. The errors stand in the table below."
    ]
    write_report(found, tmp_path)
    assert "out of memory" in (tmp_path / "report.html").read_text()


def test_what_is_written_is_plain_json() -> None:
    given = {
        1: np.float32(0.5),
        "n": (np.nan, -np.inf, np.int64(2), True, None),
        "s": {"x"},
        "p": Path("a"),
        "a": np.eye(1),
    }
    assert plain(given) == {"1": 0.5, "n": [None, None, 2, True, None], "s": ["x"], "p": "a", "a": [[1.0]]}
