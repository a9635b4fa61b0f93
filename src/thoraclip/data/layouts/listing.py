"""What every layout adapter returns, the list of files that it starts from, and the words that adapters share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError, printable
from thoraclip.imaging.listing import FOLDER, Found, Tally, walk
from thoraclip.imaging.names import IMAGES, MASKS, OTHER, SYSTEM

__all__ = [
    "LeftOut", "Listing", "folders_above", "index_command", "list_files", "require_folder", "typed", "utf8",
]  # fmt: skip

_NOT_UTF8 = "its name is not UTF-8, and a manifest holds UTF-8; rename the file or the folder"


@dataclass(kw_only=True)
class LeftOut:
    """What was seen in a folder and gets no row, and what is to be said."""

    set_aside: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of what is known to be unusable
    unknown_folders: list[tuple[str, int]] = field(default_factory=list)  # not explained by the layout; files below
    other_files: list[str] = field(default_factory=list)  # that are not pictures
    system_files: list[tuple[str, int]] = field(default_factory=list)  # hidden, or a system's own; files below, or 1
    repeated_files: list[tuple[str, str]] = field(default_factory=list)  # (path, path of the file in a row or mask)
    not_in_table: list[tuple[str, int]] = field(default_factory=list)  # folder; files in it that no row names
    notes: list[str] = field(default_factory=list)  # repeats, joins and conflicts, one line each


@dataclass
class Listing(LeftOut):
    """Candidates found under a root; everything that was seen stands in one of the lists. InputError for no folder."""

    root: Path = field(compare=False)
    rows: list[dict[str, Any]] = field(default_factory=list)  # manifest fields known without opening the picture
    lines: dict[str, str] = field(default_factory=dict, compare=False)  # first path of a class -> `table:line`
    seen: Tally = field(default_factory=Tally, compare=False)  # everything that is no image

    def __post_init__(self) -> None:
        require_folder(self.root)

    def accepts(self, image: Found) -> bool:
        """Whether an image's path is UTF-8; it is set aside where not."""
        path = utf8(image.path)
        if path != image.path:
            self.set_aside.append((path, _NOT_UTF8))
        return path == image.path

    def leave_out(self, found: Found, *, image: str = "outside any class folder") -> None:
        """List what gets no row; an image with the reason `image`."""
        path = utf8(found.path)
        if found.kind == SYSTEM:
            self.system_files.append((path, found.files))
        elif found.kind == OTHER:
            self.other_files.append(path)
        elif found.kind == MASKS and not found.reason:
            self.unknown_folders.append((path, found.files))
        elif found.kind != FOLDER:
            self.set_aside.append((path, image if found.kind == IMAGES else found.reason))


def list_files(listing: Listing, folder: str = "") -> Iterator[Found]:
    """Everything below the root, or a folder below it, with POSIX paths below the root."""
    above = os.path.join(listing.root, "")  # noqa: PTH118
    for found in walk(f"{above}{folder}"):
        below = found._replace(path=found.path[len(above) :].replace(os.sep, "/") or ".")
        if below.kind != IMAGES:
            listing.seen.add(below)
        yield below


def index_command(root: str | Path, *options: str) -> str:
    """The command that indexes a folder, as a message says it."""
    return typed("thoraclip", "index", str(root), *options, "--out", "manifest.parquet")


def typed(*words: str) -> str:
    """A command to paste into a shell, in printable letters: `$'\\377'` for a name that holds others."""
    escaped = (
        re.sub(rb"[^\w/ .-]", lambda byte: b"\\%03o" % ord(byte[0]), os.fsencode(word)).decode() for word in words
    )
    pairs = zip(words, escaped, strict=True)
    return " ".join(shlex.quote(word) if printable(word) == word else f"$'{plain}'" for word, plain in pairs)


def folders_above(path: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def utf8(name: str) -> str:
    """A name with its bytes that are not UTF-8 as escapes, such as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_folder(root: Path) -> None:
    """Raise InputError unless `root` is a folder."""
    if not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        raise InputError(f"{printable(root)}: {problem}; name the folder that holds the images")
