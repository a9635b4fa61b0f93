"""Folder -> manifest: read every picture once, in parallel; nothing is left out without being listed."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from thoraclip.data.batches import in_batches
from thoraclip.data.facts import FactStore
from thoraclip.data.labelling import require_classes, settle_labels
from thoraclip.data.layouts import Listing, list_images
from thoraclip.data.layouts.listing import LeftOut
from thoraclip.errors import ImageError, InputError, ManifestError, printable
from thoraclip.imaging import decode, perceptual_hash, read_bytes
from thoraclip.imaging.depth import common_depth
from thoraclip.pages import counted
from thoraclip.runs import Progress, write_json
from thoraclip.spelling import LabelMap
from thoraclip.tables.manifest import Manifest
from thoraclip.threads import in_order

__all__ = ["IndexResult", "index", "index_report", "local_salt", "pseudonym", "salt_file", "write_index_report"]

Pseudonyms = Callable[[str], str]

_BATCH = 64
_OF_FACTS = ("salt", "stated_bits", "set_bits", "of_set")
"""Facts that are no columns of a manifest."""


@dataclass(kw_only=True)
class IndexResult(LeftOut):
    """A manifest, and what did not get into it, sorted.

    Args:
        manifest: the readable images, sorted by id; it may leak, as the files' own split may.
        remarks: (path, remark) of every picture that contradicts itself or does not fit its depth, and is used.
        repeats: groups of image ids with the same bytes, and whether their labels or splits differ.
        read: files that were read; the others had not changed.
    """

    manifest: Manifest
    remarks: list[tuple[str, str]]
    repeats: list[dict[str, Any]]
    read: int


def index(
    root: Path,
    *,
    layout: str,
    csv_file: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    bits: int | None = None,
    facts: Path | None = None,
    fresh: bool = False,
    salt: Path | None = None,
    label_map: LabelMap | None = None,
    one_class: bool = False,
    progress: Progress | None = None,
) -> IndexResult:
    """Read every image of a layout: SHA-256, perceptual hash, size, mode, format; of DICOM patient, view, sex, age too.

    Args:
        layout: a name in `LAYOUTS`.
        csv_file, columns: for layout `csv`, see `find_csv`.
        bits: depth of 16-bit pictures; see `imaging.depth`. Without, those that state none get that of their source.
        facts: file that keeps what was read; files that did not change since are not read again.
        fresh: read every file again.
        salt: file with the secret under which patient ids of DICOM files are hashed; see `local_salt`.
        label_map: classes to rename, merge or leave unlabelled.
        one_class: whether images of a single class will do.
        progress: called with (done, total).

    Raises:
        InputError: no such folder, or no readable picture in it.
        ConfigError: unknown layout or column, a depth that cannot be, or a class to rename that no image has.
        ManifestError: a class without a readable picture, multi-label values, fewer than two classes, or two that may
            be one.
    """
    store = FactStore(root, facts, fresh=fresh)
    listing = list_images(root, layout=layout, csv_file=csv_file, columns=columns, sha256=store.sha256)
    apart = settle_labels(listing, label_map, where=csv_file or root)
    if not one_class:
        require_classes(listing, csv_file or root)
    rows = _read_all(store, listing, _pseudonyms(salt), bits, progress)
    files_read = store.read  # some are read once more
    _give_common_depths(store, listing, rows)
    store.settle()
    if not rows:
        raise InputError(
            f"{printable(root)}: none of {len(listing.rows)} pictures can be read, first "
            f"{printable(listing.set_aside[0][0])}: {listing.set_aside[0][1]}; name the folder below which they lie"
        )
    rows.sort(key=lambda row: row["image_id"])
    if unread := {row["label"] for row in listing.rows} - {row["label"] for row in rows} - {None}:
        label, reasons = min(unread), dict(listing.set_aside)
        path = next(row["path"] for row in listing.rows if row["label"] == label)
        raise ManifestError(
            f"{listing.lines.get(path, root)}: class '{label}' holds no readable picture; replace its files or remove "
            f"the class{' or its rows' if listing.lines else ''}; first {path}: {reasons[path]}"
        )
    manifest = replace(Manifest.from_rows(rows, root.resolve(), may_leak=True), apart=apart)
    remarks = [(str(row["path"]), row["image_remarks"]) for row in rows if row.get("image_remarks")]
    if remarks:
        path, remark = remarks[0]
        listing.notes.append(f"remarks on {counted(len(remarks), 'image')}, first {path}: {remark}")
    left_out: dict[str, Any] = {one.name: sorted(getattr(listing, one.name)) for one in fields(LeftOut)}
    return IndexResult(manifest=manifest, remarks=remarks, repeats=_repeats(rows), read=files_read, **left_out)


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
        if not path.exists():  # a temporary file is readable for this user alone; whole, or not there
            with NamedTemporaryFile("w", dir=path.parent, encoding="ascii") as stream, suppress(FileExistsError):
                stream.write(secrets.token_bytes(32).hex() + "\n")
                stream.flush()
                os.link(stream.name, path)
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise InputError(f"{path}: the patient salt cannot be kept ({error.strerror}); name another --salt") from error
    except ValueError as error:
        raise InputError(f"{path}: holds no patient salt (hexadecimal digits); name another --salt") from error
    if len(salt) < 16:
        raise InputError(
            f"{path}: a patient salt of {len(salt)} bytes is too short, 16 or more are needed; name another --salt"
        )
    return salt


def pseudonym(patient_id: str, salt: bytes) -> str:
    """`dicom-` and 16 hexadecimal digits: HMAC-SHA-256 (RFC 2104) of the id under the secret, cut to 64 bits."""
    return "dicom-" + hmac.new(salt, patient_id.encode(), hashlib.sha256).hexdigest()[:16]


def _pseudonyms(salt: Path | None) -> Pseudonyms:
    """Patient id -> pseudonym; the secret is read at the first id. The pseudonym of "" tells which secret was used."""
    lock, secret = threading.Lock(), cache(local_salt)

    def name(patient_id: str) -> str:
        with lock:
            return pseudonym(patient_id, secret(salt))

    return name


def _read_all(
    store: FactStore, listing: Listing, pseudonyms: Pseudonyms, bits: int | None, progress: Progress | None
) -> list[dict[str, Any]]:
    """Rows of the readable pictures, which name who said their depth; the others are set aside in the listing."""
    paths = [str(row["path"]) for row in listing.rows]

    def serves(kept: dict[str, Any]) -> bool:
        is_as_asked = "bits" not in kept or kept["stated_bits"] == bits
        has_salt = "salt" not in kept or kept["salt"] == pseudonyms("")
        return ("phash" in kept or "reason" in kept) and is_as_asked and has_salt

    def read(row: int) -> dict[str, Any]:
        return store.get(paths[row], lambda file: _read(file, pseudonyms, bits), serves=serves)

    rows: list[dict[str, Any]] = []
    for first, batch in in_batches(read, len(paths), batch_size=_BATCH):
        for row, facts in zip(listing.rows[first : first + len(batch)], batch, strict=True):
            if "reason" in facts:
                listing.set_aside.append((row["path"], facts["reason"]))
                continue
            known = {name: value for name, value in row.items() if value is not None}
            rows.append(row | {name: value for name, value in facts.items() if name not in _OF_FACTS} | known)
        if progress:
            progress(first + len(batch), len(paths))
    return rows


def _give_common_depths(store: FactStore, listing: Listing, rows: list[dict[str, Any]]) -> None:
    """Give the rows whose depth is an estimate of their own that of all such images of their source."""
    groups: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        if row.pop("depth_origin", "") == "estimate":
            groups.setdefault(row.get("source"), []).append(row)
    for source, group in groups.items():
        estimates = [row["bits"] for row in group]
        depth = common_depth(estimates)
        counts = ", ".join(f"{n} of {bits} bits" for bits, n in sorted(Counter(estimates).items()))
        others = [row for row in group if row["bits"] != depth]
        for row, facts in zip(others, in_order(partial(_at_depth, store, depth), others), strict=True):
            row.update(facts)
        of = f"of source '{source}' " if source else ""
        listing.notes.append(
            f"{counted(len(group), 'image')} of 16 bits {of}without a stated depth: {depth} bits are taken, by an "
            f"estimate from all of them ({counts}); state another with --bits"
        )


def _at_depth(store: FactStore, depth: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """What changes of an image's facts where it has the depth of its set; it was readable a moment ago."""
    known = store.get(row["path"], lambda _: {}, serves=lambda _: True)

    def make(file: Path) -> dict[str, Any]:
        radiograph = decode(file, of_set=depth)
        changed: dict[str, Any] = {"bits": radiograph.bits, "phash": perceptual_hash(radiograph.pixels)}
        remarks = "; ".join(radiograph.remarks) or None
        return known | {"set_bits": depth, "of_set": changed | {"image_remarks": remarks}}

    facts = store.get(row["path"], make, serves=lambda kept: kept.get("set_bits") == depth)
    return dict(facts["of_set"])


def _read(path: Path, pseudonyms: Pseudonyms, bits: int | None) -> dict[str, Any]:
    """Facts of one picture, or the reason why it cannot be used."""
    try:
        data = read_bytes(path)
        radiograph = decode(data, bits=bits)
    except ImageError as error:
        return {"reason": str(error).removeprefix(f"{path}: ").removeprefix("image: ")}
    facts: dict[str, Any] = {"sha256": hashlib.sha256(data).hexdigest(), "phash": perceptual_hash(radiograph.pixels)}
    facts |= {name: getattr(radiograph, name) for name in ("width", "height", "mode", "format")}
    if radiograph.remarks:
        facts["image_remarks"] = "; ".join(radiograph.remarks)
    if radiograph.depth is not None:
        facts |= {"bits": radiograph.bits, "depth_origin": radiograph.depth.origin, "stated_bits": bits}
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


def index_report(result: IndexResult) -> dict[str, Any]:
    """Everything that `index` saw and did not put into the manifest, as it is written beside that."""
    manifest = result.manifest
    return {
        "schema": 1,
        "images": len(manifest),
        "labels": dict(sorted(Counter(map(str, manifest.column("label"))).items())),
        "splits": dict(sorted(Counter(map(str, manifest.column("split"))).items())),
        "set_aside": [{"path": p, "reason": reason} for p, reason in result.set_aside],
        "unknown_folders": [{"path": p, "files": count} for p, count in result.unknown_folders],
        "other_files": result.other_files,
        "system_files": [{"path": p, "files": count} for p, count in result.system_files],
        "repeated_files": [{"path": p, "same_as": kept} for p, kept in result.repeated_files],
        "not_in_table": [{"path": p, "files": count} for p, count in result.not_in_table],
        "repeats": result.repeats,
        "patients_in_two_splits": manifest.patients_in_two("split"),
        "notes": result.notes,
        "remarks": [{"path": p, "remark": remark} for p, remark in result.remarks],
    }


def write_index_report(path: Path, result: IndexResult) -> None:
    """Write it as JSON."""
    write_json(path, index_report(result))
