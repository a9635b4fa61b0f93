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
    """Name -> function that draws SVG text: `forest`, `confusion METHOD`, `reliability METHOD`, `selective`,
    `roc CLASS`, `pr CLASS`, `net benefit CLASS`, `groups CLASS`, `external SET`, `audit METHOD`, where the report has
    what they show.

    Args:
        report: the content of `report.json`.
    """
    external, audits = (one for one in report.get("external", ()) if one["methods"]), report.get("audits", {})
    found: dict[str, Callable[[], str]] = {
        f"external {one['name']}": partial(figures.dumbbell_figure, ordered_outside(report, one), one["name"])
        for one in external
    }
    found |= {f"audit {name}": partial(figures.audit_figure, one["tests"]) for name, one in audits.items()}
    return found | _of_methods(report) | _of_classes(report) if report["verdict"] else found


def _of_methods(report: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    methods, verdict = ordered(report["methods"]), report["verdict"]
    real, trusted = ranked(methods), [m for m in methods if m.get("trust")]
    return {
        "forest": partial(figures.forest_figure, methods, best=verdict["best"], tied=verdict["tied"]),
        **{f"confusion {m['name']}": partial(figures.confusion_figure, m, report["classes"]) for m in real},
        **{f"reliability {m['name']}": partial(figures.reliability_figure, m) for m in real},
        **({"selective": partial(figures.selective_figure, trusted)} if trusted else {}),
    }


def _of_classes(report: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """ROC curves of all methods; of those that have them, the curves of usefulness; and the best method's groups."""
    methods, images = ordered(report["methods"]), report["sample"]["images_per_class"]
    useful, grouped = ([m for m in methods if m.get(key)] for key in ("predictive_values", "subgroups"))
    found: dict[str, Callable[[], str]] = {
        f"roc {label}": partial(curve_figures.roc_figure, ranked(methods), label) for label in report["classes"]
    }
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
