"""What the commands print: progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer

from thoraclip.runs import is_main_process

__all__ = ["announce", "print_table", "progress_bar"]

_PLAIN_SECONDS = 10.0
"""Where no person watches, one line in this many seconds."""
_STAGE_WIDTH = 40
"""Letters of the stage beside a bar."""
_stages: list[str] = []
"""The newest line of `announce`, which the bars show."""


def announce(text: str) -> None:
    """One line on standard error; of several processes the first one speaks."""
    if is_main_process():
        _stages[:] = [text.split(" (")[0][:_STAGE_WIDTH]]
        typer.echo(text, err=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A callback for (done, total), 0 for an unknown total: a Rich bar with rate and time left, or plain lines when not
    a terminal."""
    if not is_main_process():
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _PlainProgress()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task: TaskID | None = None
        began = (0.0, 0)

        def update(done: int, total: int) -> None:
            nonlocal task, began
            known = total or None
            if task is None or done < bars.tasks[-1].completed or known != bars.tasks[-1].total:
                if task is not None:
                    bars.update(task, visible=False)
                task, began = bars.add_task("", total=known, completed=done, rate=""), (time.monotonic(), done)
            passed = time.monotonic() - began[0]
            rate = f"images {(done - began[1]) / passed:.0f}/s" if passed > 0.5 else "images"
            bars.update(task, completed=done, rate=rate, description=escape(_stages[0] if _stages else ""))

        yield update


class _PlainProgress:
    """A line at the end of each stage, and one in a while on the way."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._previous = self._first = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < self._previous:
            self._began, self._last, self._first = now, now, done
        self._previous = done
        if done >= total > 0 or now - self._last >= _PLAIN_SECONDS:
            self._last = now
            rate = (done - self._first) / max(now - self._began, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
            announce(f"images: {done}{f'/{total}' if total else ''}, {rate:.0f}/s{left}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", numbers: bool = True) -> None:
    """A table on standard output, drawn to the width of the terminal; columns of `numbers` are set to the right."""
    if not is_main_process():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
