"""Settings of glibc's allocator; nothing is done with another C library. Source: mallopt(3)."""

from __future__ import annotations

import os
import sys

__all__ = ["keep_freed_memory", "return_freed_memory"]

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8  # numbers of `mallopt` in glibc's malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory for the next batch; for a process that may run networks on the CPU, before its threads start.

    Every layer takes blocks of some ten MiB and frees them. By default glibc gives such a block back to the system,
    which clears a new one, page by page, at every layer of every batch. The peak of the process does not grow. Nothing
    is done where the user has set the allocator up by its own variables.
    """
    # blocks up to 32 MiB, the most that glibc takes, come from memory that is kept, up to 1 GiB of it, in one arena for
    # all threads: a thread's own is given back whole as soon as it is empty
    if not any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        _set({_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**30, _ARENA_MAX: 1})


def return_freed_memory() -> None:
    """Give back what large images took: by default every thread keeps a heap of its own, as large as it ever was."""
    _set({_MMAP_THRESHOLD: 2**20, _ARENA_MAX: 2})


def _set(rules: dict[int, int]) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for number, value in rules.items():
            library.mallopt(number, value)
