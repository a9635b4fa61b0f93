"""The data card in Markdown (GitHub's dialect), and the Croissant record beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thoraclip.cards.cautions import percent
from thoraclip.cards.croissant import NOT_STATED, CardSettings, croissant_record
from thoraclip.cards.facts import data_facts, summary
from thoraclip.pages import environment, escape_markdown, without_gaps
from thoraclip.runs import write_json, write_text, writes, written_together
from thoraclip.tables.manifest import Manifest

__all__ = ["data_card", "write_card"]


def data_card(facts: Mapping[str, Any], settings: CardSettings, check: Mapping[str, Any] | None = None) -> str:
    """The data card; of the findings of a check, the sentences under `leaks` and `warnings` are listed as they are."""
    listed = None if check is None else {key: list(check.get(key) or ()) for key in ("leaks", "warnings")}
    found = environment("thoraclip.cards", html=False, named=_named, n="{:,}".format, percent=percent, spread=_spread)
    page = found.get_template("data-card.md.j2").render(
        facts=facts, settings=settings, check=listed, summary=summary(facts), not_stated=NOT_STATED
    )
    return without_gaps(page)


def _named(value: object, null: str = "unknown") -> str:
    """A name in a table; null and the empty text are set off from names that look like them."""
    if value is None:
        return f"*{null}*"
    return escape_markdown(value) or "*empty text*"


def _spread(values: Mapping[str, float] | None) -> str:
    """`median [q1, q3], min to max`; one number where all values are equal."""
    if values is None:
        return "\u2013"
    shown = {name: f"{value:,.2f}".rstrip("0").rstrip(".") for name, value in values.items()}
    if shown["min"] == shown["max"]:
        return shown["median"]
    return f"{shown['median']} [{shown['q1']}, {shown['q3']}], {shown['min']} to {shown['max']}"


@writes()
def write_card(
    manifest_file: Path | str,
    manifest: Manifest,
    settings: CardSettings,
    out: Path | str,
    *,
    check: Mapping[str, Any] | None = None,
) -> None:
    """Write `data-card.md` and `croissant.json` into a folder.

    Args:
        manifest_file: the Parquet file that holds `manifest`; the record names it and its SHA-256.
        check: findings of a check; see `data_card`.
    """
    out, manifest_file = Path(out), Path(manifest_file)
    facts, file, folder = data_facts(manifest), manifest_file.resolve(), out.resolve()
    # the manifest as seen from the record: in its folder or in the one above; else its bare name, to be copied there
    url = f"../{file.name}" if file.parent == folder.parent else file.name
    if file.is_relative_to(folder):
        url = file.relative_to(folder).as_posix()
    record = croissant_record(manifest, manifest_file, settings, content_url=url, facts=facts)
    with written_together(out, "card"):
        write_text(out / "data-card.md", data_card(facts, settings, check))
        write_json(out / "croissant.json", record)
