"""What a reader must know before the table: reasons not to believe a good score, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.external_reading import is_change, ordered_outside
from thoraclip.evaluation.reading import MAIN_METRIC, TRIVIAL, exceeds, ranked, share_interval, versus
from thoraclip.evaluation.results import MAJORITY
from thoraclip.proportions import patient_share

__all__ = ["coincidences", "findings", "told"]

MARGIN = 0.10
"""A drop outside, or what a column tells of the class beyond the commonest class, is told where it is larger."""
_LEAST_KNOWN = 0.5  # of the images have a value of the column
_SHOWN = 2
_CLOSE = 0.05  # a network whose lead over trees is shown to be no larger is told to be no better
_WITHIN = {"age": "age_years >= 18", "sex": "sex == F", "view": "view in (PA, AP)"}  # examples of a condition

REMEDIES: Mapping[str, str] = {
    "trivial": "See what tells the classes apart: thoraclip check MANIFEST --out DIR. Then score images from "
    "elsewhere: [external.NAME] in the study.",
    "outside": "Try remedies = [...] in the study, or label some images from there and train on both: "
    "thoraclip join A B --out FILE; adapt = [...] in [external.NAME] says how many are needed.",
    "coincidence": "Get images of each class from the same places, or hold out one at a time: "
    "thoraclip split MANIFEST --leave-out {column} --out FILE.",
    "group": "Look at patients of one group alone, with images of every class: "
    "thoraclip select MANIFEST --where '{where}' --out FILE.",
    "audit": "Try remedies = [...] in the study, and compare the audits before and after.",
}
"""Name of a finding -> what the tool offers against it."""


def coincidences(groups: Mapping[str, Mapping[str, str | None]], aligned: Aligned) -> list[dict[str, Any]]:
    """How far each column (source, view, ...) alone names the class of the judged images.

    An image is given the commonest class of the images of its group that other patients have; the share that is right
    has an interval by patient. `commonest` is the share of the commonest class among the same images.

    Args:
        groups: column -> image id -> group, see `subgroups.group_columns`.

    Returns:
        JSON-able: `column`, `value`, `low`, `high`, `commonest`; of columns that half of the images have a value of.
    """
    rows = []
    for column, by_id in groups.items():
        values = [by_id.get(image) for image in aligned.image_id]
        known = np.array([value is not None for value in values])
        if known.mean() < _LEAST_KNOWN:
            continue
        target, patient = aligned.target[known], np.unique(aligned.groups[known], return_inverse=True)[1]
        group = np.unique([value for value in values if value is not None], return_inverse=True)[1]
        classes = len(aligned.labels)
        of_group, of_patient = (np.zeros((int(one.max()) + 1, classes)) for one in (group, patient))
        pair = np.unique(np.stack([group, patient]), axis=1, return_inverse=True)[1]
        of_pair = np.zeros((int(pair.max()) + 1, classes))
        for counts, member in ((of_group, group), (of_patient, patient), (of_pair, pair)):
            np.add.at(counts, (member, target), 1)
        others = of_group[group] - of_pair[pair]
        alone = ~others.any(axis=1)
        others[alone] = (of_group.sum(axis=0) - of_patient[patient])[alone]
        right = others.argmax(axis=1) == target
        low, high = patient_share(right, patient)
        commonest = float(np.bincount(target, minlength=classes).max() / len(target))
        rows.append({"column": column, "value": float(right.mean()), "low": low, "high": high, "commonest": commonest})
    return rows


def findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """`name`, `says` and `do` of all that holds, what matters most first; `[]` does not mean that all is well."""
    if report["verdict"] is None:
        return []
    found = [_trivial(report), *(_outside(report, one) for one in report["external"])]
    found += [_coincidence(row) for row in report.get("coincidences", ())]
    found += [_audit(name, content) for name, content in report["audits"].items()]
    return [one for one in found if one]


def told(report: Mapping[str, Any]) -> list[str]:
    """The report's reading as it is shown: what matters most comes first, other findings last."""
    every = [f"{one['says']} {one['do']}" for one in report.get("findings", ())]
    return [*every[:_SHOWN], *report["reading"], *every[_SHOWN:]]


def _finding(name: str, says: str, **places: str) -> dict[str, str]:
    return {"name": name, "says": says, "do": REMEDIES[name].format(**places)}


def _trivial(report: Mapping[str, Any]) -> dict[str, str] | None:
    """Where trees that see no anatomy do better than guessing, and as well as the best network: it is not ahead of
    them, or its lead is shown to be small."""
    real = ranked(report["methods"])
    floor = next((m for m in real if m["kind"] == TRIVIAL), None)
    network = next((m for m in real if m["kind"] != TRIVIAL), None)
    if floor is None or network is None:
        return None
    lead = versus(report["comparisons"], network["name"], floor["name"])
    is_small = lead["high"] is not None and lead["high"] <= _CLOSE
    if exceeds(lead) or not (is_small or lead["difference"] <= 0):
        return None
    if not exceeds(versus(report["comparisons"], floor["name"], MAJORITY, "accuracy")):
        return None
    values = [share_interval(one["metrics"][MAIN_METRIC]) for one in (floor, network)]
    return _finding(
        "trivial",
        f"The classes can be told apart without anatomy: {floor['name']}, trees that see none, reach a macro F1 of "
        f"{values[0]} %, the best network, {network['name']}, {values[1]} %. The table says little of reading lungs.",
    )


def _outside(report: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, str] | None:
    """Where the best method inside of those scored outside falls by more than `MARGIN`."""
    methods = ordered_outside(report, one)
    if not methods:
        return None
    best = methods[0]
    drop = best["drop"][MAIN_METRIC]
    if not is_change(drop) or drop["value"] <= MARGIN:
        return None
    inside, outside = (share_interval(best[where][MAIN_METRIC]) for where in ("inside", "metrics"))
    return _finding(
        "outside",
        f"On {one['name']}, images from elsewhere, {best['name']} falls from a macro F1 of {inside} % to {outside} %: "
        "do not use it there.",
    )


def _coincidence(row: Mapping[str, Any]) -> dict[str, str] | None:
    if row["low"] <= row["commonest"] + MARGIN:
        return None
    column = row["column"]
    places = {"where": _WITHIN[column]} if column in _WITHIN else {"column": column}
    return _finding(
        "group" if column in _WITHIN else "coincidence",
        f"Class and {column} coincide: the {column} alone names the class of {share_interval(row)} % of the images "
        f"(the commonest class: {100 * row['commonest']:.1f} %), so a classifier may read the {column}.",
        **places,
    )


def _audit(name: str, content: Mapping[str, Any]) -> dict[str, str] | None:
    """Where the audit shows that this classifier uses shortcuts."""
    if content.get("classifier") not in ("some", "strong"):
        return None
    return _finding("audit", f"The audit of {name} finds {content['classifier']} use of shortcuts.")
