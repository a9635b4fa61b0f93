"""Splits: whole patients, each class in proportion, a pure function of the seed and of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from tests.conftest import examples

from thoraclip.data import splits
from thoraclip.data.splits import (
    assign_groups,
    hold_out,
    independent_groups,
    parse_fractions,
    split_folds,
    split_fractions,
)
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.tables.manifest import COLUMNS, SPLITS, Manifest

Ints = npt.NDArray[np.int64]
UNEQUAL = ((0.7, 0.1, 0.2), (0.98, 0.01, 0.01))


def made(labels: list[str | None], patients: list[str | None]) -> Manifest:
    rows = [
        {"image_id": f"i{k:03d}", "path": f"{k}.png", "sha256": str(k), "label": label, "patient": patient}
        for k, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]
    return Manifest.from_rows(rows, Path())


def unbalance(targets: Ints, part: Ints, folds: int) -> float:
    """Mean over folds and classes of |images - even share|."""
    off = [
        np.abs(np.bincount(part[targets == t], minlength=folds) - (targets == t).sum() / folds) for t in set(targets)
    ]
    return float(np.mean(off))


def test_the_balance_is_that_of_scikit_learn_or_better() -> None:
    """Twelve sets with patients of several classes. Measured: ours is 0.4 to 1.2 of theirs, 0.9 in the mean."""
    ours, theirs = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = rng.geometric(0.35, 90)
        groups = np.repeat(np.arange(90), sizes)
        usual = np.repeat(rng.choice(3, 90, p=[0.2, 0.3, 0.5]), sizes)
        targets = np.where(rng.random(len(groups)) < 0.15, rng.integers(0, 3, len(groups)), usual).astype(np.int64)
        part = assign_groups(targets, [f"{g:03d}" for g in groups], [0.2] * 5, seed=seed)
        oracle = np.zeros(len(groups), np.int64)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for fold, (_, test) in enumerate(splitter.split(groups, targets, groups)):
            oracle[test] = fold
        ours.append(unbalance(targets, part, 5))
        theirs.append(unbalance(targets, oracle, 5))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)
    assert max(np.array(ours) - np.array(theirs)) <= 0.5


def test_a_class_needs_a_patient_for_every_part_and_gets_into_each() -> None:
    for seed, fractions in enumerate(UNEQUAL * 3):
        table = made([*"aaaabbbbbbbbb"], [None] * 13)
        split = split_fractions(table, fractions=fractions, seed=seed).column("split")
        assert set(split[:4]) == set(split[4:]) == set(SPLITS)
    manifest = made(["a"] * 9 + ["b"] * 9, [f"p{k}" for k in range(9)] + ["q0", "q1"] * 4 + ["q0"])
    few = r"class 'b' has 2 patients \(or .*\) for 3 parts; add images, drop the class or ask for fewer parts"
    for split in (partial(split_folds, folds=3), partial(split_fractions, fractions=(0.7, 0.1, 0.2))):
        with pytest.raises(ManifestError, match=few):
            split(manifest, seed=0)
    tied = made([*"bcaabacbc"], [*"sttuurpqq"])
    with pytest.raises(ManifestError, match="class 'c' has too few patients to stand in each of 3 parts; add images"):
        split_fractions(tied, fractions=(0.98, 0.01, 0.01), seed=0)


def test_settings_that_cannot_be_are_refused(manifest: Manifest) -> None:
    for folds in (1, -2):
        with pytest.raises(ConfigError, match=f"folds = {folds}: a whole number from 2 to 1,000 is needed"):
            split_folds(manifest, folds=folds, seed=0)
    wrong = ((0.5, 0.5), (0.25,) * 4, (0.7, 0.2, 0.2), (0.4, 0.3, 0.299998), (1.0, 0.0, 0.0), (np.nan, 0.5, 0.5))
    for fractions in wrong:
        with pytest.raises(ConfigError, match=r"fractions \[.*\]: three positive numbers"):
            split_fractions(manifest, fractions=fractions, seed=0)
    split_fractions(manifest, fractions=(0.4, 0.3, 0.2999992), seed=0)
    for split in (partial(split_folds, folds=2), partial(split_fractions, fractions=(0.5, 0.25, 0.25))):
        with pytest.raises(ConfigError, match="seed = -1: a whole number from 0"):
            split(manifest, seed=-1)


def test_fractions_as_text() -> None:
    assert parse_fractions("0.7, .1,0.2") == (0.7, 0.1, 0.2)
    for text in ("0.7;0.1", "", "a,b,c", "0.5,,0.5"):
        with pytest.raises(ConfigError, match=f"--fractions '{text}': expected three numbers"):
            parse_fractions(text)


def test_hold_out_is_a_stratified_grouped_part() -> None:
    targets = np.repeat([0, 1], 100)
    groups = [f"g{k // 2}" for k in range(200)]
    held = hold_out(targets, groups, fraction=0.2, seed=0)
    assert held.dtype == np.bool_ and held[:100].sum() == held[100:].sum() == 20
    assert (held[0::2] == held[1::2]).all()
    for seed in range(3):
        held = hold_out(targets, groups, fraction=0.3, seed=seed)
        assert held.tolist() == [part == 1 for part in plain_parts(targets, groups, [0.7, 0.3], seed)]


def plain_groups(manifest: Manifest) -> list[str]:
    """Union and find over strings, image by image."""
    ids = [f"image:{image}" for image in manifest.column("image_id")]
    parent = {key: key for key in ids}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    for column, prefix in (("patient", "patient"), ("sha256", "bytes"), ("duplicate_cluster", "cluster")):
        values = manifest.column(column) if column in manifest.table.column_names else []
        counts = Counter(value for value in values if value is not None)
        for key, value in zip(ids, values, strict=False):
            if value is not None and (column == "patient" or counts[value] > 1):
                other = f"{prefix}:{value}"
                ends = (root(key), root(parent.setdefault(other, other)))
                first, second = sorted(ends, key=lambda end: (not end.startswith("patient:"), end))
                parent[second] = first
    return [root(key) for key in ids]


def plain_parts(targets: Ints, groups: Sequence[str], weights: Sequence[float], seed: int) -> list[int]:
    """Group by group, and, for a part that lacks a class, group by group from the end."""
    names = sorted(set(groups))
    classes = int(targets.max(initial=0)) + 2
    counts = np.zeros((len(names), classes))
    for group, target in zip(groups, targets, strict=True):
        counts[names.index(group), target % classes] += 1
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    totals = np.maximum(counts.sum(axis=0), 1)
    need = np.outer(np.asarray(weights), counts.sum(axis=0))
    part = np.zeros(len(names), dtype=np.int64)
    for group in order:
        part[group] = int(np.argmax(need @ (counts[group] / totals)))
        need[part[group]] -= counts[group]
    held = np.zeros((len(weights), classes), dtype=np.int64)
    for group in range(len(names)):
        held[part[group]] += counts[group] > 0
    for label in range(classes):
        for empty in np.flatnonzero(held[:, label] == 0):
            for group in reversed(order.tolist()):
                has = counts[group] > 0
                if has[label] and (held[part[group]][has] > 1).all():
                    held[part[group]] -= has
                    held[empty] += has
                    part[group] = empty
                    break
    return [int(part[names.index(group)]) for group in groups]


@st.composite
def shared(draw: st.DrawFn) -> Manifest:
    """Images that share patients, bytes and clusters in chains, under ids that are in no order."""
    n = draw(st.integers(8, 40))

    def some(prefix: str, most_unknown: int) -> list[str | None]:
        different = draw(st.sampled_from([n // 3, n, 2 * n]))
        unknown = draw(st.sampled_from([0, *range(most_unknown + 1)])) * different
        value = st.integers(-unknown, different).map(lambda k: None if k < 0 else f"{prefix}{k}")
        return draw(st.lists(value, min_size=n, max_size=n))

    columns = {
        "image_id": draw(st.permutations([f"é{k}" if k % 3 else str(k) for k in range(n)])),
        "label": draw(st.lists(st.sampled_from(["a", "a", "b", None]), min_size=n, max_size=n)),
        "patient": some("p", 20), "sha256": some("", 1),
    }  # fmt: skip
    if draw(st.booleans()):
        columns["duplicate_cluster"] = some("k", 1)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Manifest.from_rows(rows, Path())


@examples(100)
@given(shared())
def test_groups_are_those_of_a_plain_union(manifest: Manifest) -> None:
    groups = plain_groups(manifest)
    order = sorted(set(groups))
    assert independent_groups(manifest).tolist() == [order.index(group) for group in groups]


def test_clusters_that_are_numbers_join_as_their_text_does() -> None:
    table = made(["a"] * 5, [None] * 5).with_columns(duplicate_cluster=["10", "9", "9", None, None]).table
    numbered = table.set_column(len(COLUMNS), "duplicate_cluster", pa.array([10, 9, 9, None, None]))
    assert independent_groups(Manifest(numbered, Path())).tolist() == [1, 0, 0, 2, 3], "cluster 9, then the images"


@examples(200)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 12)), min_size=1, max_size=40),
    st.sampled_from([(0.5, 0.5), (0.2,) * 5, *UNEQUAL]),
    st.integers(0, 9),
    st.sampled_from([1, 5, 1000]),
)
@example([(2, 0), (2, 1), (-1, 1), (2, 0)], UNEQUAL[1], 0, 1)  # only the group that is taken first can be spared
@example([(0, 0), (1, 3), (0, 2), (0, 1), (0, 2)], UNEQUAL[1], 0, 5)
@example([(2, 2), (2, 2), (2, 2), (1, 1), (2, 1), (2, 0), (0, 0)], UNEQUAL[0], 0, 5)  # classes of one image
@example(  # a group that is moved brings another class
    [(2, 3), (2, 2), (-1, 0), (-1, 0), (-1, 4), (0, 2), (-1, 3), (-1, 2), (-1, 1), (2, 3)], UNEQUAL[0], 0, 5
)
def test_parts_are_those_of_the_plain_loop(
    table: list[tuple[int, int]], weights: tuple[float, ...], seed: int, block: int
) -> None:
    """For any size of block, and whether groups are text or numbers."""
    targets, numbers = np.array(table).T
    groups = [f"g{number:02d}" for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_BLOCK", block)
        parts = [assign_groups(targets, keys, weights, seed=seed).tolist() for keys in (groups, 7 * numbers - 3)]
    assert parts == [plain_parts(targets, groups, weights, seed)] * 2


@examples(200)
@given(shared(), st.integers(0, 9), st.sampled_from([2, *UNEQUAL]))
def test_a_split_is_that_of_the_plain_loop(manifest: Manifest, seed: int, asked: int | tuple[float, ...]) -> None:
    """Or it is refused, where a class has fewer patients than parts or is left without one; nothing old stays."""
    labels = sorted(set(manifest.column("label")) - {None})
    targets = np.array([labels.index(label) if label else -1 for label in manifest.column("label")], dtype=np.int64)
    groups = plain_groups(manifest)
    weights, classes = [1 / asked] * asked if isinstance(asked, int) else asked, targets.max() + 1
    assume(classes > 1)
    part = np.array(plain_parts(targets, groups, weights, seed))
    short = any(len({g for g, t in zip(groups, targets, strict=True) if t == c}) < len(weights) for c in range(classes))
    gap = any(len(set(part[targets == c])) < len(weights) for c in range(classes))
    old = manifest.with_columns(split=["val"] * len(part), fold=[7] * len(part))
    old = Manifest(old.table, old.root, may_leak=True)
    split = partial(split_folds, folds=asked) if isinstance(asked, int) else partial(split_fractions, fractions=asked)
    if short or gap:
        with pytest.raises(ManifestError, match="patients .*for .* parts" if short else "too few patients to stand in"):
            split(old, seed=seed)
        return
    done = split(old, seed=seed)
    names: Sequence[Any] = (0, 1) if isinstance(asked, int) else SPLITS
    taken, left = ("fold", "split") if isinstance(asked, int) else ("split", "fold")
    assert done.column(taken) == [None if t < 0 else names[p] for t, p in zip(targets, part, strict=True)]
    assert set(done.column(left)) == {None}
    assert not done.may_leak and done.table.schema == manifest.table.schema
