"""A process that ends without warning at any of its calls that change files; nothing here loads pytest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "fdopen")
"""Functions of `os` before each of which a process may be killed."""


def kill_before(number: int, end: int = signal.SIGKILL) -> list[int]:
    """From now on send this process a signal just before the `number`-th of these calls, counted from 1; how many are left."""
    left = [number]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), end)
            return call(*arguments, **named)

        return run

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return left


def is_killed(number: int, work: Callable[[], Any]) -> bool:
    """Whether `work`, in a forked process, came as far as to its `number`-th call, before which it was killed."""
    child = os.fork()
    if not child:
        try:
            kill_before(number)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"exit status {status}"
    return status != 0
