"""What every layout adapter returns, and the words that they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError
from thoraclip.imaging import is_image_name

__all__ = ["Listing", "all_files", "image_files", "require_folder", "split_name", "sub_folders"]

_SPLIT_WORDS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class Listing:
    """Candidates found under a root; everything that was seen stands in one of the lists. InputError for no folder.

    Args:
        root: the folder.
        rows: manifest fields known without opening the picture (`image_id`, `path`, `label`, `split`, masks, ...).
        set_aside: (path, reason) of pictures that are known to be unusable already.
        unknown_folders: folders that the layout does not explain, with the number of files below them.
        other_files: files that are not pictures.
        notes: repeats, joins and conflicts, one line each.
    """

    root: Path = field(compare=False)
    rows: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    unknown_folders: list[tuple[str, int]] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_folder(self.root)

    def relative(self, path: Path) -> str:
        """POSIX path below the root."""
        return path.relative_to(self.root).as_posix()

    def leave_out(self, *, folders: Iterable[Path] = (), files: Iterable[Path] = ()) -> None:
        """Note folders that the layout does not explain, and files that are not pictures."""
        for folder in folders:
            self.unknown_folders.append((self.relative(folder), sum(f.is_file() for f in folder.rglob("*"))))
        self.other_files += map(self.relative, files)


def require_folder(root: Path) -> None:
    """Raise InputError unless `root` is a folder."""
    if not root.exists():
        raise InputError(f"{root}: no such folder; name the folder that holds the images")
    if not root.is_dir():
        raise InputError(f"{root}: not a folder; name the folder that holds the images")


def split_name(word: str | None) -> str | None:
    """`Train`, `training`, `valid`, ... -> `train`, `val` or `test`; `None` for any other word."""
    plain = (word or "").strip().lower()
    return next((split for split, words in _SPLIT_WORDS.items() if plain in words), None)


def sub_folders(folder: Path) -> list[Path]:
    """Visible sub-folders, sorted by name."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def all_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Visible files directly in a folder (with `**/*` also below it), sorted."""
    paths = (f for f in folder.glob(pattern) if not any(part.startswith(".") for part in f.relative_to(folder).parts))
    return sorted(f for f in paths if not f.is_dir())  # also a pipe or a dangling link: it is listed, not dropped


def image_files(folder: Path, pattern: str = "*") -> tuple[list[Path], list[Path]]:
    """`all_files` as (pictures, other files); told apart by name, and by content where there is no ending."""
    files: tuple[list[Path], list[Path]] = ([], [])
    for file in all_files(folder, pattern):
        files[not is_image_name(file)].append(file)
    return files
