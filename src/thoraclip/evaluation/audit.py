"""The audit's content: every test with its verdict, the overall reading, subgroups, attributes; `audit.json` (schema
1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.evaluation.reading import ALPHA, between, points, share
from thoraclip.evaluation.shortcuts import (
    MARGIN,
    POSITIVE,
    STRONG,
    Answers,
    ShortcutTest,
    balanced_accuracies,
    interval,
    judge_tests,
    overall,
    shared_errors,
)
from thoraclip.evaluation.subgroups import group_values, members
from thoraclip.labels import LabelSet
from thoraclip.pages import counted
from thoraclip.proportions import patient_share
from thoraclip.tables.manifest import Manifest

__all__ = ["Facts", "audit_report"]

_SCHEMA = 1
_SHUFFLED = ShortcutTest(
    "refitted shuffled", "labels shuffled before fitting", "features", after="refitted shuffled", counts=False
)
_FEW = 10
"""Images of a group below which its interval is all there is to say."""


@dataclass(frozen=True)
class Facts:
    """What an audit has gathered about N images.

    Args:
        manifest: of the N images, in the order of the answers.
        answers: of the classifier and of all that was fitted anew.
        tests: what is asked of them.
        attributes: per column `column, values, asked, codes (i64[N], -1 unknown), named (i64[N] or None)`.
        lungs: where the lung regions are from, JSON-able.
        sham: `images, largest_change, other_answers` of the view in which nothing is replaced.
        saliency: `inside, area` f64 lists of the same images, and `method`; `None` where no heat map was made.
        without_duplicates: accuracy with and without copies, JSON-able; `None` where copies were not looked for.
        has_masks: whether any lung region is known.
        shuffled: answers `refitted shuffled` of probes that were fitted on shuffled labels, to the shuffled labels.
    """

    run: str
    kind: str
    labels: LabelSet
    manifest: Manifest
    answers: Answers
    tests: Sequence[ShortcutTest]
    attributes: Sequence[Mapping[str, Any]]
    lungs: Mapping[str, Any]
    sham: Mapping[str, Any]
    saliency: Mapping[str, Any] | None
    without_duplicates: Mapping[str, Any] | None
    has_masks: bool
    shuffled: Answers | None = None


def audit_report(facts: Facts, *, resamples: int, seed: int) -> dict[str, Any]:
    """The content of `audit.json`; every interval is over resampled groups."""
    answers = facts.answers
    tests = judge_tests(facts.tests, answers, resamples=resamples, seed=seed)
    if facts.shuffled is not None:
        tests += judge_tests([_SHUFFLED], facts.shuffled, resamples=resamples, seed=seed)
    original = _accuracy(answers, "original", resamples, seed)
    alone = [t for t in tests if t["level"] == "data" and t["verdict"] in POSITIVE]
    if alone:
        best = max(alone, key=lambda t: t["effect"])
        tests.append(shared_errors(answers, "original", best, resamples=resamples, seed=seed))
    level, words = overall(tests, above_chance=original["low"] > original["chance"], masks=facts.has_masks)
    attributes = [_attribute(one, facts, resamples, seed) for one in facts.attributes]
    subgroups = _subgroups(facts)
    limits = [*_limits(facts, attributes, subgroups), *_leaking(tests)]
    return {
        "schema": _SCHEMA,
        "overall": level,
        "reading": [*words, *limits],
        "run": facts.run,
        "kind": facts.kind,
        "classes": list(facts.labels.names),
        "images": len(answers.target),
        "images_per_class": _per_class(facts, slice(None)),
        "groups": int(answers.groups.max()) + 1,
        "balanced_accuracy": original,
        "margin": MARGIN,
        "strong": STRONG,
        "alpha": ALPHA,
        "tests": tests,
        "lungs": dict(facts.lungs),
        "sham": dict(facts.sham),
        "saliency": _saliency(facts.saliency, resamples, seed),
        "attributes": attributes,
        "subgroups": subgroups,
        "without_duplicates": facts.without_duplicates,
    }


def _accuracy(answers: Answers, name: str, resamples: int, seed: int) -> dict[str, float]:
    values, drawn, chance = balanced_accuracies(answers, [name], resamples=resamples, seed=seed)
    return {"value": values[name], **interval(values[name], drawn[name]), "chance": chance[name]}


def _attribute(one: Mapping[str, Any], facts: Facts, resamples: int, seed: int) -> dict[str, Any]:
    """Whether a probe on the classifier's features names a column's value, and whether that could mean anything."""
    column, values = one["column"], list(one["values"])
    row: dict[str, Any] = {"column": column, "values": values, "accuracy": None, "coincides": False}
    classes_of: dict[str, set[int]] = {}
    for value, target in zip(facts.manifest.column(column), facts.answers.target.tolist(), strict=True):
        if value is not None:
            classes_of.setdefault(str(value), set()).add(target)
    if not values:
        return row | {"words": f"The {column} of the images is not known."}
    if len(values) == 1:
        return row | {"words": f"All images of known {column} have the same one, '{values[0]}'."}
    row["coincides"] = all(len(classes) == 1 for classes in classes_of.values())
    words = []
    if one["named"] is not None:
        rows = np.flatnonzero(one["codes"] >= 0)
        groups = np.unique(facts.answers.groups[rows], return_inverse=True)[1].astype(np.int64)
        of_rows = Answers(one["codes"][rows], groups, {column: one["named"][rows]}, len(one["asked"]))
        accuracy = row["accuracy"] = _accuracy(of_rows, column, resamples, seed)
        words.append(
            f"A probe on the classifier's features names the {column} ({len(one['asked'])} values) with a balanced "
            f"accuracy of {share(accuracy['value'])} %{between(accuracy)}; chance is {share(accuracy['chance'])} %."
        )
    if row["coincides"]:
        words.append(
            f"Every {column} holds one class only, so whether the classifier tells the class or the {column} cannot "
            "be told on this set."
        )
    return row | {"words": " ".join(words) or f"Too few images of more than one {column} to ask for it."}


def _subgroups(facts: Facts) -> list[dict[str, Any]]:
    """Accuracy by sex, age band, view and source, with an interval by patient; groups of any size, the smallest ones
    said."""
    right, patients, rows = facts.answers.named["original"] == facts.answers.target, facts.answers.groups, []
    for column, values in group_values(facts.manifest).items():
        for value, own in members(values).items():
            low, high = patient_share(right[own], patients[own])
            n, accuracy = int(own.sum()), float(right[own].mean())
            row = {"column": column, "value": value, "images": n, "accuracy": accuracy, "low": low, "high": high}
            rows.append(row | {"per_class": _per_class(facts, own), "is_small": n < _FEW})
    return rows


def _per_class(facts: Facts, rows: Any) -> dict[str, int]:
    """Images of every class among some rows."""
    counts = np.bincount(facts.answers.target[rows], minlength=len(facts.labels))
    return dict(zip(facts.labels.names, counts.tolist(), strict=True))


def _saliency(found: Mapping[str, Any] | None, resamples: int, seed: int) -> dict[str, Any] | None:
    """Share of the heat inside the lungs against the share of the picture that they are."""
    if found is None or not len(found["inside"]):
        return None
    inside, area = (np.asarray(found[name], dtype=np.float64) for name in ("inside", "area"))
    rng = np.random.default_rng(seed)
    drawn = (inside - area)[rng.integers(0, len(inside), (resamples, len(inside)))].mean(axis=1)
    effect = float((inside - area).mean())
    row = {"method": found["method"], "images": len(inside), "inside": float(inside.mean())}
    row |= {"area": float(area.mean()), "effect": effect, **interval(effect, drawn)}
    said = "more than" if row["low"] > 0 else "less than" if row["high"] < 0 else "no more and no less than"
    words = (
        f"Heat maps ({row['method']}, {counted(len(inside), 'image')}): {share(row['inside'])} % of what speaks for "
        f"the named class lies inside the lungs, which are {share(row['area'])} % of the picture: {said} chance "
        f"({points(effect)} points{between(row, points)}). A heat map is no proof of either."
    )
    return row | {"words": words}


def _leaking(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence where probes name labels that were shuffled."""
    return [
        f"Probes name shuffled labels {points(t['effect'])} points above chance, which nothing can: what is fitted "
        "here has seen what it is asked, and no refitted test can be trusted."
        for t in tests
        if t["name"] == "refitted shuffled" and t["p"] < ALPHA / 5
    ]


def _limits(facts: Facts, attributes: Sequence[Mapping[str, Any]], subgroups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader of the overall verdict must know."""
    sentences = [str(facts.lungs["words"])] if facts.lungs.get("words") else []
    sentences += [str(row["words"]) for row in attributes if row["coincides"]]
    if facts.sham["other_answers"]:
        sentences.append(
            f"The sham changed {counted(facts.sham['other_answers'], 'answer')} of {facts.sham['images']} though "
            "nothing was replaced: the classifier does not give the same answer twice, and no test here can be trusted."
        )
    small = [row for row in subgroups if row["is_small"]]
    if small:
        least = min(small, key=lambda row: row["images"])
        sentences.append(
            f"{counted(len(small), 'group')} of fewer than {_FEW} images; the smallest is {least['column']} "
            f"'{least['value']}' with {counted(least['images'], 'image')}."
        )
    return sentences
