"""The trials of an audit, written out: what is altered, what it is compared with, whether it counts, and what it points at."""

from __future__ import annotations

import numpy as np
import pytest

from thoraclip.data.views import VIEWS
from thoraclip.evaluation.shortcuts import ShortcutTest
from thoraclip.methods.audit.probes import probe_tests, view_tests

OUTSIDE, BORDER, CORNERS = "what lies outside the lungs", "the border", "the corners"
REMOVED = [f"{part}-removed-{fill}" for part in ("lungs", "box") for fill in ("mean", "blur", "other")]
SWAPPED = "the background of a picture of another class in place of one of the same class"
Row = tuple[str, str, str, bool, str]
"""Name, before, after, counts, finds."""


def told(trials: list[ShortcutTest], level: str, titles: dict[str, str]) -> list[Row]:
    """The rows of trials, whose titles are those of the views but for some."""
    for trial in trials:
        assert (trial.title, trial.level) == (
            titles.get(trial.name) or VIEWS[trial.name.removeprefix("refitted ")].title,
            level,
        )
    return [(t.name, t.before, t.after, t.counts, t.finds) for t in trials]


@pytest.mark.parametrize("lungs", [True, False])
def test_what_is_asked_of_the_classifier(lungs: bool) -> None:
    """Without lungs only of the border and the corners."""
    named = [name for name in VIEWS if lungs or not VIEWS[name].needs_lungs]
    around: list[Row] = [(name, "", name, True, OUTSIDE) for name in REMOVED]
    around.append(("background-swapped", "lungs-only-same", "lungs-only-other", True, OUTSIDE))
    always: list[Row] = [
        ("border-removed", "original", "border-removed", True, BORDER),
        ("corners-removed", "original", "corners-removed", True, CORNERS),
        ("border-only", "", "border-only", True, BORDER),
    ]
    controls = [
        (name, "original", name, False, "") for name in ("lungs-only-mean", "lungs-only-blur", "random-removed")
    ]
    found = told(view_tests(dict.fromkeys(named, np.zeros(1, np.int64))), "classifier", {"background-swapped": SWAPPED})
    assert found == (around + always + controls if lungs else always)


@pytest.mark.parametrize("counts", [True, False])
def test_what_is_asked_of_probes_that_are_fitted_anew(counts: bool) -> None:
    """A view that hides the lungs is compared with chance, another with the pictures as they are."""
    places = {"border-removed": BORDER, "corners-removed": CORNERS, "border-only": BORDER}
    alone = {*REMOVED, "border-only"}
    rows: list[Row] = [
        (f"refitted {name}", "" if name in alone else "refitted original", f"refitted {name}", counts, places.get(name, OUTSIDE))
        for name in VIEWS
        if name not in {"original", "sham", "lungs-only-same", "random-removed"}
    ]  # fmt: skip
    rows.append(("refitted random-removed", "refitted original", "refitted random-removed", False, ""))
    every = {f"refitted {name}": np.zeros(1, np.int64) for name in VIEWS}
    assert told(probe_tests(every, counts), "features", {}) == rows
    few = {name: every[name] for name in ("refitted original", "refitted box-removed-blur")}
    assert told(probe_tests(few, counts), "features", {}) == [row for row in rows if row[0] in few]
