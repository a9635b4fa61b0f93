"""The trials of an audit, written out: what is altered, what it is compared with, whether it counts, and what it points at."""

from __future__ import annotations

import numpy as np
import pytest

from thoraclip.data.views import VIEWS, Scene
from thoraclip.evaluation.audit_reading import OUTSIDE
from thoraclip.evaluation.shortcuts import ShortcutTest
from thoraclip.methods.audit.probes import probe_tests, view_tests

BORDER, CORNERS = "the border", "the corners"
REMOVED = ["lungs-removed", "box-removed"]
SWAPPED = "the background of a picture of another class in place of one of the same class"
AT_RANDOM = ["border-at-random", "corners-at-random"]
Row = tuple[str, str, str, str, str]
"""Name, before, after, asks, finds."""


def told(trials: list[ShortcutTest], by: str, titles: dict[str, str]) -> list[Row]:
    """The rows of trials, whose titles are those of the views but for some."""
    for trial in trials:
        title = titles.get(trial.name) or VIEWS[trial.name.removeprefix("refitted ")].title
        assert (trial.title, trial.by) == (title, by)
    return [(t.name, t.before, t.after, t.asks, t.finds) for t in trials]


@pytest.mark.parametrize("lungs", [True, False])
def test_what_is_asked_of_the_classifier(lungs: bool) -> None:
    """Without lungs only of the border and the corners; what is removed there is compared with as much at random."""
    named = [name for name in VIEWS if lungs or not VIEWS[name].needs_lungs]
    own = "classifier"
    around: list[Row] = [(name, "", name, own, OUTSIDE) for name in REMOVED]
    around.append(("background-swapped", "lungs-only-same", "lungs-only-other", own, OUTSIDE))
    always: list[Row] = [
        ("border-removed", "border-at-random", "border-removed", own, BORDER),
        ("corners-removed", "corners-at-random", "corners-removed", own, CORNERS),
        ("border-only", "", "border-only", own, BORDER),
    ]
    controls = ["lungs-only", "random-removed"] if lungs else []
    behind = [(name, "original", name, "control", "") for name in (*controls, *AT_RANDOM)]
    found = told(view_tests(dict.fromkeys(named, np.zeros(1, np.int64))), own, {"background-swapped": SWAPPED})
    assert found == ([*around, *always, *behind] if lungs else [*always, *behind])


def test_what_is_asked_of_probes_that_are_fitted_anew() -> None:
    """A view that hides the lungs is compared with chance, what is removed with as much at random."""
    rows: list[Row] = [(f"refitted {name}", "", f"refitted {name}", "data", OUTSIDE) for name in REMOVED]
    for region, place in (("border", BORDER), ("corners", CORNERS)):
        name = f"refitted {region}-removed"
        rows.append((name, f"refitted {region}-at-random", name, "data", place))
    rows.append(("refitted border-only", "", "refitted border-only", "data", BORDER))
    controls = ["lungs-only-other", "random-removed", *AT_RANDOM]
    rows += [(f"refitted {name}", "refitted original", f"refitted {name}", "control", "") for name in controls]
    every = {f"refitted {name}": np.zeros(1, np.int64) for name in VIEWS}
    assert told(probe_tests(every), "probe", {}) == rows
    few = {name: every[name] for name in ("refitted original", "refitted box-removed")}
    assert told(probe_tests(few), "probe", {}) == [row for row in rows if row[0] in few]


def test_as_many_pixels_are_removed_at_random_as_the_border_and_the_corners_have() -> None:
    greys, lungs = np.full((3, 60, 50), 7, np.uint8), np.zeros((3, 60, 50), bool)
    none = np.full(3, -1)
    scene, rows = Scene(greys, lungs, 0, none, none, none, none, seed=4), np.arange(3)
    for region in ("border", "corners"):
        own, random = (VIEWS[f"{region}-{how}"].region(scene, rows) for how in ("removed", "at-random"))
        assert own.sum(axis=(1, 2)).tolist() == random.sum(axis=(1, 2)).tolist()
        assert (random != own).any(axis=(1, 2)).all() and (random[0] != random[1]).any()


def test_what_is_asked_alone_has_a_control_of_as_many_pixels() -> None:
    alone = [*REMOVED, "border-only"]
    own = view_tests(VIEWS)
    assert [(t.name, t.control) for t in own if t.control] == [(name, "random-removed") for name in alone]
    fitted = probe_tests([f"refitted {name}" for name in VIEWS])
    controls = [(f"refitted {name}", "refitted random-removed") for name in alone]
    assert [(t.name, t.control) for t in fitted if t.control] == controls
