"""A map over its picture: every geometry is undone, the scale is even, and the sheet shows what it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.heatmaps.readers import noise

from thoraclip.heatmaps.overlay import colours, display_size, draw_overlay, spread
from thoraclip.imaging import Preprocess, fit


@pytest.mark.parametrize("spec", [
    Preprocess(size=48), Preprocess(size=48, geometry="pad"), Preprocess(size=48, geometry="crop"),
    Preprocess(size=48, geometry="crop", short_side=60), Preprocess(size=48, short_side=60),
])  # fmt: skip
@given(height=st.integers(60, 200), width=st.integers(60, 200), seed=st.integers(0, 99))
@examples(15)
def test_a_spot_of_the_picture_comes_back_to_its_place(spec: Preprocess, height: int, width: int, seed: int) -> None:
    """A bright spot, fitted as the network's input and spread back, is where it was; what `crop` cuts off is not seen."""
    rng = np.random.default_rng(seed)
    y, x = int(rng.integers(12, height - 12)), int(rng.integers(12, width - 12))
    picture = np.zeros((height, width), np.uint8)
    picture[y - 4 : y + 5, x - 4 : x + 5] = 255
    heat, seen = spread(fit(picture, spec).astype(np.float32), spec, height, width)
    assert heat.shape == seen.shape == (height, width)
    assert (heat[~seen] == 0).all()
    sides = (min(height, width),) * 2 if spec.geometry == "crop" else (height, width)
    cut = [side * spec.size / (spec.short_side or spec.size) for side in sides]
    assert seen.sum() == pytest.approx(cut[0] * cut[1], rel=0.06)
    inside = seen[y - 8 : y + 9, x - 8 : x + 9].all()
    if inside:
        rows, columns = np.nonzero(heat > heat.max() / 2)
        pixel = max(height, width) / spec.size
        assert abs(rows.mean() - y) <= 0.5 * pixel + 0.5 and abs(columns.mean() - x) <= 0.5 * pixel + 0.5


def test_sizes_of_the_display() -> None:
    assert display_size(224, 224) == (448, 448)
    assert display_size(256, 200) == (512, 400)
    assert display_size(600, 700) == (600, 700)
    assert display_size(4096, 2048) == (1024, 512)
    assert display_size(1, 3000) == (1, 1024)


def test_colours_grow_brighter_in_even_steps() -> None:
    """Lightness L* (CIE 1976) of the scale: rising, no step twice as large as another."""
    unit = colours(np.linspace(0, 1, 8)) / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    steps = np.diff(lightness)
    assert steps.min() > 0 and steps.max() < 2 * steps.min()


def test_the_sheet_shows_the_picture_the_heat_and_the_lungs() -> None:
    grey = noise(448)
    heat, lungs, seen = np.zeros((448, 448), np.float32), np.zeros((448, 448), bool), np.ones((448, 448), bool)
    heat[300:320, 300:320] = 2
    lungs[50:200, 50:200] = True
    seen[:, :20] = False
    drawn = draw_overlay(grey, heat, headline="A: 0.9", lines=["x" * 200], footer="foot", lungs=lungs, seen=seen)
    sheet = np.asarray(drawn)
    plain, painted = sheet[12:460, 12:460].astype(int), sheet[12:460, 472:920].astype(int)
    assert np.array_equal(plain[310, 310], [grey[310, 310]] * 3)
    assert painted[310, 310] == pytest.approx(0.3 * grey[310, 310] + 0.7 * colours(np.array(1.0)), abs=1)
    assert np.array_equal(painted[400, 400], [grey[400, 400]] * 3), "no evidence, no colour"
    assert painted[400, 5, 0] == pytest.approx(0.4 * grey[400, 5], abs=1)
    for picture in (plain, painted):
        bluer = picture[52:198, 48:53, 2] - picture[52:198, 48:53, 0]
        assert (bluer.max(axis=1) > 60).all(), "a cyan line along the lungs' border"
        assert np.array_equal(picture[120, 120], [grey[120, 120]] * 3), "and nothing within them"
