"""Panel Judgement: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import print_table

__all__ = ["print_report", "register"]

_PANEL = "Judgement"


def register(app: typer.Typer) -> None:
    """Add this panel's commands."""
    app.command(rich_help_panel=_PANEL)(report)


def report(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            metavar="PREDICTIONS...", help="Files (.parquet, .csv) or run folders; anyone's.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.json, .md and .html.", show_default=False)],
    manifest: Annotated[
        Path | None,
        typer.Option(help="Where pictures (for thumbnails) and patients are looked up.", show_default=False),
    ] = None,
    thumbnails: Annotated[bool, typer.Option(help="Show misclassified images in the page.")] = True,
    title: Annotated[str, typer.Option(help="Headline.")] = "Chest X-ray classification report",
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Judge predictions: metrics with 95 % intervals, paired comparisons, one page to look at."""
    content = verbs.report(
        predictions, out=out, manifest=manifest, thumbnails=thumbnails, title=title, resamples=resamples, seed=seed
    )
    print_report(content, out)


def print_report(content: dict[str, Any], out: Path) -> None:
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
    typer.echo(f"Research use only, not for diagnosis. Page: {out / 'report.html'}")


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None or metric.get("value") is None:
        return "-"
    text = f"{100 * metric['value']:.1f}"
    return text if metric.get("low") is None else f"{text} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"
