"""External sets in words, computed from the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thoraclip.evaluation.adaptation_reading import adaptation_words
from thoraclip.evaluation.reading import ALPHA, MAIN_METRIC, between, few_groups, probability, share
from thoraclip.pages import counted

__all__ = ["external_notes", "external_reading", "is_change", "left_out_words", "ordered_outside"]


def external_reading(report: Mapping[str, Any]) -> list[str]:
    """Sentences for the top of the report: of each set, what the study's best method scores there, and its drop; and
    what labels from there did for the best one inside of those that were adapted."""
    said: list[str] = []
    for one in report.get("external", ()):
        said.append(_of_set(report, one))
        if entry := one.get("adaptation"):
            best = max(entry["methods"], key=lambda m: m["points"][0]["inside"]["value"])
            said += filter(None, [adaptation_words(entry, one["name"], best)])
    return said


def is_change(drop: Mapping[str, Any]) -> bool:
    """True where a drop (or a gain) is more than chance: by its corrected p, and where there is none, by its
    interval."""
    if drop["p_holm"] is not None:
        return bool(drop["p_holm"] < ALPHA)
    return drop["low"] is not None and (drop["low"] > 0 or drop["high"] < 0)


def _of_set(report: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Of the methods scored there, the one that is best inside: chosen there, its value outside is no selection."""
    methods = ordered_outside(report, one)
    if not methods:
        return f"No method could be scored on {one['name']}."
    found, classes, absent, verdict = methods[0], len(one["images_per_class"]), one["absent"], report["verdict"]
    of, among = (f", {classes - len(absent)} of {classes} classes", " on the same classes") if absent else ("", "")
    which = "the best inside"
    if not verdict or verdict["best"] != found["name"]:
        which += " of those that keep a model"
    value = found["metrics"][MAIN_METRIC]
    said = (
        f"On {one['name']} ({one['n']:,} images{of}) {found['name']}, {which}, has a macro F1 of "
        f"{share(value['value'])} %{between(value)}, {_told(found['drop'][MAIN_METRIC], among)}."
    )
    top = max(one["methods"], key=lambda m: m["metrics"][MAIN_METRIC]["value"])
    if top["name"] == found["name"]:
        return said
    value = top["metrics"][MAIN_METRIC]
    return f"{said} The highest value there is that of {top['name']}, {share(value['value'])} %{between(value)}."


def _told(drop: Mapping[str, Any], among: str) -> str:
    """`12.3 points [8.1, 16.0] less than inside (p < 0.001 after Holm's correction)`."""
    ends, change = drop, "less"
    if drop["value"] < 0:
        ends, change = dict.fromkeys(("low", "high")), "more"
        if drop["low"] is not None:
            ends = {"low": -drop["high"], "high": -drop["low"]}
    p = f" ({probability(drop['p_holm'])} after Holm's correction)" if drop["p_holm"] is not None else ""
    doubt = "" if is_change(drop) else ", which may be chance"
    return f"{share(abs(drop['value']))} points{between(ends)} {change} than inside{among}{p}{doubt}"


_GONE = {
    "identical": "identical to a picture of the study",
    "near": "nearly identical to a picture of the study",
    "copies": "showing the picture of another image of the set",
    "unreadable": "unreadable",
    "label not in the mapping": "with a label that is no class here",
    "unlabelled": "without a label",
    "other splits": "of other splits",
}


def left_out_words(left_out: Mapping[str, int]) -> str:
    """`3 identical to a picture of the study, 2 unreadable`; empty where nothing was left out."""
    return ", ".join(f"{count:,} {_GONE.get(reason, reason)}" for reason, count in left_out.items() if count)


def external_notes(one: Mapping[str, Any]) -> list[str]:
    """What the reader of a set's table must know: what it holds, what was left out, and what limits it."""
    told: list[str] = []
    if one["methods"]:
        counts = ", ".join(f"{name} {count:,}" for name, count in one["images_per_class"].items() if count)
        is_known = one["unit"] == "patient"
        unit = f" of {counted(one['groups'], 'patient')}" if is_known else ", whose patients are not known"
        splits = f" Its own splits among them: {', '.join(one['splits'])}." if one["splits"] else ""
        told.append(f"{one['n']:,} images{unit}: {counts}.{splits}")
    if one["absent"]:
        told.append(
            f"It has no image of {', '.join(one['absent'])}: values inside are those of the {one['inside_n']:,} "
            "judged images of the other classes, and means over classes leave the missing ones out; a method may "
            "still answer any class."
        )
    if one["methods"]:
        told.append(
            f"Always answering the commonest class there would be right for {share(one['commonest'])} % of the images. "
            "Accuracy and F1 also change with the share of each class; balanced accuracy and AUROC do not."
        )
    gone = left_out_words(one["left_out"])
    told.append(f"Left out: {gone}; see external/{one['name']}/left-out.json." if gone else "No image was left out.")
    if one["patients_shared"]:
        told.append(
            f"{one['patients_shared']:,} patients ({one['images_of_shared']:,} images) have an id that the study "
            "has, too: the same persons, or the same ids by chance; they were judged."
        )
    return told + few_groups(one["groups"], one["unit"])


def ordered_outside(report: Mapping[str, Any], one: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The set's methods, in the order of the study's own table: best inside first."""
    value = {m["name"]: m["metrics"][MAIN_METRIC]["value"] for m in report["methods"]}
    return sorted(one["methods"], key=lambda m: -value[m["name"]])
