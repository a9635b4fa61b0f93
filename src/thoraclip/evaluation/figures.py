"""Figures as SVG text: those of the report, drawn from `report.json` alone, and the curves of a training.

Matplotlib's object-oriented interface: no pyplot, no global state. The same report gives the same bytes. Colours are
those of Okabe & Ito (2008), told apart with every common colour vision; a white background keeps them readable
in print and on a dark page.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thoraclip.evaluation.reading import MAIN_METRIC
from thoraclip.evaluation.results import MAJORITY
from thoraclip.evaluation.shortcuts import MARGIN as _AUDIT_MARGIN
from thoraclip.evaluation.shortcuts import POSITIVE, VERDICTS

__all__ = [
    "audit_figure",
    "confusion_figure",
    "dumbbell_figure",
    "forest_figure",
    "reliability_figure",
    "roc_figure",
    "selective_figure",
    "shorten",
    "training_figure",
]

Entry = Mapping[str, Any]

_INK, _SOFT, _LINE, _ACCENT = "#1b2733", "#5b6875", "#d5dbe1", "#0072b2"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b2733")
_DASHED = (0, (4, 3))
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
}
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches that makes room for its labels, in our settings whatever the user's matplotlibrc
    says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width, height), layout="constrained")


def shorten(text: str, length: int = 30) -> str:
    """One line of at most `length` characters, ending in an ellipsis where something is missing."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "\u2026"


def forest_figure(methods: Sequence[Entry], *, best: str, tied: Sequence[str]) -> str:
    """The main metric of every method, top row first, with its interval; filled: the best, and those tied with it."""
    with _figure(9.4, 0.62 + 0.34 * len(methods)) as figure:
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            colour = _SOFT if entry["name"] == MAJORITY else _ACCENT
            fill = colour if entry["name"] in (best, *tied) else "white"
            mark = {"markersize": 7, "markeredgewidth": 1.6, "markerfacecolor": fill}
            value, high = _interval(axes, entry["metrics"][MAIN_METRIC], row, "o", colour, linewidth=2, **mark)
            axes.annotate(
                f"{value:.1f}", (high, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        _name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval")
        return _svg(figure, "forest")


def _interval(
    axes: Axes, entry: Entry, row: float, marker: str, colour: str, *, linewidth: float, **mark: Any
) -> tuple[float, float]:
    """A value in per cent as a mark on its interval; (the value, the upper end)."""
    value = 100 * entry["value"]
    low, high = (value if entry[end] is None else 100 * entry[end] for end in ("low", "high"))
    axes.plot([low, high], [row, row], color=colour, linewidth=linewidth, solid_capstyle="butt")
    axes.plot([value], [row], marker, color=colour, **mark)
    return value, high


def _name_rows(axes: Axes, names: Sequence[str], x: str) -> None:
    """A row for each name, the first one on top, over a horizontal axis with light lines."""
    axes.set_yticks(range(len(names)), [shorten(name, 48) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(x)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def confusion_figure(entry: Entry, classes: Sequence[str]) -> str:
    """Counts of one method; colour is the share of the row (the true class)."""
    cells = np.asarray(entry["confusion"], dtype=np.float64)
    sums = cells.sum(axis=1, keepdims=True)
    shares = np.divide(cells, sums, out=np.zeros_like(cells), where=sums > 0)
    names, size = [shorten(name, 20) for name in classes], len(classes)
    with _figure(1.45 + 0.5 * size, 1.1 + 0.42 * size) as figure:
        axes = figure.add_subplot()
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        for (true, predicted), count in np.ndenumerate(cells):
            colour = "white" if shares[true, predicted] > 0.55 else _INK
            axes.text(predicted + 0.5, true + 0.5, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=9)
        places = np.arange(size) + 0.5
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.set(ylim=(size, 0), xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        return _svg(figure, f"confusion {entry['name']}")


def reliability_figure(entry: Entry) -> str:
    """Accuracy against confidence in equal-mass bins with intervals; on the diagonal is calibrated.

    Where a temperature was fitted, the bins after scaling stand beside those before.
    """
    after = (entry.get("trust") or {}).get("after_temperature")
    with _figure(2.95, 3.0 if after else 2.7) as figure:
        axes = figure.add_subplot()
        _percent_axes(axes, "score of the predicted class (%)", "right (%)")
        filled = {"fmt": "o", "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.5}
        _draw_bins(axes, entry["calibration"], label="as given", color=_ACCENT, ecolor="#8fb8d4", **filled)
        if after:
            hollow = {"fmt": "D", "markersize": 3.4, "markerfacecolor": "white", "markeredgewidth": 1.1}
            colours = {"color": _COLOURS[1], "markeredgecolor": _COLOURS[1], "ecolor": "#eebd99"}
            _draw_bins(axes, after["bins"], label="after temperature scaling", **hollow, **colours)
            figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, handletextpad=0.2, columnspacing=1.0)
        return _svg(figure, f"reliability {entry['name']}")


def _draw_bins(axes: Axes, bins: Sequence[Entry], **look: Any) -> None:
    keys = ("confidence", "accuracy", "low", "high")
    confidence, accuracy, low, high = (np.array([one[key] for one in bins]) for key in keys)
    errors = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar(100 * confidence, 100 * accuracy, yerr=100 * errors, elinewidth=1.1, **look)


def selective_figure(methods: Sequence[Entry]) -> str:
    """Accuracy of the answers given, against the share of images that is answered, most confident first; a line for
    each method that has `trust`."""
    with _figure(9.0, max(3.1, 1.2 + 0.2 * len(methods))) as figure:
        axes = figure.add_subplot()
        for number, entry in enumerate(methods):
            curve = entry["trust"]["selective"]["curve"]
            _curve(axes, number, curve["coverage"], curve["accuracy"], shorten(entry["name"], 42))
        axes.set(xlim=(0, 101), xlabel="answered, the most confident first (%)", ylabel="right among the answered (%)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(101.0, high))
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=8, handlelength=2.6)
        return _svg(figure, "selective")


def roc_figure(methods: Sequence[Entry], label: str) -> str:
    """ROC curves of one class against the rest, one line per method (the majority row has none)."""
    real = [m for m in methods if m["name"] != MAJORITY]
    drawn = [m for m in real if m["roc"][label] is not None]
    with _figure(3.4, 3.2 + 0.17 * len(real)) as figure:
        axes = figure.add_subplot()
        _percent_axes(axes, "false positive rate (%)", "sensitivity (%)")
        for number, entry in enumerate(drawn):
            curve, area = entry["roc"][label], entry["per_class"][label]["auroc"]["value"]
            _curve(axes, number, curve["fpr"], curve["tpr"], f"{100 * area:.1f}  {shorten(entry['name'], 42)}")
        if drawn:
            figure.legend(loc="outside lower left", fontsize=7.5, handlelength=2.6, borderpad=0.8)
        return _svg(figure, f"roc {label}")


def _curve(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """The curve of one method, shares in per cent."""
    colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    axes.plot(np.array(x) * 100, np.array(y) * 100, linewidth=1.6, color=colour, linestyle=dashes, label=label)


def dumbbell_figure(methods: Sequence[Entry], name: str) -> str:
    """The main metric of every method inside (circle) and on the external set `name` (diamond), with intervals."""
    with _figure(9.4, 0.95 + 0.42 * len(methods)) as figure:
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            inside, outside = (entry[where][MAIN_METRIC] for where in ("inside", "metrics"))
            ends = [100 * inside["value"], 100 * outside["value"]]
            axes.plot(ends, [row, row], color=_LINE, linewidth=5, solid_capstyle="round", zorder=1)
            labels = ("", "") if row else ("inside", name)
            _interval(axes, inside, row - 0.13, "o", _SOFT, linewidth=1.6, markersize=6, label=labels[0])
            _interval(axes, outside, row + 0.13, "D", _ACCENT, linewidth=1.6, markersize=6, label=labels[1])
        _name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5, handletextpad=0.2)
        return _svg(figure, f"dumbbell {name}")


def audit_figure(tests: Sequence[Entry]) -> str:
    """Effect of every test of an audit (rows of `shortcuts.judge_tests`) with its interval; filled: positive."""
    colours = {"strong": _COLOURS[1], "some": _COLOURS[4], "none": _ACCENT, "cannot_tell": _SOFT, "control": "#b3bcc5"}
    looks: dict[str, dict[str, Any]] = {
        verdict: {"color": colour, "markersize": 5.5} | ({} if verdict in POSITIVE else {"markerfacecolor": "white"})
        for verdict, colour in colours.items()
    }
    with _figure(9.4, 0.9 + 0.2 * len(tests)) as figure:
        axes = figure.add_subplot()
        for row, test in enumerate(tests):
            look = looks[test["verdict"]]
            axes.plot([100 * test["low"], 100 * test["high"]], [row, row], color=look["color"], linewidth=1.6)
            axes.plot([100 * test["effect"]], [row], "o", markeredgewidth=1.4, **look)
        axes.axvline(0, color=_SOFT, linewidth=0.9, zorder=0)
        axes.axvline(100 * _AUDIT_MARGIN, color=_SOFT, linewidth=0.9, linestyle=_DASHED, zorder=0)
        names = [t["name"].replace("-", " ") for t in tests]
        _name_rows(axes, names, "effect (points of balanced accuracy), 95 % interval")
        for verdict, name in VERDICTS.items():
            if any(t["verdict"] == verdict for t in tests):
                axes.plot([], [], "o", label=name, **looks[verdict])
        figure.legend(loc="outside lower center", ncols=5, fontsize=8)
        return _svg(figure, "audit")


def training_figure(rows: Sequence[Entry], *, best_step: int, validated: str) -> str:
    """Loss and learning rate of every step above, validation macro F1 below; a mark where the kept weights are from.

    Args:
        rows: of `metrics.jsonl`: steps with `loss` and `learning_rate`, validations with `val_macro_f1`.
        validated: what gave the validation's answers.
    """
    with _figure(5.6, 3.9) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.plot(*_steps(rows, "loss"), color=_ACCENT, linewidth=1.1)
        above.set(ylabel="training loss (nats)")
        rate = above.twinx()
        rate.plot(*_steps(rows, "learning_rate"), color=_SOFT, linewidth=1, linestyle=_DASHED)
        rate.set(ylabel="learning rate (dashed)", ylim=(0, None))
        rate.spines["right"].set_visible(True)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for number, (key, name) in enumerate({"val_macro_f1": validated, "val_probe_macro_f1": "probe"}.items()):
            steps, values = _steps(rows, key)
            if steps:
                percent = [100 * value for value in values]
                below.plot(steps, percent, "o-", markersize=3.5, linewidth=1.2, color=_COLOURS[number], label=name)
        kept = {"color": _COLOURS[1], "linewidth": 1, "linestyle": _DASHES[2], "label": f"kept: step {best_step}"}
        below.axvline(best_step, **kept)
        below.set(xlabel="optimizer step", ylabel="validation F1 (%)", ylim=(0, 102))
        below.legend(loc="lower right", fontsize=7.5)
        for axes in (above, below):
            axes.grid()
        return _svg(figure, "training")


def _steps(rows: Sequence[Entry], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have a key."""
    having = [row for row in rows if key in row]
    return [row["step"] for row in having], [row[key] for row in having]


def _percent_axes(axes: Axes, x: str, y: str) -> None:
    """Two axes from 0 to 100 % and their diagonal."""
    axes.plot([0, 100], [0, 100], color=_SOFT, linewidth=1, linestyle=_DASHED)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel=x, ylabel=y, aspect="equal")
    axes.set(xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    axes.grid()
    axes.set_axisbelow(True)


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an SVG element to put into HTML; `salt` keeps the ids of several figures apart."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # text stays text: the reader's fonts have it
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    prefix = f"f{zlib.crc32(salt.encode()):x}"
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', lambda m: f"{m.group(1)}{prefix}-", text)
    return text.replace("'DejaVu Sans'", _FONT_STACK).strip()
