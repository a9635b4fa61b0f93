"""Remedies against shortcuts: what each does to grey levels, against slow loops, and the same pixels everywhere."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from thoraclip.dtypes import Greys
from thoraclip.errors import ConfigError
from thoraclip.imaging import Preprocess, fit
from thoraclip.imaging.remedies import REMEDIES, cropped, crops, kept_box, remedied

PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))
GREY = [name for name, one in REMEDIES.items() if one.grey]


def picture(height: int = 90, width: int = 70, seed: int = 0) -> Greys:
    rng = np.random.default_rng(seed)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)).resize((width, height)))
    return (smooth * 0.5 + 40).astype(np.uint8)


@given(PICTURES)
@pytest.mark.parametrize("name", list(REMEDIES))
def test_any_picture_keeps_its_kind_and_something_of_its_area(name: str, pixels: Greys) -> None:
    left, top, right, bottom = kept_box(pixels, name)
    assert 0 <= left < right <= pixels.shape[1] and 0 <= top < bottom <= pixels.shape[0]
    changed = remedied(pixels, name)
    assert changed.dtype == np.uint8 and changed.shape == pixels.shape
    if crops(name):
        assert np.array_equal(changed, pixels)
        assert np.array_equal(cropped(pixels, name), pixels[top:bottom, left:right])
    else:
        assert (left, top, right, bottom) == (0, 0, pixels.shape[1], pixels.shape[0])


@given(PICTURES, st.integers(-30, 30), st.sampled_from(["stretch", "equalise", "match"]))
def test_order_of_grey_levels_stays(pixels: Greys, shift: int, name: str) -> None:
    changed = remedied(pixels, name).astype(int)
    order = np.argsort(pixels, axis=None, kind="stable")
    assert (np.diff(changed.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("name", ["equalise", "match"])
def test_exposure_leaves_no_trace(name: str) -> None:
    plain = picture()
    exposed = (plain.astype(int) * 3 // 2).astype(np.uint8)
    assert len(np.unique(plain)) == len(np.unique(exposed)), "no levels are merged"
    assert np.array_equal(remedied(plain, name), remedied(exposed, name))


def test_stretch_makes_the_tails_black_and_white() -> None:
    pixels = np.repeat(np.arange(100, dtype=np.uint8) + 50, 10).reshape(20, 50)
    changed = remedied(pixels, "stretch")
    assert (changed == 0).mean() == pytest.approx(0.02, abs=0.011) and (changed == 255).mean() == pytest.approx(
        0.02, abs=0.021
    )
    inner = (pixels > 52) & (pixels < 146)
    slope = np.polyfit(pixels[inner].astype(float), changed[inner].astype(float), 1)[0]
    assert slope == pytest.approx(255 / 96, rel=0.02)


def test_equalise_and_match_by_hand() -> None:
    pixels = picture(seed=1)
    flat = np.sort(pixels.ravel())
    for name in ("equalise", "match"):
        changed = remedied(pixels, name)
        for value in np.unique(pixels)[::7]:
            rank = ((flat < value).sum() + (flat <= value).sum()) / 2 / flat.size
            levels = {"equalise": 255 * rank, "match": NormalDist(128, 64).inv_cdf(min(max(rank, 1e-4), 1 - 1e-4))}
            assert {*changed[pixels == value].tolist()} == {int(np.clip(np.rint(levels[name]), 0, 255))}


def test_clahe_by_hand() -> None:
    pixels = picture(64, 48, seed=2)
    changed = remedied(pixels, "clahe")
    for y, x in ((0, 0), (3, 40), (31, 17), (63, 47), (20, 5)):
        total = 0.0
        place = [np.clip((at + 0.5) * 8 / side - 0.5, 0, 7) for at, side in ((y, 64), (x, 48))]
        for i in range(8):
            for j in range(8):
                share = max(0.0, 1 - abs(place[0] - i)) * max(0.0, 1 - abs(place[1] - j))
                tile = pixels[8 * i : 8 * i + 8, 6 * j : 6 * j + 6]
                limit, counts = 2 * tile.size / 256, np.bincount(tile.ravel(), minlength=256).astype(float)
                over = sum(max(0.0, c - limit) for c in counts)
                counts = np.array([min(c, limit) + over / 256 for c in counts])
                value = int(pixels[y, x])
                total += share * 255 * (counts[:value].sum() + counts[value] / 2) / tile.size
        assert changed[y, x] == np.clip(np.rint(total), 0, 255)


@pytest.mark.parametrize("geometry", ["squash", "crop", "pad"])
def test_a_picture_is_cropped_before_and_evened_out_after_it_is_resized(geometry: str) -> None:
    spec = Preprocess(size=32, geometry=geometry, remedy="equalise+centre")
    pixels = picture(200, 130)
    inner = pixels[20:180, 13:117]
    small = fit(inner, replace(spec, remedy="none"))
    seen = fit(pixels, spec)
    if geometry == "squash":
        assert np.array_equal(seen, remedied(small, "equalise"))
    elif geometry == "pad":
        bars = fit(np.full_like(inner, 255), replace(spec, remedy="none")) == 0
        assert bars.any() and (seen[bars] == 0).all(), "bars are black, and not counted"
        columns = ~bars.all(axis=0)
        assert np.array_equal(seen[:, columns], remedied(small[:, columns], "equalise"))
    assert seen.shape == (32, 32) and seen.max() > 240
    assert np.array_equal(fit(pixels, replace(spec, remedy="centre+equalise")), seen)


def test_a_border_and_a_marker_vanish() -> None:
    plain, marked = picture(), picture()
    marked[:9], marked[:, -7:], marked[2:8, 3:6] = 0, 255, 255
    spec = Preprocess(size=24, remedy="centre")
    assert np.array_equal(fit(plain, spec), fit(marked, spec))
    assert not np.array_equal(fit(plain, replace(spec, remedy="none")), fit(marked, replace(spec, remedy="none")))


def test_a_spec_without_a_remedy_is_what_it_was() -> None:
    assert "remedy" not in Preprocess().as_dict()
    spec = Preprocess(remedy="centre+clahe")
    assert spec.as_dict()["remedy"] == "centre+clahe"
    assert Preprocess.from_dict(spec.as_dict()) == spec
    assert spec.pixels == {
        "size": 224,
        "geometry": "squash",
        "short_side": None,
        "resample": "bicubic",
        "remedy": "centre+clahe",
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("equalize", "unknown remedy 'equalize'; did you mean 'equalise'"),
        ("centre+", "unknown remedy ''"),
        ("centre+centre", "'centre' stands there twice"),
        ("none+centre", "unknown remedy 'none'"),
    ],
)
def test_an_unknown_remedy_is_refused(value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Preprocess(remedy=value)
    assert said in str(caught.value) and "\n" not in str(caught.value)
