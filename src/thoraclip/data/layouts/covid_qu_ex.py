"""COVID-QU-Ex: `<... Segmentation Data>/[again/]{Train,Val,Test}/<class>/{images,lung masks,infection masks}/*.png`.

The infection tree repeats part of the lung tree's pictures; both join into one row an image. Copies of the data set
differ: the first folder is doubled or not, the first class is `COVID-19` or `COVID`; all are accepted.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.data.layouts.listing import Listing, folders_above, list_files, utf8
from thoraclip.errors import InputError, ManifestError, printable
from thoraclip.imaging.listing import FOLDER, Found
from thoraclip.imaging.names import IMAGES, MASKS, SYSTEM
from thoraclip.runs import file_sha256
from thoraclip.spelling import loose, split_name

__all__ = ["find_covid_qu_ex"]

_CLASSES = {"covid19": "COVID-19", "covid": "COVID-19", "noncovid": "Non-COVID", "normal": "Normal"}
"""By `loose`."""
_MASKS = {"lung masks": "lung_mask", "infection masks": "infection_mask"}


@dataclass
class _Place:
    """A class folder, and what lies in its `images` and its folders of masks."""

    label: str
    split: str | None
    is_infection_tree: bool
    images_folder: str
    images: list[Found] = field(default_factory=list)
    mask_folders: dict[str, str] = field(default_factory=dict)  # column -> path
    masks: dict[tuple[str, str], str] = field(default_factory=dict)  # (column, file name) -> path


def find_covid_qu_ex(root: Path, *, sha256: Callable[[Path], str] = file_sha256, **_: object) -> Listing:
    """List the lung and infection trees under `root`, joined by class and file name where the bytes (`sha256`) agree.

    Raises:
        InputError: no such folder, or no `<class>/images` below it.
        ManifestError: a class folder whose `images` holds no picture.
    """
    listing = Listing(root)
    found = list(list_files(listing))
    places = _places(root, found)
    if not places:
        raise InputError(
            f"{root}: no COVID-QU-Ex folder (<class>/images) below it; for class folders: --layout folders"
        )
    _sort_out(listing, found, places)
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    joined = 0
    for place in sorted(places.values(), key=lambda place: (place.is_infection_tree, place.images_folder)):
        for row, name in _rows(listing, place):
            earlier = by_name.setdefault((place.label, name), [])
            same_split_first = sorted(earlier, key=lambda other: other["split"] != place.split)
            digest = sha256(root / row["path"]) if earlier else ""
            twin = next((other for other in same_split_first if sha256(root / other["path"]) == digest), None)
            if twin is not None:
                joined += _join(listing, twin, row, is_infection_tree=place.is_infection_tree)
                continue
            if earlier:
                listing.notes.append(
                    f"same class and name but another picture: {earlier[0]['path']} and {row['path']}; both kept"
                )
            earlier.append(row)
            listing.rows.append(row)
    if joined:
        listing.notes.append(f"joined: {joined} pictures of the infection tree repeat the lung tree's; one row each")
    _name_rows(listing.rows)
    return listing


def _places(root: Path, found: Sequence[Found]) -> dict[str, _Place]:
    """Class folder -> its place, for those with a folder `images`; none lies within another."""
    places: dict[str, _Place] = {}
    for one in found:
        folder, last = posixpath.split(one.path)
        label = _CLASSES.get(loose(posixpath.split(folder)[1] or root.resolve().name))
        if one.kind == FOLDER and last.lower() == "images" and label:
            split = next(filter(None, map(split_name, reversed(folder.split("/")))), None)
            places.setdefault(folder, _Place(label, split, "infection" in folder.lower(), one.path))
    return {folder: place for folder, place in places.items() if places.keys().isdisjoint(folders_above(folder))}


def _sort_out(listing: Listing, found: Sequence[Found], places: Mapping[str, _Place]) -> None:
    """Give every place its images and masks, and list the rest: a branch without any place by its folder."""
    by_images = {place.images_folder: place for place in places.values()}
    known = {"", *places, *by_images, *(folder for place in places for folder in folders_above(place))}
    unknown: Counter[str] = Counter()
    for one in found:
        folder, last = posixpath.split(one.path)
        own = [one.path] if one.kind == FOLDER else []
        branch = next((above for above in [*folders_above(one.path), *own] if above not in known), None)
        column = _MASKS.get(last.lower()) if one.kind == MASKS else None
        if one.kind == SYSTEM:
            listing.leave_out(one)
        elif branch is not None:
            unknown[branch] += one.files
        elif one.kind == IMAGES and folder in by_images:
            by_images[folder].images.append(one)
        elif column and folder in places:
            places[folder].mask_folders[column] = one.path
            _add_masks(listing, places[folder], column, one.path)
        else:
            listing.leave_out(one, image="outside the folders 'images'")
    listing.unknown_folders += [(utf8(folder), files) for folder, files in unknown.items()]


def _add_masks(listing: Listing, place: _Place, column: str, folder: str) -> None:
    for one in list_files(listing, folder):
        above, name = posixpath.split(one.path)
        if one.kind in (IMAGES, MASKS) and above == folder and (column, name) not in place.masks:
            place.masks[column, name] = one.path
        else:
            listing.leave_out(one, image="a further mask, or in a folder of its own")


def _rows(listing: Listing, place: _Place) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, file name) of every picture of a class folder, with its masks; masks without picture are set aside."""
    if not place.images:
        raise ManifestError(
            f"{printable(listing.root / place.images_folder)}: class '{place.label}' holds no picture; add some or "
            "remove the folder"
        )
    for one in place.images:
        if not listing.accepts(one):
            continue
        name = posixpath.split(one.path)[1]
        row: dict[str, Any] = {"path": one.path, "label": place.label, "split": place.split}
        for column in _MASKS.values():
            row[column] = place.masks.pop((column, name), None)
            if column in place.mask_folders and not row[column]:
                listing.notes.append(f"no mask: {place.mask_folders[column]}/{name} is missing")
        yield row, name
    for path in place.masks.values():
        listing.leave_out(Found(path, MASKS, "a mask without an image of its name"))


def _join(listing: Listing, row: dict[str, Any], again: dict[str, Any], *, is_infection_tree: bool) -> bool:
    """Give a row the masks of its twin; True where the twin is of the infection tree and nothing else differs."""
    listing.repeated_files.append((again["path"], row["path"]))
    for name in ("lung_mask", "infection_mask"):
        if row[name] and again[name]:
            listing.repeated_files.append((again[name], row[name]))
        row[name] = row[name] or again[name]
    path, split = row["path"], row["split"]
    if split != again["split"]:
        listing.notes.append(f"in two splits: {path} ({split}) and {again['path']} ({again['split']}); '{split}' kept")
    elif not is_infection_tree:
        listing.notes.append(f"repeated: {again['path']} is {path}; one row kept")
    return split == again["split"] and is_infection_tree


def _name_rows(rows: Sequence[dict[str, Any]]) -> None:
    """`Train/COVID-19/covid_1.png`, or the whole path where two rows would share that id."""
    short = [
        "/".join(p for p in ((r["split"] or "").capitalize(), r["label"], Path(r["path"]).name) if p) for r in rows
    ]
    count = Counter(short)
    for row, name in zip(rows, short, strict=True):
        row["image_id"] = name if count[name] == 1 else row["path"]
