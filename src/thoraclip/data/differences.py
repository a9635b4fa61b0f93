"""What tells the classes apart without anatomy: each column of a data set, alone and all together, as a classifier.

A column that names the class by itself (view, age, source, aspect ratio, black border...) is one that a network can use
instead of the lungs (Zech et al. 2018, doi:10.1371/journal.pmed.1002683; Roberts et al. 2021,
doi:10.1038/s42256-021-00307-0). The measure is the cross-validated balanced accuracy of a small decision tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.splits import assign_groups
from thoraclip.errors import ConfigError

__all__ = ["TOGETHER", "Accuracy", "Categories", "Difference", "Quartiles", "class_differences"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOGETHER = "all of these together"
"""Name of the entry that uses every column at once."""
FOLDS, DEPTH, RESAMPLES = 5, 3, 500
MIN_IMAGES, MIN_GROUPS = 10, 5
"""Of every class; with fewer, `alone` is not measured."""
MAX_ROWS = 6000
"""Images of a fold's training part that are fitted: a tree of depth 3 gains nothing from more."""
TOP_VALUES, MAX_VALUES = 5, 20
"""Values of a categorical column that are shown per class, and that are told apart; the rarer ones count as one."""


@dataclass(frozen=True)
class Quartiles:
    """A numeric column in one class: `n` images of known value, their median and quartiles (None where n is 0)."""

    n: int
    median: float | None
    q1: float | None
    q3: float | None


@dataclass(frozen=True)
class Categories:
    """A categorical column in one class: `n` images of known value, the share of each of the most frequent values."""

    n: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Accuracy:
    """Balanced accuracy, 0..1, with its 95 % interval; `chance` is 1 / number of classes."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Difference:
    """How one column differs between the classes.

    Args:
        name: of the column, or `TOGETHER`.
        description: what it is, with unit; may be empty.
        kind: `numeric`, `categorical` or `together`.
        per_class: label -> what the class looks like; empty for `together`.
        known: label -> share of its images of known value, 0..1; empty for `together`.
        alone: how well this column by itself names the class; None where that was not measured.
        reason: why it was not; empty where it was.
    """

    name: str
    description: str
    kind: str
    per_class: Mapping[str, Quartiles | Categories]
    known: Mapping[str, float]
    alone: Accuracy | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts, strings and numbers, for JSON."""
        return asdict(self)


def class_differences(
    labels: Sequence[str],
    groups: Sequence[str],
    numeric: Mapping[str, npt.ArrayLike],
    categorical: Mapping[str, Sequence[str | None]],
    *,
    seed: int,
    descriptions: Mapping[str, str] | None = None,
) -> list[Difference]:
    """Rank columns by how well each alone names the class; `TOGETHER` stands first.

    A decision tree with balanced class weights per column (depth 3 for numbers; as deep as there are values for
    categories), a random forest for all of them; 5 folds, stratified by class and grouped; out-of-fold predictions
    pooled; 95 % percentile interval over 500 resamples of the groups. Unknown is a value of its own: a class whose age
    is never known is told apart by that. Of a fold's training part at most 6,000 images are fitted, drawn at random in
    equal shares of the classes; all images are predicted.

    Args:
        labels: N class names.
        groups: N keys (patients); images of one group stay in one fold.
        numeric: name -> N numbers; NaN (or infinite) is unknown.
        categorical: name -> N values; None is unknown.
        seed: of folds, trees and resamples.
        descriptions: name -> what the column is, with unit.

    Returns:
        The entry for all columns, then one per column, the most telling first, ties and unmeasured ones by name.

    Raises:
        ConfigError: columns of another length, one name twice, no column or no image, or a negative seed.
    """
    columns = _columns(len(labels), groups, numeric, categorical, seed)
    names, target = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    classes = [str(name) for name in names]
    _, group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    reason = _too_few(classes, target, group)
    fold = None if reason else assign_groups(target.astype(np.int64), groups, [1 / FOLDS] * FOLDS, seed=seed)
    weights = None if reason else _resamples(int(group.max()) + 1, seed)

    def measure(table: Floats, kind: str) -> Accuracy | None:
        if fold is None or weights is None:
            return None
        predicted = _predict(table, target, fold, classes=len(classes), kind=kind, seed=seed)
        return _accuracy(target, predicted, group, weights, len(classes))

    said = descriptions or {}
    rows = []
    for name, (kind, table) in columns.items():
        shown, known = _shown(kind, table if kind == "numeric" else categorical[name], classes, target)
        is_constant = np.array_equal(table, np.broadcast_to(table[0], table.shape), equal_nan=True)
        alone, why = (None, reason or "one value only") if is_constant else (measure(table, kind), reason)
        rows.append(Difference(name, said.get(name, ""), kind, shown, known, alone, why))
    rows.sort(key=lambda row: (-row.alone.value if row.alone else 0.0, row.name))
    everything = np.concatenate([table for _, table in columns.values()], axis=1)
    what = f"a random forest on all {len(columns)} columns"
    return [Difference(TOGETHER, what, "together", {}, {}, measure(everything, "together"), reason), *rows]


def _columns(
    count: int,
    groups: Sequence[str],
    numeric: Mapping[str, npt.ArrayLike],
    categorical: Mapping[str, Sequence[str | None]],
    seed: int,
) -> dict[str, tuple[str, Floats]]:
    """Name -> (kind, f64[N, V]): a numeric column as itself (NaN unknown), a categorical one as one column per
    value."""
    twice = sorted(set(numeric) & set(categorical) | {TOGETHER} & (set(numeric) | set(categorical)))
    if twice:
        raise ConfigError(f"column '{twice[0]}' is given twice; every column needs a name of its own")
    if not count or not (numeric or categorical):
        raise ConfigError(f"{count} images in {len(numeric) + len(categorical)} columns: one or more of each is needed")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must not be negative")
    columns: dict[str, tuple[str, Floats]] = {}
    for name, numbers in numeric.items():
        values = np.asarray(numbers, dtype=np.float64)
        columns[name] = ("numeric", np.where(np.isfinite(values), values, np.nan)[:, None])
    for name, words in categorical.items():
        columns[name] = ("categorical", _one_hot(words))
    for name, length in {"groups": len(groups), **{name: len(t) for name, (_, t) in columns.items()}}.items():
        if length != count:
            raise ConfigError(f"'{name}' has {length} values for {count} images; one for each is needed")
    return columns


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


def _shown(
    kind: str, column: Any, classes: Sequence[str], target: Ints
) -> tuple[dict[str, Quartiles | Categories], dict[str, float]]:
    """What each class looks like, and the share of its images of known value."""
    shown: dict[str, Quartiles | Categories] = {}
    known: dict[str, float] = {}
    for index, label in enumerate(classes):
        own = target == index
        if kind == "numeric":
            values = column[own, 0]
            values = values[~np.isnan(values)]
            quartiles = [float(q) for q in np.percentile(values, (50, 25, 75))] if len(values) else [None] * 3
            shown[label] = Quartiles(len(values), *quartiles)
        else:
            words = [column[row] for row in np.flatnonzero(own) if column[row] is not None]
            most = sorted(Counter(words).items(), key=lambda pair: (-pair[1], str(pair[0])))[:TOP_VALUES]
            shown[label] = Categories(len(words), {str(word): n / len(words) for word, n in most})
        known[label] = shown[label].n / int(own.sum())
    return shown, known


def _predict(table: Floats, target: Ints, fold: Ints, *, classes: int, kind: str, seed: int) -> Ints:
    """i64[N]: out-of-fold class of every image."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    predicted = np.zeros(len(target), dtype=np.int64)
    rng = np.random.Generator(np.random.PCG64(seed))
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


def _resamples(groups: int, seed: int) -> npt.NDArray[np.float32]:
    """f32[R, G]: how often each group is drawn in each resample of as many groups."""
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = np.empty((RESAMPLES, groups), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, groups, groups), minlength=groups)
    return weights


def _accuracy(target: Ints, predicted: Ints, group: Ints, weights: npt.NDArray[np.float32], classes: int) -> Accuracy:
    """Mean recall over the classes, and over the resamples in which every class has an image."""
    right = np.zeros((weights.shape[1], classes), dtype=np.float32)
    total = np.zeros_like(right)
    np.add.at(total, (group, target), 1)
    np.add.at(right, (group, target), target == predicted)
    value = float((right.sum(axis=0) / total.sum(axis=0)).mean())
    drawn, hit = weights @ total, weights @ right  # [R, C]
    complete = (drawn > 0).all(axis=1)
    low, high = np.percentile((hit[complete] / drawn[complete]).mean(axis=1), (2.5, 97.5))
    return Accuracy(value, float(low), float(high), 1 / classes)
