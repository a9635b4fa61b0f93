"""Encoders x heads: the table of a study that crosses encoders with methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.evaluation.reading import ALPHA, share_interval, versus

__all__ = ["with_encoders"]

_METRIC = "macro_f1"
_UNKNOWN = dict.fromkeys(("parameters", "dimension", "images_per_second", "precision"))
"""Costs of an encoder."""


def with_encoders(
    report: Mapping[str, Any], cells: Mapping[str, tuple[str, str]], costs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The report with `encoders`, and a sentence for every head near the top of its reading. A cell holds the method's
    macro F1 and the paired difference to the best encoder of the same head.

    Args:
        report: of `report.judge`.
        cells: method of the report -> (head, encoder).
        costs: encoder -> `parameters`, `dimension`, `images_per_second`, `precision`.
    """
    values = {m["name"]: m["metrics"][_METRIC] for m in report["methods"]}
    heads = list(dict.fromkeys(head for head, _ in cells.values()))
    best = {head: max((n for n in cells if cells[n][0] == head), key=lambda n: values[n]["value"]) for head in heads}
    rows: dict[str, dict[str, Any]] = {}
    for name, (head, encoder) in cells.items():
        row = rows.setdefault(encoder, {"encoder": encoder, **_UNKNOWN, **costs.get(encoder, {}), "cells": {}})
        behind = None if name == best[head] else versus(report["comparisons"], name, best[head], _METRIC)
        value = {key: values[name][key] for key in ("value", "low", "high")}
        row["cells"][head] = {"method": name, **value, "behind": behind}
    table = {"metric": _METRIC, "heads": heads, "best": best, "rows": list(rows.values())}
    compared = [head for head in heads if sum(head in row["cells"] for row in rows.values()) > 1]
    first, *rest = report["reading"]
    return {**report, "encoders": table, "reading": [first, *(_sentence(h, table) for h in compared), *rest]}


def _sentence(head: str, table: Mapping[str, Any]) -> str:
    """Which encoder is best for a head, and which cannot be told from it."""
    cells = {row["encoder"]: row["cells"][head] for row in table["rows"] if head in row["cells"]}
    own = next(encoder for encoder, cell in cells.items() if cell["behind"] is None)
    others = {encoder: cell["behind"]["p_holm"] for encoder, cell in cells.items() if encoder != own}
    tied = [encoder for encoder, p in others.items() if p is None or p >= ALPHA]
    lower = f"no difference from it is shown for {', '.join(tied)}" if tied else "each other one is lower"
    return f"{head}: of {len(cells)} encoders, {own} has the highest macro F1, {share_interval(cells[own])} %; {lower}."
