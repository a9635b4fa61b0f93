"""The audit's content: every test, the verdicts on classifier and data, subgroups, attributes; `audit.json` (schema
2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.evaluation import shortcuts
from thoraclip.evaluation.audit_power import power
from thoraclip.evaluation.audit_reading import AUDIT_SCHEMA, FAMILIES, MARGIN, POSITIVE, STRONG, read_tests
from thoraclip.evaluation.reading import ALPHA, between, points, share
from thoraclip.evaluation.shortcuts import MIN_GROUPS, Answers, ShortcutTest, balanced_accuracies, interval
from thoraclip.evaluation.subgroups import group_values, members
from thoraclip.labels import LabelSet
from thoraclip.pages import counted
from thoraclip.proportions import patient_share
from thoraclip.tables.manifest import Manifest

__all__ = ["Facts", "audit_report"]

_SHUFFLED = {"probe": "shuffled probe", "trees": "shuffled trees"}
"""Whose answers -> name of them, where the labels were shuffled before fitting."""
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
        without_duplicates: accuracy with copies and, where any is left out, without them, JSON-able; `None` where
            copies were not looked for.
        has_masks: whether any lung region is known.
        available: images that the classifier has not seen; `None` where the N are all of them.
        shuffled: of several permutations of the labels the answers of what was fitted on them, see `_SHUFFLED`, to the
            shuffled labels.
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
    shuffled: Sequence[Answers] = ()
    available: int | None = None


def audit_report(facts: Facts, *, resamples: int, seed: int) -> dict[str, Any]:
    """The content of `audit.json`; every interval is over resampled groups."""
    answers = facts.answers
    measured = shortcuts.measure_tests(facts.tests, answers, resamples=resamples, seed=seed)
    for by, name in _SHUFFLED.items() if facts.shuffled else ():
        measured.append(shortcuts.shuffled_control(name, "labels shuffled before fitting", by, facts.shuffled))
    tests = shortcuts.with_verdicts(measured)
    alone = [t for t in tests if t["by"] == "trees" and t["asks"] == "data" and t["verdict"] in POSITIVE]
    if alone:
        best = max(alone, key=lambda t: t["effect"])
        shared = shortcuts.shared_errors(answers, "original", best, resamples=resamples, seed=seed)
        if shared["images"] >= MIN_GROUPS:  # else the trees are hardly ever wrong, and there is nothing to ask
            tests = shortcuts.with_verdicts([*measured, shared])
    tests = sorted(tests, key=lambda test: (*FAMILIES, "control").index(test["asks"]))
    original = _accuracy(answers, "original", resamples, seed)
    sham, broken = facts.sham, []
    if sham["other_answers"] > MARGIN * sham["images"]:
        broken = [
            f"A control failed: {counted(sham['other_answers'], 'answer')} of {sham['images']} changed though nothing "
            "was replaced: the classifier does not give the same answer twice."
        ]
    told = read_tests(tests, accuracy=original, masks=facts.has_masks, broken=broken)
    n, groups = len(answers.target), int(answers.groups.max()) + 1
    could_show = power(tests, images=n, groups=groups, available=facts.available or n)
    attributes = [_attribute(one, facts, resamples, seed) for one in facts.attributes]
    subgroups = _subgroups(facts)
    return {
        "schema": AUDIT_SCHEMA,
        "classifier": told.classifier,
        "data": told.data,
        "overall": told.classifier,
        "reading": [*told.sentences, could_show["words"], *_limits(facts, attributes, subgroups)],
        "run": facts.run,
        "kind": facts.kind,
        "classes": list(facts.labels.names),
        "images": n,
        "images_per_class": _per_class(facts, slice(None)),
        "groups": groups,
        "power": could_show,
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
        "statistics": _statistics(groups, resamples, seed),
    }


def _statistics(groups: int, resamples: int, seed: int) -> str:
    """How the intervals and p are made, in words that can go into a paper."""
    return (
        f"Intervals of balanced accuracies and effects are 95 % percentiles of {resamples:,} bootstrap resamples of "
        f"{counted(groups, 'independent group')} (patients and copies together; seed {seed}), those of effects no "
        "narrower than with a standard error of half a group. p is one-sided, by a z-test for an effect above "
        f"{share(MARGIN)} points with the standard error over these resamples, and corrected by Holm's method within "
        "the tests of the classifier and within those of the data; of shuffled labels it is two-sided, by Student's t "
        "over the permutations. Heat maps have percentiles over resampled images. Accuracies by subgroup and without "
        "copies have Wilson's interval at the effective number of patients, with Student's t."
    )


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


def _limits(facts: Facts, attributes: Sequence[Mapping[str, Any]], subgroups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader of the overall verdict must know."""
    sentences = [str(facts.lungs["words"])] if facts.lungs.get("words") else []
    sentences += [str(row["words"]) for row in attributes if row["coincides"]]
    small = [row for row in subgroups if row["is_small"]]
    if small:
        least = min(small, key=lambda row: row["images"])
        sentences.append(
            f"{counted(len(small), 'group')} of fewer than {_FEW} images; the smallest is {least['column']} "
            f"'{least['value']}' with {counted(least['images'], 'image')}."
        )
    return sentences
