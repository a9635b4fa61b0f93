"""What the system refuses while files are written, as errors that name the file and the remedy."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from thoraclip.errors import NO_ROOM, InputError, why_not_written

__all__ = ["make_folder", "needing_room", "require_room", "take_room", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the system while `path` is written into an InputError that names it."""
    try:
        with needing_room(path):
            yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = why_not_written(path.parent, error)
        raise InputError(f"{path}: cannot be written ({reason}); choose another --out") from error


@contextmanager
def needing_room(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" while `path` is written into an InputError that names it."""
    try:
        yield
    except Exception as error:  # safetensors has a class of its own, and the system's number only in its text
        said = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number not in NO_ROOM:
            raise
        remedy = "make room on that disk and run the same command again"
        raise InputError(f"{path}: cannot be written ({os.strerror(number)}); {remedy}") from error


def require_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise InputError where the disk of a folder has no room for `needed` bytes; the message begins with `what`."""
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        sizes = f"needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left"
        raise InputError(f"{folder}: {what} {sizes}; {remedy}")


def take_room(stream: IO[bytes], size: int) -> None:
    """Give the first `size` bytes of an open file their place on the disk now.

    A mapped file without it is only as long as that, and where the disk is full later, the system kills the process.
    Does nothing where the system cannot do this (macOS).

    Raises:
        OSError: the disk has no room.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; raises InputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = why_not_written(folder, error)
        raise InputError(f"{folder}: cannot be written ({reason}); name another folder") from error
