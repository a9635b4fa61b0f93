"""Panel Start: what demo and study print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from thoraclip.api.start import demo, run_study
from thoraclip.cli.command import Command
from thoraclip.cli.console import print_table
from thoraclip.cli.judgement import show_report

__all__ = ["COMMANDS"]


def show_study(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """The main table and where the page is, or the plan; exit code 1 where a method failed."""
    if given["dry_run"]:
        _show_plan(content, as_json=given["json"])
        return
    show_report(content, given)
    if content["failed"]:
        raise typer.Exit(1)


def _show_plan(plan: dict[str, Any], *, as_json: bool) -> None:
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
        f"{what}: about {_duration(totals['seconds'])}, between {low} and {high} if nothing else runs and no "
        f"training stops early; {totals['images_encoded']:,} images forward, {totals['images_trained']:,} forward "
        "and backward."
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


COMMANDS = (
    Command("Start", demo, show_report),
    Command("Start", run_study, show_study, name="study", flags={"json": "With --dry-run: as JSON."}),
)
