"""Panel Deployment: export, predict, serve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import announce, print_table, progress_bar
from thoraclip.cli.options import Engine, Workers

if TYPE_CHECKING:
    from thoraclip.deploy.scoring import ScoringSummary

__all__ = ["register"]

_PANEL = "Deployment"


def register(app: typer.Typer) -> None:
    """Add this panel's commands."""
    for command in (export, predict, serve):
        app.command(rich_help_panel=_PANEL)(command)


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a finished run that keeps a classifier.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.", show_default=False)],
    int8: Annotated[
        bool, typer.Option("--int8", help="A quarter of the size, if the test images show that answers stay alike.")
    ] = False,
    fold: Annotated[
        int | None, typer.Option(help="Whose classifier; the first if none is given.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="The images; without it, the manifest of the run's study.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(help="Of each part of the images no more are looked at.")] = 2000,
    thumbnails: Annotated[
        int, typer.Option(help="Training pictures to put inside, for the page; whoever has the bundle can see them.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of draws and resamples.")] = 0,
) -> None:
    """Make a bundle that predicts without torch; written only if it is shown to be the same classifier."""
    with progress_bar("images") as progress:
        found = verbs.export(
            run, out=out, int8=int8, fold=fold, manifest=manifest, images=images, thumbnails=thumbnails, seed=seed,
            progress=progress, announce=announce,
        )  # fmt: skip
    print_parity(found, out)


def print_parity(found: dict[str, Any], out: Path) -> None:
    """How far the bundle is from the original, on standard output."""
    fp32, int8, test = found["fp32"], found["int8"], found["test"]
    accuracy = test["accuracy"]
    rows = [
        [
            "fp32 against the original",
            f"largest difference {fp32['largest_difference']:.1e} on {fp32['images']} test images",
        ],
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
    typer.echo(f"Research use only, not for diagnosis. Bundle: {out}, card: {out / 'README.md'}")


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH|-", help="Pictures and folders; - reads a list of paths.", show_default=False),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest (.parquet), or table with a column path (.csv).", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Table to write; the same command goes on after a kill.", show_default=False),
    ] = None,
    format: Annotated[str, typer.Option(help="csv or jsonl; default: by the name, else csv.", show_default=False)] = "",
    threads: Annotated[int, typer.Option(min=0, help="Pictures at once; 0: one for each core; not with ray.")] = 0,
    engine: Engine = "threads",
    workers: Workers = 0,
) -> None:
    """Score chest X-rays with a bundle, any number of them; a picture that cannot be read is a row with the reason."""
    stream = sys.stdout.buffer  # before a bar takes its place
    with _bar(out) as progress:
        summary = verbs.predict(
            bundle, paths, manifest=manifest, out=out or stream, format=format, threads=threads, engine=engine,
            workers=workers, progress=progress, announce=announce,
        )  # fmt: skip
    _tell(summary, out)


@contextmanager
def _bar(out: Path | None) -> Iterator[Callable[[int, int], None]]:
    """A bar, unless rows run over the same terminal."""
    if out is None and sys.stdout.isatty():
        yield lambda done, total: None
    else:
        with progress_bar("images") as progress:
            yield progress


def _tell(summary: ScoringSummary, out: Path | None) -> None:
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


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)],
    beside: Annotated[Path | None, typer.Option(help="Another bundle, to compare.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    page: Annotated[bool, typer.Option(help="A page at /, in the browser.")] = True,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must bring; or $THORACLIP_TOKEN.", show_default=False),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a page elsewhere that may ask; repeatable.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Pictures at once; 0: one for each core.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A limit; see docs/serving.md.", show_default=False),
    ] = None,
) -> None:
    """Answer over HTTP, with a page at / where pictures can be dropped; on this machine alone unless told otherwise."""
    from thoraclip.config import parse_settings

    verbs.serve(
        bundle, beside=beside, host=host, port=port, page=page, token_file=token_file, allow_origin=allow_origin,
        threads=threads, announce=announce, **parse_settings(settings or ()),
    )  # fmt: skip
