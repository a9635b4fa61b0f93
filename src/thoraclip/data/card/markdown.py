"""Draw the facts as a data card in Markdown (GitHub's dialect)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thoraclip.data.card.cautions import percent
from thoraclip.data.card.settings import NOT_STATED, CardSettings
from thoraclip.pages import counted, environment, escape_markdown

__all__ = ["data_card", "summary"]


def data_card(facts: Mapping[str, Any], settings: CardSettings, check: Mapping[str, Any] | None = None) -> str:
    """The data card.

    Args:
        facts: see `data_facts`.
        settings: what the user adds.
        check: findings of a check; the sentences under `leaks` and `warnings` are listed as they are.
    """
    listed = None if check is None else {key: list(check.get(key) or ()) for key in ("leaks", "warnings")}
    found = environment(
        "thoraclip.data.card", html=False, named=_named, n="{:,}".format, percent=percent, spread=_spread
    )
    page = found.get_template("data-card.md.j2").render(
        facts=facts, settings=settings, check=listed, summary=summary(facts), not_stated=NOT_STATED
    )
    return re.sub(r"\n{3,}", "\n\n", page)


def summary(facts: Mapping[str, Any]) -> str:
    """One sentence: how many images, of which classes, of how many known patients."""
    classes = ", ".join(f"{c['label']} {c['images']:,}" for c in facts["classes"])
    if facts["unlabelled"]:
        classes = ", ".join(filter(None, (classes, f"without a label {facts['unlabelled']:,}")))
    patients = facts["patients"]
    if patients["known"]:
        of = f"{counted(patients['patients'], 'known patient')}"
        lack = f"; the patient of {counted(patients['unknown'], 'image')} is unknown" if patients["unknown"] else ""
    else:
        of, lack = "unknown patients", ""
    return f"{counted(facts['images'], 'chest X-ray image')} ({classes}) of {of}{lack}."


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
