"""Panel Data: what index, check, split, card and phantom print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from thoraclip.api.data import card, check, index, phantom, split
from thoraclip.cli.command import Command
from thoraclip.cli.console import announce, print_table

if TYPE_CHECKING:
    from thoraclip.data.index import IndexResult
    from thoraclip.data.phantom import PhantomSummary
    from thoraclip.tables.manifest import Manifest

__all__ = ["COMMANDS"]


def show_index(result: IndexResult, given: Mapping[str, Any]) -> None:
    """Counts, and the first of everything that was set aside."""
    _print_counts(*result.manifest.counts())
    _list("pictures set aside", [f"{path}: {reason}" for path, reason in result.set_aside])
    _list("unknown folders left out", [f"{path} ({count} files)" for path, count in result.unknown_folders])
    _list("files that are not pictures", result.other_files)
    _list("groups of identical pictures", [" = ".join(group["image_ids"]) for group in result.repeats])
    _list("notes", result.notes)
    _list(
        "patients in two parts of the split; split again before training",
        [f"{patient} ({', '.join(parts)})" for patient, parts in result.manifest.patients_in_two("split").items()],
    )
    out = given["out"]
    listed = out.with_suffix(".index.json")
    announce(
        f"{len(result.manifest)} images ({result.read} files read) -> {out}; everything else is listed in {listed}"
    )


def show_check(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Counts, what tells the classes apart, leaks and warnings; exit code 1 for a leak with --strict."""
    counts = content["counts"]
    _print_counts(counts["parts"], counts["classes"])
    rows = []
    for row in content["differences"][:8]:
        told = row["alone"]
        text = f"{100 * told['value']:.0f} [{100 * told['low']:.0f}, {100 * told['high']:.0f}]" if told else "-"
        rows.append([row["name"].replace("_", " "), text, row["description"]])
    if rows and content["differences"][0]["alone"] is None:
        typer.echo(f"what tells the classes apart is not measured: {content['differences'][0]['reason']}")
    elif rows:
        print_table(["names the class", "%", "what it is"], rows, numbers=False)
    for what in ("leaks", "warnings"):
        for sentence in content[what]:
            typer.echo(f"{what.removesuffix('s')}: {sentence}")
    if not content["leaks"]:
        is_split = counts["parts"] != ["no split"]
        typer.echo("no leak found" if is_split else "there is no split yet, so nothing can leak")
    if given["out"]:
        announce(f"page: {given['out'] / 'check.html'}")
    if given["strict"] and content["leaks"]:
        raise typer.Exit(1)


def show_split(manifest: Manifest, given: Mapping[str, Any]) -> None:
    """Images of each class in each part."""
    _print_counts(*manifest.counts())
    announce(f"{len(manifest)} images -> {given['out']}")


def show_card(page: Path, given: Mapping[str, Any]) -> None:
    """Where the card and the record are."""
    announce(f"{page}, {given['out'] / 'croissant.json'}")


def show_phantom(summary: PhantomSummary, given: Mapping[str, Any]) -> None:
    """How many were drawn, and where."""
    announce(f"{summary.images} phantoms of {summary.patients} patients -> {summary.root}")


def _print_counts(parts: list[str], classes: dict[str, list[int]]) -> None:
    print_table(["class", *parts], [[label, *map(str, row)] for label, row in classes.items()])


def _list(what: str, lines: list[str], most: int = 10) -> None:
    if lines:
        announce(f"{what}: {len(lines)}")
        for line in lines[:most]:
            announce(f"  {line}")
        if len(lines) > most:
            announce(f"  ... and {len(lines) - most} more")


COMMANDS = (
    Command("Data", index, show_index),
    Command("Data", check, show_check, flags={"strict": "End with exit code 1 when there is a leak."}),
    Command("Data", split, show_split),
    Command("Data", card, show_card),
    Command("Data", phantom, show_phantom),
)
