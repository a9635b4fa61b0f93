"""Ray's actors in tests: whether there are any, and how one dies."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'thoraclip[ray]'")


def kill_one(is_time: Callable[[list[psutil.Process]], bool]) -> list[int]:
    """Kill an actor of this process as soon as `is_time`, asked with all of them; who is dead is in the list afterwards."""
    killed: list[int] = []

    def watch() -> None:
        while not killed:
            time.sleep(0.02)
            with suppress(psutil.NoSuchProcess):  # Ray's helpers come and go while they are listed
                actors = [p for p in psutil.Process().children(recursive=True) if "MapWorker" in p.name()]
                if actors and is_time(actors):
                    actors[0].send_signal(signal.SIGKILL)
                    killed.append(actors[0].pid)

    threading.Thread(target=watch, daemon=True).start()
    return killed
