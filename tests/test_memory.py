"""What the allocator is told: freed memory serves the next batch, and nothing is lost by it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from thoraclip.memory import keep_freed_memory

_FAULTS = """
import resource, sys, threading
if sys.argv[1] == "keep":
    from thoraclip.memory import keep_freed_memory
    keep_freed_memory()
def batches(count):
    for _ in range(count):
        layers = [bytes([number]) * (20 * 2**20) for number in range(6)]
        del layers

def both(count):
    threads = [threading.Thread(target=batches, args=(count,)) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()

both(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
both(10)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_minflt - before, used.ru_maxrss)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told anything")


def _measured(what: str, **variables: str) -> tuple[int, int]:
    """(pages that the system gave after the first batches, KiB at the peak)."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", _FAULTS, what]
    faults, peak = map(int, subprocess.check_output(command, env=plain | variables, text=True).split())
    return faults, peak


@glibc
def test_batches_after_the_first_take_no_new_pages_unless_the_allocator_was_set_up_by_others() -> None:
    usual, usual_peak = _measured("usual")
    kept, kept_peak = _measured("keep")
    assert usual > 100_000  # 2 threads, 10 batches, 6 blocks of 5,120 pages: some of them are still there
    assert kept < usual / 20
    assert kept_peak < 1.2 * usual_peak
    assert _measured("keep", MALLOC_ARENA_TEST="8")[0] > 100_000


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "ctypes", None)  # an import of it would fail
    keep_freed_memory()
