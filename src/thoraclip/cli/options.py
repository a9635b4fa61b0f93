"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigFile", "Engine", "ManifestFile", "OutFolder", "PixelFolder", "Settings", "Workers"]

ManifestFile = Annotated[
    Path,
    typer.Argument(metavar="MANIFEST", help="Manifest written by [bold]thoraclip index[/bold].", show_default=False),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)]
PixelFolder = Annotated[
    Path | None,
    typer.Option(
        "--pixels",
        help="Folder that keeps decoded pictures, so that each is decoded once for all methods.",
        show_default=False,
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting; may be repeated; wins over --config.", show_default=False
    ),
]
Engine = Annotated[
    str, typer.Option(help="threads, or ray: the actors of a Ray cluster (RAY_ADDRESS, or one that is started here).")
]
Workers = Annotated[
    int, typer.Option(min=0, help="ray: actors; 0: one on each GPU, or, without a GPU, on each machine.")
]
