"""Altered views: what is replaced is exactly the region, and what replaces it knows nothing of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import draw_picture, examples

from thoraclip.data.views import BORDER, VIEWS, Scene, continue_smoothly, make_view

SIDE, COUNT = 64, 6


def scene(seed: int = 0, lungs: bool = True) -> Scene:
    greys = np.stack([draw_picture(SIDE, SIDE, seed=seed + i) for i in range(COUNT)])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    left = ((x - 0.3) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2 < 1
    right = ((x - 0.7) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2 < 1
    masks = np.stack([np.roll(left | right, i, axis=0) for i in range(COUNT)]) & lungs
    turned = (np.arange(COUNT) + 1) % COUNT
    return Scene(greys, masks, 100, turned, np.roll(turned, -1), np.roll(turned, -2), np.arange(COUNT), seed)


ROWS = np.arange(COUNT)


@pytest.mark.parametrize("name", VIEWS)
def test_only_the_region_changes(name: str) -> None:
    one = scene()
    region = VIEWS[name].region(one, ROWS)
    made = make_view(VIEWS[name], one, ROWS)
    assert made.dtype == np.uint8 and made.shape == one.greys.shape
    assert np.array_equal(made[~region], one.greys[~region])
    if name not in {"original", "sham"}:
        assert region.any(axis=(1, 2)).all() and (made != one.greys)[region].any()


@pytest.mark.parametrize("name", [n for n, v in VIEWS.items() if n not in {"original", "sham"}])
@pytest.mark.parametrize("fill", [0, 1, 2])
def test_what_was_in_the_region_cannot_be_seen_any_more(name: str, fill: int) -> None:
    """Other pixels inside the region, the same outside: the view is the same (partners keep their own)."""
    one = scene()
    rows = np.array([fill])
    region = VIEWS[name].region(one, rows)[0]
    greys = one.greys.copy()
    greys[fill][region] = 255 - greys[fill][region]
    other = Scene(greys, one.lungs, one.level, one.same, one.other, one.any, one.turn, one.seed)
    assert np.array_equal(make_view(VIEWS[name], one, rows), make_view(VIEWS[name], other, rows))


def test_lungs_are_gone_with_a_margin_and_alone_without_one() -> None:
    one = scene()
    gone, alone = (VIEWS[n].region(one, ROWS) for n in ("lungs-removed", "lungs-only"))
    assert (gone & one.lungs).sum() == one.lungs.sum() and gone.sum() > one.lungs.sum()
    assert np.array_equal(alone, ~one.lungs)


def test_the_box_holds_the_lungs_and_is_a_rectangle() -> None:
    for box, lungs in zip(VIEWS["box-removed"].region(scene(), ROWS), scene().lungs, strict=True):
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and box.sum() == len(rows) * len(columns)
        assert (lungs & ~box).sum() == 0


def test_the_random_region_is_as_large_as_the_lungs_and_does_not_look_at_the_picture() -> None:
    one, dark = scene(), scene()
    dark = Scene(dark.greys // 2, dark.lungs, 100, dark.same, dark.other, dark.any, dark.turn, dark.seed)
    region = VIEWS["random-removed"].region(one, ROWS)
    assert region.sum(axis=(1, 2)).tolist() == VIEWS["lungs-removed"].region(one, ROWS).sum(axis=(1, 2)).tolist()
    assert np.array_equal(region, VIEWS["random-removed"].region(dark, ROWS))
    assert not np.array_equal(region[0], region[1])


def test_another_background_comes_without_its_lungs() -> None:
    one = scene()
    rows = np.array([0])
    donor = int(one.other[0])
    made = make_view(VIEWS["lungs-only-other"], one, rows)[0]
    removed = VIEWS["lungs-removed"].region(one, np.array([donor]))[0]
    outside_both = ~one.lungs[0] & ~removed
    assert np.array_equal(made[outside_both], one.greys[donor][outside_both])
    brighter = one.greys.copy()
    brighter[donor][removed] = 255  # the donor's lungs may hold anything
    other = Scene(brighter, one.lungs, one.level, one.same, one.other, one.any, one.turn, one.seed)
    assert np.array_equal(make_view(VIEWS["lungs-only-other"], other, rows)[0], made)


def test_the_border_is_a_tenth_of_the_side() -> None:
    ring = VIEWS["border-removed"].region(scene(), ROWS)[0]
    width = round(BORDER * SIDE)
    assert ring.sum() == SIDE**2 - (SIDE - 2 * width) ** 2 and ring[:width].all() and not ring[width, width]


@examples(40)
@given(level=st.integers(0, 255), seed=st.integers(0, 1000))
def test_a_flat_surrounding_continues_flat(level: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = np.zeros((1, 48, 48), dtype=bool)
    top, left = rng.integers(0, 30, 2)
    region[0, top : top + 12, left : left + 12] = True
    greys = np.where(region, rng.integers(0, 256, region.shape), level).astype(np.uint8)
    filled = continue_smoothly(greys, region)
    assert np.abs(filled[region].astype(int) - level).max() <= 1


def test_a_ramp_continues_and_a_whole_picture_becomes_grey() -> None:
    ramp = np.broadcast_to(np.linspace(40, 200, 64).astype(np.uint8), (1, 64, 64))
    region = np.zeros((1, 64, 64), dtype=bool)
    region[:, 28:36, 28:36] = True
    assert np.abs(continue_smoothly(ramp, region)[region].astype(int) - ramp[region]).max() < 12
    assert (continue_smoothly(ramp, np.ones_like(region)) == 128).all()


def test_views_without_lungs_do_not_ask_for_them() -> None:
    blind = scene(lungs=False)
    for view in VIEWS.values():
        if not view.needs_lungs:
            assert make_view(view, blind, ROWS).shape == blind.greys.shape


def test_fills_take_turns() -> None:
    """Each image gets the fill of its number, as if it were the only one, in whatever batch."""
    one = dataclasses.replace(scene(), turn=np.array([0, 1, 2, 5, 4, 3]))
    for name, fills in (("lungs-removed", ("mean", "blur", "any")), ("border-only", ("mean", "blur"))):
        made = make_view(VIEWS[name], one, ROWS)
        for row, number in enumerate(one.turn):
            alone = dataclasses.replace(VIEWS[name], fill=fills[number % len(fills)])
            assert np.array_equal(made[row], make_view(alone, one, ROWS[row : row + 1])[0])
            assert np.array_equal(made[row], make_view(VIEWS[name], one, ROWS[row : row + 1])[0])
