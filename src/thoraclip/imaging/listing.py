"""The files below a folder, each with its kind: an image, or the reason why it is none.

    folder --walk--> Found(path, kind, reason, files), sorted by the parts of the paths

Every command that takes a folder lists it by this walk, with the names of one folder (and of those above it) in memory.
A name that does not say what the file is leaves it to the first bytes; see `imaging.names`.

Links to files count as files. A link to a folder is followed where it leads out of the root, to a folder that no link
has led to; any other is listed and not followed, so there is no loop and no file is found twice by links.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from thoraclip.imaging.names import IMAGES, MASKS, SYSTEM, is_mask_name, is_system_name, kind_by_content, kind_by_name

__all__ = ["CLOSED", "FOLDER", "LINKS", "SPECIAL", "Found", "Tally", "walk"]

FOLDER = "folders"
LINKS = "links to folders that are listed already, or that lie above"
CLOSED = "folders that cannot be read"
SPECIAL = "links to nothing, pipes, sockets and devices"
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_HEAD_BYTES = 352


class Found(NamedTuple):
    """One entry of a folder."""

    path: str  # the root's path and the entry's below it
    kind: str  # `IMAGES`, `FOLDER`, or the kind of what is no image, in words
    reason: str = ""  # why it is no image, where the kind alone does not say so
    files: int = 1  # that it stands for: those in a folder of masks or of the system, 0 for `FOLDER`
    by_content: bool = False  # its name does not say what it is

    @property
    def may_be_image(self) -> bool:
        """Whether the name alone leaves it open, or says so."""
        return self.by_content or self.kind == IMAGES


class Tally:
    """Counts of what is left out, by kind, with the first path of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, found: Found) -> None:
        """Count the files of one entry."""
        if found.files:
            self.counts[found.kind] += found.files
            self._first[found.kind] = min(found.path, self._first.get(found.kind, found.path))

    def phrases(self) -> list[str]:
        """A phrase for each kind, such as `files that are no pictures: 2, first a/notes.txt`."""
        return [f"{kind}: {count}, first {self._first[kind]}" for kind, count in sorted(self.counts.items())]

    def __str__(self) -> str:
        return ", ".join(self.phrases()) or "nothing"


def walk(root: str | Path, *, look_inside: bool = True) -> Iterator[Found]:
    """Everything below a folder, in sorted order; no error of the file system ends the walk.

    Args:
        look_inside: False opens no file: one whose name does not say what it is counts as an image.
    """
    links = _Links(root)
    above = [_entries(os.fspath(root), links, look_inside)]
    while above:
        for found in above[-1]:
            yield found
            if found.kind == FOLDER:
                above.append(_entries(found.path, links, look_inside))
                break
        else:
            above.pop()


def _entries(folder: str, links: _Links, look_inside: bool) -> Iterator[Found]:
    """What stands directly in one folder, sorted by name."""
    entries: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as scanned:
            entries.extend(scanned)  # those before an error stay
    except OSError as error:
        yield Found(folder, CLOSED, f"the folder cannot be read ({error.strerror})")
    for entry in sorted(entries, key=lambda entry: entry.name):
        path = os.path.join(folder, entry.name)  # noqa: PTH118
        is_folder, is_link = False, entry.is_symlink()
        with suppress(OSError):  # a link to itself
            is_folder = entry.is_dir()
        if is_system_name(entry.name):
            yield Found(path, SYSTEM, files=_count(path) if is_folder and not is_link else 1)
        elif not is_folder:
            yield _file(path, look_inside)
        elif is_link and (reason := links.refusal(path)):
            yield Found(path, LINKS, reason)
        elif is_mask_name(entry.name):
            yield Found(path, MASKS, files=_count(path))
        else:
            yield Found(path, FOLDER, files=0)


def _count(folder: str) -> int:
    """Files below a folder; its links count as one each."""
    count, folders = 0, [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    count += 1
    return count


def _file(path: str, look_inside: bool) -> Found:
    kind, reason = kind_by_name(os.path.basename(path)), ""  # noqa: PTH119
    by_content = kind is None
    if by_content and look_inside:
        kind, reason = _kind_by_content(path)
    if kind in (IMAGES, None) and is_mask_name(PurePath(path).stem, is_file=True):
        kind, reason = MASKS, "a mask, by its name"
    return Found(path, kind or IMAGES, reason, by_content=by_content)


def _kind_by_content(path: str) -> tuple[str, str]:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            return SPECIAL, _SPECIAL.get(stat.S_IFMT(mode), "no file")
        with Path(path).open("rb") as stream:
            return kind_by_content(stream.read(_HEAD_BYTES), os.path.basename(path))  # noqa: PTH119
    except OSError as error:
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
            return SPECIAL, f"a link that leads to no file ({error.strerror})"
        return IMAGES, ""  # the reason is told when it is read


class _Links:
    """Which links to folders are followed: those to a folder that neither holds nor lies in one that is listed."""

    def __init__(self, root: str | Path) -> None:
        self._listed: set[str] = set()
        self._above: set[str] = set()
        self._add(PurePath(os.path.realpath(root)))

    def _add(self, folder: PurePath) -> None:
        self._listed.add(str(folder))
        self._above.update(map(str, folder.parents))

    def refusal(self, link: str) -> str:
        """Why a link is not followed; empty where it is, and that counts as listed from then on."""
        target = PurePath(os.path.realpath(link))
        if str(target) in self._above:
            return "a link to a folder above one that is listed; name that folder itself"
        if not self._listed.isdisjoint(map(str, (target, *target.parents))):
            return "a link to a folder that is listed already"
        self._add(target)
        return ""
