"""Panel Start: demo and study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    images: Annotated[int, typer.Option(min=60, help="Phantoms to draw.")] = 900,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
) -> None:
    """Run a list of methods on one manifest and write the report; what is done and valid is not run again."""
    from thoraclip.config import parse_settings
    from thoraclip.study import plan_study, read_study, run_study

    config, methods = read_study(source, parse_settings(settings or []))
    if dry_run:
        _print_plan(plan_study(config, methods, out), as_json=as_json)
        return
    with progress_bar("images") as progress:
        content = run_study(config, methods, out, announce=announce, progress=progress)
    print_report(content, out)
    if content["failed"]:
        raise typer.Exit(1)


def _print_plan(plan: dict[str, object], *, as_json: bool) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    runs = plan["runs"]
    assert isinstance(runs, list)
    rows = [
        [r["name"], r["kind"], "" if r["seed"] is None else str(r["seed"]), "done" if r["done"] else "to do"]
        for r in runs
    ]
    print_table(
        ["method", "kind", "seed", "state"],
        rows,
        title=f"{plan['source']}: {plan['images'] or 'not indexed yet;'} images",
    )
