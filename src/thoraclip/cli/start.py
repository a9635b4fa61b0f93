"""Panel Start: demo and study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import announce, print_table, progress_bar
from thoraclip.cli.judgement import print_report
from thoraclip.cli.options import OutFolder, Settings

__all__ = ["register"]

_PANEL = "Start"


def register(app: typer.Typer) -> None:
    """Add this panel's commands."""
    for command in (demo, study):
        app.command(rich_help_panel=_PANEL)(command)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("demo-out"),
    images: Annotated[int, typer.Option(min=60, help="Phantoms to draw.")] = 480,
    seed: Annotated[int, typer.Option(help="Of the phantoms.")] = 0,
) -> None:
    """Everything offline: draw phantoms, run the shipped tiny-clip zero-shot, with probes and tuned, judge, show the page."""
    with progress_bar("images") as progress:
        content = verbs.demo(out=out, images=images, seed=seed, progress=progress, announce=announce)
    print_report(content, out)


def study(
    source: Annotated[
        Path,
        typer.Argument(metavar="CONFIG.toml|FOLDER", help="Study file, or a folder of images.", show_default=False),
    ],
    out: OutFolder,
    settings: Settings = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would run, on how many images, and about how long it would take."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
) -> None:
    """Run a list of methods on one manifest and write the report; what is done and valid is not run again."""
    from thoraclip.config import parse_settings
    from thoraclip.study import plan_study, read_study, run_study

    config, methods = read_study(source, parse_settings(settings or []))
    if dry_run:
        plan = plan_study(config, methods, out, measure=True, announce=announce)
        _print_plan(plan, as_json=as_json)
        return
    with progress_bar("images") as progress:
        content = run_study(config, methods, out, announce=announce, progress=progress)
    print_report(content, out)
    if content["failed"]:
        raise typer.Exit(1)


def _print_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    """The plan as JSON, or as a table of runs and stages."""
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    rows = [_plan_row(row) for row in (*plan["runs"], *plan["stages"])]
    title = f"{plan['source']}: {'unknown' if plan['images'] is None else format(plan['images'], ',')} images"
    print_table(["", "kind", "seed", "encoded", "trained", "time", "state"], rows, title=title, numbers=False)
    if plan["images"] is None:
        typer.echo("Nothing can be estimated: the images are not known.")
        return
    totals = plan["totals"]
    low, high = (_duration(totals["seconds"] * by) for by in (1 / totals["factor"], totals["factor"]))
    what = "In all" if totals["complete"] else "What can be estimated"
    typer.echo(
        f"{what}: about {_duration(totals['seconds'])}, between {low} and {high} if nothing else runs and no training stops "
        f"early; {totals['images_encoded']:,} images forward, {totals['images_trained']:,} forward and backward."
    )


def _plan_row(row: Mapping[str, Any]) -> list[str]:
    cached = f"{' and '.join(row['cached'])} cached" if row["cached"] else "to do"
    return [
        row["name"],
        row["kind"],
        "" if row["seed"] is None else str(row["seed"]),
        f"{row['images_encoded']:,}" if row["images_encoded"] else "",
        f"{row['images_trained']:,}" if row["images_trained"] else "",
        "" if row["done"] else "?" if row["seconds"] is None else _duration(row["seconds"]),
        f"cannot run: {row['error']}" if row["error"] else "done" if row["done"] else cached,
    ]


def _duration(seconds: float) -> str:
    """12 s, 3 min, 2.1 h, 3.5 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
