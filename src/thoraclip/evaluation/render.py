"""Draw a report as one HTML page that asks for nothing from outside, as Markdown and as a LaTeX table; and an audit."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from thoraclip import imaging
from thoraclip.dtypes import Greys
from thoraclip.errors import InputError
from thoraclip.evaluation import audit_reading, figures, reading
from thoraclip.evaluation.adaptation_reading import adaptation_notes
from thoraclip.evaluation.audit_reading import AUDIT_SCHEMA, VERDICTS
from thoraclip.evaluation.external import DROPS
from thoraclip.evaluation.external_reading import external_notes, is_change, ordered_outside
from thoraclip.evaluation.findings import told
from thoraclip.evaluation.learning_curve import learning_notes, shots_columns
from thoraclip.evaluation.metrics import METRICS
from thoraclip.evaluation.reading import COLUMNS, ordered, printed, versus
from thoraclip.evaluation.report_figures import report_figures
from thoraclip.evaluation.results import MAJORITY, PUBLISHED_METRICS
from thoraclip.evaluation.subgroups import POINTS
from thoraclip.evaluation.usefulness import RATE_NAMES
from thoraclip.pages import environment, picture_or_reason
from thoraclip.runs import write_json, write_text, writes, written_together

__all__ = ["Load", "audit_context", "escape_latex", "html_page", "latex_table", "markdown_page", "write_audit"]

Load = Callable[[Path], Greys]
"""File -> grey pixels u8[H, W]."""

_MORE_COLUMNS = {
    "balanced_accuracy": "Balanced accuracy",
    "weighted_f1": "Weighted F1",
    "average_precision": "Average precision",
    "mcc": "Matthews correlation",
    "brier": "Brier (0 to 2)",
    "log_loss": "Log loss (nats)",
}
_CLASS_COLUMNS = {
    "recall": "Sensitivity (recall)",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "Average precision",
}
_BESIDE_COLUMNS = {metric: COLUMNS[metric] for metric in ("accuracy", "macro_f1")}
"""Published metrics with a column beside the measured ones; the others stand in the footnote."""
_AUDIT_ASKS = {
    "classifier": "What this classifier uses: its answers to altered images",
    "data": "What the images offer without lungs: trees, and probes fitted anew",
    "control": "Controls",
}
_BENEFIT_AT = (5, 10, 20, 50)
"""Threshold probabilities of the table of net benefit, in per cent."""
_NOT_SHARES = frozenset({"brier", "log_loss", "mcc"})
_THUMBNAIL_PX = 128
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {c: f"{{{c}}}" for c in "[]*"}  # after a line break, [ and * would be read as its arguments
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\u2013": "--",
        "\u2212": "-",
    }
)


def audit_context(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates need besides the content of `audit.json` itself.

    Raises:
        InputError: the content is of another schema.
    """
    if content["schema"] != AUDIT_SCHEMA:
        raise InputError(
            f"audit of {content['run']}: schema {content['schema']}, but {AUDIT_SCHEMA} is read; make it anew with "
            "thoraclip audit"
        )
    tests = {asks: rows for asks in _AUDIT_ASKS if (rows := [t for t in content["tests"] if t["asks"] == asks])}
    return {"audit": content, "levels": _AUDIT_ASKS, "tests": tests, "verdicts": VERDICTS, "label": audit_reading.label}


@writes()
def write_audit(content: Mapping[str, Any], out: Path) -> None:
    """Write `audit.json`, and `audit.md` and `audit.html` drawn from it; the same content gives the same bytes."""
    context = audit_context(content) | {"title": "Audit: lungs or shortcuts?", "reading": content["reading"]}
    with written_together(out, "audit"):
        write_json(out / "audit.json", dict(content))
        for name, html in (("audit.md", False), ("audit.html", True)):
            figure = {"figure": Markup(figures.audit_figure(content["tests"]))} if html else {}
            write_text(out / name, _environment(html=html).get_template(f"{name}.j2").render(context | figure))


def html_page(report: Mapping[str, Any], image_paths: Mapping[str, Path] | None, load: Load | None) -> str:
    """The report as a self-contained page: inline style and figures, no script, no request; arguments as in
    `report.write_report`."""
    context = _context(report)
    context["figures"] = {name: Markup(draw()) for name, draw in report_figures(report).items()}
    context["mistakes"] = _thumbnails(context["best"], image_paths, load) if image_paths else []
    return _environment(html=True).get_template("report.html.j2").render(context)


def markdown_page(report: Mapping[str, Any]) -> str:
    """The reading and the tables as Markdown (GitHub's dialect)."""
    return _environment(html=False).get_template("report.md.j2").render(_context(report))


def latex_table(report: Mapping[str, Any]) -> str:
    """The comparison as a LaTeX `table` that needs the package booktabs and nothing else."""
    latex = _environment(html=False).overlay(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    return latex.get_template("report.tex.j2").render(_context(report))


def escape_latex(text: object) -> str:
    """Text that LaTeX prints as it is, on one line, also at the start of a table row."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable()).translate(_LATEX)


def _environment(*, html: bool) -> Environment:
    filters = {"share": reading.share, "printed": printed, "points": reading.points, "p": reading.probability}
    more = {"interval": reading.share_interval, "three_digits": reading.three_digits, "tex": escape_latex}
    return environment("thoraclip.evaluation", html=html, **filters, **more)


def _context(report: Mapping[str, Any]) -> dict[str, Any]:
    verdict, methods = report["verdict"], ordered(report["methods"])
    settings = [m for m in (*methods, *report["failed"]) if m["name"] != MAJORITY]
    names = sorted({key for m in settings for key in m["settings"]} - {"model", "geometry"})
    beside = _beside(report, [m["name"] for m in settings])
    pairs = {metric: [c for c in report["comparisons"] if c["metric"] == metric] for metric in ("macro_f1", "accuracy")}
    best = next((m for m in methods if verdict and m["name"] == verdict["best"]), None)
    versus_best = [
        {"name": m["name"]} | {x: versus(report["comparisons"], best["name"], m["name"], x) for x in pairs}
        for m in methods
        if best and m is not best
    ]
    return {
        "audits": {name: audit_context(content) for name, content in report.get("audits", {}).items()},
        "report": report,
        "title": report["title"],
        "reading": told(report),
        "verdict": verdict,
        "ordered": methods,
        "majority": MAJORITY,
        "best": best,
        "columns": COLUMNS,
        "more_columns": _MORE_COLUMNS,
        "class_columns": _CLASS_COLUMNS,
        "metrics": METRICS,
        "not_shares": _NOT_SHARES,
        "pairs": pairs,
        "several_seeds": any("per_seed" in m["metrics"]["macro_f1"] for m in methods),
        "beside": beside,
        "beside_columns": _BESIDE_COLUMNS,
        "published_columns": PUBLISHED_METRICS,
        "outside": [row for row in report["published"] if row.get("of") not in beside],
        "versus_best": versus_best,
        "encoders": report.get("encoders"),
        "remedies": report.get("remedies"),
        "settings": settings,
        "setting_names": ["model", "geometry", *names],
        "external": [_external(report, one) for one in report.get("external", ())],
        **_learning(report.get("learning_curve")),
        "trusted": [m for m in methods if m.get("trust")],
        "useful": [m for m in methods if m.get("predictive_values")],
        "grouped": [m for m in methods if m.get("subgroups")],
        "group_points": POINTS,
        "rate_names": RATE_NAMES,
        "benefit_at": _BENEFIT_AT,
        "losses": {"ece": "ECE (%)", "brier": "Brier (0 to 2)", "log_loss": "Log loss (nats)"},
    }


def _learning(curve: Mapping[str, Any] | None) -> dict[str, Any]:
    """The learning curve as its section shows it; the points of a method, and the gains that lead to them, by shots."""
    if not curve:
        return {"learning": None}
    rows = []
    for method in curve["methods"]:
        by_shots = {point["shots"]: point for point in method["points"]}
        rows.append({"name": method["name"], "points": by_shots, "gains": {g["to"]: g for g in method["gains"]}})
    shown = {"learning": curve, "learning_notes": learning_notes(curve), "learners": rows}
    is_hollow = any(not point["counts_training"] for row in rows for point in row["points"].values())
    return {**shown, "shots_columns": shots_columns(curve), "has_hollow_points": is_hollow}


def _external(report: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """An external set as its section shows it: its methods in the study's order, and whose classes are told one by
    one."""
    found = ordered_outside(report, one)
    changed = {m["name"]: {metric: is_change(m["drop"][metric]) for metric in DROPS} for m in found}
    best = found[0] if found else None
    entry = one.get("adaptation")
    told = {"adaptation": entry, "adaptation_notes": adaptation_notes(entry, one["name"]) if entry else []}
    return {**one, "notes": external_notes(one), "methods": found, "best": best, "changed": changed, **told}


def _beside(report: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Method -> the published rows that stand beside it, each with a footnote, marked a, b, ..., z, aa, bb, ...: its
    name, source, note, and the values that have no column."""
    rows = [row for name in names for row in report["published"] if row.get("of") == name]
    found: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        mark = string.ascii_lowercase[number % 26] * (number // 26 + 1)
        rest = [m for m in PUBLISHED_METRICS if m not in _BESIDE_COLUMNS and row.get(m) is not None]
        values = ", ".join(f"{COLUMNS[m].lower()} {printed(row[m])} %" for m in rest)
        footnote = "; ".join(filter(None, (row["name"], row["source"] or "source not given", row["note"], values)))
        found.setdefault(row["of"], []).append({**row, "mark": mark, "footnote": footnote})
    return found


def _thumbnails(entry: Mapping[str, Any] | None, paths: Mapping[str, Path], load: Load | None) -> list[dict[str, Any]]:
    """The method's mistakes whose file is known, each with a picture or the reason why there is none."""
    load = load or (lambda path: imaging.decode(path).pixels)
    known = [row for row in (entry["mistakes"] if entry else []) if row["image_id"] in paths]
    return [{**row, **picture_or_reason(partial(load, paths[row["image_id"]]), _THUMBNAIL_PX)} for row in known]
