"""What all figures share: settings, colours, axes, and the way to SVG text.

Matplotlib's object-oriented interface: no pyplot, no global state. The same figure gives the same bytes. Colours are
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

__all__ = [
    "ACCENT",
    "COLOURS",
    "DASHED",
    "DASHES",
    "INK",
    "LINE",
    "SOFT",
    "Entry",
    "name_rows",
    "new_figure",
    "percent_axes",
    "plot_curve",
    "plot_interval",
    "shorten",
    "svg",
]

Entry = Mapping[str, Any]

INK, SOFT, LINE, ACCENT = "#1b2733", "#5b6875", "#d5dbe1", "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b2733")
DASHED = (0, (4, 3))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
}
_FONT_STACK = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
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


def plot_interval(
    axes: Axes, entry: Entry, row: float, marker: str, colour: str, *, linewidth: float, **mark: Any
) -> tuple[float, float]:
    """A value in per cent as a mark on its interval; (the value, the upper end)."""
    value = 100 * entry["value"]
    low, high = (value if entry[end] is None else 100 * entry[end] for end in ("low", "high"))
    axes.plot([low, high], [row, row], color=colour, linewidth=linewidth, solid_capstyle="butt")
    axes.plot([value], [row], marker, color=colour, **mark)
    return value, high


def name_rows(axes: Axes, names: Sequence[str], x: str, *, above: bool = False) -> None:
    """A row for each name, the first one on top, over a horizontal axis with light lines; `above` writes the name over
    its row and not beside it, which fits on a narrow screen."""
    place: dict[str, Any] = {"ha": "left", "va": "bottom"} if above else {}
    rows, shift = np.arange(len(names)), 0.24 if above else 0.0
    axes.set_yticks(rows - shift, [shorten(name, 48) for name in names], **place)
    axes.set_ylim(len(names) - 0.4, -0.6 - shift)
    if above:
        axes.tick_params(axis="y", pad=0)
    axes.set_xlabel(x)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def plot_curve(axes: Axes, number: int, x: Sequence[float], y: Sequence[float], label: str, **look: Any) -> None:
    """The curve of one method, shares in per cent."""
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    look = {"linewidth": 1.6, "color": colour, "linestyle": dashes, **look}
    axes.plot(np.array(x) * 100, np.array(y) * 100, label=label, **look)


def percent_axes(
    axes: Axes, x: str, y: str, guess: tuple[Sequence[float], Sequence[float]] = ((0, 100), (0, 100))
) -> None:
    """Two axes from 0 to 100 % and the line of guessing, by default their diagonal."""
    axes.plot(*guess, color=SOFT, linewidth=1, linestyle=DASHED)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel=x, ylabel=y, aspect="equal")
    axes.set(xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    axes.grid()
    axes.set_axisbelow(True)


def svg(figure: Figure, salt: str) -> str:
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
