"""A CSV file that lists the images under a root, with any names of columns."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from thoraclip.data.layouts.listing import Listing, folders_above, list_files, utf8
from thoraclip.delimited import NO_VALUE, UNKNOWN, Delimited, Row, TablePaths, number, read_delimited
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging.dicom import OLDEST_YEARS, PER_YEAR
from thoraclip.imaging.names import SYSTEM
from thoraclip.spelling import loose, split_name, tidy
from thoraclip.tables.manifest import COLUMNS, OPTIONAL

__all__ = ["COLUMN_SETTINGS", "find_csv"]

COLUMN_SETTINGS = {
    "path_column": "path",
    "label_column": "label",
    "id_column": "image_id",
    "split_column": "split",
    "patient_column": "patient",
    "source_column": "source",
    "view_column": "view",
    "sex_column": "sex",
    "age_column": "age_years",
    "mask_column": "lung_mask",
    "infection_mask_column": "infection_mask",
}
"""Setting that names a CSV column -> the manifest column that it fills."""

_SHOWN = 10
_OURS = {"sha256", "phash", "fold", "width", "height", "mode", "format"}  # columns of a manifest that no table gives
_ALIASES = {
    "age_years": ("age",),
    "patient": ("patient_id", "PatientID", "subject_id"),
    "lung_mask": ("mask_path", "mask"),
    "source": ("source_repo", "dataset"),
}
"""Columns that are taken for ours where none bears our name."""
_LIKELY = {
    "age": "age ages alter edad idade eta leeftijd",
    "sex": "sex gender geschlecht sexe sexo sesso genre genero geslacht",
    "view": "view viewposition projection projektion proyeccion strahlengang",
    "split": "split subset partition",
    "patient": "patientid patientno patientnr patientnumber patientenid patientennummer pid subject subjectid caseid",
}
"""Option, and words (as `loose` gives them) in the name of a column that it may be meant for; the first counts."""
_SEXES = {
    "M": "m male man mannlich mann masculin homme masculino hombre maschile maschio",
    "F": "f female woman weiblich w frau feminin femme femenino feminino mujer femminile femmina",
    "O": "o other divers",
}
_VIEWS = {"PA": "pa posteroanterior", "AP": "ap anteroposterior"}
"""What DICOM writes -> words as `loose` gives them."""
_AGE = re.compile(
    r"0*(\d{1,3}(?:[.,]\d*)?)\s*(d|days?|w|weeks?|m|months?|y|yo|yrs?\.?|years?(?:\s+old)?)?", re.ASCII | re.IGNORECASE
)
"""DICOM writes 045Y, 006M, 012W, 003D."""


def find_csv(
    root: Path, *, csv_file: Path | None = None, columns: Mapping[str, str | None] | None = None, **_: object
) -> Listing:
    """List the rows of a CSV file; paths and masks are relative to `root`, other columns are kept as text.

    `columns` is manifest column -> CSV column; without one, that of the same name or of a common one is taken, if any.
    A row that repeats another is noted and read once.

    Raises:
        InputError: no such folder or file.
        ConfigError: `csv_file` was not given, or a named column is not in it.
        ManifestError: see `delimited`; an unknown split word, a multi-label value (`A|B`), an image with two rows that
            differ, or a patient that is written in two ways (`12`, `012`, `12.0`).
    """
    listing = Listing(root)
    if csv_file is None:
        raise ConfigError("layout 'csv' needs the table: --csv FILE")
    if not csv_file.is_file():
        raise InputError(f"{csv_file}: no such CSV file; name an existing one with --csv")
    table = read_delimited(csv_file)
    chosen = _chosen_columns(columns or {}, table)
    paths, unclear = TablePaths(root), defaultdict[str, list[str]](list)
    earlier: dict[str, tuple[int, dict[str, Any]]] = {}
    patients: dict[str, tuple[str, int]] = {}
    for record in table:
        row = _row(listing, record, chosen, paths, unclear)
        if row is None:
            continue
        if repeated := _repeated(row, record, earlier):
            listing.notes.append(f"{record.where}: repeats line {repeated}; read once")
            continue
        if patient := row.get("patient"):
            written, line = patients.setdefault(loose(patient), (patient, record.line))
            if written != patient:
                raise ManifestError(
                    f"{record.where}: patient '{patient}' may be patient '{written}' of line {line}; write one patient "
                    "in one way, and two in ways that differ by more"
                )
        listing.rows.append(row)
    if not earlier and not listing.set_aside:
        raise ManifestError(f"{csv_file}: no rows below the column names; the table needs a row for each image")
    classes = {row["label"]: row["path"] for row in reversed(listing.rows) if row["label"]}
    for label, path in classes.items():
        line, _ = earlier[f"path '{path}'"]
        listing.lines[path] = f"{csv_file}:{line}"
        parts = re.findall(r"[^|;,\[\]'\"]+", label)
        if "|" in label or (len(parts) > 1 and classes.keys() >= set(filter(None, map(tidy, parts)))):
            raise ManifestError(f"{listing.lines[path]}: label '{label}' names several classes; keep one per image")
    listing.notes += [*table.notes, *_columns_note(chosen, table)]
    for note, rows in unclear.items():
        more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
        listing.notes.append(f"{note} ({rows[0]}{more})")
    _list_others(listing, csv_file)
    return listing


def _repeated(row: dict[str, Any], record: Row, earlier: dict[str, tuple[int, dict[str, Any]]]) -> int:
    """The line of an equal row among the earlier ones (image or file -> line, row), which this one joins, else 0;
    raises ManifestError where one of the same image differs."""
    for key in dict.fromkeys((f"image_id '{row['image_id']}'", f"path '{row['path']}'")):
        line, other = earlier.setdefault(key, (record.line, row))
        if line == record.line:
            continue
        if other == row:
            return line
        name = next(name for name in row if row[name] != other.get(name))
        values = " and ".join(f"'{one[name]}'" if one.get(name) else "nothing" for one in (other, row))
        raise ManifestError(
            f"{record.where}: {key} is repeated: {name} is {values} in lines {line} and {record.line}; keep one row "
            "for each image"
        )
    return 0


def _chosen_columns(columns: Mapping[str, str | None], table: Delimited) -> dict[str, str]:
    """Manifest column -> CSV column: the named ones, and those that already bear the manifest's name."""
    chosen = {}
    for column in (name for name in COLUMNS if name not in _OURS):
        given = columns.get(column)
        known = (given,) if given else (column, *_ALIASES.get(column, ()))
        found = next(filter(None, map(table.column, known)), None)
        if found:
            chosen[column] = found
        elif given or column in ("path", "label"):
            flag = column.removesuffix("_years").replace("lung_mask", "mask").replace("_", "-")
            raise ConfigError(table.without(given or column, f"; give --{flag}-column NAME"))
    for column in {f"csv_{name}" for name in COLUMNS if name in table.header}.intersection(table.header):
        raise ManifestError(
            f"{table.path}: column '{column}' is kept under that name, which '{column[4:]}' takes; rename it"
        )
    return chosen


def _columns_note(chosen: Mapping[str, str], table: Delimited) -> list[str]:
    """A line that says which columns fill ours under another name, which are text alone, and what to type for those."""
    taken = ", ".join(f"{ours} from '{theirs}'" for ours, theirs in chosen.items() if ours != theirs)
    kept = [name for name in table.header if name not in chosen.values()]
    options: dict[str, str] = {}
    for name in kept:
        words = set(map(loose, [name, *re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", name)]))
        option = next((option for option, known in _LIKELY.items() if words & set(known.split())), None)
        if option and not {option, f"{option}_years"} & chosen.keys():
            options.setdefault(option, f"--{option}-column {shlex.quote(name)}")
    more = f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
    said = [f"taken: {taken}"] if taken else []
    said += [f"kept as text: {', '.join(map(repr, kept[:_SHOWN]))}{more}"] if kept else []
    said += [f"if they are meant, add {' '.join(options.values())}"] if options else []
    return [f"columns {'; '.join(said)}"] if said else []


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
            counts[one.path if one.files > 1 else posixpath.split(one.path)[0] or "."] += others
    listing.not_in_table += [(utf8(folder), files) for folder, files in counts.items()]


def _row(
    listing: Listing, record: Row, chosen: dict[str, str], paths: TablePaths, unclear: dict[str, list[str]]
) -> dict[str, Any] | None:
    """What a row says of its image; `None` where it has no path, which is noted. `unclear` is note -> rows."""
    root, where = listing.root, record.where
    values = {name: _known(name, record.cells[column]) for name, column in chosen.items()}
    if values["path"] is None:
        listing.set_aside.append((where, "no path in this row"))
        return None
    if record.cells[chosen["label"]] is None:
        raise ManifestError(f"{where}: the row ends before its label; write the label, or an empty cell for none")
    path = _below(root, paths(values["path"], where), where)
    row: dict[str, Any] = {
        (f"csv_{k}" if k in COLUMNS or k in OPTIONAL else k): v or None
        for k, v in record.cells.items()
        if k not in chosen.values()
    }
    row |= values | {"path": path, "image_id": tidy(values.get("image_id") or path) or path}
    if re.search(r"[\r\n]", values["label"] or ""):
        raise ManifestError(
            f"{where}: label {values['label']!r} holds a line break; a quote is missing, or one too many"
        )
    word = values.get("split")
    row["split"] = split_name(word)
    if word and not row["split"]:
        raise ManifestError(f"{where}: split '{word}' is unknown; use train, val or test")
    if row.get("patient"):
        row["patient"] = tidy(row["patient"])
    if row.get("view"):
        row["view"] = _coded(row["view"], _VIEWS) or tidy(row["view"]).upper()
    if sex := row.get("sex"):
        row["sex"] = _coded(sex, _SEXES) or sex
        if row["sex"] not in _SEXES:
            unclear[f"sex '{sex}' is kept as it is written; write M, F or O"].append(where)
    row["age_years"] = _age(values.get("age_years"))
    if values.get("age_years") and row["age_years"] is None:
        unclear[f"age '{values['age_years']}' is not a number of years; taken as unknown"].append(where)
    for name in ("lung_mask", "infection_mask"):
        if row.get(name):
            row[name] = paths(row[name], where)
            if not (root / row[name]).is_file():
                listing.notes.append(f"no mask: {row[name]} is missing ({where})")
                row[name] = None
    return row


def _below(root: Path, path: str, where: str) -> str:
    """A path below the root, in one spelling; raises ManifestError for one that is not below it."""
    if Path(path).is_absolute():
        if not Path(path).is_relative_to(root.resolve()):
            is_here = os.path.exists(path)  # noqa: PTH110
            remedy = "give the folder above it as ROOT" if is_here else "there is no such file; give paths below ROOT"
            raise ManifestError(f"{where}: path '{path}' lies outside {root}; {remedy}")
        path = Path(path).relative_to(root.resolve()).as_posix()
    if ".." in Path(path).parts:
        raise ManifestError(f"{where}: path '{path}' leads out of {root}; give the folder above it as ROOT")
    return Path(path).as_posix()


def _known(name: str, value: str | None) -> str | None:
    unknown = UNKNOWN if name == "label" else NO_VALUE
    return None if value is None or value.strip().lower() in unknown else value.strip()


def _coded(text: str, codes: Mapping[str, str]) -> str | None:
    word = loose(text)
    return next((code for code, words in codes.items() if word in words.split()), None)


def _age(text: str | None) -> float | None:
    match = _AGE.fullmatch(text or "")
    unit = match[2][:1].upper() if match and match[2] else "Y"
    years = round((number(match[1]) or 0) / PER_YEAR[unit], 2) if match else None
    return None if years is None or years > OLDEST_YEARS else years
