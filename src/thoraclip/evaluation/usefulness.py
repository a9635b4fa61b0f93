"""What a method would be good for: its groups of patients, predictive values, curves and net benefit; and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.curves import curve_entry
from thoraclip.evaluation.predictive import predictive_entry
from thoraclip.evaluation.reading import ALPHA, between, listed, points, probability, share
from thoraclip.evaluation.subgroups import COLUMNS, FEWEST, Calls, predicted_calls, subgroup_entries
from thoraclip.evaluation.worst_group import worst_group
from thoraclip.pages import counted

__all__ = ["RATE_NAMES", "usefulness", "usefulness_reading"]

RATE_NAMES = {"tpr": "sensitivity", "fpr": "false positive rate"}
_KEYS = ("subgroups", "worst_group", "predictive_values", "pr", "roc_band", "net_benefit")


def usefulness(
    thresholded: Mapping[str, Calls],
    entries: Sequence[Mapping[str, Any]],
    aligned: Aligned,
    *,
    groups: Mapping[str, Mapping[str, str | None]] | None,
    prevalence: Mapping[str, float],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Entry's name -> what is added to it: `subgroups`, `worst_group`, `predictive_values`, and what
    `curves.curve_entry` returns; all `None` for the majority row. Of several seeds: the first, but for predictive
    values.

    Args:
        thresholded: method -> class -> whether an image is called positive at the operating point, see `trust_entry`.
        entries: of the report, with `per_class` and `trust`.
        groups: see `subgroups.group_columns`; without a manifest `None`, and so is `subgroups`.
        prevalence: see `predictive.read_prevalence`.
    """
    classes = aligned.labels.names
    first = {name: aligned.scored[name][0] for name in thresholded}
    by_name = {entry["name"]: entry for entry in entries}
    calls = {name: {"predicted": predicted_calls(scored, classes)} for name, scored in first.items()}
    for name, at_thresholds in thresholded.items():
        if at_thresholds:
            calls[name]["operating_point"] = at_thresholds
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed}
    of_groups = subgroup_entries(first, calls, groups or {}, aligned, **drawn)
    of_source = (groups or {}).get("source", {})
    sources = [of_source.get(image) for image in aligned.image_id]
    patients = np.unique(aligned.groups, return_inverse=True)[1].astype(np.int64)
    images = {name: int((aligned.target == c).sum()) for c, name in enumerate(classes)}
    found: dict[str, dict[str, Any]] = {name: dict.fromkeys(_KEYS) for name in by_name}
    for name, scored in first.items():
        found[name] = {
            "subgroups": None if groups is None else of_groups[name],
            "worst_group": worst_group(scored.correct, aligned.target, sources, patients, classes, fewest=FEWEST),
            "predictive_values": predictive_entry(by_name[name], prevalence, images),
            **curve_entry(scored, classes, aligned.groups, **drawn),
        }
    return found


def usefulness_reading(report: Mapping[str, Any]) -> list[str]:
    """Sentences on the best method: whether its groups differ, and predictive values at a stated prevalence."""
    verdict = report["verdict"]
    if verdict is None:
        return []
    best = next(m for m in report["methods"] if m["name"] == verdict["best"])
    stated = {name: at for name, row in best["predictive_values"].items() if (at := row["stated"]) is not None}
    return [
        *_between_groups(best, report["sample"]["unit"]),
        *_worst(best, report["sample"]["unit"]),
        *(
            f"Where {share(at['prevalence'])} % have {name}, {_when_stated(best, name, at['predicted'])}."
            for name, at in stated.items()
        ),
    ]


def _between_groups(best: Mapping[str, Any], unit: str) -> list[str]:
    if best["subgroups"] is None:
        return []
    odds = {c["column"]: found for c in best["subgroups"] if (found := c["equalised_odds"].get("predicted"))}
    small = {c["column"]: c["smallest"] for c in best["subgroups"]}
    why = {
        f"no rate is known of enough {unit}s in two of them": [name for name in small if name not in odds],
        "the manifest does not name two of them among these images": [name for name in COLUMNS if name not in small],
    }
    untested = [f"Groups by {listed(names)} were not compared: {reason}." for reason, names in why.items() if names]
    if not small:
        return untested
    column = min(small, key=lambda name: small[name]["patients"])
    called = f"{column} \u201c{small[column]['value']}\u201d"
    ends = f" The smallest group is {called}: {counted(small[column]['patients'], unit)}."
    if not odds:
        return [*untested, ends.strip()]
    differing = [column for column, found in odds.items() if found["p_holm"] < ALPHA]
    column = min(odds, key=lambda name: (odds[name]["p_holm"], -odds[name]["value"]))
    found = odds[column]
    size = (
        f"{points(found['value']).lstrip('+')} points{between(found)} by {column}, in the "
        f"{RATE_NAMES[found['rate']]} for {found['class']} (highest: {found['highest']}, lowest: {found['lowest']}; "
        f"{probability(found['p_holm'])} after Holm's correction, {points(found['by_chance']).lstrip('+')} points are "
        "usual without any difference)"
    )
    more = [name for name in differing if name != column]
    also = f" Its groups by {listed(more)} differ, too." if more else ""
    said = (
        f"{best['name']} does not have the same sensitivity and false positive rate in all groups: the largest gap is "
        f"{size}.{also}{ends}"
    )
    if not differing:
        said = (
            f"No difference in sensitivity or false positive rate between groups by {listed(list(odds))} can be shown "
            f"for {best['name']}; the gap that chance explains least is {size}.{ends}"
        )
    return [said, *untested]


def _worst(best: Mapping[str, Any], unit: str) -> list[str]:
    worst = best["worst_group"]
    if worst is None:
        return []
    found, gap = worst["accuracy"], worst["gap"]
    return [
        f"Of {worst['groups']} groups by source and class {best['name']} is worst for {worst['class']} from "
        f"\u201c{worst['source']}\u201d ({counted(worst['patients'], unit)}): it is right in {share(found['value'])} "
        f"%{between(found)}, {points(gap['value']).lstrip('+')} points{between(gap)} below its average; both intervals "
        "allow for the choice of the worst."
    ]


def _when_stated(best: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> str:
    rates, ppv, npv = best["per_class"][name], values["ppv"], values["npv"]
    for rate, which in (("recall", "none"), ("specificity", "no other image")):
        if rates[rate]["value"] is None:
            return f"predictive values of {best['name']} are not known: there is {which} among the judged images"
    answer = f"an answer \u201c{name}\u201d of {best['name']}"
    positive = f"{answer} is right in {_share(ppv)}"
    if ppv["value"] is None:
        positive = f"how often {answer} is right is not known, since no image gets it"
    negative = f"any other answer rules it out rightly in {_share(npv)}"
    if npv["value"] is None:
        negative = "how often any other answer is right is not known, since no image gets one"
    return f"{positive}, and {negative}"


def _share(entry: Mapping[str, Any]) -> str:
    return f"{share(entry['value'])} %{between(entry) or ' (without an interval)'}"
