"""Plain counts over one column and the labels; unknown is counted as unknown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["crossed", "groups", "ordered", "spread", "told_by"]

_MOST_ROWS = 30


def ordered(values: Sequence[Any]) -> list[Any]:
    """The distinct values sorted, null last."""
    found = set(values)
    return sorted(v for v in found if v is not None) + ([None] if None in found else [])


def crossed(values: Sequence[Any], labels: Sequence[str | None]) -> dict[str, Any]:
    """Images per value (rows, commonest first, null last) and label (columns, sorted, null last).

    At most 30 values are listed; the others are summed up under `more`.
    """
    columns = ordered(labels)
    cells = Counter(zip(values, labels, strict=True))
    totals = Counter(values)
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


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Least, quartiles (linear interpolation) and greatest of the known values; `None` where none is known."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    names = ("min", "q1", "median", "q3", "max")
    found = np.quantile(np.array(known, dtype=np.float64), (0, 0.25, 0.5, 0.75, 1))
    return {name: round(float(v), 2) for name, v in zip(names, found, strict=True)}


def groups(keys: Sequence[Any], **columns: Sequence[Any]) -> dict[str, int]:
    """Rows that share one known key: how many groups, how many rows in them, and groups whose column differs inside.

    A null in a column differs from nothing.
    """
    members: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            members[key].append(row)
    shared = [rows for rows in members.values() if len(rows) > 1]
    found = {"groups": len(shared), "images": sum(map(len, shared))}
    for name, column in columns.items():
        differing = [rows for rows in shared if len({column[r] for r in rows} - {None}) > 1]
        found[f"across_{name}"] = len(differing)
    return found


def told_by(values: Sequence[Any], labels: Sequence[str | None]) -> float | None:
    """Balanced accuracy of naming the class from one value alone, leave-one-out; never below chance.

    Each image is given the class in which its value is most frequent among the *other* images, argmax_c n(v, c) / n(c):
    Bayes' rule under equal class priors. Equal frequencies share the point; a value that nobody else has earns 1/K.
    Null is a value like any other. Images without a label are left out.

    Returns:
        A share between 1/K and 1, or `None` for fewer than two classes or a class of a single image.
    """
    pairs = [(v, c) for v, c in zip(values, labels, strict=True) if c is not None]
    sizes = Counter(c for _, c in pairs)
    if len(sizes) < 2 or min(sizes.values()) < 2:
        return None
    cells = Counter(pairs)
    right = dict.fromkeys(sizes, 0.0)
    for (value, own), count in cells.items():
        shares = {c: (cells[value, c] - (c == own)) / (sizes[c] - (c == own)) for c in sizes}
        best = [c for c in shares if shares[c] == max(shares.values())]
        right[own] += count * (own in best) / len(best)
    return round(max(1 / len(sizes), sum(right[c] / sizes[c] for c in sizes) / len(sizes)), 4)
