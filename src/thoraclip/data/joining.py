"""One manifest of several: paths below the folder that all share, one row for an image that two of them hold, and what
was left out, with the reason; `<name>.join.json`."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.data.check.inspection import duplicate_pairs, file_contents, inspect
from thoraclip.data.duplicates import clusters
from thoraclip.data.overlap import IDENTICAL, NEAR, UNREADABLE, label_relation
from thoraclip.errors import InputError, ManifestError
from thoraclip.pages import counted
from thoraclip.runs import Progress, provenance
from thoraclip.spelling import LabelMap, require_distinct
from thoraclip.tables.manifest import Manifest

__all__ = ["CONFLICT", "Joined", "join_manifests", "join_reading"]

CONFLICT = "conflict"
_SCHEMA = 1
_PATHS = ("path", "lung_mask", "infection_mask")
_REMEDY = "add to thoraclip join: {} (OLD=OLD keeps a class apart)"


@dataclass(frozen=True)
class Joined:
    """The joined manifest, and the content of `<name>.join.json`."""

    manifest: Manifest
    content: Mapping[str, Any]


def join_manifests(
    manifests: Sequence[Manifest],
    work: Path,
    *,
    label_map: Sequence[str] = (),
    on_conflict: str = "drop",
    progress: Progress | None = None,
) -> Joined:
    """The images of several manifests as one; every picture is read once, its measurements are kept in `work`.

    Images that are copies of each other, directly or through other copies, and stand in two manifests or more, are one
    image: those of the first manifest that has one stay. Where labels of two manifests contradict, as `overlap` says,
    all of them are left out, or with `on_conflict="first"` all but those of the first. Copies within one manifest stay.

    Raises:
        ConfigError: an entry of `label_map` is not OLD=NEW, or no image has the label OLD.
        InputError: fewer than two manifests, or folders without a common one.
        ManifestError: a column of two types, classes that may be one, or no image is left.
    """
    if len(manifests) < 2:
        raise InputError("join: one manifest; name two or more")
    rename = LabelMap(label_map)
    labels = [manifest.column("label") for manifest in manifests]
    rename.require_known(label for own in labels for label in own)
    counts = Counter(new for own in labels for label in own if (new := rename(label)) is not None)
    apart = {name for manifest in manifests for name in manifest.apart}.union(rename.kept)
    require_distinct(counts, "join", kept=apart, remedy=_REMEDY)
    names = _names(manifests)
    table, root, facts = _one_table(manifests, names, rename)
    every = Manifest(table, root, may_leak=True, apart=tuple(sorted(apart)))
    left_out = _left_out(every, manifests, work, rename, on_conflict == "first", progress)
    stay = np.array([row for row in range(len(every)) if row not in left_out], dtype=np.int64)
    if not len(stay):
        raise ManifestError("join: no image is left, all are in conflict or unreadable; see thoraclip overlap")
    kept = every.take(stay)
    reason = _no_splits(every, kept)
    if reason:
        kept = kept.with_columns(split=pa.nulls(len(kept), pa.string()), fold=pa.nulls(len(kept), pa.int32()))
    owner = [number for number, manifest in enumerate(manifests) for _ in range(len(manifest))]
    paths, lost = every.column("path"), Counter(owner[row] for row in left_out)
    content = {
        "schema": _SCHEMA,
        "manifests": [
            {
                "name": names[number],
                "images": len(manifest),
                "left_out": lost[number],
                **{fact: values[number] for fact, values in facts.items()},
                "selections": [dict(done) for done in manifest.selections],
            }
            for number, manifest in enumerate(manifests)
        ],
        "images": len(stay),
        "label_map": rename.renamed,
        "on_conflict": on_conflict,
        "shared_patients": _shared_patients(every, manifests),
        "splits": {"kept": not reason, "reason": reason},
        "left_out": [
            {"manifest": names[owner[row]], "path": paths[row], **why} for row, why in sorted(left_out.items())
        ],
        "provenance": provenance(inputs={name: m.fingerprint for name, m in zip(names, manifests, strict=True)}),
    }
    return Joined(kept.strict(), content)


def _names(manifests: Sequence[Manifest]) -> list[str]:
    """One for each manifest: its file's, with its place among the manifests where two have the same."""
    stems = [manifest.file.stem if manifest.file else "manifest" for manifest in manifests]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems, start=1)]


def _one_table(
    manifests: Sequence[Manifest], names: Sequence[str], rename: LabelMap
) -> tuple[pa.Table, Path, dict[str, list[int]]]:
    """All rows, the folder that their paths are relative to, and by fact a number for each manifest."""
    types: dict[str, tuple[pa.DataType, str]] = {}
    for name, manifest in zip(names, manifests, strict=True):
        for field in manifest.table.schema:
            if pa.types.is_null(field.type):
                continue
            kind, first = types.setdefault(field.name, (field.type, name))
            if kind != field.type:
                said = f"column '{field.name}' holds {field.type}, and in {first} {kind}"
                raise ManifestError(f"{name}: {said}; give both one type, or rename one, and index again")
    folders = [manifest.root.resolve() for manifest in manifests]
    try:
        root = Path(os.path.commonpath(folders))
    except ValueError as error:  # two drives
        raise InputError(f"join: {folders[0]} and the other roots share no folder; move the pictures") from error
    ids = [manifest.values("image_id") for manifest in manifests]
    seen = pc.value_counts(pa.chunked_array([piece for own in ids for piece in own.chunks], pa.string()))
    twice = seen.field("values").filter(pc.greater(seen.field("counts"), 1))
    tables, facts = [], {"renamed_ids": list[int](), "given_source": list[int]()}
    for name, manifest, folder, own in zip(names, manifests, folders, ids, strict=True):
        table, below = manifest.table, folder.relative_to(root).as_posix()
        clash = pc.is_in(own, value_set=twice)
        changed: dict[str, Any] = {"image_id": pc.if_else(clash, _after(f"{name}/", own), own)}
        if below != ".":
            changed |= {column: _after(f"{below}/", table[column]) for column in _PATHS}
        changed["label"] = pa.array([rename(label) for label in table["label"].to_pylist()], pa.string())
        changed["source"] = pc.fill_null(table["source"], name)
        facts["renamed_ids"].append(pc.sum(clash).as_py() or 0)
        facts["given_source"].append(table["source"].null_count)
        for column, values in changed.items():
            table = table.set_column(table.column_names.index(column), column, values)
        tables.append(table)
    joined = pa.concat_tables(tables, promote_options="default")
    return joined.cast(pa.schema([(f.name, f.type) for f in joined.schema])), root, facts


def _after(prefix: str, values: pa.ChunkedArray) -> Any:
    return pc.binary_join_element_wise(prefix, values, "")


def _left_out(
    every: Manifest,
    manifests: Sequence[Manifest],
    work: Path,
    rename: LabelMap,
    keep_first: bool,
    progress: Progress | None,
) -> dict[int, dict[str, Any]]:
    """Row -> `image_id`, `label`, `reason` (`identical`, `near`, `conflict` or `unreadable`), and `of` and `label_of`
    (the image that it repeats or contradicts), or `detail`."""
    seen = inspect(every, work / "inspection", progress=progress)
    pairs = duplicate_pairs(work / "pairs.json", (every, seen), progress=progress)
    group = clusters(len(every), list(pairs))
    contents, ids, labels = file_contents((every, seen)), every.column("image_id"), every.column("label")
    owner = [number for number, manifest in enumerate(manifests) for _ in range(len(manifest))]
    found: dict[int, dict[str, Any]] = {
        row: {"image_id": ids[row], "label": labels[row], "reason": UNREADABLE, "detail": why}
        for row, why in seen.unreadable.items()
    }
    relation = label_relation([manifest.column("label") for manifest in manifests], rename)
    members: dict[int, list[int]] = {}
    for row in sorted({end for pair in pairs for end in (pair.first, pair.second)}):
        members.setdefault(int(group[row]), []).append(row)
    for rows in members.values():
        stay = [row for row in rows if owner[row] == owner[rows[0]]]
        if len(stay) == len(rows):
            continue
        kinds = {(owner[row], labels[row]): row for row in reversed(rows)}  # the first row of each
        against = {
            one: row
            for one in kinds
            for other, row in kinds.items()
            if one[0] != other[0] and relation(one, other) == "contradiction"
        }
        alike = {contents[row]: row for row in reversed(stay)}
        is_conflict = bool(against)
        for row in rows if is_conflict and not keep_first else rows[len(stay) :]:
            of = alike.get(contents[row], stay[0])
            if is_conflict and (owner[row], labels[row]) in against:
                of = against[owner[row], labels[row]]
            elif is_conflict:  # another label of its group, which contradicts a third one
                of = next(other for other in against.values() if other != row)
            reason = CONFLICT if is_conflict else IDENTICAL if contents[of] == contents[row] else NEAR
            entry = {"image_id": ids[row], "label": labels[row], "reason": reason}
            found[row] = entry | {"of": ids[of], "label_of": labels[of]}
    return found


def _no_splits(every: Manifest, kept: Manifest) -> str:
    """Why the splits of the parts cannot be those of the joined manifest; empty where they can."""
    if every.values("split").null_count == every.values("fold").null_count == len(every):
        return "the manifests have none"
    if every.values("fold").null_count < len(every):
        return "folds of two manifests mean different things"
    if every.values("split").null_count:
        return "not every image has one"
    return "a patient would stand in two" if kept.conflicting("split").any() else ""


def _shared_patients(every: Manifest, manifests: Sequence[Manifest]) -> int:
    """Patients whose id stands in two manifests or more."""
    ids = Counter[str]()
    for manifest in manifests:
        ids.update(manifest.values("patient").drop_null().unique().to_pylist())
    return sum(count > 1 for count in ids.values())


def join_reading(content: Mapping[str, Any]) -> list[str]:
    """What was done, in sentences."""
    sentences = []
    for part in content["manifests"]:
        sentences.append(f"{part['name']}: {counted(part['images'], 'image')}, {part['left_out']:,} left out.")
    reasons = Counter(row["reason"] for row in content["left_out"])
    words = {
        IDENTICAL: "as identical files of an image that stays",
        NEAR: "as near copies of one",
        CONFLICT: "since the labels of copies contradict each other",
        UNREADABLE: "since they cannot be read",
    }
    sentences += [f"Left out: {reasons[reason]:,} {why}." for reason, why in words.items() if reasons[reason]]
    unclear = Counter(
        (row["label"], row["label_of"])
        for row in content["left_out"]
        if row["reason"] in (IDENTICAL, NEAR) and row["label"] and row["label_of"] not in (None, row["label"])
    )
    sentences += [
        f"Whether '{label}' and '{of}' mean the same is not known ({images:,} left out); --label-map "
        f"{shlex.quote(f'{label}={of}')} says that they do."
        for (label, of), images in unclear.most_common(3)
    ]
    if renamed := sum(part["renamed_ids"] for part in content["manifests"]):
        sentences.append(f"Ids that clash begin with the manifest's name now: {counted(renamed, 'image')}.")
    given = [part for part in content["manifests"] if part["given_source"]]
    sentences += [
        f"{counted(p['given_source'], 'image')} without a source have '{p['name']}' as theirs." for p in given
    ]
    if shared := content["shared_patients"]:
        sentences.append(f"Patient ids in more than one manifest, taken for the same patients: {shared:,}.")
    splits = content["splits"]
    sentences.append("The splits are kept." if splits["kept"] else f"There is no split: {splits['reason']}.")
    return sentences
