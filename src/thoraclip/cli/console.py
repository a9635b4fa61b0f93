"""What the commands print: progress on standard error, results on standard output.

All text goes out through `say`, `announce`, `print_table` and the bars of `progress_bar`: one line each,
without control characters; `prepare_streams` escapes the letters that the terminal does not have.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from thoraclip.api.progress import Lines, Pace, stage
from thoraclip.errors import printable
from thoraclip.runs import is_main_process

__all__ = [
    "ShownRows",
    "announce",
    "complain",
    "prepare_streams",
    "print_document",
    "print_table",
    "progress_bar",
    "say",
    "shut",
]

_LONGEST = 12_000
"""Letters of a line; the middle of a longer one is left out."""
_stages: list[str] = []
"""The newest line of `announce`, which the bars show."""


def say(text: object) -> None:
    """One line on standard output."""
    _write(sys.stdout, text)


def print_document(content: object) -> None:
    """One JSON document on standard output, in ASCII: a name that is not UTF-8 comes back as it was."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


class ShownRows(io.RawIOBase):
    """A stream whose lines, each written at once, are shown on a terminal, whatever a file's name holds."""

    def write(self, line: Any) -> int:
        """One line, which may be empty."""
        if data := bytes(line):
            say(data.removesuffix(b"\n").decode("utf-8", "surrogateescape"))
        return len(data)


def complain(text: object) -> None:
    """One line on standard error. Where that is closed or full, the line is lost and the work goes on."""
    try:
        _write(sys.stderr, text)
    except BrokenPipeError:
        raise
    except OSError:
        shut(sys.stderr)


def announce(text: str) -> None:
    """One line on standard error on the state of the work; of several processes the first one speaks."""
    if is_main_process():
        _stages[:] = [stage(text)]
        complain(text)


def _plain(text: object) -> str:
    """Text on one line, without control characters."""
    line = printable(text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _write(stream: TextIO, text: object) -> None:
    stream.write(_plain(text) + "\n")
    stream.flush()


def prepare_streams() -> None:
    """Escape the letters that standard output and error cannot write, and let what is written to a closed one go
    nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def shut(stream: TextIO) -> None:
    """Let what a broken or full stream still holds, and whatever is written to it from now on, go nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A callback for (done, total), 0 for an unknown total: a Rich bar with rate and time left, or plain lines when not
    a terminal."""
    if not is_main_process():
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield Lines(announce).draw
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task, pace = bars.add_task("", visible=False, pace=""), Pace()

        def update(done: int, total: int) -> None:
            shown, named = bars.tasks[0], escape(_plain(_stages[0] if _stages else ""))
            shown.total = total or None  # where `update` is given None, the former total stays
            is_first, text = not shown.visible, pace(done, total)
            bars.update(task, completed=done, pace=text, description=named, visible=True, refresh=is_first)

        yield update


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", numbers: bool = True) -> None:
    """A table on standard output, drawn to the width of the terminal; columns of `numbers` are set to the right."""
    if not is_main_process():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="right" if number and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
