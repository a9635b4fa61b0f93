"""The signals that tell a process to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["ENDING", "handled", "uninterrupted"]

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object], numbers: Sequence[int] = ENDING) -> Iterator[None]:
    """Let `handler` take signals within the block. A SIGHUP that is ignored (nohup) stays so, and only the main thread
    may handle signals: in another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [n for n in numbers if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own or signal.SIG_DFL)  # `None`: not of Python


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back signals until the end of the block, for files that change places together."""
    came: list[int] = []
    try:
        with handled(lambda number, _: came.append(number)):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)
