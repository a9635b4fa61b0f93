"""Adaptation to an external set in words, computed from the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.evaluation.reading import between, listed, points, share_interval
from thoraclip.pages import counted

__all__ = ["adaptation_notes", "adaptation_words"]


def adaptation_words(entry: Mapping[str, Any], name: str, method: Mapping[str, Any]) -> str:
    """What labels from a set `name` did for one method of its `adaptation`: where it ends, from where on it is better
    than without labels, whether the last step still helped, and what that changed inside. Empty without any point."""
    last = method["points"][-1]
    if not last["labels"]:
        return ""
    unit = entry["unit"]
    said = (
        f"With {_amount(last['labels'], unit)} from {name} in its training, {method['name']} has a macro F1 of "
        f"{share_interval(last)} % on the test half of {name}, {_change(last['change'])} against none."
    )
    return " ".join([said, *_from(method, unit), *_last_step(method), _inside(last["inside"])])


def adaptation_notes(entry: Mapping[str, Any], name: str) -> list[str]:
    """What the reader of the points must know: how the set was cut, which class gives all it has, and what is
    missing."""
    unit, test = entry["unit"], entry["test"]
    pool = ", ".join(f"{label} {count:,}" for label, count in entry["patients"].items() if count)
    told = [
        f"{name} was cut by {unit}: labels are drawn from one half ({unit}s of each class: {pool}), and every point is "
        f"measured on the other ({counted(test['n'], 'image')}). A point is the mean over {entry['draws']} draws, the "
        f"smaller within the larger."
    ]
    most = max((p["labels"] for m in entry["methods"] for p in m["points"] if p["labels"] != "all"), default=0)
    if short := [f"{label} ({count:,})" for label, count in entry["patients"].items() if count < most]:
        told.append(f"A class with fewer {unit}s than are asked for gives all it has: {listed(short)}.")
    if entry["shared"]:
        told.append(
            f"{counted(entry['shared'], 'image')} of patients whose id the study has, too, are in neither half."
        )
    if rows := [f"{row['name']} ({row['reason']})" for row in entry["not_adapted"]]:
        told.append(f"Not adapted: {listed(rows)}.")
    if rows := [f"{row['name']} with {row['labels']} ({row['error']})" for row in entry["failed"]]:
        told.append(f"Failed, and so not drawn: {listed(rows)}.")
    return told


def _amount(labels: int | str, unit: str) -> str:
    return f"all labelled {unit}s" if labels == "all" else f"{counted(int(labels), f'labelled {unit}')} of each class"


def _change(change: Mapping[str, Any]) -> str:
    doubt = ", which may be chance," if _may_be_chance(change) else ""
    return f"{points(change['difference'])} points{between(change, points)}{doubt}"


def _may_be_chance(change: Mapping[str, Any]) -> bool:
    return change["low"] is None or change["low"] <= 0 <= change["high"]


def _from(method: Mapping[str, Any], unit: str) -> list[str]:
    """From how many labels on it is better than without, at every larger number, too."""
    adapted = [point for point in method["points"] if point["labels"]]
    first = len(adapted)
    while first and adapted[first - 1]["change"]["low"] is not None and adapted[first - 1]["change"]["low"] > 0:
        first -= 1
    if first == len(adapted):
        return ["It cannot be shown to be better than without."]
    labels = adapted[first]["labels"]
    where = f"with all labelled {unit}s" if labels == "all" else f"from {counted(labels, unit)} of each class on"
    return [f"It is better than without {where}."]


def _last_step(method: Mapping[str, Any]) -> list[str]:
    if len(method["gains"]) < 2:  # the only step is the change
        return []
    last = method["gains"][-1]
    size = f"From {last['from']} to {last['to']} the gain is {points(last['difference'])} points{between(last, points)}"
    if last["low"] is not None and last["low"] > 0:
        return [f"{size}: more labels still help."]
    return [f"{size}: it may be chance."]


def _inside(inside: Mapping[str, Any]) -> str:
    change = inside["change"]
    doubt = ", which may be chance" if _may_be_chance(change) else ""
    return f"Inside that is {points(change['difference'])} points{between(change, points)}{doubt}."
