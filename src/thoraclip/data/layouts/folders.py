"""Class folders: `ROOT/<class>/...`, with folders of a split above or below the classes; also within sole folders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from posixpath import basename, dirname

from thoraclip.data.layouts.listing import Listing, folders_above, index_command, list_files, typed, utf8
from thoraclip.errors import ManifestError, printable
from thoraclip.imaging.listing import FOLDER, Found, Tally
from thoraclip.imaging.names import IMAGES, SYSTEM
from thoraclip.pages import counted
from thoraclip.spelling import split_name

__all__ = ["find_folders"]

_Classes = Mapping[str, tuple[str, str | None]]  # folder -> (label, split)


def find_folders(root: Path, **_: object) -> Listing:
    """List class folders, with any folders below them; ManifestError for a class without image."""
    listing = Listing(root)
    found = list(list_files(listing))
    inside: dict[str, list[str]] = {"": []}  # folder -> the folders directly in it
    for one in found:
        if one.kind == FOLDER:
            inside[one.path] = []
            inside[dirname(one.path)].append(one.path)
    with_images = {dirname(one.path) for one in found if one.kind == IMAGES}
    top = ""
    while top not in with_images and len(inside[top]) == 1:  # the classes may lie below sole folders
        top = inside[top][0]
    if top in with_images or not inside[top]:
        top = ""
    if top:
        names = list(map(basename, inside[top]))
        if all(any(c.isdecimal() for c in name) for name in names):
            raise ManifestError(
                f"{printable(root / top)}: classes or patients? It is the only folder, and its folders are numbered: "
                f"{printable(', '.join(names[:3]))}, ...; for classes: {index_command(root / top)}; for patients, add "
                "the folder of another class beside it"
            )
        listing.notes.append(f"the classes lie in {top}, the only folder; they are its folders")
    splits = _splits_of(inside[top])
    if len(set(splits.values())) < 2:
        listing.notes += [f"class '{folder}' bears the name of a split, and no other folder does" for folder in splits]
        splits = {}
    above: Mapping[str, str | None] = splits or {top: None}
    classes = {folder: (basename(folder), split) for place, split in above.items() for folder in inside[place]}
    unknown = {folder: 0 for folder in inside[top] if splits and folder not in splits}
    below = {} if splits else _splits_below(listing, classes, inside, with_images)
    _note_inner_folders(listing, below or classes, inside)
    _sort_out(listing, found, classes, below, unknown)
    listing.unknown_folders += [(utf8(folder), files) for folder, files in unknown.items()]
    return listing


def _splits_of(folders: Iterable[str]) -> dict[str, str]:
    """Folder -> split, of those that bear the name of one."""
    return {folder: split for folder in folders if (split := split_name(basename(folder)))}


def _splits_below(
    listing: Listing, classes: _Classes, inside: Mapping[str, Sequence[str]], with_images: set[str]
) -> dict[str, str]:
    """Folder -> split, where all that lies in the classes are folders of splits; noted where only a part of it is."""
    inner = [folder for place in classes for folder in inside[place]]
    splits = _splits_of(inner)
    others = [folder for folder in inner if folder not in splits]
    others += [place for place in classes if place in with_images or not inside[place]]
    if splits and others:
        listing.notes.append(
            f"no split is taken from {counted(len(splits), 'folder')} below the classes, first {next(iter(splits))}, "
            f"as {others[0]} has none; sort its images into train, val and test, or give a table with a column split "
            "(--csv TABLE.csv)"
        )
    return {} if others else splits


def _sort_out(
    listing: Listing, found: Sequence[Found], classes: _Classes, below: Mapping[str, str], unknown: dict[str, int]
) -> None:
    filled = set()
    seen = {folder: Tally() for folder in ("", *classes)}
    for one in found:
        above = folders_above(one.path)
        branch = next((folder for folder in above if folder in unknown), None)
        place = next((folder for folder in above if folder in classes), None)
        if branch is not None and one.kind != SYSTEM:
            unknown[branch] += one.files
        elif place is None or one.kind != IMAGES:
            listing.leave_out(one)
            seen[place or ""].add(one)
        elif listing.accepts(one):
            label, split = classes[place]
            split = split or next((below[folder] for folder in above if folder in below), None)
            listing.rows.append({"image_id": one.path, "path": one.path, "label": label, "split": split})
            filled.add(place)
        else:
            seen[place].add(one._replace(kind="images whose names are not UTF-8 (rename them, or their folder)"))
    for folder in classes:
        if folder not in filled:
            path = listing.root / folder
            away = typed("mv", str(path), f"{path.parent}-{path.name}")
            raise ManifestError(
                f"{printable(path)}: class '{printable(path.name)}' holds no PNG, JPEG or DICOM picture; add some or "
                f"remove it ({away}); it holds {printable(seen[folder])}"
            )


def _note_inner_folders(listing: Listing, classes: Collection[str], inside: Mapping[str, Sequence[str]]) -> None:
    """Ask about `site/class/...`, where every class holds the same folders, two or more."""
    names = [set(map(basename, inside[place])) for place in classes]
    if len(names) > 1 and len(names[0]) > 1 and all(each == names[0] for each in names):
        first = listing.root / next(iter(classes))
        listing.notes.append(
            f"every class holds the folders {', '.join(sorted(names[0]))}; if these are the classes, index each folder "
            f"above them ({index_command(first)}), or all by a table of paths and labels (--csv TABLE.csv)"
        )
