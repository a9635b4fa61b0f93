"""Which adapter scores which images: its own fold's, and none that was trained or chosen on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thoraclip.errors import InputError, LeakError, ModelError
from thoraclip.methods.adapters import by_adapter, follow_adapter, refuse_trained_on, with_adapter
from thoraclip.methods.embed import EncoderConfig
from thoraclip.methods.running import Part
from thoraclip.models.adapter import AdapterNote, write_note
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
        write_note(folder, AdapterNote(base="x", log_scale=1.0, bias=0.0, facts=facts))
    return folder


def write_run(folder: Path, folds: Sequence[int | None], manifest: Manifest, *, leaky: bool = False) -> Path:
    """A finished run: each fold's adapter was trained on the others; of a leaky one, on its own."""
    of_row = manifest.column("fold")
    for fold in folds:
        own = [row for row, f in enumerate(of_row) if (f == fold) == leaky]
        write_adapter(folder / f"fold-{fold}" / "adapter", trained=own[1:], chosen=own[:1])
    return folder


def config(adapter: Path | str = "", **values: Any) -> EncoderConfig:
    return EncoderConfig(adapter=str(adapter), **values)


FOLDS = (0, 1, 2, 0, 1, 2)


def test_without_an_adapter_the_config_stays() -> None:
    assert with_adapter(config(), 3) == config()
    assert with_adapter(config(), None) == config()


def test_each_fold_gets_its_own_adapter(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (0, 1, 10), small_manifest(folds=FOLDS))
    for fold in (0, 1, 10):
        expected = config(run / f"fold-{fold}" / "adapter", batch_size=7)
        assert with_adapter(config(run, batch_size=7), fold) == expected


@pytest.mark.parametrize("fold", [None, 0, 3])
def test_a_single_adapter_is_for_every_fold(fold: int | None, tmp_path: Path) -> None:
    inner = write_adapter(tmp_path / "run" / "adapter")
    assert with_adapter(config(inner), fold).adapter == str(inner)
    assert with_adapter(config(tmp_path / "run"), fold).adapter == str(inner)


@pytest.mark.parametrize(("fold", "message"), [(2, "no adapter for fold 2"), (None, "no adapter for this split")])
def test_a_fold_without_an_adapter_is_an_error(fold: int | None, message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (0, 1), small_manifest(folds=FOLDS))
    with pytest.raises(InputError, match=f"adapter '.*run': {message}; name a PEFT adapter folder, or the run folder"):
        with_adapter(config(run), fold)


def test_so_is_a_folder_without_any(tmp_path: Path) -> None:
    (tmp_path / "fold-x" / "adapter").mkdir(parents=True)
    (tmp_path / "fold-x" / "adapter" / "adapter_config.json").touch()
    (tmp_path / "fold-1").mkdir()
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="no adapter there; name a PEFT adapter folder"):
            with_adapter(config(folder), 0)


def pairs(given: EncoderConfig, manifest: Manifest) -> list[tuple[str, list[int]]]:
    return [(chosen.adapter, rows.tolist()) for chosen, rows in by_adapter(given, manifest)]


def test_without_an_adapter_one_encoder_scores_everything() -> None:
    assert pairs(config(), small_manifest(folds=FOLDS)) == [("", [0, 1, 2, 3, 4, 5])]
    assert pairs(config(), small_manifest(splits=("train", "test", None))) == [("", [0, 1, 2])]
    assert pairs(config(only_folds=(2, 0)), small_manifest(folds=FOLDS)) == [("", [0, 2, 3, 5])]


def test_a_run_of_folds_scores_each_with_its_own(tmp_path: Path) -> None:
    manifest = small_manifest(folds=FOLDS)
    run = write_run(tmp_path / "run", (0, 1, 2), manifest)
    expected = [(str(run / f"fold-{k}" / "adapter"), [k, k + 3]) for k in range(3)]
    assert pairs(config(run), manifest) == expected
    assert pairs(config(run, only_folds=(2, 1)), manifest) == expected[1:]


def test_a_fold_that_was_not_trained_is_an_error_unless_it_is_not_asked_for(tmp_path: Path) -> None:
    manifest = small_manifest(folds=FOLDS)
    run = write_run(tmp_path / "run", (0, 2), manifest)
    with pytest.raises(InputError, match="no adapter for fold 1"):
        pairs(config(run), manifest)
    assert [rows for _, rows in pairs(config(run, only_folds=(0, 2)), manifest)] == [[0, 3], [2, 5]]


def test_a_run_of_folds_cannot_score_a_split(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (0, 1, 2), small_manifest(folds=FOLDS))
    with pytest.raises(InputError, match="no adapter for this split"):
        pairs(config(run), small_manifest(splits=("train", "val", "test")))


def test_a_run_whose_folds_are_others_leaks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", (0, 1, 2), small_manifest(folds=FOLDS))
    with pytest.raises(
        LeakError, match="fold-0.*: was trained or chosen on 1 of the 2 images to be judged, first 'i4'"
    ):
        pairs(config(run), small_manifest(folds=(0, 1, 2, 1, 0, 2)))


def test_one_adapter_for_all_folds_leaks_into_those_it_was_trained_on(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", trained=[1, 2], chosen=[4])
    manifest = small_manifest(folds=FOLDS)
    with pytest.raises(LeakError, match="on 3 of the 6 images to be judged, first 'i1'; name the run folder"):
        pairs(config(adapter), manifest)
    assert pairs(config(adapter, only_folds=(0,)), manifest) == [(str(adapter), [0, 3])]


@pytest.mark.parametrize("how", ["trained", "chosen"])
def test_of_a_split_only_the_test_images_are_judged(how: str, tmp_path: Path) -> None:
    splits = ("train", "val", "test", "test", None)
    fine = write_adapter(tmp_path / "fine", **{how: [0, 1, 4]})
    assert pairs(config(fine), small_manifest(splits=splits)) == [(str(fine), [0, 1, 2, 3, 4])]
    leaky = write_adapter(tmp_path / "leaky", **{how: [0, 3]})
    with pytest.raises(LeakError, match="on 1 of the 2 images to be judged, first 'i3'"):
        pairs(config(leaky), small_manifest(splits=splits))


def test_without_split_and_folds_everything_is_judged(tmp_path: Path) -> None:
    leaky = write_adapter(tmp_path / "leaky", trained=[1])
    with pytest.raises(LeakError, match="on 1 of the 3 images to be judged, first 'i1'"):
        pairs(config(leaky), small_manifest(contents=("c0", "c1", "c2")))
    fine = write_adapter(tmp_path / "fine", trained=[7, 8])
    assert pairs(config(fine), small_manifest(contents=("c0", "c1", "c2"))) == [(str(fine), [0, 1, 2])]


def test_images_are_known_by_content_and_not_by_name(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", trained=[0])
    moved = small_manifest(contents=("c5", "c6", "c0"))
    with pytest.raises(LeakError, match="first 'i2'"):
        refuse_trained_on(config(adapter), moved, np.arange(3))
    refuse_trained_on(config(adapter), moved, np.array([0, 1]))


def test_an_image_that_stands_twice_in_the_manifest_is_passed_over(tmp_path: Path) -> None:
    """Its own split leaks then, and not the adapter."""
    adapter = write_adapter(tmp_path / "adapter", trained=[0], chosen=[1])
    twice = small_manifest(splits=("train", "val", "test", "test", "test"), contents=("c0", "c1", "c0", "c1", "c9"))
    refuse_trained_on(config(adapter), twice, np.array([2, 3, 4]))
    once = small_manifest(splits=("train", "val", "test", "test", "test"), contents=("c2", "c1", "c0", "c1", "c9"))
    with pytest.raises(LeakError, match="on 1 of the 3 images to be judged, first 'i2'"):
        refuse_trained_on(config(adapter), once, np.array([2, 3, 4]))


def test_an_adapter_that_does_not_say_is_believed(tmp_path: Path) -> None:
    foreign = write_adapter(tmp_path / "foreign", note=False)
    silent = write_adapter(tmp_path / "silent")
    for adapter in (foreign, silent, ""):
        refuse_trained_on(config(adapter), small_manifest(folds=FOLDS), np.arange(6))


def test_a_note_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "thoraclip.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="thoraclip.json is not readable"):
        refuse_trained_on(config(adapter), small_manifest(folds=FOLDS), np.arange(6))


def part(train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> Part:
    return Part(1, *(np.array(rows, dtype=np.int64) for rows in (train, val, test)))


def test_the_adapters_own_validation_images_are_taken_over(tmp_path: Path) -> None:
    manifest = small_manifest(folds=(0, 1, 0, 1, 0, 0, 0))
    adapter = write_adapter(tmp_path / "adapter", trained=[0, 2, 6], chosen=[4, 5])
    found = follow_adapter(config(adapter), manifest, part(train=[4, 0, 6], val=[2, 5], test=[1, 3]))
    assert found.fold == 1
    assert (found.train.tolist(), found.val.tolist(), found.test.tolist()) == ([0, 2, 6], [4, 5], [1, 3])
    assert found.train.dtype == found.val.dtype == np.int64


def test_a_picture_that_it_was_trained_and_chosen_on_is_for_training(tmp_path: Path) -> None:
    """Identical pictures on both sides of its training; where all are, the part stays."""
    manifest, given = small_manifest(folds=(0, 1, 0, 1, 0, 0, 0)), part(train=[4, 0, 6], val=[2, 5], test=[1, 3])
    found = follow_adapter(
        config(write_adapter(tmp_path / "some", trained=[0, 2, 6, 4], chosen=[4, 5])), manifest, given
    )
    assert (found.train.tolist(), found.val.tolist()) == ([0, 2, 4, 6], [5])
    both = [0, 2, 4, 5, 6]
    assert follow_adapter(config(write_adapter(tmp_path / "all", trained=both, chosen=both)), manifest, given) is given


@pytest.mark.parametrize("kind", ["none", "foreign", "of other images"])
def test_where_it_has_none_here_the_part_stays(kind: str, tmp_path: Path) -> None:
    adapter: Path | str = ""
    if kind != "none":
        adapter = write_adapter(tmp_path / "adapter", trained=[20], chosen=[21], note=kind != "foreign")
    given = part(train=[4, 0], val=[2], test=[1, 3])
    assert follow_adapter(config(adapter), small_manifest(folds=FOLDS), given) is given


def test_following_an_adapter_refuses_a_test_image_that_it_knows(tmp_path: Path) -> None:
    manifest = small_manifest(folds=FOLDS)
    for name, facts in (("trained", {"trained": [1]}), ("chosen", {"chosen": [1]})):
        adapter = write_adapter(tmp_path / name, **facts)
        with pytest.raises(LeakError, match="on 1 of the 2 images to be judged, first 'i1'"):
            follow_adapter(config(adapter), manifest, part(train=[0, 2], val=[3, 5], test=[1, 4]))
