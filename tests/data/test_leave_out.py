"""One fold a source: whole patients, and sources that cannot be held out are always trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.data.leave_out import leave_out, source_folds
from thoraclip.data.splits import independent_groups
from thoraclip.errors import ConfigError, LeakError, ManifestError
from thoraclip.methods.parts import parts
from thoraclip.spelling import LabelMap
from thoraclip.tables.manifest import Manifest


def made(*rows: tuple[str | None, str | None, str | None], **more: list[Any]) -> Manifest:
    """Of (label, source, patient)."""
    whole = [
        {"image_id": f"i{k:03d}", "path": f"{k}.png", "sha256": str(k), "label": label, "source": source,
         "patient": patient, **{name: values[k] for name, values in more.items()}}
        for k, (label, source, patient) in enumerate(rows)
    ]  # fmt: skip
    return Manifest.from_rows(whole, Path(), may_leak=True)


def plain(sources: str, labels: str = "xy", times: int = 2) -> list[tuple[str | None, str | None, str | None]]:
    return [(label, source, None) for source in sources for label in labels for _ in range(times)]


def test_a_fold_for_each_source_in_the_order_of_their_names() -> None:
    images = made(*plain("cab"))
    split = leave_out(images, "source")
    assert split.column("fold") == [2] * 4 + [0] * 4 + [1] * 4 and set(split.column("split")) == {None}
    found = source_folds(images, "source").held_out
    assert [(one.fold, one.source, one.images, one.patients, one.absent) for one in found] == [
        (0, "a", 4, 4, ()), (1, "b", 4, 4, ()), (2, "c", 4, 4, ()),
    ]  # fmt: skip


def test_a_group_goes_to_the_source_of_most_of_its_images_of_equally_many_to_the_first() -> None:
    mixed = [("x", "b", "p"), ("x", "b", "p"), ("x", "a", "p"), ("y", "b", "q"), ("y", "a", "q"), ("y", None, "q")]
    images = made(*mixed, *plain("ab"))
    split = leave_out(images, "source")
    assert split.column("fold")[:6] == [1, 1, 1, 0, 0, 0]
    assert "3 images moved" not in str(source_folds(images, "source").notes)
    assert "2 images moved to the source of most images" in source_folds(images, "source").notes[0]


def test_copies_and_duplicate_clusters_stay_together() -> None:
    images = made(*plain("ab", times=3), duplicate_cluster=["c", *[None] * 10, "c"], sha256=[*"012345567890"])
    fold = leave_out(images, "source").column("fold")
    assert fold[0] == fold[11] == 0 and fold[5] == fold[6] == 0 and fold[7:11] == [1] * 4


def test_a_source_without_which_a_class_cannot_be_trained_on_is_always_trained_on() -> None:
    """Class z has one patient outside of c: none to train on once it validates."""
    images = made(
        *plain("ab"), ("z", "a", None), ("z", "c", None), ("z", "c", None), ("x", None, None), (None, "a", None)
    )
    split, found = leave_out(images, "source"), source_folds(images, "source")
    assert split.column("fold")[9:] == [None, None, None, None] and split.column("split")[9:] == ["train"] * 3 + [None]
    assert [one.source for one in found.held_out] == ["a", "b"] and found.held_out[1].absent == ("z",)
    said = "\n".join(found.notes)
    assert "source 'c' is always trained on (2 images): without it there are 1 patients of z" in said
    assert "1 images of unknown source are always trained on" in said and "source 'b' has no image of z" in said
    for part in parts(split, split.label_set(), val_fraction=0.4, seed=0):
        used = {*part.train.tolist(), *part.val.tolist()}
        assert {9, 10, 11} <= used and not used & {*part.test.tolist(), 12}
        assert all(split.column("source")[row] == "ab"[part.fold or 0] for row in part.test)


def test_merged_sources_are_one() -> None:
    images = made(*plain("abcd"))
    split = leave_out(images, "source", LabelMap(["a=e", "b=e", "c="], option="--merge"))
    assert split.column("fold") == [1] * 8 + [None] * 4 + [0] * 4 and split.column("source") == images.column("source")
    assert split.column("split") == [None] * 8 + ["train"] * 4 + [None] * 4


def test_any_column_of_text_may_be_left_out() -> None:
    images = made(*plain("aa"), scanner=["s", "t"] * 4, view=["PA"] * 4 + ["AP"] * 4)
    assert leave_out(images, "scanner").column("fold") == [0, 1] * 4
    assert leave_out(images, "view").column("fold") == [1] * 4 + [0] * 4


@pytest.mark.parametrize(("column", "merge", "message"), [
    ("sourse", [], "--leave-out 'sourse' is no column of the manifest; did you mean 'source'"),
    ("label", [], "--leave-out 'label' names no sources"),
    ("age_years", [], "--leave-out 'age_years' names no sources"),
    ("source", ["aa=b"], "--merge: no image has the source 'aa'; did you mean 'a'"),
])  # fmt: skip
def test_what_cannot_be_left_out_is_refused(column: str, merge: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_folds(made(*plain("ab")), column, LabelMap(merge, option="--merge"))


def test_two_sources_are_needed() -> None:
    with pytest.raises(
        ManifestError, match=r"0 of 2 values of 'source' can be held out, and two are needed; .*--merge"
    ):
        leave_out(made(*plain("a", "x"), *plain("b", "y")), "source")


def test_a_patient_in_a_fold_and_always_trained_on_is_a_leak() -> None:
    rows = [
        {"image_id": str(k), "path": str(k), "label": "x", "patient": "p", "fold": fold, "split": split}
        for k, (fold, split) in enumerate([(0, None), (None, "train")])
    ]
    with pytest.raises(LeakError, match="patient 'p' stands in two folds"):
        Manifest.from_rows(rows, Path())
    Manifest.from_rows([{**row, "fold": None} for row in rows], Path())
    Manifest.from_rows([{**rows[0], "split": "train"}, {**rows[1], "split": None}], Path())


@examples(60)
@given(rows=st.lists(st.tuples(
    st.sampled_from(["x", "y", None]), st.sampled_from(["a", "b", "c", None]), st.sampled_from([*"pqrstuv", None])),
    min_size=1, max_size=40,
))  # fmt: skip
def test_no_group_is_in_two_parts_and_every_fold_can_be_trained(rows: list[Any]) -> None:
    images = made(*rows)
    try:
        split = leave_out(images, "source")
    except ManifestError:
        return
    groups, fold = independent_groups(images), split.column("fold")
    known = np.array([label is not None for label in images.column("label")])
    part = np.array([-1 if f is None else f for f in fold])
    for group in set(groups[known].tolist()):
        assert len(set(part[known & (groups == group)].tolist())) == 1
    for number in set(fold) - {None}:
        left = {(images.column("label")[row], groups[row]) for row in np.flatnonzero(known & (part != number))}
        assert all(sum(label == name for label, _ in left) >= 2 for name in images.label_set().names)
