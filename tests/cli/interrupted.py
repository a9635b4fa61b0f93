"""The command line in a forked process that comes to a sudden end; nothing here loads pytest."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from tests.sudden import kill_before

from thoraclip.cli.app import run
from thoraclip.methods import embed


def killed_at(arguments: list[str], name: str, count: int, is_written: bool) -> int:
    """The command line, until a file is to be given this name for the `count`-th time: killed just before or just after."""
    left, replace = itertools.count(count - 1, -1), Path.replace

    def replaced(file: Path, target: Path) -> Path:
        is_time = Path(target).name == name and next(left) == 0
        if is_time and not is_written:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(file, target)
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    Path.replace = replaced  # type: ignore[assignment, method-assign]
    embed._SECONDS_BETWEEN_WRITES = 0.0
    return run(arguments)


def run_on_a_full_disk(arguments: list[str], limit: int) -> int:
    """The command line where no file can grow beyond `limit` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return run(arguments)


def killed_before(arguments: list[str], number: int, end: int = signal.SIGKILL) -> int:
    """The command line, which gets a signal just before its `number`-th call that changes files; tells how many there were."""
    if end != signal.SIGKILL:  # a shell may have had it ignored
        signal.signal(end, signal.default_int_handler if end == signal.SIGINT else signal.SIG_DFL)
    left = kill_before(number, end)
    code = run(arguments)
    sys.stderr.write(f"{number - left[0]}\n")
    return code
