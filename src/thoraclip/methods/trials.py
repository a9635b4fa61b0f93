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
    """What is asked of the classifier as it is; controls come last."""
    trials = [
        Trial(
            *(view.trial or (name, view.title)), "classifier", after=name, before="" if view.is_alone else view.before,
            counts=view.counts, finds=view.finds if view.counts else "",
        )
        for name, view in VIEWS.items()
        if name in named and (view.is_alone or view.before)
    ]  # fmt: skip
    return sorted(trials, key=lambda trial: not trial.counts)


def trials_refitted(answers: Mapping[str, Ints], counts: bool) -> list[Trial]:
    """What is asked of probes that are fitted anew on altered pictures; they count where the classifier is such a probe."""
    trials = []
    for name, view in VIEWS.items():
        told = f"refitted {name}"
        if told not in answers or view.refits == "no":
            continue
        if view.refits == "control":  # what the originals have more
            trials.append(Trial(told, view.title, "features", told, "refitted original", counts=False))
            continue
        before = "" if view.is_alone else "refitted original"
        trials.append(Trial(told, view.title, "features", after=told, before=before, counts=counts, finds=view.finds))
    return trials
