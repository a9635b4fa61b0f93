"""Remedies against shortcuts, each beside the same method without: macro F1 inside, and on images from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thoraclip.evaluation.reading import ALPHA, MAIN_METRIC, between, points, share_interval, versus
from thoraclip.imaging.remedies import NONE

__all__ = ["remedies_entry", "remedies_reading"]

_ENDS = ("value", "low", "high")


def remedies_entry(
    remedies: Mapping[str, tuple[str, str]],
    methods: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    external: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The entry `remedies` of a report: `metric`; `sets`, the external ones; and `rows`, each plain method and
    behind it those with a remedy.

    A row has `method`, `plain`, `remedy`, `inside` and, by external set, `outside`: each with `value`, `low`, `high`
    and `gain`, the paired difference to the plain method, `None` of the plain one. A value is `None` where there is
    none.

    Args:
        remedies: method -> (the same method without a remedy, name of the remedy).
        methods, comparisons, external: entries of the report.
    """
    inside = {m["name"]: m["metrics"][MAIN_METRIC] for m in methods}
    there = {one["name"]: {m["name"]: m["metrics"][MAIN_METRIC] for m in one["methods"]} for one in external}
    gains = {one["name"]: {(c["a"], c["b"]): c for c in one.get("comparisons", ())} for one in external}
    plain = dict.fromkeys(name for name, _ in remedies.values())
    rows = []
    every = [(name, of, by) for of in plain for name, of, by in ((of, of, NONE), *_treated(remedies, of))]
    for name, of, remedy in every:
        if name not in inside:  # it failed
            continue
        is_pair = name != of and of in inside
        gain = versus(comparisons, name, of) if is_pair else None
        outside = {
            where: _ends(found.get(name)) | {"gain": gains[where].get((name, of))} for where, found in there.items()
        }
        row = {"method": name, "plain": of, "remedy": remedy, "inside": _ends(inside[name]) | {"gain": gain}}
        rows.append(row | {"outside": outside})
    return {"metric": MAIN_METRIC, "sets": list(there), "rows": rows}


def _treated(remedies: Mapping[str, tuple[str, str]], plain: str) -> list[tuple[str, str, str]]:
    return [(name, of, remedy) for name, (of, remedy) in remedies.items() if of == plain]


def _ends(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict.fromkeys(_ENDS) if entry is None else {key: entry[key] for key in _ENDS}


def remedies_reading(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each external set: the remedy with the highest value there, and which ones are shown to help."""
    entry, sentences = report.get("remedies", {"sets": []}), []
    for where in entry["sets"]:
        rows = [r for r in entry["rows"] if r["outside"][where]["gain"] is not None]
        if not rows:
            continue
        best = max(rows, key=lambda row: row["outside"][where]["value"])
        gain = best["outside"][where]["gain"]
        helpful = [row["method"] for row in rows if _helps(row["outside"][where]["gain"])]
        so = f"shown to help there: {', '.join(helpful)}" if helpful else "no remedy is shown to help there"
        change = f"{points(gain['difference'])} points{between(gain, points)}"
        sentences.append(
            f"Remedies: on {where}, {best['method']} has the highest macro F1, {share_interval(best['outside'][where])}"
            f" % ({share_interval(best['inside'])} % inside), {change} against {best['plain']}; {so}."
        )
    return sentences


def _helps(gain: Mapping[str, Any]) -> bool:
    return gain["p_holm"] is not None and gain["p_holm"] < ALPHA and bool(gain["difference"] > 0)
