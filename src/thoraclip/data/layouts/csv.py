"""A CSV file that lists the images under a root, with any names of columns."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from thoraclip.data.layouts.listing import Listing, folders_above, list_files, name_finder, split_name, split_path, utf8
from thoraclip.errors import ConfigError, InputError, ManifestError, did_you_mean
from thoraclip.imaging.names import SYSTEM
from thoraclip.spreadsheets import restore_record
from thoraclip.tables.manifest import COLUMNS, OPTIONAL

__all__ = ["find_csv"]

_OURS = {"sha256", "phash", "fold", "width", "height", "mode", "format"}  # columns of a manifest that no table gives
_ALIASES = {
    "age_years": ("age",),
    "patient": ("patient_id", "PatientID", "subject_id"),
    "lung_mask": ("mask_path", "mask"),
    "source": ("source_repo", "dataset"),
}
"""Columns that are taken for ours where none bears our name."""
_SEXES = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F", "o": "O", "other": "O"}
_OLDEST_YEARS = 130
_UNKNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown"}


def find_csv(
    root: Path, *, csv_file: Path | None = None, columns: Mapping[str, str | None] | None = None, **_: object
) -> Listing:
    """List the rows of a CSV file; paths and masks are relative to `root`, other columns are kept as text.

    `columns` is manifest column -> CSV column; without one, that of the same name or of a common one is taken, if any.

    Raises:
        InputError: no such folder or file.
        ConfigError: `csv_file` was not given, or a named column is not in it.
        ManifestError: an unknown split word, or a multi-label value (`A|B`).
    """
    listing = Listing(root)
    if csv_file is None:
        raise ConfigError("layout 'csv' needs the table: --csv FILE")
    if not csv_file.is_file():
        raise InputError(f"{csv_file}: no such CSV file; name an existing one with --csv")
    find = name_finder(root)
    with csv_file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        try:
            chosen = _chosen_columns(columns or {}, reader.fieldnames or [], csv_file)
            for line, record in enumerate(reader, start=2):
                _add_row(listing, restore_record(record), chosen, find, where=f"{csv_file}:{line}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ManifestError(f"{csv_file}: not a readable CSV file ({error}); mend the file") from error
    _list_others(listing, csv_file)
    return listing


def _chosen_columns(columns: Mapping[str, str | None], header: Any, csv_file: Path) -> dict[str, str]:
    """Manifest column -> CSV column: the named ones, and those that already bear the manifest's name."""
    chosen = {}
    for column in (name for name in COLUMNS if name not in _OURS):
        name = columns.get(column)
        if name is None:
            needed = column if column in ("path", "label") else None
            name = next((known for known in (column, *_ALIASES.get(column, ())) if known in header), needed)
        if name is None:
            continue
        if name not in header:
            flag = column.removesuffix("_years").replace("lung_mask", "mask").replace("_", "-")
            raise ConfigError(
                f"{csv_file}: no column '{name}' for '{column}'{did_you_mean(name, header)} (--{flag}-column NAME)"
            )
        chosen[column] = name
    return chosen


def _list_others(listing: Listing, csv_file: Path) -> None:
    """Count the files below the root that no row names, folder by folder."""
    root, table = listing.root.resolve(), csv_file.resolve()
    named = {row[name] for row in listing.rows for name in ("path", "lung_mask", "infection_mask") if row.get(name)}
    named = {PurePosixPath(os.path.normpath(path)).as_posix() for path in named}
    named |= {table.relative_to(root).as_posix()} if table.is_relative_to(root) else set()
    below = Counter(place for path in named for place in (*folders_above(path), path))
    counts: Counter[str] = Counter()
    for one in list_files(listing):
        others = max(0, one.files - below[one.path])
        if one.kind == SYSTEM and others:
            listing.leave_out(one._replace(files=others))
        elif others:
            counts[one.path if one.files > 1 else split_path(one.path)[0] or "."] += others
    listing.not_in_table += [(utf8(folder), files) for folder, files in counts.items()]


def _add_row(
    listing: Listing, record: dict[str, Any], chosen: dict[str, str], find: Callable[[str], str], *, where: str
) -> None:
    surplus = [cell for cell in record.pop(None, []) if cell.strip()]  # type: ignore[call-overload]
    if surplus:
        raise ManifestError(f"{where}: more cells than columns, from '{surplus[0]}' on; put quotes around commas")
    values = {name: _known(record.get(column)) for name, column in chosen.items()}
    root, path = listing.root, values["path"]
    if path is None:
        listing.set_aside.append((where, "no path in this row"))
        return
    if Path(path).is_absolute():
        if not Path(path).is_relative_to(root.resolve()):
            raise ManifestError(f"{where}: path '{path}' lies outside {root}; give the folder above it as ROOT")
        path = Path(path).relative_to(root.resolve()).as_posix()
    if ".." in Path(path).parts:
        raise ManifestError(f"{where}: path '{path}' leads out of {root}; give the folder above it as ROOT")
    image_id, path = values.get("image_id") or path, find(path)
    row: dict[str, Any] = {
        (f"csv_{k}" if k in COLUMNS or k in OPTIONAL else k): v or None
        for k, v in record.items()
        if k not in chosen.values()
    }
    row |= values | {"path": path, "image_id": image_id}
    if "|" in (values["label"] or ""):
        raise ManifestError(f"{where}: label '{values['label']}' names several classes; keep one per image")
    word = values.get("split")
    row["split"] = split_name(word)
    if word and not row["split"]:
        raise ManifestError(f"{where}: split '{word}' is unknown; use train, val or test")
    if row.get("sex"):
        row["sex"] = _SEXES.get(row["sex"].lower(), row["sex"])
    row["age_years"] = _age(listing, values.get("age_years"), where)
    for name in ("lung_mask", "infection_mask"):
        if row.get(name):
            row[name] = find(row[name])
        if row.get(name) and not (root / row[name]).is_file():
            listing.notes.append(f"no mask: {row[name]} is missing ({where})")
            row[name] = None
    listing.rows.append(row)


def _known(value: str | None) -> str | None:
    return None if value is None or value.strip().lower() in _UNKNOWN else value.strip()


def _age(listing: Listing, text: str | None, where: str) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"0*(\d{1,3}(?:\.\d+)?)\s*[Yy]?", text)  # DICOM writes 045Y
    if match is None or float(match.group(1)) > _OLDEST_YEARS:
        listing.notes.append(f"age '{text}' is not a number of years; taken as unknown ({where})")
        return None
    return float(match.group(1))
