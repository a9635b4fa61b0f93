"""Panel Data: index, check, split, card, phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import announce, print_table, progress_bar
from thoraclip.cli.methods import keywords
from thoraclip.cli.options import ConfigFile, Settings

__all__ = ["register"]

_PANEL = "Data"
_Column = Annotated[
    str | None, typer.Option(help="CSV column; default: the column of the same name, if any.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add this panel's commands."""
    for command in (index, check, split, card, phantom):
        app.command(rich_help_panel=_PANEL)(command)


def index(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder that holds the images.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write (.parquet).", show_default=False)],
    layout: Annotated[
        str, typer.Option(help="covid-qu-ex, folders or csv; default: found out.", show_default=False)
    ] = "",
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Table of images, for layout csv.", show_default=False)
    ] = None,
    path_column: Annotated[str, typer.Option(help="CSV column with the path below ROOT.")] = "path",
    label_column: Annotated[str, typer.Option(help="CSV column with the class.")] = "label",
    id_column: _Column = None,
    split_column: _Column = None,
    patient_column: _Column = None,
    source_column: _Column = None,
    view_column: _Column = None,
    sex_column: _Column = None,
    age_column: _Column = None,
    mask_column: Annotated[
        str | None, typer.Option(help="CSV column with the lung mask's path.", show_default=False)
    ] = None,
    infection_mask_column: _Column = None,
    salt: Annotated[
        Path | None,
        typer.Option(
            help="Secret under which DICOM patient ids are hashed; default: this user's own.", show_default=False
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Read every file again, changed or not.")] = False,
) -> None:
    """Read a folder of images into a manifest; what cannot be used is listed, never dropped. A second time, only what changed is read."""
    with progress_bar("indexing") as progress:
        result = verbs.index(
            root, out=out, layout=layout, csv=csv, path_column=path_column, label_column=label_column,
            id_column=id_column, split_column=split_column, patient_column=patient_column, source_column=source_column,
            view_column=view_column, sex_column=sex_column, age_column=age_column, mask_column=mask_column,
            infection_mask_column=infection_mask_column, salt=salt, fresh=fresh, progress=progress,
        )  # fmt: skip
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
    listed = out.with_suffix(".index.json")
    announce(
        f"{len(result.manifest)} images ({result.read} files read) -> {out}; everything else is listed in {listed}"
    )


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest to check.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for check.json, .md and .html.", show_default=False)
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Without: the table alone, of millions of images; leaks, patients, identical files.",
        ),
    ] = True,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 when there is a leak.")] = False,
    seed: Annotated[int, typer.Option(help="Of the folds behind the class differences.")] = 0,
) -> None:
    """Find leaks, copies, contradictions, burned-in text, and what tells the classes apart without anatomy."""
    with progress_bar("checking") as progress:
        content = verbs.check(manifest, out=out, pictures=pictures, seed=seed, progress=progress)
    _print_check(content)
    if out:
        announce(f"page: {out / 'check.html'}")
    if strict and content["leaks"]:
        raise typer.Exit(1)


def split(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest to split.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write (.parquet).", show_default=False)],
    folds: Annotated[int | None, typer.Option(help="Number of folds.", show_default=False)] = None,
    fractions: Annotated[
        str | None, typer.Option(metavar="TRAIN,VAL,TEST", help="Shares, as in 0.7,0.1,0.2.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the shuffle.")] = 0,
    duplicates: Annotated[
        Path | None,
        typer.Option(metavar="CHECK_DIR", help="Keep near duplicates that a check found together.", show_default=False),
    ] = None,
) -> None:
    """Split a manifest into folds or train/val/test, stratified by class, whole patients and identical files together."""
    done = verbs.split(manifest, out=out, folds=folds, fractions=fractions, seed=seed, duplicates=duplicates)
    _print_counts(*done.counts())
    announce(f"{len(done)} images -> {out}")


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.", show_default=False)],
    images: Annotated[int, typer.Option(help="Number of radiographs.")] = 600,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="The set's only seed.")] = 0,
    difficulty: Annotated[float, typer.Option(help="0 easy to 1 impossible.")] = 0.5,
    shortcut: Annotated[
        str,
        typer.Option(
            metavar="KIND=STRENGTH",
            help="Confounder tied to the class: marker, border, exposure, device or texture.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Draw synthetic chest radiographs in the COVID-QU-Ex layout, with lung and infection masks."""
    with progress_bar("drawing") as progress:
        summary = verbs.phantom(
            folder, images=images, size=size, seed=seed, difficulty=difficulty, shortcut=shortcut, progress=progress
        )
    announce(f"{summary.images} phantoms of {summary.patients} patients -> {summary.root}")


def card(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest to describe.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for data-card.md and croissant.json.", show_default=False)],
    settings: Settings = None,
    config: ConfigFile = None,
    checked: Annotated[
        Path | None, typer.Option("--check", metavar="CHECK_DIR", help="List what a check found.", show_default=False)
    ] = None,
) -> None:
    """Write a data card and a Croissant record; name, licence, url, citation, ... come from --set or --config."""
    page = verbs.card(manifest, out=out, config=config, check=checked, **keywords(settings))
    announce(f"{page}, {out / 'croissant.json'}")


def _print_check(content: dict[str, Any]) -> None:
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


def _print_counts(parts: list[str], classes: dict[str, list[int]]) -> None:
    print_table(["class", *parts], [[label, *map(str, row)] for label, row in classes.items()])


def _list(what: str, lines: list[str], most: int = 10) -> None:
    if lines:
        announce(f"{what}: {len(lines)}")
        for line in lines[:most]:
            announce(f"  {line}")
        if len(lines) > most:
            announce(f"  ... and {len(lines) - most} more")
