"""Processes for tests that need one: forked from a server that has the libraries loaded, in 0.1 s instead of 10.

Use `run` of `thoraclip.cli.app` where the process itself is not what is tested.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
if sys.platform != "win32":
    _CONTEXT.set_forkserver_preload(["tests.preloaded"])


@dataclass(frozen=True)
class Done:
    """Exit status and output of a process that has ended; as of `subprocess.run(..., text=True)`."""

    returncode: int
    stdout: str
    stderr: str


def start(
    work: Callable[..., Any], *arguments: Any, output: Path | None = None, env: dict[str, str] | None = None
) -> BaseProcess:
    """Start `work(*arguments)`, a function of a module; what it returns is the exit status.

    Args:
        output: its standard output goes to this file and its errors to `<output>.err`; `None` for nowhere.
        env: its environment; `None` for that of this process.
    """
    environment = dict(os.environ) if env is None else env
    process = _CONTEXT.Process(target=_work, args=(work, arguments, output, environment), daemon=True)
    process.start()
    return process


def finish(work: Callable[..., Any], *arguments: Any, env: dict[str, str] | None = None, seconds: float = 240) -> Done:
    """`start` and wait."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = start(work, *arguments, output=output, env=env)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{work.__name__}{arguments}: still running after {seconds} s")
        return Done(process.exitcode, output.read_text(), output.with_name("output.err").read_text())


def wait_for(is_there: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def _work(work: Callable[..., Any], arguments: tuple[Any, ...], output: Path | None, env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    for number, name in ((1, output), (2, output and output.with_name(f"{output.name}.err"))):
        target = os.open(name or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, number)
        os.close(target)
    code = work(*arguments)
    sys.exit(code)
