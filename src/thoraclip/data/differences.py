"""What tells the classes apart without anatomy: each column of a data set, alone and all together, as a classifier.

A column that names the class by itself (view, age, source, aspect ratio, black border...) is one that a network can use
instead of the lungs (Zech et al. 2018, doi:10.1371/journal.pmed.1002683; Roberts et al. 2021,
doi:10.1038/s42256-021-00307-0). The measure is the cross-validated balanced accuracy of a small decision tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.splits import assign_groups
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.ranges import Seed, conform

__all__ = ["TOGETHER", "class_differences"]


TOGETHER = "all of these together"  # name of the entry that uses every column at once
FOLDS, DEPTH, RESAMPLES = 5, 3, 500
MIN_IMAGES, MIN_GROUPS = 10, 5  # of every class; with fewer, `alone` is not measured
MAX_ROWS = 6000  # images of a fold's training part that are fitted: a tree of depth 3 gains nothing from more
TOP_VALUES, MAX_VALUES = 5, 20
"""Values of a categorical column that are shown per class, and that are told apart; the rarer ones count as one."""


def class_differences(
    labels: Sequence[str],
    groups: npt.ArrayLike,
    numeric: Mapping[str, npt.ArrayLike],
    categorical: Mapping[str, Sequence[str | None]],
    *,
    seed: int,
    descriptions: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Rank columns by how well each alone names the class; `TOGETHER` stands first.

    A decision tree with balanced class weights per column (depth 3 for numbers; as deep as there are values for
    categories), a random forest for all of them; 5 folds, stratified by class and grouped; out-of-fold predictions
    pooled; 95 % percentile interval over 500 resamples of the groups. Unknown is a value of its own. Of a fold's
    training part at most 6,000 images are fitted, drawn at random in equal shares of the classes.

    Args:
        labels: N class names, N > 0.
        groups: N keys (patients), text or numbers; images of one group stay in one fold.
        numeric: name -> N numbers; NaN (or infinite) is unknown.
        categorical: name -> N values; None is unknown. The names differ from those of `numeric`.
        seed: of folds, trees and resamples; ConfigError where it is negative.
        descriptions: name -> what the column is, with unit.

    Returns:
        The entry for all columns (`kind` is `together`, `per_class` and `known` are empty), then one per column, the
        most telling first, ties and unmeasured ones by name. `per_class` is label -> number `n` of images of known
        value and their `median`, `q1` and `q3` (None where n is 0) or the `shares` of the most frequent ones; `known`,
        label -> share of known values; `alone`, balanced accuracy (`value`, `low`, `high` and `chance`, 0..1), or None;
        and `reason`, why it was not measured.
    """
    conform("seed", seed, Seed)
    names, target = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    classes: list[str] = names.tolist()
    _, group = np.unique(groups, return_inverse=True)
    reason = _too_few(classes, target, group)
    fold = None if reason else assign_groups(target.astype(np.int64), group, [1 / FOLDS] * FOLDS, seed=seed)
    weights = None if reason else _resamples(int(group.max()) + 1, seed)

    def measure(table: Floats, kind: str) -> dict[str, float] | None:
        if fold is None or weights is None:
            return None
        predicted = _predict(table, target, fold, classes=len(classes), kind=kind, seed=seed)
        return _accuracy(target, predicted, group, weights)

    rows: list[dict[str, Any]] = []
    tables = []
    for name in (*numeric, *categorical):
        kind = "numeric" if name in numeric else "categorical"
        if name in numeric:
            values: Any = np.asarray(numeric[name], dtype=np.float64)
            table = np.where(np.isfinite(values), values, np.nan)[:, None]
            shown = {label: _quartiles(table[target == index, 0]) for index, label in enumerate(classes)}
        else:
            values = np.array(categorical[name], dtype=object)
            table = _one_hot(categorical[name])
            shown = {label: _shares(values[target == index]) for index, label in enumerate(classes)}
        known = {label: shown[label]["n"] / n for label, n in zip(classes, np.bincount(target).tolist(), strict=True)}
        is_constant = np.array_equal(table, np.broadcast_to(table[0], table.shape), equal_nan=True)
        alone, why = (None, reason or "one value only") if is_constant else (measure(table, kind), reason)
        row = {"name": name, "description": descriptions.get(name, ""), "kind": kind, "per_class": shown}
        rows.append(row | {"known": known, "alone": alone, "reason": why})
        tables.append(table)
    rows.sort(key=lambda row: (-row["alone"]["value"] if row["alone"] else 0.0, row["name"]))
    alone = measure(np.concatenate(tables, axis=1), "together")
    row = {"name": TOGETHER, "description": f"a random forest on all {len(tables)} columns", "kind": "together"}
    return [row | {"per_class": {}, "known": {}, "alone": alone, "reason": reason}, *rows]


def _one_hot(words: Sequence[str | None]) -> Floats:
    """f64[N, V] of 0 and 1: the most frequent values, unknown, and the others."""
    frequent = sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0] is None, str(pair[0])))
    number = {word: i for i, (word, _) in enumerate(frequent[:MAX_VALUES])}
    number.setdefault(None, len(number))
    index = np.array([number.get(word, len(number)) for word in words], dtype=np.int64)
    return np.eye(len(number) + 1)[index]


def _too_few(classes: Sequence[str], target: Ints, group: Ints) -> str:
    """Why nothing can be measured; empty where it can."""
    if len(classes) < 2:
        return f"only one class, '{classes[0]}'"
    for index, name in enumerate(classes):
        images, distinct = int((target == index).sum()), len(np.unique(group[target == index]))
        if images < MIN_IMAGES or distinct < MIN_GROUPS:
            return (
                f"class '{name}' has {images} images of {distinct} groups; "
                f"{MIN_IMAGES} images of {MIN_GROUPS} groups are needed"
            )
    return ""


def _quartiles(values: Floats) -> dict[str, Any]:
    values = values[~np.isnan(values)]
    median, q1, q3 = np.percentile(values, (50, 25, 75)).tolist() if len(values) else (None, None, None)
    return {"n": len(values), "median": median, "q1": q1, "q3": q3}


def _shares(words: Iterable[str | None]) -> dict[str, Any]:
    counted = Counter(word for word in words if word is not None)
    most = sorted(counted.items(), key=lambda pair: (-pair[1], str(pair[0])))[:TOP_VALUES]
    return {"n": counted.total(), "shares": {str(word): n / counted.total() for word, n in most}}


def _predict(table: Floats, target: Ints, fold: Ints, *, classes: int, kind: str, seed: int) -> Ints:
    """i64[N]: out-of-fold class of every image."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    predicted = np.zeros(len(target), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for held in np.unique(fold):
        rows = np.flatnonzero(fold != held)
        if len(rows) > MAX_ROWS:
            rows = _draw(rows, target, classes, rng)
        settings: dict[str, Any] = {"class_weight": "balanced", "random_state": seed}
        if kind == "together":
            model = RandomForestClassifier(200, min_samples_leaf=3, n_jobs=1, **settings)
        else:
            model = DecisionTreeClassifier(max_depth=DEPTH if kind == "numeric" else None, **settings)
        model.fit(table[rows], target[rows])
        predicted[fold == held] = model.predict(table[fold == held])
    return predicted


def _draw(rows: Ints, target: Ints, classes: int, rng: np.random.Generator) -> Ints:
    """At most `MAX_ROWS` of the rows: of every class what there is, up to an equal share."""
    taken = []
    for index in range(classes):
        own = rng.permutation(rows[target[rows] == index])
        taken.append(own[: max(1, MAX_ROWS // classes)])
    return np.sort(np.concatenate(taken))


def _resamples(groups: int, seed: int) -> Singles:
    """f32[R, G]: how often each group is drawn in each resample of as many groups."""
    rng = np.random.default_rng(seed)
    weights = np.empty((RESAMPLES, groups), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, groups, groups), minlength=groups)
    return weights


def _accuracy(target: Ints, predicted: Ints, group: Ints, weights: Singles) -> dict[str, float]:
    """Mean recall over the classes, and over the resamples in which every class has an image."""
    classes = int(target.max()) + 1
    right = np.zeros((weights.shape[1], classes), dtype=np.float32)
    total = np.zeros_like(right)
    np.add.at(total, (group, target), 1)
    np.add.at(right, (group, target), target == predicted)
    value = float((right.sum(axis=0) / total.sum(axis=0)).mean())
    drawn, hit = weights @ total, weights @ right  # [R, C]
    complete = (drawn > 0).all(axis=1)
    low, high = np.percentile((hit[complete] / drawn[complete]).mean(axis=1), (2.5, 97.5))
    return {"value": value, "low": float(low), "high": float(high), "chance": 1 / classes}
