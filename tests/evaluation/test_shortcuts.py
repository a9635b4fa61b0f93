"""Verdicts on reliance: effects against a slow oracle, false alarms, power, and what is said in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from thoraclip.evaluation.audit_reading import MARGIN, OUTSIDE, STRONG, AuditReading, label, read_tests
from thoraclip.evaluation.shortcuts import (
    Answers,
    ShortcutTest,
    _verdict,
    balanced_accuracies,
    measure_tests,
    shared_errors,
    shuffled_control,
    with_verdicts,
)

CLASSES = 3


def judge_tests(tests: list[ShortcutTest], answers: Answers, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    return with_verdicts(measure_tests(tests, answers, resamples=resamples, seed=seed))


def ask(after: str, asks: str = "classifier", before: str = "", finds: str = "") -> ShortcutTest:
    return ShortcutTest(after, after, asks, "classifier" if asks == "classifier" else "probe", after, before, finds)


def answers_of(shares: dict[str, float], n: int = 240, seed: int = 0, group_size: int = 1) -> Answers:
    """Names that are right with a given chance, else one of the other classes at random."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % CLASSES
    named = {}
    for name, share in shares.items():
        wrong = (target + rng.integers(1, CLASSES, n)) % CLASSES
        named[name] = np.where(rng.random(n) < share, target, wrong).astype(np.int64)
    return Answers(target.astype(np.int64), (np.arange(n) // group_size).astype(np.int64), named, CLASSES)


def test_balanced_accuracies_are_those_of_scikit_learn_and_of_every_resample_drawn_by_hand() -> None:
    answers = answers_of({"a": 0.7, "b": 0.4}, n=90, group_size=3)
    values, drawn, chance = balanced_accuracies(answers, ["a", "b"], resamples=20, seed=5)
    for name in ("a", "b"):
        assert values[name] == pytest.approx(balanced_accuracy_score(answers.target, answers.named[name]), abs=1e-12)
        assert chance[name] == pytest.approx(1 / 3)
    generator = np.random.Generator(np.random.PCG64(5))
    picks = generator.integers(0, 30, size=(20, 30))
    for number, groups in enumerate(picks):
        rows = np.concatenate([np.flatnonzero(answers.groups == g) for g in groups])
        for name in ("a", "b"):
            recalls = [
                (answers.named[name][rows] == c)[answers.target[rows] == c].mean()
                for c in range(CLASSES)
                if (answers.target[rows] == c).any()
            ]
            assert drawn[name][number] == pytest.approx(np.mean(recalls), abs=1e-12)


def test_images_that_were_not_asked_do_not_count() -> None:
    answers = answers_of({"a": 1.0, "b": 1.0})
    half = np.where(np.arange(240) < 120, -1, answers.named["b"])
    some = Answers(answers.target, answers.groups, {"a": (answers.target + 1) % 3, "b": half}, CLASSES)
    values, _, _ = balanced_accuracies(some, ["b"], resamples=100, seed=0)
    assert values["b"] == 1.0
    named = np.where(np.arange(240) < 120, (answers.target + 1) % 3, answers.target)  # wrong where b was not asked
    row = judge_tests(
        [ask("b", before="a")],
        Answers(answers.target, answers.groups, {"a": named, "b": half}, CLASSES), resamples=200, seed=0,
    )[0]  # fmt: skip
    assert row["before"] == 1.0 and row["effect"] == 0 and row["images"] == 120


def test_chance_counts_the_classes_that_were_asked_about_even_once() -> None:
    answers = answers_of({"a": 1.0}, n=30)
    asked = {"one": answers.target < 2, "more": answers.target < 2, "none": np.zeros(30, dtype=bool)}
    asked["more"] = asked["one"] | (np.arange(30) == 2)
    named = {name: np.where(rows, answers.target, -1) for name, rows in asked.items()}
    some = Answers(answers.target, answers.groups, named, CLASSES)
    values, _, chance = balanced_accuracies(some, list(named), resamples=9, seed=0)
    assert chance == {"one": 1 / 2, "more": 1 / 3, "none": 1.0} and values == {"one": 1.0, "more": 1.0, "none": 0.0}


def test_the_row_says_what_was_computed() -> None:
    answers = answers_of({"before": 0.9, "after": 0.5, "gone": 0.6})
    tests = [
        ask("after", before="before", finds="the background"),
        ask("gone", finds="the background"),
    ]
    drop, gone = judge_tests(tests, answers, resamples=2000, seed=1)
    assert drop["effect"] == pytest.approx(drop["before"] - drop["after"])
    assert gone["effect"] == pytest.approx(gone["after"] - 1 / 3)
    for row in (drop, gone):
        assert row["low"] < row["effect"] < row["high"]
        error = (row["high"] - row["low"]) / (2 * 1.96)
        expected = 0.5 * math.erfc((row["effect"] - MARGIN) / error / math.sqrt(2))
        assert math.log10(row["p"]) == pytest.approx(math.log10(expected), rel=0.25)
        assert row["verdict"] == "strong" and "strong sign of reliance on the background" in row["words"]
    assert max(drop["p_holm"], gone["p_holm"]) == pytest.approx(max(drop["p"], gone["p"]))
    assert min(drop["p_holm"], gone["p_holm"]) == pytest.approx(2 * min(drop["p"], gone["p"]))


def test_verdicts_by_size() -> None:
    def verdict(share: float, n: int) -> str:
        row = judge_tests([ask("a")], answers_of({"a": share}, n), resamples=500, seed=0)
        return str(row[0]["verdict"])

    assert verdict(1 / 3, 600) == "none"
    assert verdict(1 / 3 + 0.1, 30) == "cannot_tell"
    assert verdict(0.50, 1500) == "some"
    assert verdict(0.80, 300) == "strong"
    assert verdict(1 / 3 + STRONG + 0.01, 1500) == "strong", "by the effect, whatever its interval"


def test_what_may_be_called_none_excludes_a_strong_effect_in_19_sets_of_20() -> None:
    """At a true effect of `STRONG` the upper limit lies below it in about 2.5 % of the sets, and it is never `no sign`
    where the interval lies above zero: the words say what is excluded."""
    rows = []
    for seed in range(200):
        rows += judge_tests([ask("a")], answers_of({"a": 1 / 3 + STRONG}, n=120, seed=seed), resamples=200, seed=seed)
    assert np.mean([row["verdict"] == "none" for row in rows]) <= 0.06
    weak = judge_tests([ask("a")], answers_of({"a": 0.40}, n=600, seed=0), resamples=500, seed=0)[0]
    assert weak["low"] > 0 and weak["verdict"] == "none" and label(weak) == "below 20 points"
    assert f"more than {100 * weak['high']:.1f} points are excluded" in weak["words"]
    assert "no sign" not in weak["words"].lower()


def test_each_family_is_corrected_for_its_own_tests_alone() -> None:
    answers = answers_of({"a": 0.55, "b": 0.55, "c": 0.55})
    alone = judge_tests([ask("a")], answers, resamples=200, seed=0)[0]
    beside = judge_tests([ask("a"), ask("b", "data"), ask("c", "data")], answers, resamples=200, seed=0)
    assert beside[0]["p_holm"] == alone["p"] == alone["p_holm"]
    assert min(r["p_holm"] for r in beside[1:]) == pytest.approx(2 * min(r["p"] for r in beside[1:]))


def test_a_removed_border_counts_beyond_what_as_many_random_pixels_cost() -> None:
    """A classifier that any removal hurts as much is not one that reads the border."""
    target = np.arange(600) % CLASSES
    rng = np.random.default_rng(0)

    def hurt(share: float) -> Any:
        return np.where(rng.random(600) < share, (target + 1) % CLASSES, target)

    named = {"original": target, "random": hurt(0.3), "border": hurt(0.3), "border of a reader": hurt(0.7)}
    answers = Answers(target, np.arange(600), named, CLASSES)
    tests = [ask("border", before=before) for before in ("original", "random")]
    tests.append(ask("border of a reader", before="random"))
    alone, beyond, reader = judge_tests(tests, answers, resamples=300, seed=0)
    assert (alone["verdict"], beyond["verdict"], reader["verdict"]) == ("strong", "none", "strong")
    assert beyond["effect"] == pytest.approx(beyond["before"] - beyond["after"])


def test_all_right_is_as_sure_as_its_patients_are_many() -> None:
    answers = answers_of({"a": 1.0}, n=120, group_size=4)
    (row,) = judge_tests([ask("a")], answers, resamples=100, seed=0)
    error = 0.5 / 30
    assert row["p"] == pytest.approx(0.5 * math.erfc((2 / 3 - MARGIN) / error / math.sqrt(2)))


def test_a_control_has_no_verdict_and_costs_no_power() -> None:
    answers = answers_of({"a": 0.9, "b": 0.9})
    alone = judge_tests([ask("a")], answers, resamples=200, seed=0)
    both = judge_tests([ask("a"), ask("b", "control")], answers, resamples=200, seed=0)
    assert both[1]["verdict"] == "cannot_tell" and both[1]["p_holm"] is None and both[1]["words"].endswith("a control.")
    assert label(both[1]) == "control" and both[0] == alone[0]


def test_false_alarms_of_a_family_without_any_effect_are_rare() -> None:
    """28 tests at chance, 100 sets: a false alarm in at most 3 % (the margin makes Holm's 5 % conservative)."""
    alarms = 0
    for seed in range(100):
        answers = answers_of({str(i): 1 / 3 for i in range(28)}, n=150, seed=seed)
        rows = judge_tests([ask(n) for n in answers.named], answers, resamples=100, seed=seed)
        alarms += any(row["verdict"] in {"some", "strong"} for row in rows)
    assert alarms <= 3


def test_one_answer_to_all_pictures_says_nothing_and_acquits_nobody() -> None:
    answers = answers_of({"a": 1 / 3, "b": 1 / 3})
    named = dict(answers.named) | {"a": np.zeros(240, dtype=np.int64)}
    fixed = Answers(answers.target, answers.groups, named, CLASSES)
    rows = judge_tests([ask(n) for n in ("a", "b")], fixed, resamples=200, seed=0)
    assert rows[0]["verdict"] == "cannot_tell" and "says nothing" in rows[0]["words"]
    assert rows[1]["verdict"] == "none" and "says nothing" not in rows[1]["words"]
    assert read(rows[:1]).classifier == "cannot_tell"
    two = Answers(answers.target, answers.groups, {"a": np.arange(240) % 2}, CLASSES)
    assert judge_tests([ask("a")], two, resamples=200, seed=0)[0]["verdict"] == "none", "two answers say something"
    unchanged = Answers(answers.target, answers.groups, {"a": answers.target, "b": answers.target}, CLASSES)
    dropped = ask("b", before="a")
    row = judge_tests([dropped], unchanged, resamples=200, seed=0)[0]
    assert row["verdict"] == "none" and "says nothing" not in row["words"], "no answer changed"
    assert "the classifier loses 0.0 points" in row["words"]
    half = Answers(answers.target, answers.groups, {"a": answers.named["b"], "b": answers.named["b"]}, CLASSES)
    row = judge_tests([dropped], half, resamples=200, seed=0)[0]
    floor = 1.96 * 0.5 / 240
    assert (row["low"], row["high"]) == (-floor, floor), "paired: the same answers in every resample"


def test_a_handful_of_patients_cannot_tell_however_clear_it_looks() -> None:
    clear = answers_of({"a": 1.0}, n=27)
    test = ask("a")
    assert judge_tests([test], clear, resamples=200, seed=0)[0]["verdict"] == "cannot_tell"
    assert judge_tests([test], answers_of({"a": 1.0}, n=30), resamples=200, seed=0)[0]["verdict"] == "strong"
    row = judge_tests([test], clear, resamples=200, seed=0)[0]
    assert row["p_holm"] == 1 and "too few independent images" in row["words"]
    rare = answers_of({"a": 1.0}, n=300)
    kept = np.flatnonzero((rare.target > 0) | (np.arange(300) < 27))  # nine of the first class
    part = Answers(rare.target[kept], np.arange(len(kept)), {"a": rare.named["a"][kept]}, CLASSES)
    assert judge_tests([test], part, resamples=200, seed=0)[0]["verdict"] == "cannot_tell"
    few_patients = answers_of({"a": 1.0}, n=90, group_size=15)
    assert judge_tests([test], few_patients, resamples=200, seed=0)[0]["verdict"] == "cannot_tell"


def test_shared_errors_against_counting_by_hand() -> None:
    rng = np.random.default_rng(3)
    answers = answers_of({"a": 0.6, "b": 0.6}, n=300)
    copied = np.where(rng.random(300) < 0.6, answers.named["b"], answers.named["a"])
    answers = Answers(answers.target, answers.groups, dict(answers.named) | {"c": copied}, CLASSES)
    alone = {"name": "b", "title": "frames"}
    (row,) = with_verdicts([shared_errors(answers, "c", alone, resamples=500, seed=0)])
    wrong = answers.named["b"] != answers.target
    total, agree, by_chance = 0, 0.0, 0.0
    for y in range(CLASSES):
        rows = np.flatnonzero(wrong & (answers.target == y))
        total += len(rows)
        agree += float((copied[rows] == answers.named["b"][rows]).sum())
        for k in range(CLASSES):
            by_chance += len(rows) * float((copied[rows] == k).mean() * (answers.named["b"][rows] == k).mean())
    assert row["effect"] == pytest.approx((agree - by_chance) / total)
    assert row["images"] == total and row["verdict"] in {"some", "strong"}
    for name in ("b", "c"):
        part = dict(answers.named) | {name: np.where(np.arange(300) < 100, -1, answers.named[name])}
        asked = {key: values[100:] for key, values in answers.named.items()}
        rest = Answers(answers.target[100:], np.arange(200), asked, CLASSES)
        found = shared_errors(Answers(answers.target, answers.groups, part, CLASSES), "c", alone, resamples=9, seed=0)
        assert found["effect"] == pytest.approx(shared_errors(rest, "c", alone, resamples=9, seed=0)["effect"])
    right = Answers(answers.target, answers.groups, dict(answers.named) | {"b": answers.target}, CLASSES)
    (never,) = with_verdicts([shared_errors(right, "a", alone, resamples=9, seed=0)])
    assert never["images"] == never["effect"] == 0 and never["verdict"] == "cannot_tell"
    (independent,) = with_verdicts([shared_errors(answers, "a", alone, resamples=500, seed=0)])
    assert abs(independent["effect"]) < 0.1 and independent["verdict"] in {"none", "cannot_tell"}


def shuffles(shift: float, *, n: int = 120, count: int = 10, leak: float = 0.0) -> list[Answers]:
    """Answers to shuffled labels that are right at chance + `shift`, or, for a share `leak`, always."""
    found = []
    for seed in range(count):
        answers = answers_of({"x": 1 / 3 + shift}, n=n, seed=seed)
        own = np.where(np.random.default_rng(99 + seed).random(n) < leak, answers.target, answers.named["x"])
        found.append(Answers(answers.target, answers.groups, {"x": own}, CLASSES))
    return found


def control(**given: Any) -> dict[str, Any]:
    return with_verdicts([shuffled_control("x", "labels shuffled", "trees", shuffles(**given))])[0]


def test_shuffled_labels_at_chance_pass_and_off_chance_stop_both_verdicts() -> None:
    fair = control(shift=0.0)
    assert fair["verdict"] == "none" and label(fair) == "at chance" and fair["words"].endswith("as it must be.")
    effects = [np.mean([(a.named["x"] == a.target)[a.target == c].mean() for c in range(3)]) for a in shuffles(0.0)]
    assert fair["effect"] == pytest.approx(np.mean(effects) - 1 / 3)
    reach = 2.262157 * np.std(effects, ddof=1) / 10**0.5  # Student's t of nine degrees of freedom
    assert fair["high"] - fair["effect"] == pytest.approx(reach, rel=1e-5)
    for off in (control(shift=-0.207), control(shift=0.0, leak=0.5)):
        assert off["verdict"] == "strong" and label(off) == "off chance"
        told = read([row_of("strong"), row_of("strong", "data"), off])
        assert told.classifier == told.data == "cannot_tell"
        assert told.sentences[0].startswith("A control failed: trees should name shuffled labels at chance (33.3 %)")
    few = control(shift=-0.2, n=27)
    assert few["verdict"] == "cannot_tell" and read([row_of("strong"), few]).classifier == "strong"
    none = Answers(np.arange(30) % 3, np.arange(30), {"x": np.full(30, -1)}, CLASSES)
    unasked = with_verdicts([shuffled_control("x", "t", "probe", [none] * 3)])[0]
    assert (unasked["low"], unasked["effect"], unasked["high"]) == (-1, 0, 1)
    pair = with_verdicts([shuffled_control("x", "t", "probe", shuffles(0.0, count=2))])[0]
    assert not pair["is_small"] and pair["high"] - pair["low"] > 1e-6, "two permutations give an interval"
    halves = [
        Answers(a.target, a.groups, {"x": np.where(np.arange(120) < 60, -1, a.named["x"])}, 3) for a in shuffles(0.0)
    ]
    assert shuffled_control("x", "t", "trees", halves)["permutations"] == 10, "images that were not asked are left out"
    assert unasked["verdict"] == "cannot_tell" and "too few images to ask" in unasked["words"]


def test_shuffled_labels_at_chance_rarely_stop_a_verdict() -> None:
    stopped = 0
    for seed in range(0, 2000, 10):
        rows = [answers_of({"x": 1 / 3}, n=60, seed=seed + k) for k in range(10)]
        stopped += with_verdicts([shuffled_control("x", "t", "trees", rows)])[0]["verdict"] in {"some", "strong"}
    assert stopped <= 4, "of 200"


ACCURACY = {"value": 0.8, "low": 0.7, "chance": 1 / 3}


def read(tests: list[dict[str, Any]], **given: Any) -> AuditReading:
    return read_tests(tests, **{"accuracy": ACCURACY, "masks": True} | given)


def row_of(
    verdict: str, asks: str = "classifier", effect: float = 0.3, name: str = "background frame"
) -> dict[str, Any]:
    return {
        "asks": asks, "by": "classifier" if asks == "classifier" else "trees", "is_constant": False, "is_small": False, "verdict": verdict, "doubt": "",
        "finds": OUTSIDE,
        "effect": effect, "words": f"{asks} {verdict}.", "title": "frames", "name": name, "after": 0.6, "before": None, "chance": 1 / 3,
        "low": effect - 0.1, "high": 0.1 if verdict == "none" else effect + 0.1, "p_holm": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "given", "classifier", "data"),
    [
        ([row_of("none"), row_of("none", "data")], {}, "none", "none"),
        ([row_of("none"), row_of("some", "data")], {}, "cannot_tell", "some"),
        ([row_of("none"), row_of("strong", "data")], {}, "cannot_tell", "strong"),
        ([row_of("some"), row_of("strong", "data")], {}, "some", "strong"),
        ([row_of("some"), row_of("strong")], {}, "strong", "cannot_tell"),
        ([row_of("strong"), row_of("none", "data")], {}, "strong", "none"),
        ([row_of("none"), row_of("cannot_tell"), row_of("none", "data")], {}, "cannot_tell", "none"),
        ([row_of("none"), row_of("cannot_tell", "data")], {}, "none", "cannot_tell"),
        ([row_of("none"), row_of("none", "data")], {"accuracy": ACCURACY | {"low": 1 / 3}}, "cannot_tell", "none"),
        ([row_of("none"), row_of("none", "data")], {"accuracy": ACCURACY | {"value": 0.5}}, "cannot_tell", "none"),
        ([row_of("none"), row_of("none", "data")], {"masks": False}, "cannot_tell", "cannot_tell"),
        ([row_of("strong"), row_of("strong", "data")], {"broken": ["The sham."]}, "cannot_tell", "cannot_tell"),
    ],
)
def test_two_verdicts_that_are_kept_apart(
    tests: list[dict[str, Any]], given: dict[str, Any], classifier: str, data: str
) -> None:
    told = read(tests, **given)
    assert (told.classifier, told.data) == (classifier, data)
    assert told.sentences and all(sentence.endswith(".") for sentence in told.sentences)
    assert "no sign" not in " ".join(told.sentences).lower()
    if "broken" in given:
        assert told.sentences[0] == "The sham."


def test_a_classifier_of_which_nothing_could_be_asked_is_not_acquitted() -> None:
    constant = row_of("cannot_tell") | {"is_constant": True}
    for tests, masks, why in (
        ([constant], True, "no test that takes the lungs away"),
        ([constant, row_of("none") | {"finds": "the border"}], True, "no test that takes the lungs away"),
        ([], False, "no lung region"),
    ):
        told = read(tests, masks=masks)
        assert told.classifier == "cannot_tell" and why in told.sentences[0]


def test_the_largest_effect_that_is_not_excluded_is_told() -> None:
    blind = [row_of("cannot_tell", effect=effect) for effect in (0.15, 0.3, 0.2)]
    assert "3 of 3 tests do not exclude 20.0 points (up to 40.0)" in read(blind).sentences[0]
    offered = [row_of("cannot_tell", "data", effect) for effect in (0.15, 0.3)]
    assert "2 of 2 tests do not exclude 20.0 points (up to 40.0)" in read(offered).sentences[1]


def test_a_probe_on_images_without_lungs_is_told_before_a_larger_fall_of_one() -> None:
    fall = row_of("strong", "data", 0.6, "refitted border-removed") | {"by": "probe", "before": 0.9, "words": "Fall."}
    alone = row_of("strong", "data", 0.3, "refitted lungs-removed-mean") | {"by": "probe", "words": "Alone."}
    assert read([fall, alone]).sentences[0] == "Alone." and read([fall]).sentences[0] == "Fall."


def test_what_a_file_tells_is_said_first() -> None:
    file = row_of("strong", "data", effect=0.627, name="background file") | {"title": "the file's bytes", "after": 0.96}
    lead = "The file's bytes alone name the class with 96.0 % balanced accuracy [86.0, 100.0] (chance 33.3 %)"
    for own in ("none", "cannot_tell", "strong"):
        assert read([row_of(own), file]).sentences[0].startswith(lead)
    for most, leads in ((0.67, True), (0.69, False)):  # a little more by another group of features changes nothing
        told = read([row_of("strong"), row_of("strong", "data", most), file])
        assert told.sentences[0].startswith(lead) is leads
    told = read([row_of("strong"), row_of("strong", "data")])
    assert told.sentences[0] == "Strong reliance on non-lung content.", "another shortcut comes after the classifier's"
    assert read([row_of("none"), row_of("strong", "data")]).sentences[0].startswith("Frames alone name the class")


def test_the_three_largest_effects_are_told() -> None:
    own = [row_of("some", effect=e) | {"words": f"{e}."} for e in (0.3, 0.5, 0.2, 0.4)]
    data = [row_of("some", "data", e, f"background {e}") | {"title": f"t{e}", "after": e} for e in (0.3, 0.5, 0.2, 0.4)]
    every = row_of("some", "data", 0.9, "background all")
    probe = row_of("some", "data", 0.95, "refitted") | {"by": "probe"}
    words = read([*own, *data, every, probe]).sentences
    assert words[1:4] == ["0.5.", "0.4.", "0.3."]
    assert words[4].startswith("T0.5 alone name the class with 50.0 % balanced accuracy [")
    assert words[5] == "So do t0.4 (40.0 %); and t0.3 (30.0 %)."
    assert read([row_of("none"), every, probe]).sentences[0] == "data some.", "a probe, where no single group is told"


@pytest.mark.parametrize(
    ("p", "effect", "high", "verdict"),
    [
        (0.049, STRONG, 0.5, "strong"), (0.049, STRONG - 0.01, 0.9, "some"), (0.05, 0.1, STRONG - 0.001, "none"),
        (0.05, 0.1, STRONG, "cannot_tell"),
    ],
)  # fmt: skip
def test_both_sides_of_every_limit(p: float, effect: float, high: float, verdict: str) -> None:
    row = row_of("", effect=effect) | {"p_holm": p, "high": high}
    assert _verdict(row) == verdict
    assert [_verdict(row | {name: True}) for name in ("is_constant", "is_small")] == ["cannot_tell"] * 2
    assert _verdict(row | {"doubt": "why"}) == (verdict if verdict in {"strong", "some"} else "cannot_tell")


@pytest.mark.parametrize(("share", "told"), [(0.85, "none"), (0.95, "cannot_tell")])
@pytest.mark.parametrize("rare", [False, True])
def test_nearly_one_answer_is_no_evidence_against_a_shortcut(share: float, told: str, rare: bool) -> None:
    """Whatever the classes' shares; and a classifier that names a frequent class often, because it is, is judged."""
    rng = np.random.default_rng(2)
    target = rng.choice(3, 1500, p=[0.1, 0.1, 0.8] if rare else [1 / 3] * 3)
    named = np.where(rng.random(1500) < share, 1, 0)
    right = np.where(rng.random(1500) < 0.03, 0, target)
    answers = Answers(target, np.arange(1500), {"gone": named, "right": right}, CLASSES)
    row, good = judge_tests([ask("gone"), ask("right", "data")], answers, resamples=200, seed=0)
    assert row["verdict"] == told and ("cannot tell: nearly one answer to all such images" in row["words"]) is (
        told == "cannot_tell"
    )
    assert good["doubt"] == "" and good["verdict"] == "strong"
    common = np.full(1500, 2)
    common[:300] = np.arange(300) % 3
    frequent = Answers(common, np.arange(1500), {"right": common}, CLASSES)
    assert judge_tests([ask("right")], frequent, resamples=200, seed=0)[0]["verdict"] == "strong"


def test_a_shortcut_that_nearly_one_answer_shows_is_said() -> None:
    target = np.arange(9000) % 3
    named = np.where((target == 0) & (np.arange(9000) % 100 < 28), 0, 1)
    answers = Answers(target, np.arange(9000), {"gone": named}, CLASSES)
    (row,) = judge_tests([ask("gone")], answers, resamples=200, seed=0)
    assert row["doubt"] and row["verdict"] == "some" and "cannot tell" not in row["words"]


@pytest.mark.parametrize(("as_it_is", "at_random", "told"), [(0.8, 0.36, "cannot_tell"), (0.8, 0.45, "none"), (0.36, 0.36, "none")])  # fmt: skip
def test_where_as_many_pixels_at_random_leave_chance_only_removed_lungs_tell_nothing(
    as_it_is: float, at_random: float, told: str
) -> None:
    """Unless the classifier is at chance anyway; a shortcut that is seen all the same is said."""
    answers = answers_of({"original": as_it_is, "random": at_random, "gone": 1 / 3, "seen": 0.8}, n=3000)
    tests = [
        ShortcutTest("gone", "lungs gone", "classifier", "classifier", "gone", control="at-random"),
        ShortcutTest("seen", "lungs gone", "classifier", "classifier", "seen", control="at-random"),
        ShortcutTest("at-random", "as many pixels at random", "control", "classifier", "random", "original"),
    ]
    gone, seen, _ = judge_tests(tests, answers, resamples=200, seed=0)
    assert gone["verdict"] == told and seen["verdict"] == "strong"
    said = "cannot tell: as many pixels at random, leave chance only, too"
    assert (said in gone["words"]) is (told == "cannot_tell")


def test_what_is_at_chance_before_has_nothing_to_lose() -> None:
    answers = answers_of({"before": 0.36, "fair": 0.45, "after": 1 / 3}, n=3000)
    tests = [ask("after", before=name) for name in ("before", "fair")]
    lost, fair = judge_tests(tests, answers, resamples=200, seed=0)
    assert lost["verdict"] == "cannot_tell" and "cannot tell: there was nothing to lose" in lost["words"]
    assert fair["doubt"] == ""


def test_what_says_nothing_is_not_counted_among_the_tests_that_acquit() -> None:
    doubted = row_of("cannot_tell", effect=0.9) | {"doubt": "nearly one answer to all such images"}
    told = read([row_of("none"), doubted, row_of("none", "data")])
    assert (
        told.classifier == "none" and "each of 1 tests of the classifier that can tell excludes it" in told.sentences[0]
    )
    nothing = read([doubted, doubted | {"asks": "data"}])
    assert nothing.data == "cannot_tell" and "no altered image can tell" in nothing.sentences[1]
