"""Verdicts on reliance: effects against a slow oracle, false alarms, power, and what is said in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score

from thoraclip.evaluation.shortcuts import (
    MARGIN,
    STRONG,
    Answers,
    ShortcutTest,
    _smallest,
    _verdict,
    balanced_accuracies,
    judge_tests,
    overall,
    shared_errors,
)

CLASSES = 3


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
        [ShortcutTest("t", "t", "classifier", before="a", after="b")],
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
        ShortcutTest("drop", "the lungs alone", "features", before="before", after="after", finds="the background"),
        ShortcutTest("gone", "no lungs", "classifier", after="gone", finds="the background"),
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
        row = judge_tests(
            [ShortcutTest("t", "t", "classifier", after="a")], answers_of({"a": share}, n), resamples=500, seed=0
        )
        return str(row[0]["verdict"])

    assert verdict(1 / 3, 600) == "none"
    assert verdict(1 / 3, 30) == "cannot_tell"
    assert verdict(0.50, 1500) == "some"
    assert verdict(0.80, 300) == "strong"
    assert verdict(1 / 3 + STRONG + 0.01, 1500) == "strong", "by the effect, whatever its interval"


def test_all_right_is_as_sure_as_its_patients_are_many() -> None:
    answers = answers_of({"a": 1.0}, n=120, group_size=4)
    (row,) = judge_tests([ShortcutTest("t", "t", "classifier", after="a")], answers, resamples=100, seed=0)
    error = 0.5 / 30
    assert row["p"] == pytest.approx(0.5 * math.erfc((2 / 3 - MARGIN) / error / math.sqrt(2)))


def test_a_control_has_no_verdict_and_costs_no_power() -> None:
    answers = answers_of({"a": 0.9, "b": 0.9})
    alone = judge_tests([ShortcutTest("a", "a", "classifier", after="a")], answers, resamples=200, seed=0)
    control = ShortcutTest("b", "b", "classifier", after="b", counts=False)
    both = judge_tests([ShortcutTest("a", "a", "classifier", after="a"), control], answers, resamples=200, seed=0)
    assert both[1]["verdict"] == "control" and both[1]["p_holm"] is None and both[1]["words"].endswith("A control.")
    assert both[0]["p_holm"] == alone[0]["p_holm"] and both[0]["smallest_effect"] == alone[0]["smallest_effect"]


def test_false_alarms_of_a_family_without_any_effect_are_rare() -> None:
    """28 tests at chance, 100 sets: a false alarm in at most 3 % (the margin makes Holm's 5 % conservative)."""
    alarms = 0
    for seed in range(100):
        answers = answers_of({str(i): 1 / 3 for i in range(28)}, n=150, seed=seed)
        rows = judge_tests(
            [ShortcutTest(n, n, "classifier", after=n) for n in answers.named], answers, resamples=100, seed=seed
        )
        alarms += any(row["verdict"] in {"some", "strong"} for row in rows)
    assert alarms <= 3


def test_one_answer_to_all_pictures_says_nothing_and_acquits_nobody() -> None:
    answers = answers_of({"a": 1 / 3, "b": 1 / 3})
    named = dict(answers.named) | {"a": np.zeros(240, dtype=np.int64)}
    fixed = Answers(answers.target, answers.groups, named, CLASSES)
    both = [ShortcutTest(n, n, "classifier", after=n) for n in ("a", "b")]
    rows = judge_tests(both, fixed, resamples=200, seed=0)
    assert rows[0]["verdict"] == "control" and "says nothing" in rows[0]["words"]
    assert rows[1]["verdict"] != "control" and "says nothing" not in rows[1]["words"]
    assert overall(rows[:1], above_chance=True, masks=True)[0] == "cannot_tell"
    unchanged = Answers(answers.target, answers.groups, {"a": answers.target, "b": answers.target}, CLASSES)
    dropped = ShortcutTest("t", "t", "classifier", before="a", after="b")
    row = judge_tests([dropped], unchanged, resamples=200, seed=0)[0]
    assert row["verdict"] == "none" and "says nothing" not in row["words"], "no answer changed: that is no sign"
    assert "the classifier loses 0.0 points" in row["words"]
    half = Answers(answers.target, answers.groups, {"a": answers.named["b"], "b": answers.named["b"]}, CLASSES)
    row = judge_tests([dropped], half, resamples=200, seed=0)[0]
    assert row["low"] == row["high"] == 0, "paired: the same answers in every resample"


def test_a_handful_of_patients_cannot_tell_however_clear_it_looks() -> None:
    clear = answers_of({"a": 1.0}, n=27)
    test = ShortcutTest("t", "t", "classifier", after="a")
    assert judge_tests([test], clear, resamples=200, seed=0)[0]["verdict"] == "cannot_tell"
    assert judge_tests([test], answers_of({"a": 1.0}, n=30), resamples=200, seed=0)[0]["verdict"] == "strong"
    row = judge_tests([test], clear, resamples=200, seed=0)[0]
    assert row["p"] == row["smallest_effect"] == 1.0
    assert "less than 100.0 points could not have been shown" in row["words"]
    few_patients = answers_of({"a": 1.0}, n=90, group_size=15)
    assert judge_tests([test], few_patients, resamples=200, seed=0)[0]["verdict"] == "cannot_tell"


def test_the_smallest_effect_is_seen_four_times_in_five() -> None:
    test = ShortcutTest("t", "t", "classifier", after="a")
    row = judge_tests([test], answers_of({"a": 1 / 3}), resamples=1000, seed=0)[0]
    share = 1 / 3 + row["smallest_effect"]
    seen = [
        judge_tests(
            [ShortcutTest("t", "t", "classifier", after="a")], answers_of({"a": share}, seed=s), resamples=100, seed=s
        )
        for s in range(200)
    ]
    found = np.mean([rows[0]["verdict"] in {"some", "strong"} for rows in seen])
    assert 0.70 < found < 0.90


def test_shared_errors_against_counting_by_hand() -> None:
    rng = np.random.default_rng(3)
    answers = answers_of({"a": 0.6, "b": 0.6}, n=300)
    copied = np.where(rng.random(300) < 0.6, answers.named["b"], answers.named["a"])
    answers = Answers(answers.target, answers.groups, dict(answers.named) | {"c": copied}, CLASSES)
    alone = {"name": "b", "title": "frames"}
    row = shared_errors(answers, "c", alone, resamples=500, seed=0)
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
    never = shared_errors(right, "a", alone, resamples=9, seed=0)
    assert never["images"] == never["effect"] == 0 and never["verdict"] == "cannot_tell"
    independent = shared_errors(answers, "a", alone, resamples=500, seed=0)
    assert abs(independent["effect"]) < 0.1 and independent["verdict"] in {"none", "cannot_tell"}


def row_of(verdict: str, level: str = "classifier", effect: float = 0.3, smallest: float = 0.1) -> dict[str, object]:
    return {
        "counts": True, "says_nothing": False, "level": level, "verdict": verdict, "effect": effect, "words": f"{level} {verdict}.",
        "title": "frames", "name": "background frame", "after": 0.6, "chance": 1 / 3, "smallest_effect": smallest,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "above", "masks", "expected"),
    [
        ([row_of("none"), row_of("none", "features")], True, True, "none"),
        ([row_of("none"), row_of("some", "features")], True, True, "some"),
        ([row_of("some"), row_of("strong", "features")], True, True, "strong"),
        ([row_of("none"), row_of("strong", "data")], True, True, "cannot_tell"),
        ([row_of("some"), row_of("strong", "data")], True, True, "some"),
        ([row_of("none"), row_of("cannot_tell", smallest=STRONG + 0.1)], True, True, "cannot_tell"),
        ([row_of("none")], False, True, "cannot_tell"),
        ([row_of("none")], True, False, "cannot_tell"),
    ],
)
def test_the_overall_reading(tests: list[dict[str, object]], above: bool, masks: bool, expected: str) -> None:
    level, (words, *reasons) = overall(tests, above_chance=above, masks=masks)
    assert level == expected and reasons and all(reason.endswith(".") for reason in reasons)
    begin = {"none": "No sign of", "some": "Some", "strong": "Strong", "cannot_tell": "Cannot tell whether"}[expected]
    assert words.startswith(begin)
    if expected == "cannot_tell":
        assert "smallest effect that this set could have shown" in words


def test_the_three_largest_effects_are_told() -> None:
    effects = (0.3, 0.5, 0.2, 0.4)
    own = [row_of("some", effect=e) | {"words": f"{e}."} for e in effects]
    data = [row_of("some", "data", e) | {"name": f"background {e}", "title": f"{e}"} for e in (*effects, 0.1)]
    told = "trees on 0.5 reach 60.0 % balanced accuracy (chance 33.3 %)" + "".join(
        f", on {e} alone 60.0 %" for e in (0.4, 0.3, 0.2)
    )
    level, (_, *reasons) = overall([*own, *data], above_chance=True, masks=True)
    assert (level, reasons[:3], len(reasons)) == ("some", ["0.5.", "0.4.", "0.3."], 4) and reasons[3].endswith(
        f"{told}."
    )


@pytest.mark.parametrize(
    ("p", "effect", "smallest", "verdict"),
    [
        (0.049, STRONG, 0.0, "strong"), (0.049, STRONG - 0.01, 0.9, "some"), (0.05, 0.9, STRONG, "none"),
        (0.05, 0.9, STRONG + 0.01, "cannot_tell"),
    ],
)  # fmt: skip
def test_both_sides_of_every_limit(p: float, effect: float, smallest: float, verdict: str) -> None:
    row = row_of("", effect=effect, smallest=smallest) | {"p_holm": p}
    assert _verdict(row) == verdict
    assert [_verdict(row | other) for other in ({"counts": False}, {"says_nothing": True})] == ["control"] * 2


def test_the_smallest_effect_by_hand() -> None:
    """The spread is largest at a half; where the effect would be beyond 1, that of 0.999 is taken."""
    steps = norm.ppf(1 - 0.05 / 28) + norm.ppf(0.8)
    assert _smallest(0.1, 0.4, None, 28) == pytest.approx(MARGIN + 0.1 * steps)
    for after in (0.0, 1.0):
        assert _smallest(0.1, after, 1 / 3, 28) == pytest.approx(MARGIN + 0.1 * steps)
    for error, after, chance in ((0.05, 0.4, 1 / 3), (0.3, 0.5, 0.5)):
        effects = [MARGIN + error * steps]
        for _ in range(3):
            there = min(0.999, chance + effects[-1])
            effects.append(MARGIN + error * steps * (there * (1 - there) / after / (1 - after)) ** 0.5)
        assert _smallest(error, after, chance, 28) == pytest.approx(effects[3], rel=1e-9) != effects[2]


def test_the_largest_effect_that_could_not_have_been_shown_is_told() -> None:
    blind = [row_of("cannot_tell", smallest=STRONG + more) for more in (0.05, 0.15, 0.1)]
    assert f"{100 * (STRONG + 0.15):.1f} points" in overall(blind, above_chance=True, masks=True)[1][1]
