"""Table and figure of docs/batch-or-loss.md from the reports of the two studies.

    python scripts/draw_batch_or_loss.py PHANTOM_STUDY [RADIOGRAPH_STUDY] --figure docs/batch-or-loss.svg

Prints the tables as Markdown. Rows are read from report.json by their settings: loss, batch_size (what is not there is at its default).
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
    "infonce": "InfoNCE",
    "unicl": "UniCL",
    "siglip": "SigLIP with labels",
    "prompt_ce": "prompt cross-entropy",
}
COLOURS = {"infonce": "#d55e00", "unicl": "#0072b2", "siglip": "#009e73", "prompt_ce": "#cc79a7"}


def cells(study: Path) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, dict[str, Any]]]:
    """(loss, batch) -> macro F1 of that fine-tuning; name -> macro F1 of every other row."""
    tuned, others = {}, {}
    for row in json.loads((study / "report.json").read_text(encoding="utf-8"))["methods"]:
        settings = row.get("settings") or {}
        if row["kind"] == "finetune":
            key = (settings.get("loss", Config.loss), int(settings.get("batch_size", Config.batch_size)))
            tuned[key] = row["metrics"]["macro_f1"]
        else:
            others[row["name"]] = row["metrics"]["macro_f1"]
    return tuned, others


def cell(value: dict[str, Any]) -> str:
    spread = f" ± {100 * value['seed_sd']:.1f}" if value.get("seed_sd") is not None else ""
    return f"{100 * value['value']:.1f}{spread} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def table(tuned: dict[tuple[str, int], dict[str, Any]], others: dict[str, dict[str, Any]]) -> str:
    batches = sorted({batch for _, batch in tuned})
    lines = ["| loss | " + " | ".join(f"batch {batch:,}" for batch in batches) + " |", "|---|" + "---|" * len(batches)]
    for loss, name in LOSSES.items():
        if any((loss, batch) in tuned for batch in batches):
            found = [cell(tuned[loss, b]) if (loss, b) in tuned else "" for b in batches]
            lines.append(f"| {name} | " + " | ".join(found) + " |")
    lines += ["", *(f"{name}: {cell(value)}" for name, value in others.items() if name != "majority")]
    return "\n".join(lines)


def figure(studies: list[tuple[str, Path]], out: Path) -> None:
    with matplotlib.rc_context(
        {"font.size": 9, "svg.hashsalt": "batch", "axes.spines.top": False, "axes.spines.right": False}
    ):
        drawing = Figure(figsize=(4.2 * len(studies), 3.4), layout="constrained")
        for axes, (title, study) in zip(drawing.subplots(1, len(studies), squeeze=False)[0], studies, strict=True):
            tuned, others = cells(study)
            batches = sorted({batch for _, batch in tuned})
            for number, (loss, name) in enumerate(LOSSES.items()):
                own = [b for b in batches if (loss, b) in tuned]
                values = [tuned[loss, b] for b in own]
                if own:
                    shifted = [b * 1.05 ** (number - 1.5) for b in own]  # intervals side by side
                    low, mean, high = (100 * np.array([v[k] for v in values]) for k in ("low", "value", "high"))
                    style = {"color": COLOURS[loss], "label": name, "capsize": 2, "markersize": 4, "linewidth": 1.3}
                    axes.errorbar(shifted, mean, yerr=[mean - low, high - mean], fmt="o-", **style)
                    for x, value in zip(shifted, values, strict=True):
                        seeds = [100 * seed for seed in value.get("per_seed") or []]
                        axes.plot([x] * len(seeds), seeds, "_", color=COLOURS[loss], markersize=7, alpha=0.6)
            for (name, value), dash in zip(
                ((n, v) for n, v in others.items() if n != "majority"), ("--", ":"), strict=False
            ):
                axes.axhline(100 * value["value"], color="#5b6875", linewidth=1, linestyle=dash)
                below = value["value"] < 0.5  # where the lines of the losses are not
                place = (batches[-1], 100 * value["value"] + (-1 if below else 1))
                axes.annotate(name, place, fontsize=7.5, color="#5b6875", ha="right", va="top" if below else "bottom")
            axes.set_xscale("log", base=2)
            axes.set_xticks(batches, [f"{b:,}" for b in batches])
            axes.minorticks_off()
            axes.set(xlabel="batch size (pairs)", ylabel="zero-shot macro F1 (%)", title=title, ylim=(0, 100))
            axes.grid(color="#d5dbe1", linewidth=0.5, axis="y")
        drawing.axes[0].legend(fontsize=8, frameon=False, loc="lower left")
        drawing.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantoms", type=Path)
    parser.add_argument("radiographs", type=Path, nargs="?")
    parser.add_argument("--figure", type=Path, default=Path("docs/batch-or-loss.svg"))
    arguments = parser.parse_args()
    studies = [("phantoms, tiny-clip", arguments.phantoms)]
    if arguments.radiographs:
        studies.append(("radiographs, DINOv2 + MiniLM", arguments.radiographs))
    for title, study in studies:
        print(f"{title}\n\n{table(*cells(study))}\n")
    figure(studies, arguments.figure)
    print(f"wrote {arguments.figure}")


if __name__ == "__main__":
    main()
