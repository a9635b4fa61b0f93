"""Panel Judgement: what report, audit and explain print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from thoraclip.api.judgement import audit, explain, report
from thoraclip.cli.command import Command
from thoraclip.cli.console import print_table

__all__ = ["COMMANDS", "show_report"]


def show_audit(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The tests as a table on standard output, and the reading."""
    rows = [
        [
            t["name"].replace("-", " "),
            t["level"],
            f"{100 * t['effect']:+.1f}",
            f"[{100 * t['low']:+.1f}, {100 * t['high']:+.1f}]",
            "" if t["p_holm"] is None else f"{t['p_holm']:.3f}",
            t["verdict"].replace("_", " "),
        ]
        for t in content["tests"]
    ]
    title = "Effect in points of balanced accuracy, with 95 % intervals; p after Holm's correction"
    print_table(["test", "of", "effect", "interval", "p", "sign of reliance"], rows, title=title)
    for sentence in content["reading"]:
        typer.echo(sentence)
    typer.echo(f"Research use only, not for diagnosis. Page: {given['out'] / 'audit.html'}")


def show_explanation(explained: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The map's numbers on standard output, and where the sheet is."""
    shares = explained["evidence_in_lungs"], explained["lung_area"]
    inside, area = ("-" if value is None else f"{100 * value:.0f} %" for value in shares)
    rows = [
        ["class", f"{explained['class']}, probability {explained['probability']:.3f}"],
        ["predicted", f"{explained['predicted']}, probability {explained['scores'][explained['predicted']]:.3f}"],
        ["method", explained["method"]],
        ["evidence in the lungs", inside],
        ["lungs' share of the area", f"{area}, outline: {explained['lungs_from']}"],
        ["classifier", explained["note"]],
    ]
    print_table(["map", ""], rows, numbers=False)
    typer.echo(f"A map is no proof. Research use only, not for diagnosis. Sheet: {given['out']}")


def show_report(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The main table on standard output, and where the page is."""
    metrics = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "macro_precision": "precision",
        "macro_recall": "recall",
        "auroc": "AUROC",
        "ece": "ECE",
    }
    rows = []
    for method in content["methods"]:
        values = method.get("metrics") or {}
        cells = [_cell(values.get(name)) for name in metrics] if values else ["failed", *[""] * (len(metrics) - 1)]
        rows.append([method["name"], *cells])
    print_table(["method", *metrics.values()], rows, title=f"{content.get('title', 'Report')}: %, with 95 % intervals")
    for sentence in content["reading"]:
        typer.echo(sentence)
    typer.echo(f"Research use only, not for diagnosis. Page: {given['out'] / 'report.html'}")


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None or metric.get("value") is None:
        return "-"
    text = f"{100 * metric['value']:.1f}"
    return text if metric.get("low") is None else f"{text} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


COMMANDS = (
    Command("Judgement", report, show_report),
    Command("Judgement", audit, show_audit),
    Command("Judgement", explain, show_explanation),
)
