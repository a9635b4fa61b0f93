"""The lock on an output, so that one process at a time writes it."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from thoraclip.disk import make_folder, needing_room
from thoraclip.errors import InputError
from thoraclip.writing import HELD, end_sets, hidden, real_path

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["is_main_process", "locked", "process_count"]

_LOCK = ".thoraclip-lock"
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SECONDS_TO_END = 0.2
"""Until another process that holds a lock, and may be at its end, counts as writing."""


def is_main_process() -> bool:
    """False in all but the first of several processes that a launcher started; only the first one writes."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def process_count() -> int:
    """How many processes a launcher started for this work, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


@contextmanager
def locked(out: Path, *, remark: Callable[[str], None] = warnings.warn) -> Iterator[None]:
    """Keep other processes from writing an output; what a killed one left of it is mended first.

    The lock ends with the process, however that ends. Of several processes that a launcher started, the first one takes
    it. Within the block the output may be locked again. Folders above it are made, and removed if they stay empty.

    Args:
        out: file or folder.
        remark: gets a line where the output cannot be locked: by the file system, or because it is read-only.

    Raises:
        InputError: another process holds the lock, or the output can neither be read nor made.
    """
    place = real_path(out)
    if place in HELD.get() or not is_main_process():
        yield
        return
    made = [folder for folder in place.parents if not folder.exists()]
    lock, token = None, HELD.set(HELD.get() | {place})
    try:
        lock = _lock(out, place, remark)
        end_sets(place)
        end_sets(place.parent, escape(place.name))
        yield
    finally:
        HELD.reset(token)
        if lock:
            with suppress(OSError):
                Path(lock.lock_file).unlink()  # others see that the file which they wait for has no name
            lock.release()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _lock(out: Path, place: Path, remark: Callable[[str], None]) -> BaseFileLock | None:
    """The lock beside a place, or, where that cannot be, in it; `None` where there can be none."""
    from filelock import FileLock, Timeout  # takes a while to load

    reason = ""
    for file in (hidden(place, _LOCK), place / _LOCK):
        if file.parent != place or place.is_dir():
            make_folder(file.parent)
            lock = FileLock(file, timeout=_SECONDS_TO_END, fallback_to_soft=False)
            try:
                with needing_room(out):
                    lock.acquire()
                return lock
            except Timeout:
                raise InputError(
                    f"{out}: another process is writing it; wait for its end, or choose another --out"
                ) from None
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno not in _NOT_ALLOWED:
                    break
    if not place.exists():
        raise InputError(f"{out}: cannot be written ({reason}); choose another --out")
    remark(f"{out}: cannot be locked ({reason}); make sure that no other process writes it")
    return None
