"""Sentences that the counts force on whoever trains on the data; none is general advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from thoraclip.pages import counted

__all__ = ["cautions", "percent"]

Facts = Mapping[str, Any]

_TELLING = 0.10
_IMBALANCE = 3.0


def cautions(facts: Facts) -> list[dict[str, str]]:
    """What to know before training: a list of {kind, text}, the gravest first; see `data_facts` for the counts."""
    return [{"kind": kind, "text": text} for kind, rules in _RULES for rule in rules for text in rule(facts)]


def percent(part: float, whole: float = 1) -> str:
    """A share in per cent with one decimal; one that is neither none nor all never looks like it."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.05:
        return "< 0.1 %"
    if 99.95 <= share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def _stand(patients: int) -> str:
    return f"{counted(patients, 'patient')} {'stands' if patients == 1 else 'stand'}"


def _leaks(facts: Facts) -> Iterator[str]:
    leaking = facts["patients"]["in_two_parts"]
    if leaking:
        yield (
            f"{_stand(leaking)} in two splits or folds: what is measured on this split is too good to be true. "
            "Split again by patient (thoraclip split)."
        )


def _sealed(facts: Facts) -> Iterator[str]:
    for entry in facts["sources"]["sealed"]:
        known, images, sources = entry["known"], entry["images"], entry["sources"]
        whose = "Every image" + (f" of known source ({known:,} of {images:,})" if known < images else "")
        where = "one source" if sources == 1 else counted(sources, "source")
        names = ", ".join(f"'{name}'" for name in entry["names"])
        more = f" and {sources - len(entry['names']):,} more" if sources > len(entry["names"]) else ""
        yield (
            f"{whose} of class '{entry['label']}' comes from {where} that no other class has ({names}{more}): a "
            "classifier can be right by recognising the source, and no score on this data tells that apart from "
            "recognising the finding. Audit for shortcuts, and test on images of another source that holds several "
            "classes."
        )


def _told(facts: Facts) -> Iterator[str]:
    classes = facts["classes"]
    if len(classes) < 2:
        return
    chance = 1 / len(classes)
    noise = 2 * math.sqrt(chance * (1 - chance) / sum(c["images"] for c in classes))
    telling = [t for t in facts["told"] if (t["balanced_accuracy"] or 0) >= chance + max(_TELLING, noise)]
    if telling:
        each = ", ".join(f"{t['attribute']} {percent(t['balanced_accuracy'])}" for t in telling)
        yield (
            "Things beside the finding tell the class. Balanced accuracy from one column of the table alone, each "
            f"image left out in turn: {each} (chance {percent(chance)}; an empty field counts as a value). Whatever of "
            "this shows in the pixels is open to a classifier; compare it with these numbers."
        )


def _sources(facts: Facts) -> Iterator[str]:
    sources, unknown = facts["sources"], facts["sources"]["unknown"]
    if not sources["known"]:
        yield "No image names its source, so whether the classes come from different sources cannot be told."
        return
    if sources["values"] == 1:
        yield (
            f"All images{' of known source' if unknown else ''} name one source ('{sources['rows'][0]['value']}'). "
            "Where that is a collection of others, its parts are not told apart here, and the classes may still come "
            "from different ones."
        )
    if unknown:
        yield f"The source of {counted(unknown, 'image')} ({percent(unknown, facts['images'])}) is unknown."


def _duplicates(facts: Facts) -> Iterator[str]:
    near = "near-duplicate images (column duplicate_cluster)"
    for found, what in ((facts["duplicates"], "identical files"), (facts["clusters"], near)):
        if found and found["groups"]:
            apart = {part: found[f"across_{part}"] for part in ("labels", "splits", "folds")}
            differing = "".join(f", {n:,} with different {part}" for part, n in apart.items() if n)
            if apart["splits"] or apart["folds"]:
                advice = "A test image that was trained on is no test: drop the copies or split again."
            else:
                advice = "Keep each group on one side of a split."
            groups, images = counted(found["groups"], "group"), counted(found["images"], "image")
            yield f"{groups} of {what}, {images} in all{differing}. {advice}"


def _patients(facts: Facts) -> Iterator[str]:
    patients, several = facts["patients"], facts["patients"]["several_labels"]
    if not patients["known"]:
        yield (
            "No image names its patient: whether one patient stands on both sides of a split cannot be told, and "
            "intervals resampled by image are too narrow where patients repeat."
        )
    elif patients["unknown"]:
        lacking = [
            f"'{c['label']}' {percent(c['images'] - c['known'], c['images'])}"
            for c in patients["per_class"]
            if c["label"] is not None and c["known"] < c["images"]
        ]
        yield (
            f"The patient of {counted(patients['unknown'], 'image')} is unknown "
            f"({', '.join(lacking) or 'unlabelled ones'}): those images cannot be kept together by patient."
        )
    if several["patients"]:
        sets = ", ".join(f"{' and '.join(map(repr, s['labels']))}: {s['patients']:,}" for s in several["sets"])
        yield (
            f"{_stand(several['patients'])} under more than one label ({counted(several['images'], 'image')}; "
            f"{sets}): split by patient, and find out whether the label is of the image or of the patient."
        )


def _masks_of_some_classes(facts: Facts) -> Iterator[str]:
    labelled = [m for m in facts["masks"] if m["label"] is not None]
    having = [f"'{m['label']}' ({m['lung']:,} of {m['images']:,} images)" for m in labelled if m["lung"]]
    if 0 < len(having) < len(labelled):
        yield (
            f"Lung masks exist for {', '.join(having)} only: nothing that needs a mask can be compared between the "
            "classes, and whether there is a mask tells the class."
        )


def _incomplete_masks(facts: Facts) -> Iterator[str]:
    labelled = [m for m in facts["masks"] if m["label"] is not None]
    for m in labelled if all(m["lung"] for m in labelled) else ():
        if m["lung"] < m["images"]:
            of = counted(m["images"], "image")
            yield f"Lung masks of class '{m['label']}' are incomplete: {m['lung']:,} of {of}."


def _parts(facts: Facts) -> Iterator[str]:
    if facts["splits"] is None and facts["folds"] is None:
        yield "There is no split yet: make one before anything is fitted (thoraclip split), whole patients together."
    for key, noun in (("splits", "split"), ("folds", "fold")):
        parts = facts[key]
        left = sum(row["counts"][-1] for row in parts["rows"]) if parts and parts["columns"][-1] is None else 0
        if left:
            yield f"{counted(left, 'image')} in no {noun}, while others are in one."
        for row in parts["rows"] if parts else ():
            empty = [str(p) for p, n in zip(parts["columns"], row["counts"], strict=True) if p is not None and not n]
            if empty and row["label"] is not None:
                yield f"Class '{row['label']}' has no image in {noun} {', '.join(empty)}."


def _unlabelled(facts: Facts) -> Iterator[str]:
    if facts["unlabelled"]:
        yield (
            f"{counted(facts['unlabelled'], 'image')} without a label: unknown is not negative; leave them out of "
            "training and scores."
        )


def _imbalance(facts: Facts) -> Iterator[str]:
    classes = sorted(facts["classes"], key=lambda c: c["images"])
    if len(classes) > 1 and classes[-1]["images"] >= _IMBALANCE * classes[0]["images"]:
        ratio = classes[-1]["images"] / classes[0]["images"]
        yield (
            f"Class '{classes[-1]['label']}' has {ratio:.1f} times as many images as class '{classes[0]['label']}': "
            "read macro averages and per-class recall, not accuracy alone."
        )


def _mixed_ages(facts: Facts) -> Iterator[str]:
    ages = [a for a in facts["ages"] if a["known"] and a["label"] is not None]
    if 0 < sum(a["minors"] for a in ages) < sum(a["known"] for a in ages):
        each = ", ".join(f"'{a['label']}' {percent(a['minors'], a['known'])}" for a in ages)
        yield f"Children and adults are mixed. Under 18, of those whose age is known: {each}."


def _only_minors(facts: Facts) -> Iterator[str]:
    known = sum(a["known"] for a in facts["ages"] if a["label"] is not None)
    if 0 < known == sum(a["minors"] for a in facts["ages"] if a["label"] is not None):
        yield f"All {counted(known, 'image')} of known age are of patients under 18."


_RULES = (
    ("limitation", (_leaks,)),
    ("bias", (_sealed, _told)),
    ("limitation", (_sources, _duplicates, _patients)),
    ("bias", (_masks_of_some_classes,)),
    ("limitation", (_incomplete_masks, _parts, _unlabelled)),
    ("bias", (_imbalance, _mixed_ages)),
    ("limitation", (_only_minors,)),
)
"""What the sentences are, and what looks for them in the counts; the gravest first."""
