"""Sentences that the counts force on whoever trains on the data; none is general advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from thoraclip.pages import counted

__all__ = ["cautions", "percent"]

Facts = Mapping[str, Any]
Kind = Literal["bias", "limitation"]

_TELLING = 0.10
_IMBALANCE = 3.0


def cautions(facts: Facts) -> list[dict[str, str]]:
    """What to know before training: a list of {kind, text}, the gravest first; see `data_facts` for the counts."""
    found: list[tuple[Kind, str]] = []
    for rule in (_leaks, _sealed, _told, _sources, _duplicates, _patients, _masks, _parts, _labels, _ages):
        found.extend(rule(facts))
    return [{"kind": kind, "text": text} for kind, text in found]


def percent(part: float, whole: float = 1) -> str:
    """A share in per cent with one decimal; one that is neither none nor all never looks like it."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def _listed(names: list[str], total: int) -> str:
    more = f" and {total - len(names):,} more" if total > len(names) else ""
    return ", ".join(f"'{name}'" for name in names) + more


def _leaks(facts: Facts) -> Iterator[tuple[Kind, str]]:
    leaking = facts["patients"]["in_two_parts"]
    if leaking:
        stand = "patient stands" if leaking == 1 else "patients stand"
        yield (
            "limitation",
            f"{leaking:,} {stand} in two splits or folds: what is measured on this split is too good to be true. "
            "Split again by patient (thoraclip split).",
        )


def _sealed(facts: Facts) -> Iterator[tuple[Kind, str]]:
    for entry in facts["sources"]["sealed"]:
        whose = (
            "Every image"
            if entry["known"] == entry["images"]
            else f"Every image of known source ({entry['known']:,} of {entry['images']:,})"
        )
        where = "one source" if entry["sources"] == 1 else counted(entry["sources"], "source")
        yield (
            "bias",
            f"{whose} of class '{entry['label']}' comes from {where} that no other class has "
            f"({_listed(entry['names'], entry['sources'])}): a classifier can be right by recognising the source, "
            "and no score on this data tells that apart from recognising the finding. Audit for shortcuts, and test "
            "on images of another source that holds several classes.",
        )


def _told(facts: Facts) -> Iterator[tuple[Kind, str]]:
    classes = facts["classes"]
    if len(classes) < 2:
        return
    chance = 1 / len(classes)
    noise = 2 * math.sqrt(chance * (1 - chance) / sum(c["images"] for c in classes))
    telling = [t for t in facts["told"] if (t["balanced_accuracy"] or 0) >= chance + max(_TELLING, noise)]
    if telling:
        each = ", ".join(f"{t['attribute']} {percent(t['balanced_accuracy'])}" for t in telling)
        yield (
            "bias",
            "Things beside the finding tell the class. Balanced accuracy from one column of the table alone, each "
            f"image left out in turn: {each} (chance {percent(chance)}; "
            "an empty field counts as a value). Whatever of this shows in the pixels is open to a classifier; "
            "compare it with these numbers.",
        )


def _sources(facts: Facts) -> Iterator[tuple[Kind, str]]:
    sources = facts["sources"]
    if not sources["known"]:
        yield (
            "limitation",
            "No image names its source, so whether the classes come from different sources cannot be told.",
        )
        return
    if sources["values"] == 1:
        yield (
            "limitation",
            f"All {'images' if not sources['unknown'] else 'images of known source'} name one source "
            f"('{sources['rows'][0]['value']}'). Where that is a collection of others, its parts are not told apart "
            "here, and the classes may still come from different ones.",
        )
    if sources["unknown"]:
        yield (
            "limitation",
            f"The source of {counted(sources['unknown'], 'image')} ({percent(sources['unknown'], facts['images'])}) "
            "is unknown.",
        )


def _duplicates(facts: Facts) -> Iterator[tuple[Kind, str]]:
    for key, what in (
        ("duplicates", "identical files"),
        ("clusters", "near-duplicate images (column duplicate_cluster)"),
    ):
        found = facts[key]
        if not found or not found["groups"]:
            continue
        apart = [
            f"{found[f'across_{part}']:,} with different {part}"
            for part in ("labels", "splits", "folds")
            if found[f"across_{part}"]
        ]
        leak = found["across_splits"] or found["across_folds"]
        yield (
            "limitation",
            f"{counted(found['groups'], 'group')} of {what}, {counted(found['images'], 'image')} in all"
            f"{', ' + ', '.join(apart) if apart else ''}. "
            + (
                "A test image that was trained on is no test: drop the copies or split again."
                if leak
                else "Keep each group on one side of a split."
            ),
        )


def _patients(facts: Facts) -> Iterator[tuple[Kind, str]]:
    patients, several = facts["patients"], facts["patients"]["several_labels"]
    if not patients["known"]:
        yield (
            "limitation",
            "No image names its patient: whether one patient stands on both sides of a split cannot be told, and "
            "intervals resampled by image are too narrow where patients repeat.",
        )
    elif patients["unknown"]:
        lacking = [
            f"'{c['label']}' {percent(c['images'] - c['known'], c['images'])}"
            for c in patients["per_class"]
            if c["label"] is not None and c["known"] < c["images"]
        ]
        yield (
            "limitation",
            f"The patient of {counted(patients['unknown'], 'image')} is unknown "
            f"({', '.join(lacking) or 'unlabelled ones'}): those images cannot be kept together by patient.",
        )
    if several["patients"]:
        sets = ", ".join(
            f"{' and '.join(repr(name) for name in s['labels'])}: {s['patients']:,}" for s in several["sets"]
        )
        stand = "patient stands" if several["patients"] == 1 else "patients stand"
        yield (
            "limitation",
            f"{several['patients']:,} {stand} under more than one label ({counted(several['images'], 'image')}; "
            f"{sets}): split by patient, and find out whether the label is of the image or of the patient.",
        )


def _masks(facts: Facts) -> Iterator[tuple[Kind, str]]:
    for key in ("lung", "infection"):
        with_mask = [m for m in facts["masks"] if m[key] and m["label"] is not None]
        without = [m for m in facts["masks"] if not m[key] and m["label"] is not None]
        if with_mask and without and key == "lung":
            have = ", ".join(f"'{m['label']}' ({m[key]:,} of {m['images']:,} images)" for m in with_mask)
            yield (
                "bias",
                f"Lung masks exist for {have} only: nothing that needs a mask can be compared between the classes, and "
                "whether there is a mask tells the class.",
            )
        for m in with_mask:
            if m[key] < m["images"] and key == "lung" and not without:
                yield (
                    "limitation",
                    f"Lung masks of class '{m['label']}' are incomplete: {m[key]:,} of "
                    f"{counted(m['images'], 'image')}.",
                )


def _parts(facts: Facts) -> Iterator[tuple[Kind, str]]:
    if facts["splits"] is None and facts["folds"] is None:
        yield (
            "limitation",
            "There is no split yet: make one before anything is fitted (thoraclip split), whole patients together.",
        )
    for key, noun in (("splits", "split"), ("folds", "fold")):
        parts = facts[key]
        left = sum(row["counts"][-1] for row in parts["rows"]) if parts and parts["columns"][-1] is None else 0
        if left:
            yield "limitation", f"{counted(left, 'image')} in no {noun}, while others are in one."
        for row in parts["rows"] if parts else ():
            empty = [str(p) for p, n in zip(parts["columns"], row["counts"], strict=True) if p is not None and not n]
            if empty and row["label"] is not None:
                yield "limitation", f"Class '{row['label']}' has no image in {noun} {', '.join(empty)}."


def _labels(facts: Facts) -> Iterator[tuple[Kind, str]]:
    if facts["unlabelled"]:
        yield (
            "limitation",
            f"{counted(facts['unlabelled'], 'image')} without a label: unknown is not negative; leave them out of "
            "training and scores.",
        )
    classes = sorted(facts["classes"], key=lambda c: c["images"])
    if len(classes) > 1 and classes[-1]["images"] >= _IMBALANCE * classes[0]["images"]:
        ratio = classes[-1]["images"] / classes[0]["images"]
        yield (
            "bias",
            f"Class '{classes[-1]['label']}' has {ratio:.1f} times as many images as class '{classes[0]['label']}': "
            "read macro averages and per-class recall, not accuracy alone.",
        )


def _ages(facts: Facts) -> Iterator[tuple[Kind, str]]:
    ages = [a for a in facts["ages"] if a["known"] and a["label"] is not None]
    minors, known = sum(a["minors"] for a in ages), sum(a["known"] for a in ages)
    if 0 < minors < known:
        each = ", ".join(f"'{a['label']}' {percent(a['minors'], a['known'])}" for a in ages)
        yield "bias", f"Children and adults are mixed. Under 18, of those whose age is known: {each}."
    elif minors:
        yield "limitation", f"All {counted(known, 'image')} of known age are of patients under 18."
