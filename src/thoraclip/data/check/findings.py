"""What a look at a manifest and its pictures brings up: leaks, contradictions, copies, marks, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thoraclip.data.check.inspection import MEASURED, Inspection
from thoraclip.data.differences import class_differences
from thoraclip.data.duplicates import DuplicatePair, clusters
from thoraclip.data.splits import independent_groups
from thoraclip.proportions import wilson
from thoraclip.tables.manifest import Manifest

__all__ = ["counts", "differences", "duplicates", "marks", "patients", "tallies"]

_CATEGORICAL = ("view", "sex", "source", "format", "mode", "body_part")


def counts(manifest: Manifest) -> dict[str, Any]:
    """Images of each class in each part; see `Manifest.counts`."""
    parts, classes = manifest.counts()
    return {"parts": parts, "classes": classes}


def tallies(manifest: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """`size`, `mode` and `format` -> class -> value -> images, the commonest first."""
    labels = [label or "unknown" for label in manifest.column("label")]
    sizes = [f"{w} x {h}" for w, h in zip(manifest.column("width"), manifest.column("height"), strict=True)]
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, values in (("size", sizes), ("mode", manifest.column("mode")), ("format", manifest.column("format"))):
        table: dict[str, Counter[str]] = {label: Counter() for label in sorted(set(labels))}
        for label, value in zip(labels, values, strict=True):
            table[label][value or "unknown"] += 1
        found[name] = {label: dict(sorted(c.items(), key=lambda i: (-i[1], i[0]))) for label, c in table.items()}
    return found


def patients(manifest: Manifest) -> dict[str, Any]:
    """Known patients, and those that stand in two parts or under two labels."""
    known = manifest.column("patient")
    images = Counter(patient for patient in known if patient is not None)

    def two(column: str) -> list[dict[str, Any]]:
        found = manifest.patients_in_two(column)
        return [{"patient": p, "values": list(values), "images": images[p]} for p, values in found.items()]

    return {
        "known": len(images),
        "images_of_unknown_patients": sum(patient is None for patient in known),
        "in_two_splits": two("split") + two("fold"),
        "under_two_labels": two("label"),
    }


def duplicates(manifest: Manifest, pairs: Sequence[DuplicatePair]) -> dict[str, Any]:
    """Pairs that show the same picture, those that cross a split or a label first, and the groups that they form.

    In a group of identical files each pair holds the first of them.
    """
    columns = {name: manifest.column(name) for name in ("image_id", "label", "patient")} | {"part": manifest.parts()}
    rows = []
    for pair in pairs:
        ends = (pair.first, pair.second)
        shown: dict[str, Any] = {name: [columns[name][end] for end in ends] for name in columns}
        shown |= {
            "kind": pair.kind, "correlation": pair.correlation, "mirrored": pair.mirrored,
            "rotation_degrees": pair.rotation_degrees, "scale": pair.scale,
        }  # fmt: skip
        shown |= {f"across_{name}": _differ(shown[name]) for name in ("part", "label", "patient")}
        rows.append(shown)
    rows.sort(key=lambda row: (not row["across_part"], not row["across_label"], row["image_id"]))
    member = clusters(len(manifest), list(pairs))
    groups: dict[int, list[int]] = {}
    for end in sorted({end for pair in pairs for end in (pair.first, pair.second)}):
        groups.setdefault(int(member[end]), []).append(end)
    found = []
    for members in groups.values():
        group: dict[str, Any] = {name: [columns[name][row] for row in members] for name in columns}
        found.append(group | {f"across_{name}": _differ(group[name]) for name in ("part", "label", "patient")})
    return {"pairs": rows, "groups": sorted(found, key=lambda group: group["image_id"])}


def _differ(values: Sequence[Any]) -> bool:
    return len({value for value in values if value is not None}) > 1


def marks(manifest: Manifest, inspection: Inspection) -> dict[str, Any]:
    """Share of each class's images with burned-in marks (with Wilson's 95 % interval), and the images, most marked first."""
    names = list(MEASURED)
    count, area = (inspection.statistics[:, names.index(name)] for name in ("mark_count", "mark_area"))
    labels = np.array([label or "unknown" for label in manifest.column("label")])
    ids = manifest.column("image_id")
    seen = ~np.isnan(count)
    per_class = {}
    for label in sorted(set(labels.tolist())):
        own = seen & (labels == label)
        per_class[label] = _share(int((count[own] > 0).sum()), int(own.sum()))
    order = sorted(np.flatnonzero(seen & (count > 0)).tolist(), key=lambda row: (-float(area[row]), ids[row]))
    listed = [{"image_id": ids[row], "marks": int(count[row]), "area": float(area[row])} for row in order]
    return {"per_class": per_class, "images": listed}


def _share(hits: int, total: int) -> dict[str, Any]:
    low, high = wilson(hits, total) if total else (None, None)
    return {"hits": hits, "of": total, "value": hits / total if total else None, "low": low, "high": high}


def differences(manifest: Manifest, inspection: Inspection, *, seed: int) -> list[dict[str, Any]]:
    """What tells the classes apart without anatomy; see `data.differences`. Unlabelled and unusable images do not count."""
    labels = manifest.column("label")
    rows = [row for row, label in enumerate(labels) if label is not None and row not in inspection.unreadable]
    if not rows:
        return []
    groups = independent_groups(manifest)

    def pick(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows]

    numeric = {name: inspection.statistics[rows, column] for column, name in enumerate(MEASURED)}
    ages = [np.nan if age is None else age for age in pick(manifest.column("age_years"))]
    categorical: Mapping[str, Sequence[str | None]] = {
        name: pick(manifest.column(name)) for name in _CATEGORICAL if name in manifest.table.column_names
    }
    found = class_differences(
        pick(labels), pick(groups), {**numeric, "age_years": ages}, categorical,
        seed=seed, descriptions={**MEASURED, "age_years": "age of the patient, in years"},
    )  # fmt: skip
    return [difference.as_dict() for difference in found]
