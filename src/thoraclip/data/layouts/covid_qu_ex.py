"""COVID-QU-Ex: `<... Segmentation Data>/[again/]{Train,Val,Test}/<class>/{images,lung masks,infection masks}/*.png`.

The infection tree repeats part of the lung tree's pictures; both join into one row an image. Copies of the data set
differ: the first folder is doubled or not, the first class is `COVID-19` or `COVID`; all are accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.data.layouts.listing import (
    Listing,
    all_files,
    image_files,
    relative,
    require_folder,
    split_name,
    sub_folders,
)
from thoraclip.errors import InputError, ManifestError
from thoraclip.runs import file_sha256

__all__ = ["find_covid_qu_ex"]

_CLASSES = {
    "covid-19": "COVID-19",
    "covid19": "COVID-19",
    "covid": "COVID-19",
    "non-covid": "Non-COVID",
    "non_covid": "Non-COVID",
    "noncovid": "Non-COVID",
    "normal": "Normal",
}
_PARTS = ("images", "lung masks", "infection masks")


@dataclass(frozen=True)
class _ClassFolder:
    """A folder that holds `images`, and where it stands in the data set."""

    folder: Path
    label: str
    split: str | None
    is_infection_tree: bool


def find_covid_qu_ex(root: Path, *, sha256: Callable[[Path], str] = file_sha256, **_: object) -> Listing:
    """List the lung and infection trees under `root`, joined by class and file name where the bytes agree.

    Args:
        root: the folder.
        sha256: of a file; asked only where two files bear the same name.

    Raises:
        InputError: no such folder, or no `<class>/images` below it.
        ManifestError: a class folder whose `images` holds no picture.
    """
    require_folder(root)
    listing = Listing()
    found: list[_ClassFolder] = []
    _walk(root, root, None, listing, found)
    if not found:
        raise InputError(
            f"{root}: no COVID-QU-Ex folder (<class>/images) below it; for one folder per class use --layout folders"
        )
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for place in sorted(found, key=lambda p: (p.is_infection_tree, str(p.folder))):
        _add_images(listing, root, place, by_name, sha256)
    if listing.joined:
        listing.notes.append(
            f"joined: {listing.joined} pictures of the infection tree repeat the lung tree's; one row each"
        )
    _name_rows(listing)
    return listing


def _walk(folder: Path, root: Path, split: str | None, listing: Listing, found: list[_ClassFolder]) -> int:
    """Collect class folders below `folder`; returns how many were found, and lists the branches without any."""
    label = _CLASSES.get(folder.name.lower())
    images = next((child for child in sub_folders(folder) if child.name.lower() == "images"), None)
    if label and images:
        tree = relative(folder, root).lower()
        found.append(_ClassFolder(folder, label, split, "infection" in tree))
        for child in sub_folders(folder):
            if child.name.lower() not in _PARTS:
                listing.unknown_folders.append(_count(child, root))
        listing.unknown_folders += [_count(child, root) for child in sub_folders(images)]
        listing.other_files += [relative(file, root) for file in all_files(folder)]
        return 1
    counts = {
        child: _walk(child, root, split_name(child.name) or split, listing, found) for child in sub_folders(folder)
    }
    total = sum(counts.values())
    if total or folder == root:
        listing.unknown_folders += [_count(child, root) for child, count in counts.items() if not count]
        listing.other_files += [relative(file, root) for file in all_files(folder)]
    return total


def _count(folder: Path, root: Path) -> tuple[str, int]:
    return relative(folder, root), sum(f.is_file() for f in folder.rglob("*"))


def _part(folder: Path, name: str) -> Path | None:
    return next((child for child in sub_folders(folder) if child.name.lower() == name), None)


def _add_images(
    listing: Listing,
    root: Path,
    place: _ClassFolder,
    by_name: dict[tuple[str, str], list[dict[str, Any]]],
    sha256: Callable[[Path], str],
) -> None:
    images = _part(place.folder, "images")
    pictures, others = image_files(images) if images else ([], [])
    listing.other_files += [relative(file, root) for file in others]
    if not pictures:
        raise ManifestError(f"{images}: class '{place.label}' holds no picture; add some or remove the folder")
    for file in pictures:
        row = {
            "path": relative(file, root),
            "label": place.label,
            "split": place.split,
            "lung_mask": _mask(listing, root, place.folder, "lung masks", file.name),
            "infection_mask": _mask(listing, root, place.folder, "infection masks", file.name),
        }
        earlier = by_name.setdefault((place.label, file.name), [])
        twin = next((r for r in _nearest(earlier, place.split) if sha256(root / r["path"]) == sha256(file)), None)
        if twin is None:
            if earlier:
                listing.notes.append(
                    f"same class and name but another picture: {earlier[0]['path']} and {row['path']}; both kept"
                )
            earlier.append(row)
            listing.rows.append(row)
        else:
            _join(listing, twin, row, is_infection_tree=place.is_infection_tree)


def _nearest(rows: list[dict[str, Any]], split: str | None) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["split"] != split)


def _join(listing: Listing, row: dict[str, Any], again: dict[str, Any], *, is_infection_tree: bool) -> None:
    for name in ("lung_mask", "infection_mask"):
        row[name] = row[name] or again[name]
    if row["split"] != again["split"]:
        listing.notes.append(
            f"in two splits: {row['path']} ({row['split']}) and {again['path']} ({again['split']}); '{row['split']}' "
            "kept"
        )
    elif is_infection_tree:
        listing.joined += 1
    else:
        listing.notes.append(f"repeated: {again['path']} is {row['path']}; one row kept")


def _mask(listing: Listing, root: Path, folder: Path, part: str, name: str) -> str | None:
    masks = _part(folder, part)
    if masks is None:
        return None
    if not (masks / name).is_file():
        listing.notes.append(f"no mask: {relative(masks, root)}/{name} is missing")
        return None
    return relative(masks / name, root)


def _name_rows(listing: Listing) -> None:
    """`Train/COVID-19/covid_1.png`, and the whole path where two rows would share that id."""
    short = [
        "/".join(p for p in ((r["split"] or "").capitalize(), r["label"], Path(r["path"]).name) if p)
        for r in listing.rows
    ]
    count = Counter(short)
    for row, name in zip(listing.rows, short, strict=True):
        row["image_id"] = name if count[name] == 1 else row["path"]
