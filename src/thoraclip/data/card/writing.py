"""Write the card and the record beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thoraclip.data.card.croissant import croissant_record
from thoraclip.data.card.facts import data_facts
from thoraclip.data.card.markdown import data_card
from thoraclip.data.card.settings import CardSettings
from thoraclip.runs import write_json, write_text
from thoraclip.tables.manifest import Manifest

__all__ = ["write_card"]


def write_card(
    manifest_file: Path,
    manifest: Manifest,
    settings: CardSettings,
    out: Path,
    *,
    check: Mapping[str, Any] | None = None,
) -> None:
    """Write `data-card.md` and `croissant.json` into a folder.

    Args:
        manifest_file: the Parquet file that holds `manifest`; the record names it and its SHA-256.
        manifest: the images.
        settings: what the user adds.
        out: the folder.
        check: findings of a check; see `data_card`.
    """
    facts = data_facts(manifest)
    record = croissant_record(manifest, manifest_file, settings, content_url=_address(manifest_file, out), facts=facts)
    write_text(out / "data-card.md", data_card(facts, settings, check))
    write_json(out / "croissant.json", record)


def _address(manifest_file: Path, out: Path) -> str:
    """The manifest as seen from the record: in its folder or in the one above; else its bare name, to be copied there."""
    file, folder = manifest_file.resolve(), out.resolve()
    if file.is_relative_to(folder):
        return file.relative_to(folder).as_posix()
    return f"../{file.name}" if file.parent == folder.parent else file.name
