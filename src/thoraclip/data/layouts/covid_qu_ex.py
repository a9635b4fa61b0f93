"""COVID-QU-Ex: `<... Segmentation Data>/[again/]{Train,Val,Test}/<class>/{images,lung masks,infection masks}/*.png`.

The infection tree repeats part of the lung tree's pictures; both join into one row an image. Copies of the data set
differ: the first folder is doubled or not, the first class is `COVID-19` or `COVID`; all are accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thoraclip.data.layouts.listing import Listing, all_files, image_files, split_name, sub_folders
from thoraclip.errors import InputError, ManifestError
from thoraclip.runs import file_sha256

__all__ = ["find_covid_qu_ex"]

_CLASSES = {
    **dict.fromkeys(("covid-19", "covid19", "covid"), "COVID-19"),
    **dict.fromkeys(("non-covid", "non_covid", "noncovid"), "Non-COVID"),
    "normal": "Normal",
}
_Place = tuple[bool, str, str, str | None]  # of the infection tree, class folder, label, split
_PARTS = ("images", "lung masks", "infection masks")


def find_covid_qu_ex(root: Path, *, sha256: Callable[[Path], str] = file_sha256, **_: object) -> Listing:
    """List the lung and infection trees under `root`, joined by class and file name where the bytes (`sha256`) agree.

    Raises:
        InputError: no such folder, or no `<class>/images` below it.
        ManifestError: a class folder whose `images` holds no picture.
    """
    listing = Listing(root)
    places: list[_Place] = []
    _walk(root, None, listing, places)
    if not places:
        raise InputError(
            f"{root}: no COVID-QU-Ex folder (<class>/images) below it; for class folders: --layout folders"
        )
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    joined = 0
    for is_infection_tree, folder, label, split in sorted(places):
        for row, name in _rows(listing, Path(folder), label, split):
            earlier = by_name.setdefault((label, name), [])
            same_split_first = sorted(earlier, key=lambda other: other["split"] != split)
            digest = sha256(root / row["path"]) if earlier else ""
            twin = next((other for other in same_split_first if sha256(root / other["path"]) == digest), None)
            if twin is not None:
                joined += _join(listing, twin, row, is_infection_tree=is_infection_tree)
                continue
            if earlier:
                listing.notes.append(
                    f"same class and name but another picture: {earlier[0]['path']} and {row['path']}; both kept"
                )
            earlier.append(row)
            listing.rows.append(row)
    if joined:
        listing.notes.append(f"joined: {joined} pictures of the infection tree repeat the lung tree's; one row each")
    short = [
        "/".join(p for p in ((r["split"] or "").capitalize(), r["label"], Path(r["path"]).name) if p)
        for r in listing.rows
    ]
    count = Counter(short)  # `Train/COVID-19/covid_1.png`, and the whole path where two rows would share that id
    for row, name in zip(listing.rows, short, strict=True):
        row["image_id"] = name if count[name] == 1 else row["path"]
    return listing


def _walk(folder: Path, split: str | None, listing: Listing, places: list[_Place]) -> int:
    """Collect the class folders below `folder`; returns how many, and lists the branches without any."""
    label = _CLASSES.get(folder.name.lower())
    children = sub_folders(folder)
    images = next((child for child in children if child.name.lower() == "images"), None)
    if label and images:
        places.append(("infection" in listing.relative(folder).lower(), str(folder), label, split))
        unknown = [child for child in children if child.name.lower() not in _PARTS] + sub_folders(images)
        total = 1
    else:
        counts = {child: _walk(child, split_name(child.name) or split, listing, places) for child in children}
        total = sum(counts.values())
        if not total and folder != listing.root:
            return 0
        unknown = [child for child, count in counts.items() if not count]
    listing.leave_out(folders=unknown, files=all_files(folder))
    return total


def _rows(listing: Listing, folder: Path, label: str, split: str | None) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, file name) of every picture of a class folder, with its masks."""
    parts = {child.name.lower(): child for child in reversed(sub_folders(folder))}
    pictures, others = image_files(parts["images"])
    listing.leave_out(files=others)
    if not pictures:
        raise ManifestError(f"{parts['images']}: class '{label}' holds no picture; add some or remove the folder")
    for file in pictures:
        row: dict[str, Any] = {"path": listing.relative(file), "label": label, "split": split}
        for column, part in (("lung_mask", "lung masks"), ("infection_mask", "infection masks")):
            mask = parts[part] / file.name if part in parts else None
            row[column] = listing.relative(mask) if mask and mask.is_file() else None
            if mask and not row[column]:
                listing.notes.append(f"no mask: {listing.relative(mask)} is missing")
        yield row, file.name


def _join(listing: Listing, row: dict[str, Any], again: dict[str, Any], *, is_infection_tree: bool) -> bool:
    """Give a row the masks of its twin; True where the twin is of the infection tree and nothing else differs."""
    for name in ("lung_mask", "infection_mask"):
        row[name] = row[name] or again[name]
    path, split = row["path"], row["split"]
    if split != again["split"]:
        listing.notes.append(f"in two splits: {path} ({split}) and {again['path']} ({again['split']}); '{split}' kept")
    elif not is_infection_tree:
        listing.notes.append(f"repeated: {again['path']} is {path}; one row kept")
    return split == again["split"] and is_infection_tree
