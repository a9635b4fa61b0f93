"""Panel Methods: caption, embed, and one command per entry of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thoraclip import verbs
from thoraclip.cli.console import announce, print_table, progress_bar
from thoraclip.cli.options import ConfigFile, Engine, ManifestFile, OutFolder, PixelFolder, Settings, Workers
from thoraclip.methods import METHODS

__all__ = ["keywords", "register"]

_PANEL = "Methods"
_OPTIONS = frozenset({"manifest", "out", "config", "check", "pixels", "progress", "announce"})
"""Arguments of the verbs that take settings; no setting bears one of these names."""


def register(app: typer.Typer) -> None:
    """Add `caption`, `embed` and every method of the registry."""
    for command in (caption, embed):
        app.command(rich_help_panel=_PANEL)(command)
    for kind, method in METHODS.items():
        text = f"{method.summary}\n\nIts settings, with defaults and help: [bold]thoraclip {kind} --settings[/bold]"
        app.command(kind, rich_help_panel=_PANEL, help=text, short_help=method.summary)(_command(kind))


def caption(
    manifest: ManifestFile,
    captioner: Annotated[str, typer.Option(help="blip, template or column.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Captions file to write (.parquet).", show_default=False)],
    model: Annotated[str, typer.Option(help="blip: Hub id or local folder.")] = "Salesforce/blip-image-captioning-base",
    column: Annotated[str, typer.Option(help="column: manifest column that holds the texts.", show_default=False)] = "",
    append_label: Annotated[
        bool, typer.Option("--append-label", help="Append the class to captions of the training split.")
    ] = False,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Tell the class in all captions, those of scored images too.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="blip: words that every caption begins with.", show_default=False)] = "",
    max_new_tokens: Annotated[int, typer.Option(help="blip: tokens that it may add.")] = 40,
    geometry: Annotated[str, typer.Option(help="blip: squash, crop or pad.")] = "squash",
    batch_size: Annotated[int, typer.Option(help="blip: images per forward pass.")] = 16,
    precision: Annotated[str, typer.Option(help="blip: fp32, bf16 or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="template: chooses the words.")] = 0,
    pixels: PixelFolder = None,
) -> None:
    """Write a text for every image, by a model, a template or from a column; goes on where it was interrupted."""
    with progress_bar("captioning") as progress:
        done = verbs.caption(
            manifest, captioner=captioner, out=out, model=model, column=column, append_label=append_label,
            everywhere=everywhere, prompt=prompt, max_new_tokens=max_new_tokens, geometry=geometry,
            batch_size=batch_size, precision=precision, seed=seed, pixels=pixels, progress=progress, announce=announce,
        )  # fmt: skip
    told, different = sum(done.with_label), len(set(done.text))
    announce(f"{len(done)} captions, {different} different, the class told in {told} -> {out}; for example")
    for row in range(0, len(done), max(1, -(-len(done) // 3))):
        announce(f"  {done.image_id[row]}: {done.text[row]}")


def embed(
    manifest: ManifestFile,
    model: Annotated[str, typer.Option(help="Hub id, local folder, or tiny-clip.", show_default=False)],
    out: OutFolder,
    adapter: Annotated[str, typer.Option(help="PEFT adapter folder.", show_default=False)] = "",
    geometry: Annotated[str, typer.Option(help="squash, crop or pad.")] = "squash",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass; 0: what suits the device.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "auto",
    pixels: PixelFolder = None,
    engine: Engine = "threads",
    workers: Workers = 0,
) -> None:
    """Run a frozen encoder over a manifest once and keep its features; goes on where it was interrupted."""
    with progress_bar("embedding") as progress:
        done = verbs.embed(
            manifest, model=model, out=out, adapter=adapter, geometry=geometry, batch_size=batch_size,
            precision=precision, pixels=pixels, engine=engine, workers=workers, progress=progress, announce=announce,
        )  # fmt: skip
    if done is None:  # one of several processes; the first one speaks
        return
    announce(
        f"{len(done)} images, pooled {done.pooled.shape[1]} + projected {done.projected.shape[1]} numbers each, "
        f"geometry {geometry}, {done.encoder['precision']} -> {out}"
    )


def _command(kind: str) -> Any:
    def command(
        manifest: Annotated[
            Path | None, typer.Argument(metavar="MANIFEST", help="Split manifest.", show_default=False)
        ] = None,
        out: Annotated[Path | None, typer.Option("--out", help="Run folder to write to.", show_default=False)] = None,
        config: ConfigFile = None,
        settings: Settings = None,
        pixels: PixelFolder = None,
        list_settings: Annotated[bool, typer.Option("--settings", help="List the settings and exit.")] = False,
    ) -> None:
        if list_settings:
            _print_settings(kind)
            return
        _run(kind, manifest, out, config, settings, pixels)

    return command


def _run(
    kind: str,
    manifest: Path | None,
    out: Path | None,
    config: Path | None,
    settings: list[str] | None,
    pixels: Path | None,
) -> None:
    from thoraclip.errors import ConfigError

    if manifest is None or out is None:
        raise ConfigError(f"give a manifest and a folder: thoraclip {kind} MANIFEST --out DIR")
    run: verbs.MethodVerb = getattr(verbs, kind)
    values = keywords(settings)
    with progress_bar(kind) as progress:
        result = run(manifest, out=out, config=config, pixels=pixels, progress=progress, announce=announce, **values)
    if result is None:  # one of several processes; the first one speaks
        return
    predictions, _ = result
    announce(
        f"{len(predictions)} predictions -> {out / 'predictions.parquet'}; judge them: thoraclip report {out} --out DIR"
    )


def keywords(settings: list[str] | None) -> dict[str, Any]:
    """The `--set` values, to be given to a verb; raises ConfigError for one that would stand for an argument of its own."""
    from thoraclip.config import parse_settings
    from thoraclip.errors import ConfigError

    values = parse_settings(settings or [])
    for name in sorted(_OPTIONS & set(values)):
        raise ConfigError(f"--set: unknown setting '{name}'; arguments and options are no settings, see --help")
    return values


def _print_settings(kind: str) -> None:
    import dataclasses

    from thoraclip.config import field_help, toml_value

    config = METHODS[kind].config_type
    texts = field_help(config)  # type: ignore[arg-type]
    rows = [[f.name, toml_value(f.default), texts.get(f.name, "")] for f in dataclasses.fields(config)]
    print_table(["setting", "default", "what it does"], rows, title=f"Settings of {kind}", numbers=False)
