"""Panel Deployment: what export, predict and serve print."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import typer

from thoraclip.api.deployment import export, predict, serve
from thoraclip.cli.command import Command
from thoraclip.cli.console import announce, print_table, progress_bar

if TYPE_CHECKING:
    from thoraclip.bundle.scoring import ScoringSummary

__all__ = ["COMMANDS"]


def show_parity(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """How far the bundle is from the original, on standard output."""
    fp32, int8, test = content["fp32"], content["int8"], content["test"]
    accuracy = test["accuracy"]
    difference = f"{fp32['largest_difference']:.1e} on {fp32['images']} test images"
    rows = [
        ["fp32 against the original", f"largest difference {difference}"],
        ["accuracy of the bundle", f"{_percent(accuracy)} on {test['images']} test images"],
        ["sets hold the true class", f"{_percent(test['coverage'])}, {test['mean_set_size']:.2f} classes on average"],
        ["test images flagged", "-" if test["flagged"] is None else _percent(test["flagged"])],
    ]
    if int8:
        change = int8["accuracy"]
        between = f"[{100 * change['low']:+.2f}, {100 * change['high']:+.2f}]"
        rows[1:1] = [
            ["int8: other answers", f"{int8['other_answers']} of {int8['images']} test images"],
            ["int8: change of accuracy", f"{100 * change['change']:+.2f} {between} points"],
            ["int8: size", f"{100 * int8['size']:.0f} % of fp32"],
        ]
    print_table(["proof", ""], rows, numbers=False)
    typer.echo(f"Research use only, not for diagnosis. Bundle: {given['out']}, card: {given['out'] / 'README.md'}")


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def call_predict(given: Mapping[str, Any]) -> ScoringSummary:
    """Score; rows go to standard output where no file is named."""
    stream, rows_are_shown = sys.stdout.buffer, given["out"] is None and sys.stdout.isatty()
    with nullcontext() if rows_are_shown else progress_bar() as progress:  # which would run over the rows
        return predict(**{**given, "out": given["out"] or stream}, progress=progress or False, announce=announce)


def show_predict(summary: ScoringSummary, given: Mapping[str, Any]) -> None:
    """How many were scored and what could not be, on standard error."""
    out = given["out"]
    counts = [f"{summary.images} images", f"{summary.failed} cannot be read"]
    if summary.flagged is not None:
        counts.append(f"{summary.flagged} unlike the training images")
    if summary.repeated:
        counts.append(f"{summary.repeated} named again and passed over")
    announce(", ".join(counts) + (f" -> {out}" if out else ""))
    if summary.failed:
        announce(f"cannot be read: {summary.failed}, each with its reason in the column error")
        for path, reason in summary.first_failed:
            announce(f"  {_shown(path)}: {_shown(reason)}")
        if summary.failed > len(summary.first_failed):
            announce(f"  ... and {summary.failed - len(summary.first_failed)} more")
    for what in summary.left_out_told:
        announce(f"left out: {_shown(what)}")
    if summary.not_utf8:
        announce(f"names that are not UTF-8: {summary.not_utf8}; a CSV holds their bytes (errors='surrogateescape')")
    announce("Research use only, not for diagnosis.")


def _shown(text: str) -> str:
    """A file's name may hold what moves a terminal's cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_nothing(result: None, given: Mapping[str, Any]) -> None:
    """`serve` has spoken while it ran."""


COMMANDS = (
    Command("Deployment", export, show_parity),
    Command("Deployment", predict, show_predict, call=call_predict),
    Command("Deployment", serve, show_nothing),
)
