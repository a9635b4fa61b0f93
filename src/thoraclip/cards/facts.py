"""Everything that a manifest says of its images, counted once and JSON-able."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from thoraclip.cards.cautions import cautions
from thoraclip.pages import counted
from thoraclip.tables.manifest import COLUMNS, SPLITS, Manifest

__all__ = ["accuracy_by_value", "crossed", "data_facts", "groups", "summary"]

_CLUSTERS = "duplicate_cluster"
_ADULT_YEARS = 18
_AGE_GROUPS = (18, 40, 60)
_MOST_SOURCES = 5
_MOST_ROWS = 30


def data_facts(manifest: Manifest) -> dict[str, Any]:
    """Count what the manifest holds, per class; unknown values are counted, never guessed.

    Returns:
        A JSON-able mapping; `null` stands for what is unknown, also among labels and values. `cautions` holds the
        sentences drawn from the counts (see `cautions`).
    """
    column = manifest.column
    labels = column("label")
    counts = Counter(labels)
    facts: dict[str, Any] = {
        "schema": 1,
        "images": len(manifest),
        "classes": [{"label": c, "images": counts[c]} for c in ordered(labels) if c is not None],
        "unlabelled": counts[None],
        "selections": [dict(done) for done in manifest.selections],
        "splits": _parts(column("split"), labels, SPLITS),
        "folds": _parts(column("fold"), labels, sorted(set(column("fold")) - {None})),
        "patients": _patients(manifest),
        "sources": crossed(column("source"), labels) | {"sealed": _sealed(column("source"), labels)},
        "views": crossed(column("view"), labels),
        "sexes": crossed(column("sex"), labels),
        "ages": _by_label(
            _ages(manifest), labels, lambda a: {"years": spread(a), "minors": sum(age < _ADULT_YEARS for age in a)}
        ),
        "formats": crossed(column("format"), labels),
        "modes": crossed(column("mode"), labels),
        "sizes": _by_label(_sizes(manifest), labels, _count_sizes),
        "masks": _masks(manifest),
        "duplicates": _duplicates(manifest, "sha256"),
        "clusters": _duplicates(manifest, _CLUSTERS) if _CLUSTERS in manifest.table.column_names else None,
        "told": _accuracies(manifest),
        "columns": [
            {
                "name": field.name,
                "type": str(field.type),
                "extra": field.name not in COLUMNS,
                "known": len(manifest) - int(manifest.table[field.name].null_count),
            }
            for field in manifest.table.schema
        ],
        "fingerprints": {"manifest": manifest.fingerprint, "content": manifest.content_fingerprint},
    }
    return facts | {"cautions": cautions(facts)}


def _by_label(
    values: Sequence[Any], labels: Sequence[str | None], count: Callable[[list[Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of every label, sorted, null last: its images, of how many the value is known, and what `count` makes of those
    values."""
    images, known = Counter(labels), defaultdict[str | None, list[Any]](list)
    for value, label in zip(values, labels, strict=True):
        if value is not None:
            known[label].append(value)
    return [{"label": c, "images": images[c], "known": len(known[c]), **count(known[c])} for c in ordered(labels)]


def _parts(parts: list[Any], labels: list[Any], order: Sequence[Any]) -> dict[str, Any] | None:
    """Images per class (rows) and split or fold (columns, null last); `None` where no image has one."""
    found = set(parts)
    if found == {None}:
        return None
    names = [p for p in (*order, None) if p in found]
    cells = Counter(zip(labels, parts, strict=True))
    rows = [{"label": c, "counts": [cells[c, name] for name in names]} for c in ordered(labels)]
    return {"columns": names, "rows": rows}


def _patients(manifest: Manifest) -> dict[str, Any]:
    patients, labels = manifest.column("patient"), manifest.column("label")
    images = Counter(p for p in patients if p is not None)
    several = manifest.patients_in_two("label")
    return {
        "known": images.total(),
        "unknown": len(patients) - images.total(),
        "patients": len(images),
        "images_per_patient": spread(list(images.values())),
        "per_class": _by_label(patients, labels, lambda known: {"patients": len(set(known))}),
        "several_labels": {
            "patients": len(several),
            "images": sum(images[p] for p in several),
            "sets": [{"labels": list(s), "patients": n} for s, n in sorted(Counter(several.values()).items())],
        },
        "in_two_parts": len(manifest.patients_in_two("split") | manifest.patients_in_two("fold")),
    }


def _sealed(sources: list[Any], labels: list[Any]) -> list[dict[str, Any]]:
    """Classes of which every known source holds no other class, in sources of two images or more on average."""
    of_class: dict[str, Counter[str]] = defaultdict(Counter)
    for source, label in zip(sources, labels, strict=True):
        if source is not None and label is not None:
            of_class[label][source] += 1
    found = []
    for label, own in sorted(of_class.items()):
        others = {s for other, of in of_class.items() if other != label for s in of}
        if others and not others & set(own) and own.total() >= 2 * len(own):
            names = sorted(own, key=lambda source: (-own[source], source))[:_MOST_SOURCES]
            counts = {"images": labels.count(label), "known": own.total(), "sources": len(own)}
            found.append({"label": label, **counts, "names": names})
    return found


def _ages(manifest: Manifest) -> list[float | None]:
    """Ages in years; not-a-number is unknown."""
    return [None if age is None or age != age else age for age in manifest.column("age_years")]


def _sizes(manifest: Manifest) -> list[tuple[int, int] | None]:
    """Width and height in pixels."""
    sizes = zip(manifest.column("width"), manifest.column("height"), strict=True)
    return [(w, h) if w and h else None for w, h in sizes]


def _count_sizes(known: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "distinct": len(set(known)),
        "width": spread([w for w, _ in known]),
        "height": spread([h for _, h in known]),
        "aspect_ratio": spread([w / h for w, h in known]),
    }


def _masks(manifest: Manifest) -> list[dict[str, Any]]:
    labels = manifest.column("label")
    images = Counter(labels)
    having = {
        kind: Counter(c for c, file in zip(labels, manifest.column(f"{kind}_mask"), strict=True) if file is not None)
        for kind in ("lung", "infection")
    }
    return [{"label": c, "images": images[c]} | {kind: of[c] for kind, of in having.items()} for c in ordered(labels)]


def _duplicates(manifest: Manifest, name: str) -> dict[str, int]:
    keys, parts = manifest.column(name), {f"{part}s": manifest.column(part) for part in ("label", "split", "fold")}
    return groups(keys, **parts) | {"unknown": keys.count(None)}


def _accuracies(manifest: Manifest) -> list[dict[str, Any]]:
    """How well each attribute alone names the class."""
    column, sizes = manifest.column, _sizes(manifest)
    ages = [None if a is None else sum(a >= edge for edge in _AGE_GROUPS) for a in _ages(manifest)]
    attributes: dict[str, list[Any]] = {
        **{name: column(name) for name in ("source", "view", "sex")},
        "age group": ages,
        **{name: column(name) for name in ("format", "mode")},
        "size": sizes,
        "aspect ratio": [None if s is None else round(s[0] / s[1], 1) for s in sizes],
    }
    labels = column("label")
    return [
        {"attribute": name, "known": len(v) - v.count(None), "balanced_accuracy": accuracy_by_value(v, labels)}
        for name, v in attributes.items()
    ]


def summary(facts: Mapping[str, Any]) -> str:
    """One sentence: how many images, of which classes, of how many known patients."""
    classes = [f"{c['label']} {c['images']:,}" for c in facts["classes"]]
    if facts["unlabelled"]:
        classes.append(f"without a label {facts['unlabelled']:,}")
    patients = facts["patients"]
    of = counted(patients["patients"], "known patient") if patients["known"] else "unknown patients"
    if patients["known"] and patients["unknown"]:
        of += f"; the patient of {counted(patients['unknown'], 'image')} is unknown"
    return f"{counted(facts['images'], 'chest X-ray image')} ({', '.join(classes)}) of {of}."


def ordered(values: Sequence[Any]) -> list[Any]:
    """The distinct values sorted, null last."""
    found = set(values)
    return sorted(v for v in found if v is not None) + ([None] if None in found else [])


def crossed(values: Sequence[Any], labels: Sequence[str | None]) -> dict[str, Any]:
    """Images per value (rows, commonest first, null last) and label (columns, sorted, null last).

    At most 30 values are listed; the others are summed up under `more`.
    """
    columns, cells, totals = ordered(labels), Counter(zip(values, labels, strict=True)), Counter(values)
    known = sorted((v for v in totals if v is not None), key=lambda v: (-totals[v], v))
    shown = [*known[:_MOST_ROWS], *([None] if None in totals else [])]
    rest = known[_MOST_ROWS:]
    return {
        "known": len(values) - totals[None],
        "unknown": totals[None],
        "values": len(known),
        "columns": columns,
        "rows": [{"value": v, "images": totals[v], "counts": [cells[v, c] for c in columns]} for v in shown],
        "more": {"values": len(rest), "images": sum(totals[v] for v in rest)},
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Least, quartiles (linear interpolation) and greatest of some values; `None` of none."""
    if not values:
        return None
    found = np.quantile(np.array(values, dtype=np.float64), (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {name: round(v, 2) for name, v in zip(("min", "q1", "median", "q3", "max"), found, strict=True)}


def groups(keys: Sequence[Any], **columns: Sequence[Any]) -> dict[str, int]:
    """Rows that share one known key: how many groups, how many rows in them, and groups whose column differs inside.

    A null in a column differs from nothing.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            members[key].append(row)
    shared = [rows for rows in members.values() if len(rows) > 1]
    return {
        "groups": len(shared),
        "images": sum(map(len, shared)),
        **{f"across_{n}": sum(len({of[r] for r in rows} - {None}) > 1 for rows in shared) for n, of in columns.items()},
    }


def accuracy_by_value(values: Sequence[Any], labels: Sequence[str | None]) -> float | None:
    """Balanced accuracy of naming the class from one value alone, leave-one-out; never below chance.

    Each image is given the class in which its value is most frequent among the *other* images, argmax_c n(v, c) / n(c):
    Bayes' rule under equal class priors. Equal frequencies share the point; a value that nobody else has earns 1/K.
    Null is a value like any other. Images without a label are left out.

    Returns:
        A share between 1/K and 1, or `None` for fewer than two classes or a class of a single image.
    """
    cells = Counter((v, c) for v, c in zip(values, labels, strict=True) if c is not None)
    sizes = Counter(c for c in labels if c is not None)
    if len(sizes) < 2 or min(sizes.values()) < 2:
        return None
    right = dict.fromkeys(sizes, 0.0)
    for (value, own), count in cells.items():
        shares = {c: (cells[value, c] - (c == own)) / (sizes[c] - (c == own)) for c in sizes}
        best = [c for c in shares if shares[c] == max(shares.values())]
        right[own] += count * (own in best) / len(best)
    return round(max(1 / len(sizes), sum(right[c] / sizes[c] for c in sizes) / len(sizes)), 4)
