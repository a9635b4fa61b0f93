"""The command line in a forked process that comes to a sudden end; nothing here loads pytest."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

from thoraclip.cli.app import run
from thoraclip.data.facts import FactStore
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


def killed_while_reading(arguments: list[str], count: int) -> int:
    """The command line, until the facts of so many files are kept: killed within the next line."""
    left, add = itertools.count(count, -1), FactStore._add

    def added(self: FactStore, path: str, stamp: list[int], facts: dict[str, Any]) -> None:
        if next(left) == 0:
            assert self._stream is not None
            self._stream.write(f'["{path}",')
            self._stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, path, stamp, facts)

    FactStore._add = added  # type: ignore[method-assign]
    return run(arguments)


def run_on_a_full_disk(arguments: list[str], limit: int) -> int:
    """The command line where no file can grow beyond `limit` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return run(arguments)
