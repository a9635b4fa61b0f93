"""Splits: whole patients, each class in proportion, a pure function of the seed and of nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from tests.conftest import examples

from thoraclip.data import splits
from thoraclip.data.splits import (
    assign_groups,
    group_codes,
    hold_out,
    independent_groups,
    parse_fractions,
    split_folds,
    split_fractions,
)
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.tables.manifest import COLUMNS, SPLITS, Manifest

Ints = npt.NDArray[np.int64]
check = examples(50)


def made(labels: list[str | None], patients: list[str | None]) -> Manifest:
    rows = [
        {"image_id": f"i{k:03d}", "path": f"{k}.png", "sha256": str(k), "label": label, "patient": patient}
        for k, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]
    return Manifest.from_rows(rows, Path())


@st.composite
def groupings(draw: st.DrawFn) -> tuple[Ints, list[str]]:
    """(targets, groups), the images of a group next to each other or not."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=4, max_size=40))
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    targets = draw(st.lists(st.integers(-1, 2), min_size=len(groups), max_size=len(groups)))
    order = draw(st.permutations(range(len(groups)))) if draw(st.booleans()) else range(len(groups))
    return np.array(targets, dtype=np.int64), [groups[k] for k in order]


weightings = st.sampled_from([(0.5, 0.5), (0.2,) * 5, (0.7, 0.1, 0.2), (0.9, 0.1)])


@check
@given(st.integers(0, 99), st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.1, 0.1), (0.5, 0.2, 0.3)]))
def test_unequal_parts_get_their_share_of_each_class(seed: int, weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 120)
    targets = np.repeat(rng.integers(0, 3, 120), sizes)
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    part = assign_groups(targets, groups, weights, seed=seed)
    for target in range(3):
        counts = np.bincount(part[targets == target], minlength=3)
        assert np.abs(counts - np.array(weights) * (targets == target).sum()).max() <= 3


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


def test_folds(manifest: Manifest) -> None:
    done = split_folds(manifest, folds=4, seed=1)
    assert set(done.column("fold")) == {0, 1, 2, 3} and set(done.column("split")) == {None}
    assert done.fingerprint == split_folds(manifest, folds=4, seed=1).fingerprint
    assert done.column("fold") != split_folds(manifest, folds=4, seed=2).column("fold")
    counts = {(label, f) for label, f in zip(done.column("label"), done.column("fold"), strict=True)}
    assert len(counts) == 12


def test_a_new_split_replaces_folds_and_splits(manifest: Manifest) -> None:
    done = split_fractions(manifest, fractions=(0.5, 0.25, 0.25), seed=0)
    assert set(done.column("fold")) == {None}
    by_label = defaultdict(list)
    for label, split in zip(done.column("label"), done.column("split"), strict=True):
        by_label[label].append(split)
    assert all(sorted(v) == ["test"] * 2 + ["train"] * 4 + ["val"] * 2 for v in by_label.values())
    again = split_folds(done, folds=2, seed=0)
    assert set(again.column("split")) == {None} and set(again.column("fold")) == {0, 1}


def test_unlabelled_images_get_no_part_even_beside_a_labelled_one() -> None:
    manifest = made(["a", "b"] * 6 + [None] * 4, [f"p{k}" for k in range(12)] + ["p0", "p1", None, None])
    folds = split_folds(manifest, folds=3, seed=0).column("fold")
    assert None not in folds[:12] and folds[12:] == [None] * 4
    splits = split_fractions(manifest, fractions=(0.4, 0.3, 0.3), seed=0).column("split")
    assert None not in splits[:12] and splits[12:] == [None] * 4


def test_an_unknown_patient_is_a_patient_of_its_own_and_ids_never_meet() -> None:
    manifest = made(["a", "b", "a", "b"], ["p", "p", None, "i002"])
    groups = independent_groups(manifest)
    assert groups[0] == groups[1] and len(set(groups)) == 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.98, 0.01, 0.01)])
def test_every_class_stands_in_every_part(seed: int, fractions: tuple[float, ...]) -> None:
    labels: list[str | None] = ["a"] * 4 + ["b"] * 9
    split = split_fractions(made(labels, [None] * 13), fractions=fractions, seed=seed).column("split")
    for part in (split[:4], split[4:]):
        assert set(part) == {"train", "val", "test"}


def test_too_few_patients_are_refused() -> None:
    manifest = made(["a"] * 9 + ["b"] * 9, [f"p{k}" for k in range(9)] + ["q0", "q1"] * 4 + ["q0"])
    with pytest.raises(ManifestError, match="class 'b' has 2 patients .* for 3 parts; add images, drop the class"):
        split_folds(manifest, folds=3, seed=0)
    with pytest.raises(ManifestError, match="class 'b' has 2 patients"):
        split_fractions(manifest, fractions=(0.7, 0.1, 0.2), seed=0)
    assert set(split_folds(manifest, folds=2, seed=0).column("fold")) == {0, 1}


def test_settings_that_cannot_be_are_refused(manifest: Manifest) -> None:
    for folds in (1, -2):
        with pytest.raises(ConfigError, match=f"folds = {folds}: two or more are needed"):
            split_folds(manifest, folds=folds, seed=0)
    for fractions in ((0.5, 0.5), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), ()):
        with pytest.raises(ConfigError, match=r"fractions \[.*\]: three positive numbers"):
            split_fractions(manifest, fractions=fractions, seed=0)
    with pytest.raises(ConfigError, match="seed = -1: must not be negative"):
        split_folds(manifest, folds=2, seed=-1)


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
    assert (held != hold_out(targets, groups, fraction=0.2, seed=1)).any()


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
    n = draw(st.integers(4, 30))

    def some(prefix: str, most_unknown: int) -> list[str | None]:
        different = draw(st.sampled_from([n // 3, n, 2 * n]))
        unknown = draw(st.sampled_from([0, *range(most_unknown + 1)])) * different
        value = st.integers(-unknown, different).map(lambda k: None if k < 0 else f"{prefix}{k}")
        return draw(st.lists(value, min_size=n, max_size=n))

    columns = {
        "image_id": draw(st.permutations([f"é{k}" if k % 3 else str(k) for k in range(n)])),
        "label": draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n, max_size=n)),
        "patient": some("p", 20), "sha256": some("", 1),
    }  # fmt: skip
    if draw(st.booleans()):
        columns["duplicate_cluster"] = some("k", 1)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Manifest.from_rows(rows, Path())


@check
@given(shared())
def test_groups_are_those_of_a_plain_union(manifest: Manifest) -> None:
    groups = plain_groups(manifest)
    assert independent_groups(manifest) == groups
    order = sorted(set(groups))
    assert group_codes(manifest).tolist() == [order.index(group) for group in groups]


def test_clusters_that_are_numbers_join_as_their_text_does() -> None:
    table = made(["a"] * 3, [None] * 3).with_columns(duplicate_cluster=["10", "9", "9"]).table
    numbered = table.set_column(len(COLUMNS), "duplicate_cluster", pa.array([10, 9, 9]))
    assert independent_groups(Manifest(numbered, Path())) == ["image:i000", "cluster:9", "cluster:9"]


@check
@given(groupings(), weightings, st.integers(0, 9), st.sampled_from([1, 5, 1000]))
def test_parts_are_those_of_the_plain_loop(
    table: tuple[Ints, list[str]], weights: tuple[float, ...], seed: int, block: int
) -> None:
    targets, groups = table
    numbers = np.unique(groups, return_inverse=True)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_BLOCK", block)
        parts = [assign_groups(targets, g, weights, seed=seed).tolist() for g in (groups, numbers, 7 * numbers - 3)]
    assert parts == [plain_parts(targets, groups, weights, seed)] * 3


@check
@given(shared(), st.integers(0, 9))
def test_a_split_is_that_of_the_plain_loop(manifest: Manifest, seed: int) -> None:
    labels = sorted({label for label in manifest.column("label") if label is not None})
    targets = np.array([labels.index(x) if x is not None else -1 for x in manifest.column("label")], dtype=np.int64)
    try:
        done = split_fractions(manifest, fractions=(0.7, 0.1, 0.2), seed=seed)
    except ManifestError:
        return
    part = plain_parts(targets, plain_groups(manifest), (0.7, 0.1, 0.2), seed)
    assert done.column("split") == [None if t < 0 else SPLITS[p] for t, p in zip(targets, part, strict=True)]
    fold = plain_parts(targets, plain_groups(manifest), [1 / 2] * 2, seed)
    done = split_folds(Manifest(done.table, done.root, may_leak=True), folds=2, seed=seed)
    assert done.column("fold") == [None if t < 0 else p for t, p in zip(targets, fold, strict=True)]
    assert not done.may_leak and done.table.schema == manifest.table.schema
