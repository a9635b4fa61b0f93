"""Findings of a check as plain data: contradictions, copies, marks, and what tells the classes apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.data.check.inspection import MEASURED, Inspection
from thoraclip.data.differences import class_differences
from thoraclip.data.duplicates import DuplicatePair, clusters
from thoraclip.data.splits import independent_groups
from thoraclip.dtypes import Ints, Masks
from thoraclip.proportions import wilson
from thoraclip.tables.codes import conflicting, ranks
from thoraclip.tables.manifest import Manifest

__all__ = ["differences", "duplicates", "identical", "marks", "patients", "remarks", "tallies"]

_MOST = 100_000
"""Entries of a list from the table alone; of a longer one the first are listed, and how many there are in all."""

_NEARLY_ALL = 0.9
_SHOWN = ("image_id", "label", "patient", "split", "fold")
_OF_PAIRS = ("kind", "correlation", "mirrored", "negative", "rotation_degrees", "scale")
_CATEGORICAL = ("view", "sex", "source", "format", "mode", "body_part")


def tallies(manifest: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """`size`, `mode` and `format` -> class -> value -> images, the commonest first."""
    images = {label: sum(row) for label, row in manifest.counts()[1].items()}
    tallies: dict[str, dict[str, dict[str, int]]] = {}
    for name, columns in (("size", ("width", "height")), ("mode", ("mode",)), ("format", ("format",))):
        table: dict[str, Counter[str]] = {label: Counter() for label in images}
        for (label, *values), n in manifest.tally("label", *columns, most=_MOST):
            table[label or "unknown"][" x ".join(map(str, values)) if name == "size" else values[0] or "unknown"] += n
        tallies[name] = {label: dict(sorted(c.items(), key=lambda i: (-i[1], i[0]))) for label, c in table.items()}
        for label, listed in tallies[name].items():
            if sum(listed.values()) < images[label]:
                listed["all others"] = images[label] - sum(listed.values())
    return tallies


def remarks(manifest: Manifest) -> list[dict[str, Any]]:
    """What the index remarked on images: files that contradict themselves, or do not fit their depth; the first."""
    if "image_remarks" not in manifest.table.column_names:
        return []
    names = ["image_id", "path", "image_remarks"]
    known = manifest.table.select(names).filter(pc.is_valid(manifest.values("image_remarks"))).slice(0, _MOST)
    return list(known.rename_columns(["image_id", "path", "remark"]).to_pylist())


def patients(manifest: Manifest) -> dict[str, Any]:
    """Known patients, and those that stand in two parts or under two labels; `in_all` where a list is cut."""
    known = manifest.values("patient")
    two: dict[str, list[dict[str, Any]]] = {"in_two_splits": [], "under_two_labels": []}
    in_all: Counter[str] = Counter()
    for name, column in (("in_two_splits", "split"), ("in_two_splits", "fold"), ("under_two_labels", "label")):
        values = manifest.patients_in_two(column)
        own = known.filter(pc.is_in(known, value_set=pa.array(values, pa.string())))
        images = {count["values"]: count["counts"] for count in own.value_counts().to_pylist()}
        two[name] += [{"patient": p, "values": [*values[p]], "images": images[p]} for p in islice(values, _MOST)]
        in_all += Counter({name: len(values), f"images_{name}": len(own)})
    content = {"known": pc.count_distinct(known).as_py(), "images_of_unknown_patients": known.null_count, **two}
    content["dominating"] = _dominating(manifest)
    is_cut = any(len(listed) < in_all[name] for name, listed in two.items())
    return content | ({"in_all": dict(in_all)} if is_cut else {})


def _dominating(manifest: Manifest) -> list[dict[str, Any]]:
    """Parts of the split that hold nine tenths of a class, and would not without the images of one patient."""
    parts = [
        (key, images) for key, images in manifest.tally("label", "split", "fold") if key[0] and key[1:] != (None,) * 2
    ]
    in_all: Counter[str] = Counter()
    for (label, *_), images in parts:
        in_all[label] += images
    dominating = []
    for (label, split, fold), own in sorted(parts, key=str):
        every = in_all[label]
        if not every > own >= _NEARLY_ALL * every:
            continue
        name, value = ("split", split) if fold is None else ("fold", fold)
        inside = pc.and_(pc.equal(manifest.values("label"), label), pc.equal(manifest.values(name), value))
        known = manifest.values("patient").filter(inside).drop_null().value_counts()
        if len(known):
            first = pc.index(known.field("counts"), pc.max(known.field("counts"))).as_py()
            patient, most = known[first]["values"].as_py(), known[first]["counts"].as_py()
            if own - most < _NEARLY_ALL * (every - most) or every == most:
                row = {"label": label, "part": split if fold is None else f"fold {fold}", "images": own, "of": every}
                dominating.append({**row, "patient": patient, "of_patient": most})
    return dominating


def identical(manifest: Manifest) -> tuple[list[DuplicatePair], dict[str, int]]:
    """Pairs of files of equal SHA-256, the first of a group with each other one; across the split, then a label, first.

    Returns:
        The pairs, and, where they are not all, how many pairs, groups and images there are in all, and how many groups
        and images of them are across parts, labels and patients.
    """
    content = ranks(manifest.values("sha256"))
    content[np.asarray(pc.equal(manifest.values("sha256"), "").fill_null(fill_value=True))] = -1
    content[np.bincount(content + 1)[content + 1] == 1] = -1
    rows = np.flatnonzero(content >= 0)
    content = content[rows]
    across = {f"across_{name}": _across(manifest, rows, content, name) for name in ("part", "label", "patient")}
    order = np.lexsort((rows, content, ~across["across_label"], ~across["across_part"]))[:_MOST]
    groups: dict[int, list[int]] = {}
    for row, group in zip(rows[order].tolist(), content[order].tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    pairs = [DuplicatePair(group[0], other, "identical") for group in groups.values() for other in group[1:]]
    if len(order) == len(rows):
        return pairs, {}
    number = len(np.unique(content))
    in_all = {"pairs": len(rows) - number, "groups": number, "images": len(rows)}
    for name, mask in across.items():
        in_all |= {f"groups_{name}": len(np.unique(content[mask])), f"images_{name}": int(mask.sum())}
    return pairs, in_all


def _across(manifest: Manifest, rows: Ints, content: Ints, name: str) -> Masks:
    """bool[len(rows)]: images of a group with more than one known part, label or patient."""
    value = ranks(manifest.values("split" if name == "part" else name).take(pa.array(rows)))
    if name == "part":
        fold = ranks(manifest.values("fold").take(pa.array(rows)))
        value = np.where(fold >= 0, fold + len(rows), value)
    several = np.zeros(int(content.max(initial=-1)) + 1, dtype=bool)
    several[content[conflicting(content, value)]] = True
    return np.asarray(several[content])


def duplicates(
    manifest: Manifest, pairs: Sequence[DuplicatePair], in_all: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Pairs that show the same picture, those that cross a split or a label first, and the groups that they form.

    In a group of identical files each pair holds the first of them. `in_all`: see `identical`.
    """
    ends = sorted({end for pair in pairs for end in (pair.first, pair.second)})
    own = {name: manifest.values(name).take(pa.array(ends, pa.int64())).to_pylist() for name in _SHOWN}
    parts = zip(own.pop("split"), own.pop("fold"), strict=True)
    own["part"] = [split if fold is None else f"fold {fold}" for split, fold in parts]
    place = {end: number for number, end in enumerate(ends)}

    def entry(places: Sequence[int], **facts: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {name: [values[place] for place in places] for name, values in own.items()}
        across = {f"across_{name}": len(set(shown[name]) - {None}) > 1 for name in ("part", "label", "patient")}
        return shown | facts | across

    linked = np.array([(place[pair.first], place[pair.second]) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    listed = [
        entry(both, **{name: getattr(pair, name) for name in _OF_PAIRS})
        for pair, both in zip(pairs, linked.tolist(), strict=True)
    ]
    listed.sort(key=lambda pair: (not pair["across_part"], not pair["across_label"], pair["image_id"]))
    members: dict[int, list[int]] = {}
    for number, group in enumerate(clusters(len(ends), linked).tolist()):
        members.setdefault(group, []).append(number)
    groups = sorted(map(entry, members.values()), key=lambda group: group["image_id"])
    return {"pairs": listed, "groups": groups} | ({"in_all": dict(in_all)} if in_all else {})


def marks(manifest: Manifest, inspection: Inspection) -> dict[str, Any]:
    """Share of each class's images with burned-in marks (Wilson's 95 % interval), and the images, most marked first."""
    names = list(MEASURED)
    count, area = (inspection.statistics[:, names.index(name)] for name in ("mark_count", "mark_area"))
    labels = np.array([label or "unknown" for label in manifest.column("label")])
    ids = manifest.column("image_id")
    is_read = ~np.isnan(count)
    per_class = {}
    for label in sorted(set(labels.tolist())):
        own = is_read & (labels == label)
        hits, total = int((count[own] > 0).sum()), int(own.sum())
        value, low, high = (hits / total, *wilson(hits, total)) if total else (None, None, None)
        per_class[label] = {"hits": hits, "of": total, "value": value, "low": low, "high": high}
    order = sorted(np.flatnonzero(is_read & (count > 0)).tolist(), key=lambda row: (-float(area[row]), ids[row]))
    listed = [{"image_id": ids[row], "marks": int(count[row]), "area": float(area[row])} for row in order]
    return {"per_class": per_class, "images": listed}


def differences(manifest: Manifest, inspection: Inspection, *, seed: int) -> list[dict[str, Any]]:
    """`data.differences` of the labelled images that can be read."""
    labels = manifest.column("label")
    rows = [row for row, label in enumerate(labels) if label is not None and row not in inspection.unreadable]
    if not rows:
        return []

    def pick(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows]

    numeric: dict[str, Any] = {name: inspection.statistics[rows, column] for column, name in enumerate(MEASURED)}
    numeric["age_years"] = [np.nan if age is None else age for age in pick(manifest.column("age_years"))]
    return class_differences(
        pick(labels),
        independent_groups(manifest)[rows],
        numeric,
        {name: pick(manifest.column(name)) for name in _CATEGORICAL if name in manifest.table.column_names},
        seed=seed,
        descriptions={**MEASURED, "age_years": "age of the patient, in years"},
    )
