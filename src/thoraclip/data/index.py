"""Folder -> manifest: read every picture once, in parallel; nothing is left out without being listed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.data.batches import in_batches
from thoraclip.data.facts import FactStore
from thoraclip.data.layouts import Listing, find_layout
from thoraclip.errors import ImageError, InputError, ManifestError
from thoraclip.imaging import decode, perceptual_hash, read_bytes
from thoraclip.runs import Progress, write_json
from thoraclip.tables.manifest import Manifest

__all__ = ["IndexResult", "index", "local_salt", "pseudonym", "salt_file", "write_index_report"]

_BATCH = 64


@dataclass(frozen=True)
class IndexResult:
    """A manifest and what did not get into it.

    Args:
        manifest: the readable images, sorted by id; it may leak, as the files' own split may.
        set_aside: (path, reason) of every picture that cannot be used.
        unknown_folders: (folder, number of files) that the layout does not explain.
        other_files: files that are not pictures.
        notes: joins, conflicts, missing masks.
        repeats: groups of image ids with the same bytes, and whether their labels or splits differ.
        read: files that were read; the others had not changed.
    """

    manifest: Manifest
    set_aside: list[tuple[str, str]]
    unknown_folders: list[tuple[str, int]]
    other_files: list[str]
    notes: list[str]
    repeats: list[dict[str, Any]]
    read: int


def index(
    root: Path,
    *,
    layout: str,
    csv_file: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    facts: Path | None = None,
    fresh: bool = False,
    salt: Path | None = None,
    one_class: bool = False,
    progress: Progress | None = None,
) -> IndexResult:
    """Read every image of a layout: SHA-256, perceptual hash, size, mode, format; of DICOM patient, view, sex, age too.

    Args:
        layout: a name in `LAYOUTS`.
        csv_file, columns: for layout `csv`, see `find_csv`.
        facts: file that keeps what was read; files that did not change since are not read again.
        fresh: read every file again.
        salt: file with the secret under which patient ids of DICOM files are hashed; see `local_salt`.
        one_class: whether images of a single class will do.
        progress: called with (done, total).

    Raises:
        InputError: no such folder, or no readable picture in it.
        ConfigError: unknown layout or column.
        ManifestError: a class without a readable picture, multi-label values, fewer than two classes.
    """
    find = find_layout(layout)
    store = FactStore(root, facts, fresh=fresh)
    listing = find(root, csv_file=csv_file, columns=columns, sha256=store.sha256)
    if not listing.rows and listing.set_aside:
        path, reason = listing.set_aside[0]
        raise InputError(
            f"{root}: no picture can be used, {len(listing.set_aside)} are set aside, first {path}: {reason}; "
            "give every class a sub-folder of its own"
        )
    if not listing.rows:
        raise InputError(f"{root}: no PNG, JPEG or DICOM picture for layout '{layout}'; name the images' folder")
    rows = _read_all(store, listing, _Pseudonyms(salt), progress)
    store.settle()
    if not rows:
        raise InputError(f"{root}: none of {len(listing.rows)} pictures can be read, first: {listing.set_aside[0][1]}")
    rows.sort(key=lambda row: row["image_id"])
    for label in sorted({row["label"] for row in listing.rows} - {row["label"] for row in rows} - {None}):
        raise ManifestError(f"{root}: class '{label}' holds no readable picture; replace its files or remove the class")
    manifest = Manifest.from_rows(rows, root.resolve(), may_leak=True)
    if not one_class:
        manifest.label_set()
    set_aside, unknown, others = sorted(listing.set_aside), sorted(listing.unknown_folders), sorted(listing.other_files)
    return IndexResult(manifest, set_aside, unknown, others, sorted(listing.notes), _repeats(rows), store.read)


def salt_file() -> Path:
    """Where the secret of patient ids lies unless another file is named: `~/.thoraclip/patient-salt`."""
    return Path.home() / ".thoraclip" / "patient-salt"


def local_salt(file: Path | None = None) -> bytes:
    """The secret of this machine (or of a file that is shared on purpose); made, readable for this user, at first use.

    Raises:
        InputError: the named file is not there, the user's own cannot be made, or it holds no secret.
    """
    path = file or salt_file()
    if file is not None and not file.is_file():
        raise InputError(f"{file}: no such salt file; name an existing one (the default is {salt_file()})")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(secrets.token_bytes(32).hex() + "\n")
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise InputError(f"{path}: the patient salt cannot be kept ({error.strerror}); name another --salt") from error
    except ValueError as error:
        raise InputError(f"{path}: holds no patient salt (hexadecimal digits); name another --salt") from error
    if len(salt) < 16:
        raise InputError(f"{path}: a patient salt of {len(salt)} bytes is too short; 16 or more are needed")
    return salt


def pseudonym(patient_id: str, salt: bytes) -> str:
    """`dicom-` and 16 hexadecimal digits: HMAC-SHA-256 (RFC 2104) of the id under the secret, cut to 64 bits."""
    return "dicom-" + hmac.new(salt, patient_id.encode(), hashlib.sha256).hexdigest()[:16]


class _Pseudonyms:
    """Patient id -> pseudonym; the secret is read at the first id. The pseudonym of "" tells which secret was used."""

    def __init__(self, salt: Path | None) -> None:
        self._file, self._lock = salt, threading.Lock()
        self._secret: bytes | None = None

    def __call__(self, patient_id: str) -> str:
        with self._lock:
            self._secret = self._secret or local_salt(self._file)
        return pseudonym(patient_id, self._secret)


def _read_all(
    store: FactStore, listing: Listing, pseudonyms: _Pseudonyms, progress: Progress | None
) -> list[dict[str, Any]]:
    """Rows of the readable pictures; the others are set aside in the listing."""
    paths = [str(row["path"]) for row in listing.rows]

    def serves(kept: dict[str, Any]) -> bool:
        return ("phash" in kept or "reason" in kept) and ("salt" not in kept or kept["salt"] == pseudonyms(""))

    def read(row: int) -> dict[str, Any]:
        return store.get(paths[row], lambda file: _read(file, pseudonyms), serves=serves)

    rows: list[dict[str, Any]] = []
    for first, batch in in_batches(read, len(paths), batch_size=_BATCH):
        for row, facts in zip(listing.rows[first : first + len(batch)], batch, strict=True):
            if "reason" in facts:
                listing.set_aside.append((row["path"], facts["reason"]))
                continue
            known = {name: value for name, value in row.items() if value is not None}
            rows.append(row | {name: value for name, value in facts.items() if name != "salt"} | known)
        if progress:
            progress(first + len(batch), len(paths))
    return rows


def _read(path: Path, pseudonyms: _Pseudonyms) -> dict[str, Any]:
    """Facts of one picture, or the reason why it cannot be used."""
    try:
        data = read_bytes(path)
        radiograph = decode(data)
    except ImageError as error:
        return {"reason": str(error).removeprefix(f"{path}: ").removeprefix("image: ")}
    facts: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "phash": perceptual_hash(radiograph.pixels)}
    facts |= {name: getattr(radiograph, name) for name in ("width", "height", "mode", "format")}
    header = radiograph.header
    if header is None:
        return facts
    facts |= {name: getattr(header, name) for name in ("view", "sex", "age_years", "body_part")}
    if header.patient_id is not None:
        facts |= {"patient": pseudonyms(header.patient_id), "salt": pseudonyms("")}  # the tag of the secret
    return facts


def _repeats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["sha256"], []).append(row)
    return [
        {"image_ids": [row["image_id"] for row in group]}
        | {f"{name}s_differ": len({row[name] for row in group}) > 1 for name in ("label", "split")}
        for group in groups.values()
        if len(group) > 1
    ]


def write_index_report(path: Path, result: IndexResult) -> None:
    """Write everything that `index` saw and did not put into the manifest, as JSON."""
    manifest = result.manifest
    content = {
        "schema": 1,
        "images": len(manifest),
        "labels": dict(sorted(Counter(map(str, manifest.column("label"))).items())),
        "splits": dict(sorted(Counter(map(str, manifest.column("split"))).items())),
        "set_aside": [{"path": p, "reason": reason} for p, reason in result.set_aside],
        "unknown_folders": [{"path": p, "files": count} for p, count in result.unknown_folders],
        "other_files": result.other_files,
        "repeats": result.repeats,
        "patients_in_two_splits": manifest.patients_in_two("split"),
        "notes": result.notes,
    }
    write_json(path, content)
