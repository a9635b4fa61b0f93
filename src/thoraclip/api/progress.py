"""How far the work is: a bar in a notebook, lines on standard error elsewhere; `cli.console` has a bar for
terminals."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Lines", "NotebookBar", "Pace", "in_notebook", "stage"]

_WATCHED_SECONDS = 0.1
_PLAIN_SECONDS = 10.0
"""Where no person watches, one line in this many seconds."""
_STAGE_WIDTH = 40
"""Letters of the stage beside a bar."""
_LINE_WIDTH = 60
"""Letters of a line that is rewritten."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def stage(message: str) -> str:
    """The stage that a message names, short enough to stand beside a bar."""
    return message.split(" (")[0][:_STAGE_WIDTH]


class Pace:
    """Text for (done, total): the count, the rate and the time left. A stage begins where the count falls or the total
    changes."""

    def __init__(self) -> None:
        self._done, self._total, self._first, self._began = 0, -1, 0, 0.0

    def __call__(self, done: int, total: int) -> str:
        """`images: 20/100, 2/s, 40 s left`; a total of 0 is not known."""
        now = time.monotonic()
        if done < self._done or total != self._total:
            self._first, self._began = done, now
        self._done, self._total, passed = done, total, now - self._began
        rate = (done - self._first) / passed if passed > 0.5 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        return f"images: {done}{f'/{total}' if total else ''}" + (f", {rate:.0f}/s" if rate else "") + left


class _Display:
    """What draws a stage at its end, and once in some seconds on the way."""

    def __init__(self) -> None:
        self._pace, self._last = Pace(), time.monotonic()

    def _is_due(self, done: int, total: int, seconds: float) -> bool:
        now = time.monotonic()
        is_due = done >= total > 0 or now - self._last >= seconds
        self._last = now if is_due else self._last
        return is_due


class Lines(_Display):
    """Lines of standard error. On a terminal the line of a stage is rewritten until the stage ends.

    Args:
        say: writes a line in place of standard error.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._say, self._is_open = say, False

    def draw(self, done: int, total: int) -> None:
        """Tell the progress, 0 for an unknown total."""
        is_watched = self._say is None and sys.stderr.isatty()
        text = self._pace(done, total)
        if not self._is_due(done, total, _WATCHED_SECONDS if is_watched else _PLAIN_SECONDS):
            return
        if not is_watched:
            self.write(text)
            return
        self._is_open = done < total or not total
        sys.stderr.write(f"\r{text:<{_LINE_WIDTH}}" + ("" if self._is_open else "\n"))
        sys.stderr.flush()

    def write(self, text: str) -> None:
        """Write a message on a line of its own."""
        if self._say:
            self._say(text)
            return
        sys.stderr.write(("\n" if self._is_open else "") + f"{text}\n")
        self._is_open = False


class NotebookBar(_Display):
    """A bar that a notebook redraws in its place; messages follow it as lines. It needs IPython alone, no widgets."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None
        self._stage, self._text, self._value = "", "", ""

    def draw(self, done: int, total: int) -> None:
        """Tell the progress, 0 for an unknown total."""
        self._text, self._value = self._pace(done, total), f' value="{done}" max="{total}"' if total else ""
        if self._handle is None:
            from IPython.display import display

            self._handle = display(self, display_id=True)
        elif self._is_due(done, total, _WATCHED_SECONDS):
            self._handle.update(self)

    def write(self, text: str) -> None:
        """Write a message, which names the stage of the bar."""
        self._stage = stage(text)
        sys.stdout.write(f"{text}\n")

    def __repr__(self) -> str:
        return "; ".join(filter(None, (self._text, self._stage)))

    def _repr_html_(self) -> str:
        style = "width: 20em; max-width: 50%; vertical-align: middle"
        return f'<progress{self._value} style="{style}"></progress> {html.escape(repr(self))}'
