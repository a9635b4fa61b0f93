"""The tests of an audit on views: of the classifier as it is, and of probes that are fitted on each view."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from thoraclip.data.views import VIEWS
from thoraclip.evaluation.shortcuts import ShortcutTest

__all__ = ["probe_tests", "view_tests"]

Ints = npt.NDArray[np.int64]


def view_tests(named: Mapping[str, Ints]) -> list[ShortcutTest]:
    """What is asked of the classifier as it is; controls come last."""
    tests = [
        ShortcutTest(
            *(view.trial or (name, view.title)),
            "classifier",
            after=name,
            before="" if view.is_alone else view.before,
            counts=view.counts,
            finds=view.finds if view.counts else "",
        )
        for name, view in VIEWS.items()
        if name in named and (view.is_alone or view.before)
    ]
    return sorted(tests, key=lambda test: not test.counts)


def probe_tests(answers: Mapping[str, Ints], counts: bool) -> list[ShortcutTest]:
    """What is asked of probes that are fitted on the views; they count where the classifier is such a probe."""
    tests = []
    for name, view in VIEWS.items():
        after = f"refitted {name}"
        if after not in answers or view.refits == "no":
            continue
        if view.refits == "control":  # compared with the originals
            tests.append(ShortcutTest(after, view.title, "features", after, "refitted original", counts=False))
            continue
        before = "" if view.is_alone else "refitted original"
        tests.append(
            ShortcutTest(after, view.title, "features", after=after, before=before, counts=counts, finds=view.finds)
        )
    return tests
