"""The allocator of the C library, told how a network uses memory."""

from __future__ import annotations

import os
import sys

__all__ = ["keep_freed_memory"]

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
"""Numbers of `mallopt` in glibc's malloc.h."""
_RULES = ((_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 2**30), (_ARENA_MAX, 1))
"""Blocks up to 32 MiB, the most that glibc takes, come from memory that is kept, up to 1 GiB of it, in one arena for
all threads: a thread's own is given back whole as soon as it is empty."""


def keep_freed_memory() -> None:
    """Keep freed memory for the next batch; for a process that may run networks on the CPU, before its threads start.

    Every layer takes blocks of some ten MiB and frees them. By default glibc gives such a block back to the system,
    which clears a new one, page by page, at every layer of every batch. The peak of the process does not grow. Nothing
    is done where the user has set the allocator up by its own variables, and with other C libraries.

    Source: mallopt(3).
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or chosen:
        return
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        for rule in _RULES:
            library.mallopt(*rule)
