"""Figures as SVG text: those of the report, drawn from `report.json` alone, and the curves of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from thoraclip.evaluation import drawing
from thoraclip.evaluation.audit_reading import MARGIN, POSITIVE, label
from thoraclip.evaluation.drawing import ACCENT, COLOURS, DASHED, SOFT, Entry, percent_axes, plot_curve, shorten
from thoraclip.evaluation.learning_curve import labels_text, shots_columns
from thoraclip.evaluation.reading import MAIN_METRIC
from thoraclip.evaluation.results import MAJORITY

__all__ = [
    "audit_figure",
    "confusion_figure",
    "dumbbell_figure",
    "forest_figure",
    "learning_figure",
    "reliability_figure",
    "remedies_figure",
    "selective_figure",
    "training_figure",
]


def forest_figure(methods: Sequence[Entry], *, best: str, tied: Sequence[str]) -> str:
    """The main metric of every method, top row first, with its interval; filled: the best, and those tied with it."""
    with drawing.new_figure(4.6, 0.7 + 0.45 * len(methods)) as figure:
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            colour = SOFT if entry["name"] == MAJORITY else ACCENT
            fill = colour if entry["name"] in (best, *tied) else "white"
            mark = {"markersize": 7, "markeredgewidth": 1.6, "markerfacecolor": fill}
            f1 = entry["metrics"][MAIN_METRIC]
            value, high = drawing.plot_interval(axes, f1, row, "o", colour, linewidth=2, **mark)
            place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{value:.1f}", (high, row), fontsize=8.5, **place)
        drawing.name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval", above=True)
        return drawing.svg(figure, "forest")


def confusion_figure(entry: Entry, classes: Sequence[str]) -> str:
    """Counts of one method; colour is the share of the row (the true class)."""
    cells = np.asarray(entry["confusion"], dtype=np.float64)
    sums = cells.sum(axis=1, keepdims=True)
    shares = np.divide(cells, sums, out=np.zeros_like(cells), where=sums > 0)
    names, size = [shorten(name, 20) for name in classes], len(classes)
    with drawing.new_figure(1.45 + 0.5 * size, 1.1 + 0.42 * size) as figure:
        axes = figure.add_subplot()
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        for (true, predicted), count in np.ndenumerate(cells):
            colour = "white" if shares[true, predicted] > 0.55 else drawing.INK
            axes.text(predicted + 0.5, true + 0.5, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=9)
        places = np.arange(size) + 0.5
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.set(ylim=(size, 0), xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        return drawing.svg(figure, f"confusion {entry['name']}")


def reliability_figure(entry: Entry) -> str:
    """Accuracy against confidence in equal-mass bins with intervals; on the diagonal is calibrated.

    Where a temperature was fitted, the bins after scaling stand beside those before.
    """
    after = (entry.get("trust") or {}).get("after_temperature")
    with drawing.new_figure(2.95, 3.0 if after else 2.7) as figure:
        axes = figure.add_subplot()
        percent_axes(axes, "score of the predicted class (%)", "right (%)")
        filled = {"fmt": "o", "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.5}
        _draw_bins(axes, entry["calibration"], label="as given", color=ACCENT, ecolor="#8fb8d4", **filled)
        if after:
            hollow = {"fmt": "D", "markersize": 3.4, "markerfacecolor": "white", "markeredgewidth": 1.1}
            colours = {"color": COLOURS[1], "markeredgecolor": COLOURS[1], "ecolor": "#eebd99"}
            _draw_bins(axes, after["bins"], label="after temperature scaling", **hollow, **colours)
            figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, handletextpad=0.2, columnspacing=1.0)
        return drawing.svg(figure, f"reliability {entry['name']}")


def _draw_bins(axes: Axes, bins: Sequence[Entry], **look: Any) -> None:
    keys = ("confidence", "accuracy", "low", "high")
    confidence, accuracy, low, high = (np.array([one[key] for one in bins]) for key in keys)
    errors = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar(100 * confidence, 100 * accuracy, yerr=100 * errors, elinewidth=1.1, **look)


def selective_figure(methods: Sequence[Entry]) -> str:
    """Accuracy of the answers given, against the share of images that is answered, most confident first; a line for
    each method that has `trust`."""
    with drawing.new_figure(9.0, max(3.1, 1.2 + 0.2 * len(methods))) as figure:
        axes = figure.add_subplot()
        for number, entry in enumerate(methods):
            curve = entry["trust"]["selective"]["curve"]
            plot_curve(axes, number, curve["coverage"], curve["accuracy"], shorten(entry["name"], 42))
        axes.set(xlim=(0, 101), xlabel="answered, the most confident first (%)", ylabel="right among the answered (%)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(101.0, high))
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=8, handlelength=2.6)
        return drawing.svg(figure, "selective")


def dumbbell_figure(methods: Sequence[Entry], name: str) -> str:
    """The main metric of every method inside (circle) and on the external set `name` (diamond), with intervals."""
    with drawing.new_figure(4.6, 1.0 + 0.5 * len(methods)) as figure:
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            inside, outside = (entry[where][MAIN_METRIC] for where in ("inside", "metrics"))
            ends = [100 * inside["value"], 100 * outside["value"]]
            axes.plot(ends, [row, row], color=drawing.LINE, linewidth=5, solid_capstyle="round", zorder=1)
            labels = ("", "") if row else ("inside", name)
            drawing.plot_interval(axes, inside, row - 0.13, "o", SOFT, linewidth=1.6, markersize=6, label=labels[0])
            drawing.plot_interval(axes, outside, row + 0.13, "D", ACCENT, linewidth=1.6, markersize=6, label=labels[1])
        drawing.name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval", above=True)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5, handletextpad=0.2)
        return drawing.svg(figure, f"dumbbell {name}")


def remedies_figure(remedies: Entry, where: str) -> str:
    """The main metric inside against that on the external set `where`, with intervals: a point for each remedy, a
    colour for each method, filled without a remedy; on the dashed line, where it is in sight, nothing is lost."""
    rows = [row for row in remedies["rows"] if row["outside"][where]["value"] is not None]
    plain, places = list(dict.fromkeys(row["plain"] for row in rows)), list[tuple[float, float]]()
    with drawing.new_figure(6.0, max(3.6, 0.9 + 0.17 * len(rows)) + 0.19 * len(plain)) as figure:
        axes = figure.add_subplot()
        for row in rows:
            colour, is_plain = COLOURS[plain.index(row["plain"]) % len(COLOURS)], row["method"] == row["plain"]
            (x, left_right), (y, down_up) = (_percent(entry) for entry in (row["inside"], row["outside"][where]))
            fill, label = (colour, shorten(row["plain"], 48)) if is_plain else ("white", "")
            look: dict[str, Any] = {"color": colour, "elinewidth": 0.8, "markersize": 6, "markerfacecolor": fill}
            axes.errorbar(x, y, xerr=left_right, yerr=down_up, fmt="o", label=label, **look)
            places.append((x, y))
        ends, order = (axes.get_xlim(), axes.get_ylim()), sorted(range(len(rows)), key=lambda n: places[n][1])
        for rank, number in enumerate(order):  # names in a column beside the points, in their order
            line = {"arrowstyle": "-", "color": SOFT, "linewidth": 0.4}
            place: dict[str, Any] = {"xytext": (1.05, (rank + 0.5) / len(rows)), "textcoords": "axes fraction"}
            colour = COLOURS[plain.index(rows[number]["plain"]) % len(COLOURS)]
            text = shorten(rows[number]["remedy"])
            axes.annotate(text, places[number], fontsize=8, va="center", color=colour, arrowprops=line, **place)
        axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=DASHED)
        axes.set(xlim=ends[0], ylim=ends[1], xlabel="macro F1 inside (%)", ylabel=f"macro F1 on {shorten(where)} (%)")
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", fontsize=8)
        return drawing.svg(figure, f"remedies {where}")


def _percent(entry: Entry) -> tuple[float, list[list[float]]]:
    """A value in per cent, and how far the ends of its interval lie below and above."""
    value = float(entry["value"])
    low, high = (value if entry[end] is None else entry[end] for end in ("low", "high"))
    return 100 * value, [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]


def learning_figure(curve: Entry) -> str:
    """Macro F1 of every method against the labelled patients of each class, with intervals, on a log2 axis; all labels
    stand at the mean over the classes. Dashed and shaded: the best method that needs none."""
    methods = [method for method in curve["methods"] if method["points"]]
    columns, counts = shots_columns(curve), curve["labelled"].values()
    place: dict[int | str, float] = {shots: float(shots) for shots in columns if isinstance(shots, int)}
    place["all"] = max(sum(counts) / len(counts), 1.6 * max(place.values(), default=1.0))
    names = [f"all\n({labels_text(curve)})" if shots == "all" else str(shots) for shots in columns]
    step = min(0.09, 0.6 / max(1, len(methods)))
    with drawing.new_figure(5.6, 3.5 + 0.19 * (len(methods) + 1)) as figure:
        axes = figure.add_subplot()
        for number, method in enumerate(methods):
            _draw_learning(axes, number, method, place, shift=2 ** (step * (number - (len(methods) - 1) / 2)))
        for row in curve["untrained"]:
            if row["name"] == curve["floor"]:
                axes.axhline(100 * row["value"], color=SOFT, linewidth=1.2, linestyle=DASHED, label=row["name"])
                if row["low"] is not None:
                    axes.axhspan(100 * row["low"], 100 * row["high"], color=SOFT, alpha=0.1, linewidth=0, zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks([place[shots] for shots in columns], names)
        axes.minorticks_off()
        axes.set(xlabel=f"labelled {curve['unit']}s of each class", ylabel="macro F1 (%), 95 % interval")
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", fontsize=8, handlelength=2.6, borderpad=0.6)
        return drawing.svg(figure, "learning curve")


def _draw_learning(axes: Axes, number: int, method: Entry, place: Mapping[int | str, float], *, shift: float) -> None:
    """The curve of one method, moved aside by a factor so that intervals stand beside each other; hollow: a point whose
    interval counts no training."""
    x = np.array([shift * place[point["shots"]] for point in method["points"]])
    values = 100 * np.array([point["value"] for point in method["points"]])
    colour, dashes = COLOURS[number % len(COLOURS)], drawing.DASHES[number % len(drawing.DASHES)]
    axes.plot(x, values, color=colour, linestyle=dashes, linewidth=1.6, label=shorten(method["name"], 60))
    for at, point in zip(x, method["points"], strict=True):
        if point["low"] is not None:
            axes.plot([at, at], [100 * point["low"], 100 * point["high"]], color=colour, linewidth=1.1, alpha=0.75)
        fill = colour if point["counts_training"] else "white"
        axes.plot([at], [100 * point["value"]], "o", color=colour, markersize=4.5, markerfacecolor=fill)


def audit_figure(tests: Sequence[Entry]) -> str:
    """Effect of every test of an audit (rows of `shortcuts.with_verdicts`) with its interval; filled: positive."""
    colours = {"strong": COLOURS[1], "some": COLOURS[4], "none": ACCENT, "cannot_tell": SOFT}
    looks: dict[str, dict[str, Any]] = {}
    for test in tests:
        hollow = {} if test["verdict"] in POSITIVE else {"markerfacecolor": "white"}
        quiet = test["asks"] == "control" and test["verdict"] not in POSITIVE
        colour = "#b3bcc5" if quiet else colours[test["verdict"]]
        looks[label(test)] = {"color": colour, "markersize": 5.5} | hollow
    with drawing.new_figure(9.4, 0.9 + 0.2 * len(tests)) as figure:
        axes = figure.add_subplot()
        for row, test in enumerate(tests):
            look = looks[label(test)]
            axes.plot([100 * test["low"], 100 * test["high"]], [row, row], color=look["color"], linewidth=1.6)
            axes.plot([100 * test["effect"]], [row], "o", markeredgewidth=1.4, **look)
        axes.axvline(0, color=SOFT, linewidth=0.9, zorder=0)
        axes.axvline(100 * MARGIN, color=SOFT, linewidth=0.9, linestyle=DASHED, zorder=0)
        names = [t["name"].replace("-", " ") for t in tests]
        drawing.name_rows(axes, names, "effect (points of balanced accuracy), 95 % interval")
        for name, look in looks.items():
            axes.plot([], [], "o", label=name, **look)
        figure.legend(loc="outside lower center", ncols=5, fontsize=8)
        return drawing.svg(figure, "audit")


def training_figure(rows: Sequence[Entry], *, best_step: int, validated: str) -> str:
    """Loss and learning rate of every step above, validation macro F1 below; a mark where the kept weights are from.
    `rows` are of `metrics.jsonl`: steps with `loss` and `learning_rate`, validations with `val_macro_f1`; `validated`
    is what gave the validation's answers."""
    with drawing.new_figure(5.6, 3.9) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.plot(*_steps(rows, "loss"), color=ACCENT, linewidth=1.1)
        above.set(ylabel="training loss (nats)")
        rate = above.twinx()
        rate.plot(*_steps(rows, "learning_rate"), color=SOFT, linewidth=1, linestyle=DASHED)
        rate.set(ylabel="learning rate (dashed)", ylim=(0, None))
        rate.spines["right"].set_visible(True)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for number, (key, name) in enumerate({"val_macro_f1": validated, "val_probe_macro_f1": "probe"}.items()):
            steps, values = _steps(rows, key)
            if steps:
                percent = [100 * value for value in values]
                below.plot(steps, percent, "o-", markersize=3.5, linewidth=1.2, color=COLOURS[number], label=name)
        kept = {"color": COLOURS[1], "linewidth": 1, "linestyle": drawing.DASHES[2], "label": f"kept: step {best_step}"}
        below.axvline(best_step, **kept)
        below.set(xlabel="optimizer step", ylabel="validation F1 (%)", ylim=(0, 102))
        below.legend(loc="lower right", fontsize=7.5)
        for axes in (above, below):
            axes.grid()
        return drawing.svg(figure, "training")


def _steps(rows: Sequence[Entry], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a key."""
    having = [row for row in rows if key in row]
    return [row["step"] for row in having], [row[key] for row in having]
