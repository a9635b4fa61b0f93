"""Panel Start: demo and study."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
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
        bool, typer.Option("--dry-run", help="Only say what would run, how long it would take, and in what memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
) -> None:
    """Run a list of methods on one manifest and write the report; what is done and valid is not run again."""
    from thoraclip.config import parse_settings
    from thoraclip.study import plan_study, read_study, run_study

    config, methods = read_study(source, parse_settings(settings or []))
    if dry_run:
        plan = plan_study(config, methods, out, measure=True, start=time.process_time(), announce=announce)
        _print_plan(plan, as_json=as_json)
        return
    with progress_bar("images") as progress:
        content = run_study(config, methods, out, announce=announce, progress=progress)
    print_report(content, out)
    if content["failed"]:
        raise typer.Exit(1)


def _print_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    """The plan as JSON, or as a table of methods and stages, their seeds together, and what it was made from."""
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    together: dict[str, list[dict[str, Any]]] = {}
    for run in plan["runs"]:
        together.setdefault(run["name"], []).append(run)
    stages = [_plan_row([{**stage, "kind": "", "seed": None}]) for stage in plan["stages"] if not stage["done"]]
    rows = [*stages[:-1], *(_plan_row(runs) for runs in together.values()), *stages[-1:]]  # the judge comes last
    title = f"{plan['source']}: {plan['images'] or 'unknown'} images"
    print_table(
        ["", "kind", "seeds", "images through a model", "time", "memory", "state"], rows, title=title, numbers=False
    )
    typer.echo(_plan_total(plan))


def _plan_row(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    passes: dict[tuple[str, str], int] = {}
    for run in runs:
        for one in run["passes"]:
            key = (one["what"], one["model"])
            passes[key] = passes.get(key, 0) + one["images"]
    done, errors = sum(run["done"] for run in runs), [run["error"] for run in runs if run["error"]]
    todo = [run for run in runs if not run["done"]]
    state = "done" if not todo else f"{done} of {len(runs)} done" if done else "to do"
    notes = []
    for where, said in (("cached", "there"), ("shared", "shared")):
        if names := dict.fromkeys(what for run in todo for what in run[where]):
            notes.append(f"{' and '.join(names)} {said}")
    known = [run for run in todo if run["seconds"] is not None]
    return [
        runs[0]["name"],
        runs[0]["kind"],
        ", ".join(str(run["seed"]) for run in runs if run["seed"] is not None),
        "; ".join(f"{what} {images:,} ({_short(model)})" for (what, model), images in passes.items()),
        "" if not todo else "?" if len(known) < len(todo) else _duration(sum(run["seconds"] for run in known)),
        _size(max((run["memory_mb"] or 0 for run in known), default=0)),
        f"cannot run: {errors[0]}" if errors else "; ".join([state, *notes]),
    ]


def _plan_total(plan: Mapping[str, Any]) -> str:
    """The sum, and how it was found, in sentences."""
    totals, machine, measured = plan["totals"], plan["machine"], plan["measured"]
    if measured is None:
        return "Nothing could be measured: the images are not known."
    low, high = (_duration(totals["seconds"] * by) for by in (1 / measured["factor"], measured["factor"]))
    what = "In all" if totals["complete"] else "What could be estimated"
    precision = f", {machine['precision']}" if machine["precision"] else ""
    where = f"{machine['device']}, {machine['threads']} threads{precision}"
    return (
        f"{what}: about {_duration(totals['seconds'])} and at most {_size(totals['memory_mb']) or 'little'} of memory; "
        f"{totals['images_encoded']:,} images forward, {totals['images_trained']:,} forward and backward.\n"
        f"Measured in {_duration(measured['seconds'])} by doing the real work on {measured['pictures']} pictures ({where}); "
        f"between {low} and {high} if the machine does nothing else and no training stops early."
    )


def _short(model: str) -> str:
    """A folder without those above it; a Hub id as it is."""
    return Path(model).name if Path(model).is_dir() else model


def _duration(seconds: float) -> str:
    """12 s, 3 min, 2.1 h, 3.5 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def _size(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB" if megabytes else ""
