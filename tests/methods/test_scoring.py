"""Partners of swapped backgrounds, and what classifiers say of every view: each image by its own, once, and kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.data.views import VIEWS, Scene, make_view
from thoraclip.methods.audit.scoring import choose_partners, fills_in_turn, score_views
from thoraclip.tables.manifest import Manifest

MOST = 6


@examples(50)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_partners_are_strangers_of_the_same_part(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    target, groups, part = (rng.integers(0, high, count).astype(np.int64) for high in (3, 20, 3))
    usable = rng.random(count) < 0.8
    same, other, any_ = choose_partners(target, groups, part, usable, seed=seed)
    for row in range(count):
        strangers = usable & (groups != groups[row]) & (part == part[row])
        for chosen, wanted in (
            (same, strangers & (target == target[row])), (other, strangers & (target != target[row])), (any_, strangers),
        ):  # fmt: skip
            assert (chosen[row] >= 0) == wanted.any()
            assert chosen[row] < 0 or wanted[chosen[row]]


def test_every_stranger_is_chosen_at_times() -> None:
    target, groups, part = np.zeros(9, np.int64), np.arange(9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    seen = {int(choose_partners(target, groups, part, np.ones(9, bool), seed=s)[0][0]) for s in range(60)}
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("seed", [0, 1])
def test_fills_are_dealt_in_equal_shares_of_every_class_at_random(seed: int) -> None:
    target = np.random.default_rng(5).permutation(np.repeat([0, 1, 2], [30, 12, 7]))
    turn = fills_in_turn(target, seed=seed)
    for fills in (2, 3):
        for number in range(3):
            dealt = np.bincount(turn[target == number] % fills, minlength=fills)
            assert dealt.max() - dealt.min() <= 1
    assert sorted(turn) == list(range(49)) and turn.tolist() != fills_in_turn(target, seed=seed + 1).tolist()


class Reader:
    """Sees every pixel; its score is of the mean."""

    def __init__(self, number: float) -> None:
        self.number, self.asked = number, list[int]()

    def look(self, greys: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        self.asked.append(len(greys))
        features = greys.reshape(len(greys), -1).astype(np.float32) + self.number
        share = greys.mean(axis=(1, 2)) / 255
        return features, np.stack([share, 1 - share], axis=1)


def scene_of(count: int, *, has_lungs: bool = True) -> Scene:
    """Some images have no lungs, some no partner."""
    rng = np.random.default_rng(0)
    lungs = np.zeros((count, 12, 12), bool)
    lungs[2 * (not has_lungs) * count :, 3:8, 2:5] = True
    lungs[1::5] = False
    partners = [np.where(np.arange(count) % (k + 4) == k, -1, rng.permutation(count)) for k in range(3)]
    return Scene(rng.integers(0, 256, (count, 12, 12), dtype=np.uint8), lungs, 77, *partners, np.arange(count), seed=3)


def slow_rows(name: str, scene: Scene) -> list[int]:
    """Of which images a view can be made, one by one."""
    needed = {"same": ("same", "other"), "other": ("same", "other"), "in-turn": ("any",)}.get(VIEWS[name].fill, ())
    rows = []
    for row in range(len(scene.greys)):
        has_lungs = bool(scene.lungs[row].any()) or not VIEWS[name].needs_lungs
        if has_lungs and all(getattr(scene, partner)[row] >= 0 for partner in needed):
            rows.append(row)
    if name in {"sham", "lungs-only"} and len(rows) > MOST:
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, MOST)]
    return rows


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_every_view_is_shown_to_the_classifier_of_each_image_and_kept(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VIEWS["sham"].most == VIEWS["lungs-only"].most == 64
    for name in ("sham", "lungs-only"):
        monkeypatch.setitem(VIEWS, name, dataclasses.replace(VIEWS[name], most=MOST))  # type: ignore[arg-type]
    scene, readers = scene_of(11), (Reader(0.5), Reader(0.25))
    classifiers: Any = [(readers[0], np.array([0, 2, 3, 7, 9])), (readers[1], np.array([1, 4, 5, 6, 8, 10]))]
    manifest = Manifest.from_rows([{"image_id": f"i{n}", "path": f"{n}.png"} for n in range(11)], tmp_path)
    drawn: list[tuple[int, int]] = []
    given: dict[str, Any] = {"batch_size": batch_size, "manifest": manifest, "cache": tmp_path, "token": "t"}
    seen = score_views(scene, classifiers, **given, progress=lambda done, total: drawn.append((done, total)))
    shown = {name: slow_rows(name, scene) for name in VIEWS}
    assert list(seen) == list(VIEWS)
    done, total = 0, sum(map(len, shown.values()))
    for name, rows in shown.items():
        for row in range(11):
            told = seen[name].features[row], seen[name].scores[row]
            if row not in rows:
                assert np.isnan(told[0]).all() and np.isnan(told[1]).all() and seen[name].named[row] == -1
                continue
            reader = next(reader for reader, own in classifiers if row in own)
            features, scores = reader.look(make_view(VIEWS[name], scene, np.array([row])))
            np.testing.assert_array_equal(told[0], features[0])
            np.testing.assert_allclose(told[1], scores[0])
            assert seen[name].named[row] == scores[0].argmax()
        for _, own in classifiers:
            mine = len(set(rows) & set(own.tolist()))
            for first in range(0, mine, batch_size):
                done += min(batch_size, mine - first)
                assert drawn.pop(0) == (done, total)
        assert drawn.pop(0) == (done, total)
    assert done == total and not drawn
    for reader in readers:
        reader.asked.clear()
    again = score_views(scene, classifiers, **given, progress=lambda done, total: drawn.append((done, total)))
    assert not readers[0].asked and not readers[1].asked and drawn[-1] == (total, total) and len(drawn) == len(VIEWS)
    for name in VIEWS:
        np.testing.assert_array_equal(again[name].features, seen[name].features)
        np.testing.assert_array_equal(again[name].scores, seen[name].scores)
    for other in ({"token": "u"}, {"batch_size": batch_size + 1}):
        score_views(scene, classifiers, **given | other)
        assert sum(readers[0].asked + readers[1].asked) == total
        for reader in readers:
            reader.asked.clear()


def test_a_view_of_which_no_image_can_be_made_is_left_out(tmp_path: Path) -> None:
    scene = scene_of(5, has_lungs=False)
    manifest = Manifest.from_rows([{"image_id": f"i{n}", "path": f"{n}.png"} for n in range(5)], tmp_path)
    classifiers: Any = [(Reader(0), np.arange(5))]
    seen = score_views(scene, classifiers, batch_size=2, manifest=manifest, cache=tmp_path, token="t")
    assert set(seen) == {name for name, view in VIEWS.items() if not view.needs_lungs}


def test_images_as_they_are_are_not_shown_where_their_answers_are_kept(tmp_path: Path) -> None:
    scene, readers = scene_of(11), (Reader(0.5), Reader(0.25))
    classifiers: Any = [(readers[0], np.array([0, 2, 3, 7, 9])), (readers[1], np.array([1, 4, 5, 6, 8, 10]))]
    manifest = Manifest.from_rows([{"image_id": f"i{n}", "path": f"{n}.png"} for n in range(11)], tmp_path)
    given: dict[str, Any] = {"batch_size": 4, "manifest": manifest, "token": "t"}
    whole = score_views(scene, classifiers, cache=tmp_path / "whole", **given)
    asked, drawn = sum(readers[0].asked), list[tuple[int, int]]()

    def kept(classifier: Any, rows: Any) -> Any:
        return Reader(0.5).look(scene.greys[rows]) if classifier is readers[0] else None

    seen = score_views(
        scene, classifiers, cache=tmp_path / "kept", kept=kept, progress=lambda *both: drawn.append(both), **given
    )
    assert sum(readers[0].asked) - asked == asked - 5 and drawn[-1][0] == drawn[-1][1] > 0
    for name, view in whole.items():
        np.testing.assert_array_equal(seen[name].features, view.features)
        np.testing.assert_array_equal(seen[name].scores, view.scores)
