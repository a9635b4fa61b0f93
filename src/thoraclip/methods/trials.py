"""What an audit asks: the list of its trials on altered pictures, of the classifier and of probes that are fitted anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from thoraclip.data.views import VIEWS
from thoraclip.judge.shortcuts import Trial

__all__ = ["trials_of_views", "trials_refitted"]

Ints = npt.NDArray[np.int64]


def trials_of_views(named: Mapping[str, Ints]) -> list[Trial]:
    """What is asked of the classifier as it is."""
    behind, level = "what lies outside the lungs", "classifier"
    trials = [
        Trial(name, VIEWS[name].title, level, after=name, finds=behind)
        for name in VIEWS
        if name in named and name.startswith(("lungs-removed", "box-removed"))
    ]
    if "lungs-only-other" in named:
        title = "the background of a picture of another class in place of one of the same class"
        trials.append(
            Trial("background-swapped", title, level, before="lungs-only-same", after="lungs-only-other", finds=behind)
        )
    for name, region in (("border-removed", "the border"), ("corners-removed", "the corners")):
        trials.append(Trial(name, VIEWS[name].title, level, before="original", after=name, finds=region))
    trials.append(Trial("border-only", VIEWS["border-only"].title, level, after="border-only", finds="the border"))
    for name in ("lungs-only-mean", "lungs-only-blur", "random-removed"):
        if name in named:
            trials.append(Trial(name, VIEWS[name].title, level, before="original", after=name, counts=False))
    return trials


def trials_refitted(answers: Mapping[str, Ints], counts: bool) -> list[Trial]:
    """What is asked of probes that are fitted anew on altered pictures; they count where the classifier is such a probe."""
    behind, level, trials = "what lies outside the lungs", "features", []
    for name in VIEWS:
        told = f"refitted {name}"
        if told not in answers or name in {"original", "lungs-only-same", "random-removed"}:
            continue
        gone = name.startswith(("lungs-removed", "box-removed", "border-only"))
        finds = {"border-only": "the border", "border-removed": "the border", "corners-removed": "the corners"}.get(
            name, behind
        )
        before = "" if gone else "refitted original"
        trials.append(Trial(told, VIEWS[name].title, level, before=before, after=told, counts=counts, finds=finds))
    if "refitted random-removed" in answers:
        title = VIEWS["random-removed"].title
        trials.append(
            Trial("refitted random-removed", title, level, "refitted random-removed", "refitted original", counts=False)
        )
    return trials
