"""`ROOT/<class>/...` or `ROOT/<train|val|test>/<class>/...`: the folder's name is the label."""

from __future__ import annotations

from pathlib import Path

from thoraclip.data.layouts.listing import Listing, all_files, image_files, split_name, sub_folders
from thoraclip.errors import ManifestError
from thoraclip.imaging import is_image_name

__all__ = ["find_folders"]


def find_folders(root: Path, **_: object) -> Listing:
    """List a folder of class folders, with or without split folders above; ManifestError for a class without image."""
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


def _masks_above(file: Path, folder: Path) -> Path | None:
    """The outermost folder of masks, of those below `folder`, that a file lies in."""
    return next((place for place in reversed(file.parents) if folder in place.parents and _holds_masks(place)), None)


def _add_class(listing: Listing, folder: Path, split: str | None) -> None:
    pictures, others = image_files(folder, "**/*")
    masks = {file: place for file in (*pictures, *others) if (place := _masks_above(file, folder))}
    pictures, others = ([file for file in files if file not in masks] for files in (pictures, others))
    listing.leave_out(folders=sorted(set(masks.values())), files=others)
    if not pictures:
        raise ManifestError(
            f"{folder}: class '{folder.name}' holds no PNG, JPEG or DICOM picture; add some or remove the folder"
        )
    for file in pictures:
        path = listing.relative(file)
        listing.rows.append({"image_id": path, "path": path, "label": folder.name, "split": split})
