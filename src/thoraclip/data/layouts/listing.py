"""What every layout adapter returns, the words that they share, and the adapter of plain class folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError, ManifestError
from thoraclip.imaging import is_image_name

__all__ = ["Listing", "all_files", "find_folders", "image_files", "require_folder", "split_name", "sub_folders"]

_SPLIT_WORDS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class Listing:
    """Candidates found under a root; everything that was seen stands in one of the lists. InputError for no folder."""

    root: Path = field(compare=False)
    rows: list[dict[str, Any]] = field(default_factory=list)  # manifest fields known without opening the picture
    set_aside: list[tuple[str, str]] = field(default_factory=list)  # (path, reason) of what is known to be unusable
    unknown_folders: list[tuple[str, int]] = field(default_factory=list)  # not explained by the layout; files below
    other_files: list[str] = field(default_factory=list)  # that are not pictures
    notes: list[str] = field(default_factory=list)  # repeats, joins and conflicts, one line each

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
    if not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {problem}; name the folder that holds the images")


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


def find_folders(root: Path, **_: object) -> Listing:
    """List `ROOT/<class>/...` or `ROOT/<train|val|test>/<class>/...`; ManifestError for a class without image."""
    listing = Listing(root)
    tops = sub_folders(root)
    splits = [folder for folder in tops if split_name(folder.name)]
    if len({split_name(folder.name) for folder in splits}) >= 2:
        listing.leave_out(folders=[folder for folder in tops if folder not in splits])
        classes = [(split_name(s.name), folder) for s in splits for folder in sub_folders(s)]
    else:
        classes, splits = [(None, folder) for folder in tops], []
    for split, folder in classes:
        if _holds_masks(folder):  # masks are no class of patients
            listing.leave_out(folders=[folder])
        else:
            _add_class(listing, folder, split)
    for file in sorted(file for folder in (root, *splits) for file in all_files(folder)):
        if is_image_name(file):
            listing.set_aside.append((listing.relative(file), "outside any class folder"))
        else:
            listing.leave_out(files=[file])
    return listing


def _holds_masks(folder: Path) -> bool:
    return "mask" in folder.name.lower()


def _add_class(listing: Listing, folder: Path, split: str | None) -> None:
    pictures, others = image_files(folder, "**/*")
    masks: dict[Path, Path] = {}  # file -> the outermost folder of masks that it lies in
    for file in (*pictures, *others):
        places = [p for p in reversed(file.parents) if folder in p.parents and _holds_masks(p)]
        masks |= {file: places[0]} if places else {}
    listing.leave_out(folders=sorted(set(masks.values())), files=[file for file in others if file not in masks])
    pictures = [file for file in pictures if file not in masks]
    if not pictures:
        raise ManifestError(
            f"{folder}: class '{folder.name}' holds no PNG, JPEG or DICOM picture; add some or remove it"
        )
    for file in pictures:
        path = listing.relative(file)
        listing.rows.append({"image_id": path, "path": path, "label": folder.name, "split": split})
