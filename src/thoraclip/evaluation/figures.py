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
from thoraclip.evaluation.shortcuts import VERDICTS

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
    "figure.facecolor": "white",
    "svg.fonttype": "none",
}
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


@contextmanager
def _style() -> Iterator[None]:
    """Our settings on top of Matplotlib's defaults, whatever the user's matplotlibrc says; undone at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def shorten(text: str, length: int = 30) -> str:
    """One line of at most `length` characters, ending in an ellipsis where something is missing."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "\u2026"


def forest_figure(methods: Sequence[Entry], *, best: str, tied: Sequence[str]) -> str:
    """The main metric of every method with its interval; filled marks cannot be told apart from the best.

    Args:
        methods: entries of the report, top row first.
        best: name of the best method.
        tied: names of those that cannot be told apart from it.
    """
    with _style():
        figure = _figure(9.4, 0.62 + 0.34 * len(methods))
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            _forest_row(axes, row, entry, leading=entry["name"] == best or entry["name"] in tied)
        _name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval")
        return _svg(figure, "forest")


def _name_rows(axes: Axes, names: Sequence[str], x: str) -> None:
    """A row for each name, the first one on top, over a horizontal axis with light lines."""
    axes.set_yticks(range(len(names)), [shorten(name, 48) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(x)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _forest_row(axes: Axes, row: int, entry: Entry, *, leading: bool) -> None:
    found = entry["metrics"][MAIN_METRIC]
    value = 100 * found["value"]
    low, high = (value if found[k] is None else 100 * found[k] for k in ("low", "high"))
    colour = _SOFT if entry["name"] == MAJORITY else _ACCENT
    axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(
        [value],
        [row],
        "o",
        markersize=7,
        color=colour,
        markerfacecolor=colour if leading else "white",
        markeredgewidth=1.6,
    )
    axes.annotate(
        f"{value:.1f}", (high, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5, color=_INK
    )


def confusion_figure(entry: Entry, classes: Sequence[str]) -> str:
    """Counts of one method; colour is the share of the row (the true class)."""
    cells = np.asarray(entry["confusion"], dtype=np.float64)
    sums = cells.sum(axis=1, keepdims=True)
    shares = np.divide(cells, sums, out=np.zeros_like(cells), where=sums > 0)
    names, size = [shorten(name, 20) for name in classes], len(classes)
    with _style():
        figure = _figure(1.45 + 0.5 * size, 1.1 + 0.42 * size)
        axes = figure.add_subplot()
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        for true in range(size):
            for predicted in range(size):
                dark = shares[true, predicted] > 0.55
                axes.text(
                    predicted + 0.5,
                    true + 0.5,
                    f"{cells[true, predicted]:.0f}",
                    ha="center",
                    va="center",
                    color="white" if dark else _INK,
                    fontsize=9,
                )
        places = np.arange(size) + 0.5
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=30, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.set_ylim(size, 0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return _svg(figure, f"confusion {entry['name']}")


def reliability_figure(entry: Entry) -> str:
    """Accuracy against confidence in equal-mass bins with Wilson intervals; on the diagonal is calibrated.

    Where a temperature was fitted, the bins after scaling stand beside those before.
    """
    after = (entry.get("trust") or {}).get("after_temperature")
    with _style():
        figure = _figure(2.95, 3.0 if after else 2.7)
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
        _draw_bins(axes, entry["calibration"], label="as given", color=_ACCENT, ecolor="#8fb8d4")
        if after:
            _draw_bins(
                axes, after["bins"], label="after temperature scaling", color=_COLOURS[1], ecolor="#eebd99", hollow=True
            )
            figure.legend(
                loc="outside lower center", ncols=2, fontsize=7.5, frameon=False, handletextpad=0.2, columnspacing=1.0
            )
        _percent_axes(axes, "score of the predicted class (%)", "right (%)")
        return _svg(figure, f"reliability {entry['name']}")


def _draw_bins(axes: Axes, bins: Sequence[Entry], *, label: str, color: str, ecolor: str, hollow: bool = False) -> None:
    confidence, accuracy = (np.array([b[k] for b in bins]) * 100 for k in ("confidence", "accuracy"))
    errors = np.array([[b["accuracy"] - b["low"], b["high"] - b["accuracy"]] for b in bins]).T * 100
    look: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 1.1}
    axes.errorbar(
        confidence,
        accuracy,
        yerr=np.maximum(errors, 0),
        fmt="D" if hollow else "o",
        markersize=3.4 if hollow else 4,
        color=color,
        elinewidth=1.1,
        ecolor=ecolor,
        label=label,
        **(look if hollow else {"markeredgecolor": "white", "markeredgewidth": 0.5}),
    )


def selective_figure(methods: Sequence[Entry]) -> str:
    """Accuracy of the answers given, against the share of images that is answered, most confident first; a line a
    method.

    Args:
        methods: entries of the report that have `trust`.
    """
    with _style():
        figure = _figure(9.0, max(3.1, 1.2 + 0.2 * len(methods)))
        axes = figure.add_subplot()
        for number, entry in enumerate(methods):
            curve = entry["trust"]["selective"]["curve"]
            axes.plot(
                np.array(curve["coverage"]) * 100,
                np.array(curve["accuracy"]) * 100,
                linewidth=1.6,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],
                label=shorten(entry["name"], 42),
            )
        axes.set(xlim=(0, 101), xlabel="answered, the most confident first (%)", ylabel="right among the answered (%)")
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(101.0, high))
        axes.grid(color=_LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False, handlelength=2.6)
        return _svg(figure, "selective")


def roc_figure(methods: Sequence[Entry], label: str) -> str:
    """ROC curves of one class against the rest, one line per method (the majority row has none)."""
    with _style():
        figure = _figure(3.4, 3.2 + 0.17 * sum(m["name"] != MAJORITY for m in methods))
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=_SOFT, linewidth=1, linestyle=(0, (4, 3)))
        drawn = [m for m in methods if m["name"] != MAJORITY and m["roc"][label] is not None]
        for number, entry in enumerate(drawn):
            curve, area = entry["roc"][label], entry["per_class"][label]["auroc"]["value"]
            axes.plot(
                np.array(curve["fpr"]) * 100,
                np.array(curve["tpr"]) * 100,
                linewidth=1.6,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],
                label=f"{100 * area:.1f}  {shorten(entry['name'], 42)}",
            )
        _percent_axes(axes, "false positive rate (%)", "sensitivity (%)")
        if drawn:
            figure.legend(loc="outside lower left", fontsize=7.5, frameon=False, handlelength=2.6, borderpad=0.8)
        return _svg(figure, f"roc {label}")


def dumbbell_figure(methods: Sequence[Entry], name: str) -> str:
    """The main metric of every method inside (circle) and on an external set (diamond), each with its interval.

    Args:
        methods: entries of the external set, top row first.
        name: of the set.
    """
    with _style():
        figure = _figure(9.4, 0.95 + 0.42 * len(methods))
        axes = figure.add_subplot()
        for row, entry in enumerate(methods):
            found = [entry[where][MAIN_METRIC] for where in ("inside", "metrics")]
            axes.plot(
                [100 * one["value"] for one in found],
                [row, row],
                color=_LINE,
                linewidth=5,
                solid_capstyle="round",
                zorder=1,
            )
            for one, place, marker, colour, label in zip(
                found, (row - 0.13, row + 0.13), "oD", (_SOFT, _ACCENT), ("inside", name), strict=True
            ):
                value = 100 * one["value"]
                ends = [value if one[end] is None else 100 * one[end] for end in ("low", "high")]
                axes.plot(ends, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
                axes.plot(
                    [value], [place], marker, markersize=6, color=colour, linestyle="none", label="" if row else label
                )
        _name_rows(axes, [m["name"] for m in methods], "macro F1 (%), 95 % interval")
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5, frameon=False, handletextpad=0.2)
        return _svg(figure, f"dumbbell {name}")


def audit_figure(tests: Sequence[Entry]) -> str:
    """Effect of every test of an audit with its interval, in the order of the tests; filled marks are positive.

    Args:
        tests: rows of `shortcuts.judge_trials`.
    """
    colours = {"strong": _COLOURS[1], "some": _COLOURS[4], "none": _ACCENT, "cannot_tell": _SOFT, "control": "#b3bcc5"}
    with _style():
        figure = _figure(9.4, 0.9 + 0.2 * len(tests))
        axes = figure.add_subplot()
        for row, test in enumerate(tests):
            colour = colours[test["verdict"]]
            axes.plot([100 * test["low"], 100 * test["high"]], [row, row], color=colour, linewidth=1.6)
            filled = test["verdict"] in {"strong", "some"}
            axes.plot(
                [100 * test["effect"]],
                [row],
                "o",
                markersize=5.5,
                color=colour,
                markeredgewidth=1.4,
                markerfacecolor=colour if filled else "white",
            )
        for at, dashes in ((0.0, "-"), (100 * _AUDIT_MARGIN, (0, (4, 3)))):
            axes.axvline(at, color=_SOFT, linewidth=0.9, linestyle=dashes, zorder=0)
        names = [t["name"].replace("-", " ") for t in tests]
        _name_rows(axes, names, "effect (points of balanced accuracy), 95 % interval")
        for verdict, name in VERDICTS.items():
            if any(t["verdict"] == verdict for t in tests):
                axes.plot(
                    [],
                    [],
                    "o",
                    color=colours[verdict],
                    label=name,
                    markersize=5.5,
                    markerfacecolor=colours[verdict] if verdict in {"strong", "some"} else "white",
                )
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
        return _svg(figure, "audit")


def training_figure(rows: Sequence[Entry], *, best_step: int, validated: str) -> str:
    """Loss and learning rate of every step above, validation macro F1 below; a mark where the kept weights are from.

    Args:
        rows: of `metrics.jsonl`: steps with `loss` and `learning_rate`, validations with `val_macro_f1`.
        best_step: of the weights that were kept.
        validated: what gave the validation's answers.
    """
    steps = [row for row in rows if "loss" in row]
    checks = [row for row in rows if "val_macro_f1" in row]
    with _style():
        figure = _figure(5.6, 3.9)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.plot([r["step"] for r in steps], [r["loss"] for r in steps], color=_ACCENT, linewidth=1.1)
        above.set(ylabel="training loss (nats)")
        rate = above.twinx()
        rate.plot(
            [r["step"] for r in steps],
            [r["learning_rate"] for r in steps],
            color=_SOFT,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
        rate.set(ylabel="learning rate (dashed)", ylim=(0, None))
        rate.spines["right"].set_visible(True)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for number, (key, name) in enumerate((("val_macro_f1", validated), ("val_probe_macro_f1", "probe"))):
            found = [r for r in checks if key in r]
            if found:
                below.plot(
                    [r["step"] for r in found],
                    [100 * r[key] for r in found],
                    "o-",
                    markersize=3.5,
                    linewidth=1.2,
                    color=_COLOURS[number],
                    label=name,
                )
        below.axvline(
            best_step, color=_COLOURS[1], linewidth=1, linestyle=(0, (1.5, 1.5)), label=f"kept: step {best_step}"
        )
        below.set(xlabel="optimizer step", ylabel="validation F1 (%)", ylim=(0, 102))
        below.legend(loc="lower right", fontsize=7.5, frameon=False)
        for axes in (above, below):
            axes.grid(color=_LINE, linewidth=0.5)
        return _svg(figure, "training")


def _percent_axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks(range(0, 101, 25))
    axes.set_yticks(range(0, 101, 25))
    axes.grid(color=_LINE, linewidth=0.5)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> Figure:
    """A figure of so many inches that makes room for its labels."""
    return Figure(figsize=(width, height), layout="constrained")


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
