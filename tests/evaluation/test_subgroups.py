"""Groups of patients: known truths by simulation, oracles by counting, and what is too small to judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.evaluation.tables import AGES, CLASSES, method, predictions

from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.equalised_odds import permuted_groups
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.render import html_page, markdown_page
from thoraclip.evaluation.report import judge
from thoraclip.evaluation.subgroups import (
    FEWEST,
    _auroc,
    group_columns,
    group_values,
    members,
    predicted_calls,
    subgroup_entries,
)
from thoraclip.labels import LabelSet
from thoraclip.proportions import share_interval
from thoraclip.tables.manifest import Manifest

SETS = 120


def images_of(ids: tuple[str, ...], target: Any, owner: Any) -> Aligned:
    """The judged images of some patients, without a split or folds."""
    return Aligned(LabelSet(CLASSES), ids, target, owner, "patient", {}, (), np.zeros_like(target), (), {})


def drawn(
    seed: int, *, patients: int = 150, most: int = 3, effect: float = 0.0, mixed: bool = False, common: float = 0.0
) -> dict[str, Any]:
    """The one column of a classifier that is worse in group 1 by `effect`, as patients differ in how hard they are.

    `mixed`: the group changes from image to image; `common`: class 0 is so much more common in group 1.
    """
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    group = rng.choice(3, patients, p=[0.6, 0.3, 0.1])[owner]
    target = np.where(rng.random(patients) < 0.3, 0, rng.integers(1, 3, patients))
    target = np.where((rng.random(patients) < common)[owner] & (group == 1), 0, target[owner])
    group = rng.integers(0, 3, len(owner)) if mixed else group
    logits = rng.normal(size=(len(owner), 3))
    logits[np.arange(len(owner)), target] += 1.5 + rng.normal(size=patients)[owner] - effect * (group == 1)
    ids = tuple(f"i{k}" for k in range(len(owner)))
    aligned = images_of(ids, target, owner)
    scored = Scored(target, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    columns = {"sex": dict(zip(ids, (f"g{k}" for k in group), strict=True))}
    calls = {"m": {"predicted": predicted_calls(scored, CLASSES)}}
    return subgroup_entries({"m": scored}, calls, columns, aligned, resamples=200, seed=seed)["m"][0]


@pytest.mark.parametrize("how", [{}, {"mixed": True}, {"most": 8}, {"common": 0.4}, {"patients": 60, "most": 1}])
def test_groups_that_do_not_differ_are_rarely_told_apart(how: dict[str, Any]) -> None:
    """Of 120 sets: p below 0.05, an interval without 0, and gaps that leave 0 out."""
    entries = [drawn(seed, **how) for seed in range(SETS)]
    odds = [found for entry in entries if (found := entry["equalised_odds"]["predicted"])]
    assert len(odds) > 0.9 * SETS
    assert np.mean([found["p"] <= 0.05 for found in odds]) <= 0.09
    assert np.mean([found["low"] > 0 for found in odds]) <= 0.06
    gaps = [
        value["gap"]
        for entry in entries for group in entry["groups"] for row in group["classes"].values()
        for value in (row["auroc"], row["predicted"]["sensitivity"], row["predicted"]["specificity"]) if value["gap"]
    ]  # fmt: skip
    assert 0.93 <= np.mean([gap["low"] <= 0 <= gap["high"] for gap in gaps]) <= 0.995
    values, by_chance = (np.mean([found[name] for found in odds]) for name in ("value", "by_chance"))
    assert values == pytest.approx(by_chance, rel=0.15), "what chance gives is what is found"


def test_groups_that_differ_are_told_apart() -> None:
    found = [drawn(seed, effect=2.0)["equalised_odds"]["predicted"] for seed in range(30)]
    assert np.mean([one["p"] <= 0.05 for one in found]) >= 0.9
    assert np.mean([one["low"] > 0 for one in found]) >= 0.8
    told = [one for one in found if one["rate"] == "tpr"]
    assert len(told) > 20 and np.mean([one["lowest"] == "g1" for one in told]) > 0.9


def test_the_interval_holds_the_true_gap() -> None:
    """Of 80 sets of 150 patients. Percentiles of resamples, or those reflected, lie above the truth in 9 to 80 %."""
    truth = drawn(0, effect=1.5, patients=20_000, most=1)["equalised_odds"]["predicted"]["value"]
    found = [drawn(seed, effect=1.5)["equalised_odds"]["predicted"] for seed in range(1, 81)]
    assert np.mean([one["low"] <= truth <= one["high"] for one in found]) >= 0.95
    assert np.mean([one["low"] > 0 for one in found]) >= 0.6
    assert np.mean([one["value"] for one in found]) > truth + 0.03, "a maximum is biased upward"


def test_groups_without_a_mistake_are_not_shown_to_be_equal() -> None:
    n = 60
    scored = Scored(np.arange(n) % 3, np.eye(3)[np.arange(n) % 3])
    ids = tuple(f"i{k}" for k in range(n))
    aligned = images_of(ids, scored.target, np.arange(n))
    columns = {"sex": {i: "FM"[k // 3 % 2] for k, i in enumerate(ids)}}
    calls = {"m": {"predicted": predicted_calls(scored, CLASSES)}}
    odds = subgroup_entries({"m": scored}, calls, columns, aligned, resamples=100, seed=0)["m"][0]["equalised_odds"]
    assert odds["predicted"]["value"] == odds["predicted"]["low"] == 0 and odds["predicted"]["high"] > 0.2
    assert odds["predicted"]["p"] == 1


def test_numbers_are_those_of_the_rows() -> None:
    """Through a report: two columns, an unknown image, and a validation split that gives operating points."""
    table, val = predictions(180, signal=1.2, patients=60), predictions(200, signal=1.2, seed=4, prefix="v")
    sex = {i: None if k == 7 else "FM"[k % 60 % 2] for k, i in enumerate(table.image_id)}
    view = {i: ("AP", "PA", "PA")[k // 60] for k, i in enumerate(table.image_id)}
    report = judge(
        [method("a", table, validation=((val,),))], title="t", resamples=100,
        groups={"sex": sex, "view": view, "source": dict.fromkeys(sex, "only")},
    )  # fmt: skip
    entry = report["methods"][0]
    assert [column["column"] for column in entry["subgroups"]] == ["sex", "view"]
    by_sex = entry["subgroups"][0]
    assert by_sex["unknown"] == 1 and [group["value"] for group in by_sex["groups"]] == ["F", "M"]
    thresholds = {name: entry["trust"]["operating_point"]["classes"][name]["threshold"][0] for name in CLASSES}
    predicted, rates = table.scores.argmax(axis=1), dict[str, dict[tuple[str, str], Any]]()
    for group in by_sex["groups"]:
        own = np.array([sex[i] == group["value"] for i in table.image_id])
        rest = np.array([sex[i] not in (None, group["value"]) for i in table.image_id])
        assert (group["images"], group["patients"]) == (own.sum(), 30) and group["is_judged"]
        assert group["accuracy"]["value"] == pytest.approx((predicted == table.target)[own].mean())
        for c, name in enumerate(CLASSES):
            row, positive = group["classes"][name], table.target == c
            aurocs = [roc_auc_score(positive[rows], table.scores[rows, c]) for rows in (own, rest)]
            assert row["auroc"]["value"] == pytest.approx(aurocs[0])
            assert row["auroc"]["gap"]["value"] == pytest.approx(aurocs[0] - aurocs[1])
            for point, called in (
                ("predicted", predicted == c),
                ("operating_point", table.scores[:, c] >= thresholds[name]),
            ):
                found = [[called[rows & positive].mean(), (~called)[rows & ~positive].mean()] for rows in (own, rest)]
                for k, rate in enumerate(("sensitivity", "specificity")):
                    assert row[point][rate]["value"] == pytest.approx(found[0][k])
                    assert row[point][rate]["gap"]["value"] == pytest.approx(found[0][k] - found[1][k])
                rates.setdefault(point, {})[group["value"], name] = (found[0][0], 1 - found[0][1])
    for page in (markdown_page(report), html_page(report, None, None)):
        assert "By sex, at the operating point" in page and "By view" in page and "By source" not in page
    for point, of_point in rates.items():
        odds = by_sex["equalised_odds"][point]
        gaps = {(name, k): abs(of_point["F", name][k] - of_point["M", name][k]) for name in CLASSES for k in (0, 1)}
        assert odds["value"] == pytest.approx(max(gaps.values()))
        assert (odds["class"], ("tpr", "fpr").index(odds["rate"])) == max(gaps, key=lambda key: gaps[key])
        assert odds["spread"] == {name: pytest.approx({"tpr": gaps[name, 0], "fpr": gaps[name, 1]}) for name in CLASSES}
        assert odds["p"] <= odds["p_holm"] <= 1
    start = "No difference in sensitivity or false positive rate between groups by sex and view can be shown for a"
    assert any(s.startswith(start) for s in report["reading"])
    assert (
        "Groups by age and source were not compared: the manifest does not name two of them among these images."
        in report["reading"]
    )
    assert "One gap in twenty excludes 0 by chance" in markdown_page(report)


def test_the_interval_of_an_auroc_is_that_of_obuchowski() -> None:
    """Pair by pair, patient by patient (Obuchowski 1997, equations 4 to 6); patients with images of both kinds, ties."""
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(25), rng.integers(1, 5, 25))
    positive = rng.random(len(owner)) < 0.4
    score = np.round(rng.normal(size=len(owner)) + positive + 0.5 * rng.normal(size=25)[owner], 1)
    highs, lows = np.flatnonzero(positive), np.flatnonzero(~positive)
    wins = np.array([[float(score[i] > score[j]) + 0.5 * float(score[i] == score[j]) for j in lows] for i in highs])
    value, above, below = float(wins.mean()), np.zeros(25), np.zeros(25)
    for k in range(25):
        above[k] = sum(wins[a].mean() - value for a, i in enumerate(highs) if owner[i] == k) / len(highs)
        below[k] = sum(wins[:, b].mean() - value for b, j in enumerate(lows) if owner[j] == k) / len(lows)
    with_high, with_low = len(set(owner[highs])), len(set(owner[lows]))
    variance = with_high / (with_high - 1) * (above**2).sum() + with_low / (with_low - 1) * (below**2).sum()
    variance += 2 * 25 / 24 * (above * below).sum()
    fewest = min(with_high, with_low)
    found = _auroc(score, positive, owner)
    assert found["value"] == pytest.approx(roc_auc_score(positive, score)) and found["patients"] == fewest
    expected = share_interval(value, variance, clusters=fewest, df=fewest - 1)
    assert (found["low"], found["high"]) == pytest.approx(expected)
    alone = _auroc(np.array([0.1, 0.9, 0.8]), np.array([False, True, True]), np.array([0, 1, 2]))
    assert (alone["value"], alone["low"], alone["high"], alone["patients"]) == (1, 0, 1, 1)


def test_what_few_patients_show_is_listed_and_not_judged() -> None:
    table = predictions(120)
    for number in (FEWEST - 1, FEWEST):
        sex = {i: "F" if k < 3 * number and k % 3 == 0 else "M" for k, i in enumerate(table.image_id)}
        report = judge([method("a", table)], title="t", resamples=100, groups={"sex": sex})
        (column,) = report["methods"][0]["subgroups"]
        female, judged = column["groups"][0], number == FEWEST
        assert column["smallest"] == {"value": "F", "images": number, "patients": number}
        assert female["is_judged"] == judged and female["accuracy"]["value"] is not None
        own, absent = female["classes"]["COVID-19"], female["classes"]["Normal"]
        assert (
            own["predicted"]["sensitivity"]["value"] is not None and absent["predicted"]["sensitivity"]["value"] is None
        )
        assert (own["predicted"]["sensitivity"]["gap"] is not None) == judged
        assert (
            own["predicted"]["specificity"]["gap"]
            is own["auroc"]["gap"]
            is absent["predicted"]["sensitivity"]["gap"]
            is None
        )
        odds = column["equalised_odds"]["predicted"]
        assert (odds is not None) == judged
        assert any(s.startswith("Groups by sex were not compared: no rate") for s in report["reading"]) != judged
        if odds:
            assert odds["spread"]["COVID-19"]["fpr"] is None and odds["spread"]["COVID-19"]["tpr"] is not None


def test_permuted_groups_keep_their_patients_of_every_class() -> None:
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(80), rng.integers(1, 4, 80))
    patients = np.unique(owner, return_inverse=True)[1].astype(np.int64)
    target, group = (rng.integers(0, 3, 80)[owner] for _ in range(2))
    first = np.append(True, np.diff(owner) > 0)  # counts patients, not images
    columns = np.eye(3)[target] * first[:, None]
    observed = np.stack([columns[group == g].sum(axis=0) for g in range(3)])
    noise = rng.normal(size=(len(owner), 1))
    found = np.concatenate(
        list(permuted_groups(np.hstack([columns, noise]), group, patients, target, permutations=70, seed=0))
    )
    assert found.shape == (70, 3, 4) and (found[..., :3] == observed).all()
    assert found[..., 3].std() > 0 and found[..., 3].sum(axis=1) == pytest.approx(float(noise.sum()))


def test_a_manifest_gives_its_columns() -> None:
    n = len(AGES)
    rows = [
        {
            "image_id": f"i{k}",
            "path": "x",
            "age_years": AGES[k],
            "sex": "F",
            "view": ("AP", None)[k % 2],
            "source": f"s{k % 3}",
        }
        for k in range(n)
    ]
    manifest = Manifest.from_rows(rows, Path("/nowhere"))
    values = group_values(manifest)
    assert list(values) == ["age", "source"], "one value is no group"
    assert values["age"] == [
        "under 18", "under 18", "18 to 39", "18 to 39", "40 to 64", "40 to 64", "40 to 64", "65 and over", "65 and over",
        None, "65 and over", None,
    ]  # fmt: skip
    assert list(members(values["age"])) == ["under 18", "18 to 39", "40 to 64", "65 and over"]
    assert group_columns(manifest)["source"]["i4"] == "s1"
    many = manifest.with_columns(source=[f"s{k:02d}" for k in range(n)])
    assert len(set(group_values(many)["source"])) == n
    long = Manifest.from_rows(
        [{"image_id": f"i{k}", "path": "x", "source": f"s{min(k, 30)}"} for k in range(40)], Path("/x")
    )
    pooled = group_values(long)["source"]
    assert len(set(pooled)) == 20 and pooled[-1] == "s30" and "all others" in pooled
