"""Panel Judgement: report, audit, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import announce, print_table, progress_bar
from thoraclip.cli.methods import keywords
from thoraclip.cli.options import ConfigFile, PixelFolder, Settings

__all__ = ["print_audit", "print_report", "register"]

_PANEL = "Judgement"


def register(app: typer.Typer) -> None:
    """Add this panel's commands."""
    app.command(rich_help_panel=_PANEL)(report)
    app.command(rich_help_panel=_PANEL)(audit)
    app.command(rich_help_panel=_PANEL)(explain)


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


def audit(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="Folder of a finished run, such as study/runs/probe, or of a bundle.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for audit.json, .md and .html.", show_default=False)],
    manifest: Annotated[
        Path | None, typer.Option(help="The images; without it, the manifest of the run's study.", show_default=False)
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    pixels: PixelFolder = None,
) -> None:
    """Ask whether a classifier reads lungs or shortcuts; a verdict per test, and one overall."""
    with progress_bar("images") as progress:
        content = verbs.audit(
            run, out=out, manifest=manifest, config=config, pixels=pixels, progress=progress, announce=announce,
            **keywords(settings),
        )  # fmt: skip
    print_audit(content, out)


def print_audit(content: dict[str, Any], out: Path) -> None:
    """The tests as a table on standard output, and the reading."""
    rows = [
        [
            t["name"].replace("-", " "), t["level"], f"{100 * t['effect']:+.1f}",
            f"[{100 * t['low']:+.1f}, {100 * t['high']:+.1f}]", "" if t["p_holm"] is None else f"{t['p_holm']:.3f}",
            t["verdict"].replace("_", " "),
        ]
        for t in content["tests"]
    ]  # fmt: skip
    title = "Effect in points of balanced accuracy, with 95 % intervals; p after Holm's correction"
    print_table(["test", "of", "effect", "interval", "p", "sign of reliance"], rows, title=title)
    for sentence in content["reading"]:
        typer.echo(sentence)
    typer.echo(f"Research use only, not for diagnosis. Page: {out / 'audit.html'}")


def explain(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="Folder of a finished run that keeps a classifier, or of a bundle.",
            show_default=False,
        ),
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or DICOM.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Sheet to write (.png).", show_default=False)],
    class_name: Annotated[
        str, typer.Option("--class", help="Class that is explained; the predicted one if none is given.")
    ] = "",
    method: Annotated[str, typer.Option(help="occlusion, smoothgrad or integrated.")] = "",
    fold: Annotated[
        int | None,
        typer.Option(help="Whose classifier is asked; the one that held the picture out if none.", show_default=False),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Lung mask; the manifest's, or an estimate, if none.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of methods that draw masks or noise.")] = 0,
) -> None:
    """Draw where a picture holds evidence for a class: a heat map over the radiograph, and its share inside the lungs."""
    found = verbs.explain(run, image, out=out, class_name=class_name, method=method, fold=fold, mask=mask, seed=seed)
    print_explanation(found, out)


def print_explanation(found: dict[str, Any], out: Path) -> None:
    """The map's numbers on standard output, and where the sheet is."""
    shares = {name: found[name] for name in ("evidence_in_lungs", "lung_area")}
    inside, area = ("-" if value is None else f"{100 * value:.0f} %" for value in shares.values())
    rows = [
        ["class", f"{found['class']}, probability {found['probability']:.3f}"],
        ["predicted", f"{found['predicted']}, probability {found['scores'][found['predicted']]:.3f}"],
        ["method", found["method"]],
        ["evidence in the lungs", inside],
        ["lungs' share of the area", f"{area}, outline: {found['lungs_from']}"],
        ["classifier", found["note"]],
    ]
    print_table(["map", ""], rows, numbers=False)
    typer.echo(f"A map is no proof. Research use only, not for diagnosis. Sheet: {out}")


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
