"""The lock on an output, so that one process at a time writes it."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from thoraclip.disk import make_folder, needing_room, writing
from thoraclip.errors import InputError, why_not_written
from thoraclip.interrupts import uninterrupted
from thoraclip.ranges import bind
from thoraclip.writing import HELD, end_sets, hidden, real_path, require_file, require_own

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["is_empty", "is_main_process", "locked", "process_count", "writes"]

P = ParamSpec("P")
T = TypeVar("T")

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
def locked(
    out: Path, *, option: str = "--out", may_only_read: bool = False, remark: Callable[[str], None] = warnings.warn
) -> Iterator[None]:
    """Keep other processes from writing an output; what a killed one left of it is mended first.

    The lock ends with the process, however that ends. Of several processes that a launcher started, the first one takes
    it. Within the block it may be locked again, and what lies in it. Folders above it are made, and removed if they
    stay empty.

    Args:
        out: file or folder.
        option: names it in messages.
        may_only_read: what is there and finished is only read, and may lie where nothing can be written.
        remark: gets a line where the output cannot be locked: by the file system, or because it is only read.

    Raises:
        InputError: another process holds the lock, or nothing can be written there.
    """
    place = real_path(out)
    if not HELD.get().isdisjoint((place, *place.parents)) or not is_main_process():
        yield
        return
    with writing(out):  # a folder may be closed to this user
        place.exists()  # fails for a name that is too long
        made = [folder for folder in place.parents if not folder.exists()]
    lock, token = None, HELD.set(HELD.get() | {place})
    try:
        with uninterrupted():
            lock = _lock(out, place, option, may_only_read, remark)
        end_sets(place)
        end_sets(place.parent, place.name)
        yield
    finally:
        HELD.reset(token)
        with uninterrupted():
            if lock:
                with suppress(OSError):
                    Path(lock.lock_file).unlink()  # others see that the file which they wait for has no name
                lock.release()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def writes(
    file: bool = False,
    own: Mapping[str, Sequence[str]] | None = None,
    others: Mapping[str, str] | None = None,
    *,
    argument: str = "out",
    unless: str = "",
    may_only_read: bool = False,
    in_place: bool = False,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function that writes the file or folder `out`: no other process writes it meanwhile, and what is there and
    not of an earlier run is refused before the work. Every public function with an `out` has this mark.

    Args:
        file: `out` is a file.
        own: of a folder: what the function writes there by names that others use too; see `runs.require_own`.
        others: of a folder: what another command makes there, see `runs.require_own`.
        argument: name of the argument that takes the place of `out`.
        unless: argument with which nothing is written.
        may_only_read: what is there and finished is only read.
        in_place: a file may be the one that the function reads.
    """

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*given: P.args, **named: P.kwargs) -> T:
            bound = bind(signature, given, named)
            if bound is None:
                return function(*given, **named)  # which says it by its own name
            bound.apply_defaults()
            out = bound.arguments[argument]
            if out is None or bound.arguments.get(unless):
                return function(*given, **named)
            remark = bound.arguments.get("announce") or warnings.warn
            with locked(Path(out), may_only_read=may_only_read, remark=remark):
                if file:
                    place = require_file(Path(out))
                    others_given = [value for name, value in bound.arguments.items() if name != argument]
                    inputs = (v for v in others_given if isinstance(v, str | Path) and "\0" not in str(v))
                    if not in_place and place.is_file() and any(real_path(Path(v)) == place for v in inputs):
                        raise InputError(f"{out}: is what the command reads; choose another --out")
                elif is_main_process():
                    require_own(Path(out), own or {}, others or {})
                return function(*given, **named)

        run.writes = argument  # type: ignore[attr-defined]
        return run

    return mark


def is_empty(folder: Path) -> bool:
    """Whether nothing lies in a folder but the lock on it."""
    return all(place.name == _LOCK for place in folder.iterdir())


def _lock(
    out: Path, place: Path, option: str, may_only_read: bool, remark: Callable[[str], None]
) -> BaseFileLock | None:
    """The lock beside a place, or, where that cannot be, in it; `None` where there can be none."""
    from filelock import FileLock, Timeout  # takes a while to load

    error: OSError
    for file in (hidden(place, _LOCK), place / _LOCK):
        if file.parent != place or place.is_dir():
            make_folder(file.parent)
            lock = FileLock(file, timeout=_SECONDS_TO_END, fallback_to_soft=False)
            try:
                with needing_room(out):
                    lock.acquire()
                return lock
            except Timeout:
                remedy = f"wait for its end, or choose another {option}"
                raise InputError(f"{out}: another process is writing it; {remedy}") from None
            except OSError as raised:
                error = raised
                if error.errno not in _NOT_ALLOWED:  # no locks on this file system
                    with suppress(OSError):
                        file.unlink()
                    break
    if error.errno in _NOT_ALLOWED and not (may_only_read and place.exists()):
        reason = why_not_written(out.parent, error)
        raise InputError(f"{out}: cannot be written ({reason}); choose another {option}") from error
    remark(f"{out}: cannot be locked ({error.strerror}); make sure that no other process writes it")
    return None
