"""The figures of a report by name, each drawn when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from thoraclip.evaluation import curve_figures, figures
from thoraclip.evaluation.external_reading import ordered_outside
from thoraclip.evaluation.reading import ordered, ranked

__all__ = ["report_figures"]


def report_figures(report: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """Name -> function that draws SVG text: `forest`, `confusion METHOD`, `reliability METHOD`, `selective`, `learning
    curve`, `roc CLASS`, `pr CLASS`, `net benefit CLASS`, `groups CLASS`, `external SET`, `adaptation SET`, `remedies
    SET`, `audit METHOD`, where the report (content of `report.json`) has what they show."""
    found: dict[str, Callable[[], str]] = {}
    for one in report.get("external", ()):
        name = one["name"]
        if one["methods"]:
            found[f"external {name}"] = partial(figures.dumbbell_figure, ordered_outside(report, one), name)
        if entry := one.get("adaptation"):
            found[f"adaptation {name}"] = partial(curve_figures.adaptation_figure, entry, name)
    if remedies := report.get("remedies"):
        for where in remedies["sets"]:
            found[f"remedies {where}"] = partial(figures.remedies_figure, remedies, where)
    for name, one in report.get("audits", {}).items():
        found[f"audit {name}"] = partial(figures.audit_figure, one["tests"])
    if (verdict := report["verdict"]) is None:
        return found
    methods, real = ordered(report["methods"]), ranked(report["methods"])
    images = report["sample"]["images_per_class"]
    trusted, useful, grouped = ([m for m in methods if m.get(k)] for k in ("trust", "predictive_values", "subgroups"))
    found["forest"] = partial(figures.forest_figure, methods, best=verdict["best"], tied=verdict["tied"])
    found |= {f"confusion {m['name']}": partial(figures.confusion_figure, m, report["classes"]) for m in real}
    found |= {f"reliability {m['name']}": partial(figures.reliability_figure, m) for m in real}
    if trusted:
        found["selective"] = partial(figures.selective_figure, trusted)
    if curve := report.get("learning_curve"):
        found["learning curve"] = partial(figures.learning_figure, curve)
    found |= {f"roc {label}": partial(curve_figures.roc_figure, real, label) for label in report["classes"]}
    for label in report["classes"]:
        if useful:
            share = images[label] / sum(images.values())
            found[f"pr {label}"] = partial(curve_figures.pr_figure, useful, label, share)
            found[f"net benefit {label}"] = partial(curve_figures.net_benefit_figure, useful, label)
        if grouped:
            row, columns = grouped[0]["per_class"][label], grouped[0]["subgroups"]
            overall = {"sensitivity": row["recall"], "specificity": row["specificity"]}
            found[f"groups {label}"] = partial(curve_figures.groups_figure, columns, label, "predicted", overall)
    return found
