"""Figures of one class against the rest: ROC, precision against recall, net benefit, the groups of patients; and the
curve of an adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from thoraclip.evaluation import drawing
from thoraclip.evaluation.drawing import ACCENT, COLOURS, DASHED, SOFT, Entry, percent_axes, plot_curve, shorten

__all__ = ["adaptation_figure", "groups_figure", "net_benefit_figure", "pr_figure", "roc_figure"]

_WIDTH = 3.4  # inches: legible on a telephone
_MOST_ROWS = 28
_MARKS: Mapping[str, Mapping[str, Any]] = {
    "sensitivity": {"marker": "o", "color": ACCENT, "markersize": 5},
    "specificity": {"marker": "D", "color": COLOURS[1], "markersize": 4.2, "markerfacecolor": "white"},
}


def adaptation_figure(entry: Entry, name: str) -> str:
    """Macro F1 of every method on the external set `name` against its labelled patients of each class in the training,
    with intervals, on a log2 axis that begins with none; dashed: the same classifiers inside. Hollow: a point whose
    interval counts no training."""
    methods = entry["methods"]
    found = {point["labels"] for method in methods for point in method["points"]}
    numbers = sorted(labels for labels in found if labels not in (0, "all"))
    counts = [count for count in entry["patients"].values() if count]
    place: dict[int | str, float] = {labels: float(labels) for labels in numbers}
    place[0] = min(numbers, default=2) / 2.5
    place["all"] = max(sum(counts) / len(counts), 1.6 * max(place.values()))
    ticks = [labels for labels in (0, *numbers, "all") if labels in found]
    with drawing.new_figure(5.6, 3.5 + 0.19 * len(methods)) as figure:
        axes = figure.add_subplot()
        for number, method in enumerate(methods):
            colour, shift = COLOURS[number % len(COLOURS)], 2 ** (0.09 * (number - (len(methods) - 1) / 2))
            x = [shift * place[point["labels"]] for point in method["points"]]
            outside, inside = ([100 * row["value"] for row in rows] for rows in (
                method["points"], [point["inside"] for point in method["points"]]))  # fmt: skip
            axes.plot(x, outside, color=colour, linewidth=1.6, label=shorten(method["name"], 60))
            axes.plot(x, inside, color=colour, linewidth=1.1, linestyle=DASHED)
            for at, point in zip(x, method["points"], strict=True):
                if point["low"] is not None:
                    axes.plot([at, at], [100 * point["low"], 100 * point["high"]], color=colour, linewidth=1.1)
                fill = colour if point["counts_training"] else "white"
                axes.plot([at], [100 * point["value"]], "o", color=colour, markersize=4.5, markerfacecolor=fill)
        axes.set_xscale("log", base=2)
        axes.set_xticks([place[labels] for labels in ticks], [str(labels) for labels in ticks])
        axes.minorticks_off()
        axes.set(xlabel=f"labelled {entry['unit']}s of each class from {shorten(name, 24)}", ylabel="macro F1 (%)")
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", fontsize=8, handlelength=2.6, borderpad=0.6)
        return drawing.svg(figure, f"adaptation {name}")


def roc_figure(methods: Sequence[Entry], label: str) -> str:
    """ROC curves, a line for each method, and the band of the first method."""
    with drawing.new_figure(_WIDTH, 3.2 + 0.17 * len(methods)) as figure:
        axes = figure.add_subplot()
        percent_axes(axes, "false positive rate (%)", "sensitivity (%)")
        for number, entry in enumerate(m for m in methods if m["roc"][label] is not None):
            curve, band = entry["roc"][label], entry["roc_band"][label]
            area = entry["per_class"][label]["auroc"]["value"]
            _shade(axes, number, band, "fpr")
            plot_curve(axes, number, curve["fpr"], curve["tpr"], f"{100 * area:.1f}  {shorten(entry['name'], 42)}")
        _legend(axes)
        return drawing.svg(figure, f"roc {label}")


def pr_figure(methods: Sequence[Entry], label: str, share: float) -> str:
    """Precision against recall, a step for each threshold, with the band of the first method; `share` of the images are
    of the class: the precision of guessing."""
    with drawing.new_figure(_WIDTH, 3.2 + 0.17 * len(methods)) as figure:
        axes = figure.add_subplot()
        percent_axes(axes, "recall: sensitivity (%)", "precision: PPV (%)", guess=([0, 100], [100 * share] * 2))
        for number, entry in enumerate(m for m in methods if m["pr"][label]):
            curve, area = entry["pr"][label], entry["per_class"][label]["average_precision"]["value"]
            _shade(axes, number, curve["band"], "recall")
            name = f"{100 * area:.1f}  {shorten(entry['name'], 42)}"
            recall, precision = [0.0, *curve["recall"]], [curve["precision"][0], *curve["precision"]]
            plot_curve(axes, number, recall, precision, name, drawstyle="steps-pre")
        _legend(axes)
        return drawing.svg(figure, f"pr {label}")


def net_benefit_figure(methods: Sequence[Entry], label: str) -> str:
    """Net benefit per 100 images over the threshold probability, with the band of the first method, beside treating all
    and treating nobody."""
    drawn = [m for m in methods if m["net_benefit"][label]]
    with drawing.new_figure(_WIDTH, 3.0 + 0.17 * (len(drawn) + 2)) as figure:
        axes = figure.add_subplot()
        if drawn:
            curve = drawn[0]["net_benefit"][label]
            at = 100 * np.array(curve["threshold"])
            axes.plot(at, 100 * np.array(curve["treat_all"]), color=SOFT, linewidth=1.1, label="treat all")
            axes.plot([0, 100], [0, 0], color=SOFT, linewidth=1.1, linestyle=DASHED, label="treat nobody")
            top = 100 * max(max(m["net_benefit"][label]["value"]) for m in drawn)
            axes.set_ylim(-0.22 * max(top, 1.0), 1.12 * max(top, 1.0))
        for number, entry in enumerate(drawn):
            curve = entry["net_benefit"][label]
            _shade(axes, number, curve if curve["low"] else None, "threshold")
            plot_curve(axes, number, curve["threshold"], curve["value"], shorten(entry["name"], 46))
        axes.set(xlim=(0, 100), xlabel="threshold probability (%)", ylabel="net benefit per 100 images")
        axes.grid()
        axes.set_axisbelow(True)
        _legend(axes)
        return drawing.svg(figure, f"net benefit {label}")


def groups_figure(columns: Sequence[Entry], label: str, point: str, overall: Entry) -> str:
    """Sensitivity and specificity of a class in every group (`subgroups` of a method, at a point of `subgroups.POINTS`)
    with intervals, and `overall`, of all images (lines); grey: too few patients to judge."""
    rows: list[tuple[str, Entry | None]] = []
    for column in columns:
        rows += [(column["column"], None), *((group["value"], group) for group in column["groups"])]
    rows = rows[:_MOST_ROWS]
    with drawing.new_figure(_WIDTH, 1.0 + 0.2 * len(rows)) as figure:
        axes = figure.add_subplot()
        for rate, look in _MARKS.items():
            axes.plot([], [], linestyle="", label=rate, **look)
            if (value := overall[rate]["value"]) is not None:
                axes.axvline(100 * value, color=look["color"], linewidth=0.8, linestyle=DASHED, zorder=0)
        for y, (_, group) in enumerate(rows):
            for offset, rate in ((-0.14, "sensitivity"), (0.14, "specificity")):
                if group is not None and group["classes"][label][point] is not None:
                    found = group["classes"][label][point][rate]
                    _rate(axes, found, y + offset, _MARKS[rate], judged=found["gap"] is not None)
        names = [name if group is None else f"{shorten(name, 16)} ({group['patients']:,})" for name, group in rows]
        axes.set_yticks(range(len(rows)), names)
        for text, (_, group) in zip(axes.get_yticklabels(), rows, strict=True):
            text.set(fontsize=8, fontweight="bold" if group is None else "normal")
        axes.set(xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6), xticks=range(0, 101, 25), xlabel="%, 95 % interval")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, handletextpad=0.2)
        return drawing.svg(figure, f"groups {point} {label}")


def _rate(axes: Axes, found: Entry, y: float, look: Mapping[str, Any], *, judged: bool) -> None:
    if found["value"] is None:
        return
    look = {**look, **({} if judged else {"color": "#a3b0bc"})}
    ends = [100 * found["low"], 100 * found["high"]]
    axes.plot(ends, [y, y], color=look["color"], linewidth=1.3, solid_capstyle="butt")
    axes.plot([100 * found["value"]], [y], **look)


def _shade(axes: Axes, number: int, band: Entry | None, x: str) -> None:
    """The band of the first method; those of all would hide each other."""
    if band is not None and number == 0:
        at, low, high = (100 * np.array(band[key], dtype=np.float64) for key in (x, "low", "high"))
        axes.fill_between(at, low, high, color=COLOURS[0], alpha=0.16, linewidth=0)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside lower left", fontsize=7.5, handlelength=2.6, borderpad=0.8)
