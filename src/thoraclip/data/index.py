"""Folder -> manifest: read every picture once, in parallel; nothing is left out without being listed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.data.layouts import CsvColumns, Listing, find_layout
from thoraclip.errors import ImageError, InputError, ManifestError
from thoraclip.imaging import decode, perceptual_hash
from thoraclip.runs import Progress, write_json
from thoraclip.tables.manifest import Manifest

__all__ = ["IndexResult", "index", "write_index_report"]


@dataclass(frozen=True)
class IndexResult:
    """A manifest and what did not get into it.

    Args:
        manifest: the readable images, sorted by id.
        set_aside: (path, reason) of every picture that cannot be used.
        unknown_folders: (folder, number of files) that the layout does not explain.
        other_files: files that are not pictures.
        notes: joins, conflicts, missing masks.
        repeats: groups of image ids with the same bytes, and whether their labels or splits differ.
    """

    manifest: Manifest
    set_aside: list[tuple[str, str]]
    unknown_folders: list[tuple[str, int]]
    other_files: list[str]
    notes: list[str]
    repeats: list[dict[str, Any]] = field(default_factory=list)


def index(
    root: Path,
    *,
    layout: str,
    csv_file: Path | None = None,
    columns: CsvColumns | None = None,
    progress: Progress | None = None,
) -> IndexResult:
    """Read every picture of a layout: SHA-256, perceptual hash, size, mode and format.

    Args:
        root: the folder.
        layout: a name in `LAYOUTS`.
        csv_file, columns: for layout `csv`.
        progress: called with (done, total).

    Raises:
        InputError: no such folder, or no readable picture in it.
        ConfigError: unknown layout or column.
        ManifestError: a class without a readable picture, multi-label values, fewer than two classes.
    """
    listing = find_layout(layout)(root, csv_file=csv_file, columns=columns)
    if not listing.rows:
        raise InputError(
            f"{root}: no PNG, JPEG or DICOM picture for layout '{layout}'; name the folder that holds the images"
        )
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done, (row, facts) in enumerate(_read_all(pool, root, listing), start=1):
            if isinstance(facts, str):
                listing.set_aside.append((row["path"], facts))
            else:
                rows.append(row | facts)
            if progress:
                progress(done, len(listing.rows))
    if not rows:
        raise InputError(f"{root}: none of {len(listing.rows)} pictures can be read, first: {listing.set_aside[0][1]}")
    rows.sort(key=lambda row: row["image_id"])
    _refuse_empty_classes(root, listing, rows)
    manifest = Manifest.from_rows(rows, root.resolve())
    manifest.label_set()
    return IndexResult(
        manifest=manifest,
        set_aside=sorted(listing.set_aside),
        unknown_folders=sorted(listing.unknown_folders),
        other_files=sorted(listing.other_files),
        notes=sorted(listing.notes),
        repeats=_repeats(rows),
    )


def _read_all(
    pool: ThreadPoolExecutor, root: Path, listing: Listing
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | str]]:
    results = pool.map(lambda row: _read(root / row["path"]), listing.rows)
    yield from zip(listing.rows, results, strict=True)


def _read(path: Path) -> dict[str, Any] | str:
    """Facts of one picture, or the reason why it cannot be used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        radiograph = decode(data)
    except ImageError as error:
        return str(error).removeprefix("image: ")
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": perceptual_hash(radiograph.pixels),
        "width": radiograph.width,
        "height": radiograph.height,
        "mode": radiograph.mode,
        "format": radiograph.format,
    }


def _refuse_empty_classes(root: Path, listing: Listing, rows: list[dict[str, Any]]) -> None:
    listed = {row["label"] for row in listing.rows if row["label"] is not None}
    read = {row["label"] for row in rows}
    for label in sorted(listed - read):
        raise ManifestError(f"{root}: class '{label}' holds no readable picture; replace its files or remove the class")


def _repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["sha256"], []).append(row)
    return [
        {
            "image_ids": [row["image_id"] for row in group],
            "labels_differ": len({row["label"] for row in group}) > 1,
            "splits_differ": len({row["split"] for row in group}) > 1,
        }
        for group in groups.values()
        if len(group) > 1
    ]


def write_index_report(path: Path, result: IndexResult) -> None:
    """Write everything that `index` saw and did not put into the manifest, as JSON."""
    labels, splits = result.manifest.column("label"), result.manifest.column("split")
    write_json(
        path,
        {
            "schema": 1,
            "images": len(result.manifest),
            "labels": dict(sorted(Counter(str(label) for label in labels).items())),
            "splits": dict(sorted(Counter(str(split) for split in splits).items())),
            "set_aside": [{"path": p, "reason": reason} for p, reason in result.set_aside],
            "unknown_folders": [{"path": p, "files": count} for p, count in result.unknown_folders],
            "other_files": result.other_files,
            "repeats": result.repeats,
            "notes": result.notes,
        },
    )
