"""The images of a study or of an external set: from a manifest, or from a folder that is indexed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from thoraclip.data.index import index, write_index_report
from thoraclip.data.layouts import LAYOUTS, detect_layout, find_layout
from thoraclip.errors import ConfigError, InputError, did_you_mean
from thoraclip.runs import Progress
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["ImageSource", "folder_layout", "index_folder", "list_images", "require_one_source"]


class ImageSource(Protocol):
    """Settings that say where images are: either `manifest`, or `folder` and its `layout` (empty: found out)."""

    @property
    def manifest(self) -> str: ...

    @property
    def folder(self) -> str: ...

    @property
    def layout(self) -> str: ...


def require_one_source(source: ImageSource) -> None:
    """Raise ConfigError unless images come from a manifest or from a folder, which is read by a layout that needs no
    columns."""
    if bool(source.manifest) == bool(source.folder):
        raise ConfigError("give either 'manifest' or 'folder', and not both")
    if source.layout and source.layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{source.layout}'{did_you_mean(source.layout, LAYOUTS)}")
    if source.layout == "csv":
        raise ConfigError("layout 'csv' needs column names; make a manifest with thoraclip index and give 'manifest'")


def folder_layout(source: ImageSource) -> str:
    """The layout of the folder, as set or as found out."""
    return source.layout or detect_layout(Path(source.folder))


def index_folder(
    source: ImageSource, out: Path, *, progress: Progress | None = None
) -> tuple[Manifest, tuple[tuple[str, str], ...]]:
    """Index the folder; `manifest.facts.jsonl` and `manifest.index.json` in `out` keep what was read.

    Returns:
        The manifest, and (path, reason) of every image that cannot be used.
    """
    indexed = index(
        Path(source.folder), layout=folder_layout(source), facts=out / "manifest.facts.jsonl", progress=progress
    )
    write_index_report(out / "manifest.index.json", indexed)
    return indexed.manifest, tuple(indexed.set_aside)


def list_images(source: ImageSource) -> Manifest:
    """The images, sorted by id, without opening one: of a folder, the files are listed. It may leak.

    Raises:
        InputError: the folder has no image.
    """
    if source.manifest:
        return read_manifest(Path(source.manifest), may_leak=True)
    root = Path(source.folder)
    rows = find_layout(folder_layout(source))(root).rows
    if not rows:
        raise InputError(f"{root}: no picture can be used; give every class a sub-folder of its own")
    return Manifest.from_rows(sorted(rows, key=lambda row: str(row["image_id"])), root.resolve(), may_leak=True)
