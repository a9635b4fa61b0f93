"""Folds and train/val/test parts: stratified by class, whole patients and copies together, a pure function of the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError, ManifestError
from thoraclip.tables.manifest import SPLITS, Manifest

__all__ = ["assign_groups", "hold_out", "independent_groups", "parse_fractions", "split_folds", "split_fractions"]


def independent_groups(manifest: Manifest) -> list[str]:
    """One key per image; images of different keys share neither patient nor picture.

    Joined are images of one patient, of the same bytes, and of one `duplicate_cluster` where the manifest has that
    column. An image that shares nothing is a group of its own. Keys do not depend on the order of the images.
    """
    ids = [f"image:{image}" for image in manifest.column("image_id")]
    shared = [("patient", "patient"), ("sha256", "bytes"), ("duplicate_cluster", "cluster")]
    parent = {key: key for key in ids}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for column, prefix in shared:
        values = manifest.column(column) if column in manifest.table.column_names else []
        counts = Counter(value for value in values if value is not None)
        for key, value in zip(ids, values, strict=False):
            if value is not None and (column == "patient" or counts[value] > 1):
                other = f"{prefix}:{value}"
                a, b = sorted((root(key), root(parent.setdefault(other, other))), key=_rank)
                parent[b] = a
    return [root(key) for key in ids]


def _rank(key: str) -> tuple[bool, str]:
    """Patients first, so that a group is named by its first patient, where it has one."""
    return not key.startswith("patient:"), key


def split_folds(manifest: Manifest, *, folds: int, seed: int) -> Manifest:
    """A new manifest with `fold` in 0..folds-1 for every labelled image and no split.

    Raises:
        ConfigError: fewer than two folds, or a negative seed.
        ManifestError: a class with too few patients to stand in every fold.
    """
    if folds < 2:
        raise ConfigError(f"folds = {folds}: two or more are needed")
    part = _parts(manifest, [1 / folds] * folds, seed)
    known = [label is not None for label in manifest.column("label")]
    fold = [int(p) if k else None for p, k in zip(part, known, strict=True)]
    return (
        manifest.with_columns(split=[None] * len(manifest), fold=[None] * len(manifest))
        .with_columns(fold=fold)
        .strict()
    )


def split_fractions(manifest: Manifest, *, fractions: Sequence[float], seed: int) -> Manifest:
    """A new manifest with `split` train, val and test by the given fractions, and no fold.

    Raises:
        ConfigError: not three positive fractions that sum to 1, or a negative seed.
        ManifestError: a class with too few patients to stand in every part.
    """
    if len(fractions) != 3 or not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"fractions {list(fractions)}: three positive numbers (train, val, test) that sum to 1 are needed"
        )
    part = _parts(manifest, fractions, seed)
    known = [label is not None for label in manifest.column("label")]
    split = [SPLITS[p] if k else None for p, k in zip(part, known, strict=True)]
    return (
        manifest.with_columns(split=[None] * len(manifest), fold=[None] * len(manifest))
        .with_columns(split=split)
        .strict()
    )


def hold_out(
    targets: npt.NDArray[np.int64], groups: Sequence[str], *, fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """bool[N]: True for the images of a stratified, grouped part of about `fraction` of all."""
    held: npt.NDArray[np.bool_] = assign_groups(targets, groups, [1 - fraction, fraction], seed=seed) == 1
    return held


def _parts(manifest: Manifest, weights: Sequence[float], seed: int) -> npt.NDArray[np.int64]:
    labels = manifest.label_set()
    targets, groups = manifest.targets(labels), independent_groups(manifest)
    for index, name in enumerate(labels.names):
        patients = len({group for group, target in zip(groups, targets, strict=True) if target == index})
        if patients < len(weights):
            raise ManifestError(
                f"class '{name}' has {patients} patients (or images of unknown patients) for {len(weights)} parts; "
                "add images, drop the class or ask for fewer parts"
            )
    part = assign_groups(targets, groups, weights, seed=seed)
    for index, name in enumerate(labels.names):
        empty = set(range(len(weights))) - set(part[targets == index].tolist())
        if empty:
            raise ManifestError(
                f"class '{name}' has too few patients to stand in each of {len(weights)} parts; "
                "add images, drop the class, or ask for fewer or more equal parts"
            )
    return part


def assign_groups(
    targets: npt.NDArray[np.int64], groups: Sequence[str], weights: Sequence[float], *, seed: int
) -> npt.NDArray[np.int64]:
    """Assign whole groups to parts so that each class is spread in the proportion of `weights`.

    Greedy, as in scikit-learn's StratifiedGroupKFold but for unequal parts too: groups are shuffled, then taken largest
    first, each to the part whose remaining need for the group's classes is greatest.

    Args:
        targets: i64[N], class index; -1 (unknown) counts as one more class.
        groups: N keys; equal keys stay together.
        weights: share of each part, summing to 1.
        seed: decides the shuffle; the result does not depend on the order of the images.

    Returns:
        i64[N], the part of each image.

    Raises:
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must not be negative")
    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    member = np.array([number[group] for group in groups], dtype=np.int64)
    classes = int(targets.max(initial=0)) + 2
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (member, targets % classes), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    totals = np.maximum(counts.sum(axis=0), 1)
    need = np.outer(np.asarray(weights), counts.sum(axis=0))
    part = np.zeros(len(names), dtype=np.int64)
    for group in order:
        wanted = need @ (counts[group] / totals)
        part[group] = int(np.argmax(wanted))
        need[part[group]] -= counts[group]
    _fill_empty(part, counts[order], order, len(weights))
    assigned: npt.NDArray[np.int64] = part[member]
    return assigned


def _fill_empty(
    part: npt.NDArray[np.int64], counts: npt.NDArray[np.float64], order: npt.NDArray[np.int64], parts: int
) -> None:
    """Give every part a group of every class, where a part that has several can spare one; the last-taken moves first."""
    held = np.zeros((parts, counts.shape[1]), dtype=np.int64)  # groups of each class in each part
    np.add.at(held, part[order], counts > 0)
    for label in range(counts.shape[1]):
        for empty in np.flatnonzero(held[:, label] == 0):
            for row in reversed(range(len(order))):
                has, donor = counts[row] > 0, part[order[row]]
                if has[label] and (held[donor][has] > 1).all():
                    part[order[row]] = empty
                    held[donor] -= has
                    held[empty] += has
                    break


def parse_fractions(text: str) -> tuple[float, ...]:
    """`"0.7,0.1,0.2"` -> three numbers; raises ConfigError for anything that is not numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--fractions '{text}': expected three numbers, as in 0.7,0.1,0.2") from error
