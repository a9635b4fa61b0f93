"""Panel Data: index, check, split, card, phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip.cli.console import announce, print_table, progress_bar
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
    from thoraclip.data.index import index as build
    from thoraclip.data.index import write_index_report
    from thoraclip.data.layouts import CsvColumns, detect_layout
    from thoraclip.tables.manifest import require_parquet, write_manifest

    columns = CsvColumns(
        path=path_column, label=label_column, image_id=id_column, split=split_column, patient=patient_column,
        source=source_column, view=view_column, sex=sex_column, age_years=age_column, lung_mask=mask_column,
        infection_mask=infection_mask_column,
    )  # fmt: skip
    require_parquet(out)
    layout = layout or ("csv" if csv else detect_layout(root))
    with progress_bar("indexing") as progress:
        result = build(
            root, layout=layout, csv_file=csv, columns=columns, facts=out.with_suffix(".facts.jsonl"), fresh=fresh,
            salt=salt, progress=progress,
        )  # fmt: skip
    write_manifest(out, result.manifest)
    report = out.with_suffix(".index.json")
    write_index_report(report, result)
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
    announce(
        f"{len(result.manifest)} images ({result.read} files read) -> {out}; everything else is listed in {report}"
    )


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest to check.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for check.json, .md and .html.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 when there is a leak.")] = False,
    seed: Annotated[int, typer.Option(help="Of the folds behind the class differences.")] = 0,
) -> None:
    """Find leaks, copies, contradictions, burned-in text, and what tells the classes apart without anatomy."""
    import tempfile

    from thoraclip.data.check import check as run
    from thoraclip.data.check import write_check
    from thoraclip.tables.manifest import read_manifest

    images = read_manifest(manifest, may_leak=True)
    with tempfile.TemporaryDirectory() as temporary, progress_bar("checking") as progress:
        content = run(images, out / "inspection" if out else Path(temporary), seed=seed, progress=progress)
    if out:
        write_check(content, images, out)
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
    from thoraclip.data.check import read_clusters
    from thoraclip.data.splits import parse_fractions, split_folds, split_fractions
    from thoraclip.errors import ConfigError
    from thoraclip.tables.manifest import read_manifest, require_parquet, write_manifest

    if (folds is None) == (fractions is None):
        raise ConfigError("give either --folds 5 or --fractions 0.7,0.1,0.2")
    require_parquet(out)
    images = read_manifest(manifest, may_leak=True)
    if duplicates is not None:
        images = read_clusters(images, duplicates)
    if folds is not None:
        done = split_folds(images, folds=folds, seed=seed)
    else:
        done = split_fractions(images, fractions=parse_fractions(fractions or ""), seed=seed)
    write_manifest(out, done)
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
    from thoraclip.data.phantom import PhantomConfig, parse_shortcut, write_phantoms

    kind, strength = parse_shortcut(shortcut)
    config = PhantomConfig(
        images=images, size=size, seed=seed, difficulty=difficulty, shortcut=kind, shortcut_strength=strength
    )
    with progress_bar("drawing") as progress:
        summary = write_phantoms(folder, config, progress=progress)
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
    from thoraclip.config import build_config, parse_settings, read_toml
    from thoraclip.data.card import CardSettings, write_card
    from thoraclip.data.check import read_check
    from thoraclip.tables.manifest import read_manifest

    values = (read_toml(config) if config else {}) | parse_settings(settings or [])
    said = build_config(CardSettings, values, where=str(config or "--set"))
    images = read_manifest(manifest, may_leak=True)
    write_card(manifest, images, said, out, check=read_check(checked, images, whole=True) if checked else None)
    announce(f"{out / 'data-card.md'}, {out / 'croissant.json'}")


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
