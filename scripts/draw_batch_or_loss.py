"""Table and figure of docs/batch-or-loss.md from the reports of the two studies.

    python scripts/draw_batch_or_loss.py PHANTOM_STUDY [RADIOGRAPH_STUDY] --figure docs/batch-or-loss.svg

Prints the tables as Markdown. Rows are read from report.json by their settings: loss, batch_size (what is not there is
at its default).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from thoraclip.methods.finetune import Config

LOSSES = {
    "infonce": ("InfoNCE", "#d55e00"),
    "unicl": ("UniCL", "#0072b2"),
    "siglip": ("SigLIP with labels", "#009e73"),
    "prompt_ce": ("prompt cross-entropy", "#cc79a7"),
}
"""Name and colour."""
Values = dict[str, Any]
"""A macro F1: value, low, high, and where there are several seeds seed_sd and per_seed."""


def cells(study: Path) -> tuple[dict[tuple[str, int], Values], dict[str, Values]]:
    """((loss, batch) -> macro F1 of that fine-tuning, name -> macro F1 of every other row but the majority)."""
    tuned, others = {}, {}
    for row in json.loads((study / "report.json").read_text(encoding="utf-8"))["methods"]:
        settings, found = row.get("settings") or {}, row["metrics"]["macro_f1"]
        if row["kind"] == "finetune":
            batch = int(settings.get("batch_size", Config.batch_size))
            tuned[settings.get("loss", Config.loss), batch] = found
        elif row["name"] != "majority":
            others[row["name"]] = found
    return tuned, others


def cell(found: Values) -> str:
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    spread = f" ± {100 * found['seed_sd']:.1f}" if found.get("seed_sd") is not None else ""
    return f"{value:.1f}{spread} [{low:.1f}, {high:.1f}]"


def table(study: Path) -> str:
    tuned, others = cells(study)
    batches = sorted({batch for _, batch in tuned})
    lines = [
        "| loss | " + " | ".join(f"batch {batch:,}" for batch in batches) + " |",
        "|---" * (len(batches) + 1) + "|",
    ]
    for loss, (name, _) in LOSSES.items():
        found = [cell(tuned[loss, b]) if (loss, b) in tuned else "" for b in batches]
        lines += [f"| {name} | {' | '.join(found)} |"] if any(found) else []
    return "\n".join([*lines, "", *(f"{name}: {cell(value)}" for name, value in others.items())])


def draw(axes: Any, title: str, study: Path) -> None:
    """The losses of a study by their batches."""
    tuned, others = cells(study)
    batches = sorted({batch for _, batch in tuned})
    for number, (loss, (name, colour)) in enumerate(LOSSES.items()):
        own = [b for b in batches if (loss, b) in tuned]
        if not own:
            continue
        values = [tuned[loss, b] for b in own]
        shifted = [b * 1.05 ** (number - 1.5) for b in own]  # intervals side by side
        low, mean, high = (100 * np.array([v[k] for v in values]) for k in ("low", "value", "high"))
        style = {"color": colour, "label": name, "capsize": 2, "markersize": 4, "linewidth": 1.3}
        axes.errorbar(shifted, mean, yerr=[mean - low, high - mean], fmt="o-", **style)
        for x, value in zip(shifted, values, strict=True):
            seeds = [100 * seed for seed in value.get("per_seed") or []]
            axes.plot([x] * len(seeds), seeds, "_", color=colour, markersize=7, alpha=0.6)
    grey = "#5b6875"
    for (name, found), dash in zip(others.items(), ("--", ":"), strict=False):
        percent, below = 100 * found["value"], found["value"] < 0.5  # where the lines of the losses are not
        axes.axhline(percent, color=grey, linewidth=1, linestyle=dash)
        side = {"va": "top" if below else "bottom", "ha": "right"}
        axes.annotate(name, (batches[-1], percent + (-1 if below else 1)), fontsize=7.5, color=grey, **side)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{b:,}" for b in batches])
    axes.minorticks_off()
    axes.set(xlabel="batch size (pairs)", ylabel="zero-shot macro F1 (%)", title=title, ylim=(0, 100))
    axes.grid(color="#d5dbe1", linewidth=0.5, axis="y")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantoms", type=Path)
    parser.add_argument("radiographs", type=Path, nargs="?")
    parser.add_argument("--figure", type=Path, default=Path("docs/batch-or-loss.svg"))
    given = parser.parse_args()
    titles = {"phantoms, tiny-clip": given.phantoms, "radiographs, DINOv2 + MiniLM": given.radiographs}
    studies = {title: study for title, study in titles.items() if study}
    look = {"font.size": 9, "svg.hashsalt": "batch", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(look):
        drawing = Figure(figsize=(4.2 * len(studies), 3.4), layout="constrained")
        panels = drawing.subplots(1, len(studies), squeeze=False)[0]
        for axes, (title, study) in zip(panels, studies.items(), strict=True):
            print(f"{title}\n\n{table(study)}\n")
            draw(axes, title, study)
        panels[0].legend(fontsize=8, frameon=False, loc="lower left")
        drawing.savefig(given.figure, metadata={"Date": None})
    print(f"wrote {given.figure}")


if __name__ == "__main__":
    main()
