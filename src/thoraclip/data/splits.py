"""Folds and train/val/test parts: stratified by class, whole patients and copies together, a pure function of the seed.

Groups are integers inside, in the order of their keys, and the images of ten million patients are split in minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thoraclip.data.duplicates import clusters
from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.ranges import FoldCount, Seed, conform
from thoraclip.tables.codes import ranks
from thoraclip.tables.manifest import SPLITS, Manifest

__all__ = [
    "assign_groups", "draw_patients", "hold_out", "independent_groups", "parse_fractions", "patient_counts",
    "split_folds", "split_fractions",
]  # fmt: skip


_KEYS = ("sha256", "duplicate_cluster", "image_id", "patient")  # what images share, in the order of the keys
_BLOCK = 1 << 16  # groups that are looked at at once


def independent_groups(manifest: Manifest) -> Ints:
    """i64[N]: images of different groups share no patient, bytes, or `duplicate_cluster` (an optional column).

    An image that shares nothing is a group of its own. Groups are numbered in the order of their keys, which do not
    depend on the order of the images: the first patient, else the first shared bytes, else the cluster, else the image.
    """
    names = manifest.table.column_names
    columns = [manifest.values(name) for name in _KEYS if name in names]
    values = [ranks(column if pa.types.is_string(column.type) else _text(column)) for column in columns]
    offsets = np.cumsum([0, *(int(value.max()) + 1 for value in values[:-1])]).tolist()
    for value in values[:-2]:
        value[np.bincount(value + 1)[value + 1] == 1] = -1  # what stands there once joins nothing
    *copies, _, patient = values
    group = _joined(np.where(patient >= 0, patient, int(patient.max()) + np.cumsum(patient < 0)), copies)
    key = np.zeros(int(group.max()) + 1, dtype=np.int64)
    *shared, image, person = zip(values, offsets, strict=True)
    for value, offset in (image, *reversed(shared), person):  # the last one that a group has names it
        known = value >= 0
        first = np.full(len(key), len(value))
        np.minimum.at(first, group[known], value[known])
        key = np.where(first < len(value), first + offset, key)
    return np.asarray(np.unique(key[group], return_inverse=True)[1])


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([[None if value is None else str(value) for value in column.to_pylist()]], pa.string())


def _joined(group: Ints, shared: Sequence[Ints]) -> Ints:
    """Groups 0, 1, ... that are one where their images share a value; -1 is none."""
    links = [np.zeros((0, 2), dtype=np.int64)]
    for value in shared:
        known = value >= 0
        one = np.zeros(int(value.max()) + 1, dtype=np.int64)
        one[value[known]] = group[known]  # of whichever image comes last
        pairs = np.column_stack([group[known], one[value[known]]])
        links.append(pairs[pairs[:, 0] != pairs[:, 1]])
    return clusters(int(group.max()) + 1, np.concatenate(links))[group]


def split_folds(manifest: Manifest, *, folds: int, seed: int) -> Manifest:
    """A new manifest with `fold` in 0..folds-1 for every labelled image and no split.

    Raises:
        ConfigError: fewer than two folds, or a negative seed.
        ManifestError: a class with too few patients to stand in every fold.
    """
    conform("folds", folds, FoldCount)
    part = _parts(manifest, [1 / folds] * folds, seed)
    fold = pa.array(part.astype(np.int32), mask=np.asarray(manifest.values("label").is_null()))
    return manifest.with_columns(split=pa.nulls(len(fold), pa.string()), fold=fold).strict()


def split_fractions(manifest: Manifest, *, fractions: Sequence[float], seed: int) -> Manifest:
    """A new manifest with `split` train, val and test by the given fractions, and no fold.

    Raises:
        ConfigError: not three positive fractions that sum to 1, or a negative seed.
        ManifestError: a class with too few patients to stand in every part.
    """
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions {list(fractions)}: three positive numbers (train, val, test) must sum to 1")
    part = _parts(manifest, fractions, seed)
    split = pa.array(SPLITS).take(pa.array(part, mask=np.asarray(manifest.values("label").is_null())))
    return manifest.with_columns(split=split, fold=pa.nulls(len(split), pa.int32())).strict()


def hold_out(targets: Ints, groups: Sequence[str] | Ints, *, fraction: float, seed: int) -> Masks:
    """bool[N]: True for the images of a stratified, grouped part of about `fraction` of all."""
    return np.asarray(assign_groups(targets, groups, [1 - fraction, fraction], seed=seed) == 1)


def patient_counts(targets: Ints, groups: Ints, classes: int) -> Ints:
    """i64[C]: how many groups have an image of each class; a target of -1 (unknown) is none."""
    pairs = np.unique(np.stack([targets, groups]), axis=1)[0]
    return np.bincount(pairs[pairs >= 0], minlength=classes)


def draw_patients(targets: Ints, groups: Ints, *, shots: int, seed: int | Sequence[int]) -> Masks:
    """bool[N]: all images of `shots` groups of each class, drawn without replacement.

    The groups are shuffled once, and each class takes the first that have an image of it: a smaller draw of the same
    seed lies inside a larger one. A group with images of several classes is drawn whole, so that a class can have more.

    Args:
        targets: i64[N], class index.
        groups: i64[N], whose image it is; numbers that do not depend on the order of the images.
        shots: groups of each class; all of a class that has no more.
        seed: of the shuffle.
    """
    distinct, member = np.unique(groups, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(distinct))[member]
    drawn = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        first = np.unique(place[targets == label])[:shots]
        drawn |= np.isin(place, first)
    return drawn


def _parts(manifest: Manifest, weights: Sequence[float], seed: int) -> Ints:
    labels = manifest.label_set()
    targets, groups = manifest.targets(labels), independent_groups(manifest)
    counts = patient_counts(targets, groups, len(labels))
    for name, patients in zip(labels.names, counts, strict=True):
        if patients < len(weights):
            raise ManifestError(
                f"class '{name}' has {patients} patients (or images of unknown patients) for {len(weights)} parts; "
                "add images, drop the class or ask for fewer parts"
            )
    part = assign_groups(targets, groups, weights, seed=seed)
    for index, name in enumerate(labels.names):
        if len(np.unique(part[targets == index])) < len(weights):
            raise ManifestError(
                f"class '{name}' has too few patients to stand in each of {len(weights)} parts; "
                "add images, drop the class, or ask for fewer or more equal parts"
            )
    return part


def assign_groups(targets: Ints, groups: Sequence[str] | Ints, weights: Sequence[float], *, seed: int) -> Ints:
    """i64[N], the part of each image: whole groups, each class spread in the proportion of `weights`.

    Greedy, as in scikit-learn's StratifiedGroupKFold but for unequal parts too: groups are shuffled, then taken largest
    first, each to the part whose remaining need for the group's classes is greatest.

    Args:
        targets: i64[N], class index; -1 (unknown) counts as one more class.
        groups: N keys, text or numbers; equal keys stay together.
        weights: share of each part, summing to 1.
        seed: decides the shuffle (ConfigError where negative); the result does not depend on the order of the images.
    """
    conform("seed", seed, Seed)
    distinct, member = np.unique(np.asarray(groups), return_inverse=True)
    count = len(distinct)
    classes = int(targets.max(initial=0)) + 2
    images = np.bincount(member * classes + targets % classes, minlength=count * classes)
    counts = images.astype(np.int32).reshape(count, classes)
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(-counts.sum(axis=1)[order], kind="stable")]
    part = _greedy(counts, order, np.asarray(weights))
    _fill_empty(part, counts, order, len(weights))
    return np.asarray(part[member])


def _greedy(counts: npt.NDArray[np.int32], order: Ints, weights: Floats) -> Ints:
    """i64[G]: the part of each group, of i32[G, C] images; every group's choice depends on all before it."""
    totals = np.maximum(counts.sum(axis=0), 1)
    need = np.outer(weights, counts.sum(axis=0)).astype(np.float64)
    part = np.zeros(len(counts), dtype=np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        images = counts[block].astype(np.float64)
        chosen = []
        for taken, share in zip(images, images / totals, strict=True):
            best = (need @ share).argmax()
            need[best] -= taken
            chosen.append(best)
        part[block] = chosen
    return part


def _fill_empty(part: Ints, counts: npt.NDArray[np.int32], order: Ints, parts: int) -> None:
    """Give every part a group of every class, where a part that has several can spare one; the last-taken moves
    first."""
    has = counts > 0
    held = np.stack([has[part == number].sum(axis=0) for number in range(parts)])  # groups of each class in each part
    for label in range(counts.shape[1]):
        for empty in np.flatnonzero(held[:, label] == 0):
            group = _spare(part, has, order, held, label)
            if group is not None:
                held[part[group]] -= has[group]
                held[empty] += has[group]
                part[group] = empty


def _spare(part: Ints, has: Masks, order: Ints, held: Ints, label: int) -> int | None:
    """The last-taken group with a class, whose part has another one of each of its classes."""
    for end in range(len(order), 0, -_BLOCK):
        block = order[max(0, end - _BLOCK) : end]
        block = block[has[block, label]]
        can = (~has[block] | (held[part[block]] > 1)).all(axis=1)
        if can.any():
            return int(block[can][-1])
    return None


def parse_fractions(text: str) -> tuple[float, ...]:
    """`"0.7,0.1,0.2"` -> three numbers; raises ConfigError for anything that is not numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--fractions '{text}': expected three numbers, as in 0.7,0.1,0.2") from error
