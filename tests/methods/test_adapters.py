"""Which adapter scores which images: its own fold's, and none that was trained or chosen on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thoraclip.errors import InputError, LeakError, ManifestError, ModelError
from thoraclip.methods.adapters import by_adapter, follow_adapter, refuse_trained_on, with_adapter
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.methods.parts import Part
from thoraclip.models.files import write_about
from thoraclip.tables.manifest import Manifest


def small_manifest(
    *, folds: Sequence[int | None] = (), splits: Sequence[str | None] = (), contents: Sequence[str] = ()
) -> Manifest:
    """One row per fold or split; the content of row i is `c<i>`."""
    size = max(len(folds), len(splits), len(contents))
    rows: list[dict[str, Any]] = [
        {"image_id": f"i{i}", "path": f"{i}.png", "sha256": contents[i] if contents else f"c{i}", "label": "ab"[i % 2]}
        for i in range(size)
    ]
    for row, fold in zip(rows, folds, strict=False):
        row["fold"] = fold
    for row, split in zip(rows, splits, strict=False):
        row["split"] = split
    return Manifest.from_rows(rows, Path("/nowhere"))


def write_adapter(folder: Path, *, trained: Sequence[int] = (), chosen: Sequence[int] = (), note: bool = True) -> Path:
    """An adapter folder as far as it is read here."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    if note:
        facts = {"trained_on": [f"c{i}" for i in trained], "chosen_on": [f"c{i}" for i in chosen]}
        write_about(folder, base="x", log_scale=1.0, bias=0.0, facts=facts)
    return folder


def config(adapter: Path | str = "", **values: Any) -> EncoderConfig:
    return EncoderConfig(adapter=str(adapter), **values)


FOLDS = {"folds": (0, 1, 2, 0, 1, 2)}
SPLIT = {"splits": ("train", "val", "test", "test", None)}
NEITHER = {"contents": ("c0", "c1", "c2")}
RUN = {
    fold: {"trained": [n for n in range(6) if n % 3 != fold][1:], "chosen": [1 if fold == 0 else 0]}
    for fold in range(3)
}
"""What the adapters of a finished run have seen: each the images of the other folds."""
Adapters = dict[Any, Any]
"""Empty for none, what the one adapter has seen, or that by fold."""


def write_adapters(folder: Path, seen: Adapters) -> Path | str:
    if 0 in seen:
        for fold, facts in seen.items():
            write_adapter(folder / f"fold-{fold}" / "adapter", **facts)
        return folder
    return write_adapter(folder / "adapter", **seen) if seen else ""


def test_each_fold_gets_its_own_adapter_and_a_single_one_is_for_all(tmp_path: Path) -> None:
    run = write_adapters(tmp_path / "run", {0: {}, 1: {}, 10: {}})
    one = write_adapter(tmp_path / "one" / "adapter")
    for fold in (0, 1, 10):
        assert with_adapter(config(run, batch_size=7), fold) == config(
            tmp_path / f"run/fold-{fold}/adapter", batch_size=7
        )
    for fold in (None, 0, 3):
        assert with_adapter(config(), fold) == config()
        assert with_adapter(config(one), fold) == with_adapter(config(one.parent), fold) == config(one)
    (tmp_path / "odd" / "fold-x" / "adapter").mkdir(parents=True)
    (tmp_path / "odd" / "fold-x" / "adapter" / "adapter_config.json").touch()
    (tmp_path / "odd" / "fold-1").mkdir()
    for folder, fold, message in (
        ("run", 2, "no adapter for fold 2"),
        ("run", None, "no adapter for this split"),
        ("odd", 0, "no adapter there"),
        ("nothing", 0, "no adapter there"),
    ):
        with pytest.raises(
            InputError, match=f"adapter '.*{folder}': {message}; name a PEFT adapter folder, or the run folder"
        ):
            with_adapter(config(tmp_path / folder), fold)


@pytest.mark.parametrize(
    ("seen", "images", "only", "expected"),
    [
        ({}, FOLDS, (), {None: [0, 1, 2, 3, 4, 5]}),
        ({}, SPLIT, (), {None: [0, 1, 2, 3, 4]}),
        ({}, FOLDS, (2, 0), {None: [0, 2, 3, 5]}),
        ({}, {"folds": (0, None, 1)}, (1,), {None: [2]}),
        (RUN, FOLDS, (), {0: [0, 3], 1: [1, 4], 2: [2, 5]}),
        (RUN, FOLDS, (2, 1), {1: [1, 4], 2: [2, 5]}),
        ({0: RUN[0], 2: RUN[2]}, FOLDS, (0, 2), {0: [0, 3], 2: [2, 5]}),
        ({"trained": [1, 2], "chosen": [4]}, FOLDS, (0,), {None: [0, 3]}),
        ({"trained": [0, 1, 4]}, SPLIT, (), {None: [0, 1, 2, 3, 4]}),
        ({"chosen": [0, 1, 4]}, SPLIT, (), {None: [0, 1, 2, 3, 4]}),
        ({"trained": [7, 8]}, NEITHER, (), {None: [0, 1, 2]}),
    ],
)
def test_an_adapter_scores_what_it_has_not_seen(
    seen: Adapters, images: dict[str, Any], only: tuple[int, ...], expected: dict[int | None, list[int]], tmp_path: Path
) -> None:
    """Of a split that is the test images alone; without split and folds everything is judged."""
    folder = write_adapters(tmp_path, seen)
    found = by_adapter(config(folder, only_folds=only), small_manifest(**images))
    places = {fold: tmp_path / ("" if fold is None else f"fold-{fold}") / "adapter" for fold in expected}
    assert [(chosen.adapter, rows.tolist()) for chosen, rows in found] == [
        (str(places[fold]) if seen else "", rows) for fold, rows in expected.items()
    ]


@pytest.mark.parametrize(
    ("seen", "images", "only", "error", "message"),
    [
        ({}, FOLDS, (7,), ManifestError, r"no fold 7, which only_folds names; its folds are \[0, 1, 2\]"),
        ({0: RUN[0], 2: RUN[2]}, FOLDS, (), InputError, "no adapter for fold 1"),
        (RUN, SPLIT, (), InputError, "no adapter for this split"),
        (RUN, {"folds": (0, 1, 2, 1, 0, 2)}, (), LeakError, "fold-0.*: was trained or chosen on 1 of the 2 images to be judged, first 'i4'"),
        ({"trained": [1, 2], "chosen": [4]}, FOLDS, (), LeakError, "on 3 of the 6 images to be judged, first 'i1'; name the run folder"),
        ({"trained": [0, 3]}, SPLIT, (), LeakError, "on 1 of the 2 images to be judged, first 'i3'"),
        ({"chosen": [0, 3]}, SPLIT, (), LeakError, "on 1 of the 2 images to be judged, first 'i3'"),
        ({"trained": [1]}, NEITHER, (), LeakError, "on 1 of the 3 images to be judged, first 'i1'"),
    ],
)  # fmt: skip
def test_and_no_other(
    seen: Adapters, images: dict[str, Any], only: tuple[int, ...], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        list(by_adapter(config(write_adapters(tmp_path, seen), only_folds=only), small_manifest(**images)))


def test_images_are_known_by_content_and_one_that_stands_twice_in_the_manifest_is_passed_over(tmp_path: Path) -> None:
    """Of that one its own split leaks, and not the adapter."""
    adapter = config(write_adapter(tmp_path / "adapter", trained=[0], chosen=[1]))
    for contents, rows, leak in (
        (("c5", "c6", "c0"), [0, 1, 2], "on 1 of the 3 images to be judged, first 'i2'"),
        (("c5", "c6", "c0"), [0, 1], ""),
        (("c0", "c1", "c0", "c1", "c9"), [2, 3, 4], ""),
        (("c2", "c1", "c0", "c1", "c9"), [2, 3, 4], "on 1 of the 3 images to be judged, first 'i2'"),
    ):
        with pytest.raises(LeakError, match=leak) if leak else nullcontext():
            refuse_trained_on(adapter, small_manifest(contents=contents), np.array(rows))


def test_an_adapter_that_does_not_say_is_believed_and_a_note_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    foreign, silent = write_adapter(tmp_path / "foreign", note=False), write_adapter(tmp_path / "silent")
    for adapter in (foreign, silent, ""):
        refuse_trained_on(config(adapter), small_manifest(**FOLDS), np.arange(6))
    (silent / "thoraclip.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="thoraclip.json: not valid JSON"):
        refuse_trained_on(config(silent), small_manifest(**FOLDS), np.arange(6))


@pytest.mark.parametrize(
    ("seen", "train", "val"),
    [
        ({"trained": [0, 2, 6], "chosen": [4, 5]}, [0, 2, 6], [4, 5]),
        ({"trained": [0, 2, 6, 4], "chosen": [4, 5]}, [0, 2, 4, 6], [5]),
        ({"trained": [0, 2, 4, 5, 6], "chosen": [0, 2, 4, 5, 6]}, None, None),
        ({"trained": [20], "chosen": [21]}, None, None),
        ({"trained": [20], "chosen": [21], "note": False}, None, None),
        ({}, None, None),
    ],
)
def test_the_adapters_own_validation_images_are_taken_over(
    seen: Adapters, train: list[int] | None, val: list[int] | None, tmp_path: Path
) -> None:
    """A picture that it was trained and chosen on is for training; where it has none here, the part stays."""
    given = Part(1, *(np.array(rows, dtype=np.int64) for rows in ([4, 0, 6], [2, 5], [1, 3])))
    found = follow_adapter(config(write_adapters(tmp_path, seen)), small_manifest(folds=(0, 1, 0, 1, 0, 0, 0)), given)
    assert found is given if train is None else (found.train.tolist(), found.val.tolist()) == (train, val)
    assert (found.fold, found.test.tolist()) == (1, [1, 3])
    assert found.train.dtype == found.val.dtype == np.int64


@pytest.mark.parametrize("how", ["trained", "chosen"])
def test_following_an_adapter_refuses_a_test_image_that_it_knows(how: str, tmp_path: Path) -> None:
    given = Part(1, *(np.array(rows, dtype=np.int64) for rows in ([0, 2], [3, 5], [1, 4])))
    with pytest.raises(LeakError, match="on 1 of the 2 images to be judged, first 'i1'"):
        follow_adapter(config(write_adapters(tmp_path, {how: [1]})), small_manifest(**FOLDS), given)
