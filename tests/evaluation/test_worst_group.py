"""The worst group: simulations with known truth, and an oracle by counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.evaluation.tables import method, predictions

from thoraclip.evaluation.render import html_page, markdown_page
from thoraclip.evaluation.report import judge
from thoraclip.evaluation.worst_group import worst_group
from thoraclip.proportions import patient_share

CLASSES = ("covid", "normal")


def drawn(seed: int, right: tuple[float, ...], patients: int = 40, spread: float = 0.15) -> dict[str, Any]:
    """Four groups, two sources by two classes, of patients with 1 to 4 images who differ in how hard they are, and whose
    images are right with the probability of the group on average (beta-distributed, standard deviation `spread`)."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(4), patients)
    mean = np.array(right)[group]
    size = np.maximum(mean * (1 - mean) / spread**2 - 1, 0.5)
    own = rng.beta(mean * size, (1 - mean) * size)
    owner = np.repeat(np.arange(4 * patients), rng.integers(1, 5, 4 * patients))
    correct = rng.random(len(owner)) < own[owner]
    sources = [f"s{k}" for k in group[owner] // 2]
    found = worst_group(correct, group[owner] % 2, sources, owner, CLASSES, fewest=10)
    assert found is not None
    return found


@pytest.mark.parametrize("right", [(0.8, 0.8, 0.8, 0.8), (0.95, 0.9, 0.9, 0.6), (0.95, 0.95, 0.9, 0.9)])
@pytest.mark.parametrize("patients", [15, 60])
def test_the_intervals_hold_the_truth_although_the_worst_is_chosen(right: tuple[float, ...], patients: int) -> None:
    found = [drawn(seed, right, patients) for seed in range(200)]
    worst, gap = min(right), float(np.mean(right)) - min(right)
    assert np.mean([one["accuracy"]["low"] <= worst <= one["accuracy"]["high"] for one in found]) >= 0.95
    assert np.mean([one["gap"]["low"] <= gap <= one["gap"]["high"] for one in found]) >= 0.95
    if len(set(right)) == 1:
        assert np.mean([one["accuracy"]["value"] for one in found]) < worst - 0.02, "a minimum is biased downward"


def test_a_group_that_is_much_worse_is_named_and_its_gap_leaves_0_out() -> None:
    found = [drawn(seed, (0.95, 0.9, 0.9, 0.3), 60) for seed in range(50)]
    assert all((one["source"], one["class"]) == ("s1", "normal") for one in found)
    assert np.mean([one["gap"]["low"] > 0 for one in found]) > 0.9


def test_by_counting_and_small_groups_are_left_out() -> None:
    """Groups of 12 with 6 right and of 12 with 12 right; 3 wrong images and one without a source do not count."""
    correct = np.array([True] * 6 + [False] * 6 + [True] * 12 + [False] * 4)
    target = np.array([0] * 12 + [1] * 12 + [0] * 4)
    sources = ["a"] * 12 + ["b"] * 12 + ["b"] * 3 + [None]
    owner = np.arange(28)
    found = worst_group(correct, target, sources, owner, CLASSES, fewest=10)
    assert found is not None and found["groups"] == 2
    assert (found["source"], found["class"], found["images"], found["patients"]) == ("a", "covid", 12, 12)
    assert found["accuracy"]["value"] == 0.5 and found["average"] == 0.75 and found["gap"]["value"] == 0.25
    low, high = patient_share(correct[:12], owner[:12], 1 - 0.05 / 3)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (low, high)
    plain = patient_share(correct[:12], owner[:12])
    assert low < plain[0] and high > plain[1]
    assert worst_group(correct, target, sources, owner, CLASSES, fewest=13) is None


def test_a_report_says_which_group_is_worst_in_its_table_and_in_words() -> None:
    probe = method("probe", predictions(150))
    ids = probe.predictions[0].image_id
    source = {image: ("here", "there")[k % 2] for k, image in enumerate(ids)}
    report = judge([probe], title="t", resamples=100, groups={"source": source})
    worst = next(m for m in report["methods"] if m["name"] == "probe")["worst_group"]
    assert worst["groups"] == 6 and worst["source"] in ("here", "there")
    sentence = next(said for said in report["reading"] if "groups by source and class" in said)
    assert f"is worst for {worst['class']} from \u201c{worst['source']}\u201d" in sentence
    for page in (html_page(report, None, None), markdown_page(report)):
        assert "Worst group" in page and f"{worst['class']}, {worst['source']}" in page
    for alone in ({"source": dict.fromkeys(ids, "one")}, {"sex": source}):
        report = judge([probe], title="t", resamples=100, groups=alone)
        assert next(m for m in report["methods"] if m["name"] == "probe")["worst_group"] is None
        assert "Worst group" not in html_page(report, None, None) + markdown_page(report)
