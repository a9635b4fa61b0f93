"""Per-image statistics against slow oracles and planted pictures; marks on drawn pictures, phantoms and real X-rays."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw, ImageFont
from tests.conftest import examples

from thoraclip.data.appearance import STATISTICS, Box, _sliding, describe, find_marks
from thoraclip.data.phantom import CLASSES, draw_phantom

Grey = npt.NDArray[np.uint8]

any_picture = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def noise(height: int, width: int, low: int = 40, high: int = 216, seed: int = 0) -> Grey:
    return np.random.default_rng(seed).integers(low, high, (height, width)).astype(np.uint8)


def slow_levels(pixels: Grey) -> dict[str, float]:
    """From the list of the pixels inside each region."""
    height, width = pixels.shape
    y, x = np.mgrid[:height, :width]
    from_top, from_left = np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x)
    side = max(1, round(0.08 * min(height, width)))
    ring = pixels[(from_top < max(1, round(0.04 * height))) | (from_left < max(1, round(0.04 * width)))].tolist()
    corner = pixels[(from_top < side) & (from_left < side)].tolist()
    inside = pixels.ravel().tolist()
    return {
        "aspect_ratio": width / height,
        "megapixels": width * height / 1e6,
        "brightness": statistics.fmean(inside),
        "contrast": np.std(inside),
        "black": sum(v <= 2 for v in inside) / len(inside),
        "white": sum(v >= 253 for v in inside) / len(inside),
        "border_brightness": statistics.fmean(ring),
        "border_contrast": np.std(ring),
        "corner_brightness": statistics.fmean(corner),
        "grey_levels": len(set(inside)),
    }


def slow_laplacian(values: npt.NDArray[Any]) -> float:
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    inside = (
        scipy.signal.convolve2d(values.astype(float), kernel, mode="valid") if min(values.shape) > 2 else np.zeros(1)
    )
    return math.sqrt((inside**2).mean())


def slow_blockiness(pixels: Grey) -> float:
    """Of a large picture, every second or third line."""
    edge, other = [], []
    for whole in (pixels.astype(int), pixels.T.astype(int)):
        lines = whole[:: max(1, len(whole) // 256)]
        for x in range(1, lines.shape[1]):
            step = np.minimum(16, np.abs(lines[:, x] - lines[:, x - 1])).mean()
            (edge if x % 8 == 0 else other).append(step)
    if not edge or not other or sum(other) == 0:
        return 1.0
    return statistics.fmean(edge) / statistics.fmean(other)


@pytest.mark.parametrize(("height", "width"), [(60, 47), (33, 90), (1, 7), (9, 1), (590, 553), (520, 700)])
def test_statistics_are_those_of_a_slow_oracle(height: int, width: int) -> None:
    """Sharpness is that at 256 pixels, fine detail that of the middle."""
    pixels = noise(height, width, 0, 256, seed=height)
    found = describe(pixels)
    for name, value in slow_levels(pixels).items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    scale = min(1.0, 256 / min(height, width))
    size = (round(width * scale), round(height * scale))
    reduced = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
    assert found["sharpness"] == pytest.approx(slow_laplacian(reduced), rel=1e-4)
    assert found["blockiness"] == pytest.approx(slow_blockiness(pixels), rel=1e-6)
    top, left = max(0, (height - 512) // 2), max(0, (width - 512) // 2)
    middle = pixels[top : top + 512, left : left + 512]
    down, across = middle.shape[0] // 2, middle.shape[1] // 2
    half = middle[: 2 * down, : 2 * across].reshape(down, 2, across, 2).mean(axis=(1, 3))
    coarse = slow_laplacian(half)
    assert found["fine_detail"] == pytest.approx(slow_laplacian(middle) / coarse if coarse else 0.0, rel=1e-4)


@examples(60)
@given(any_picture)
def test_any_picture_has_finite_statistics_in_their_order(pixels: Grey) -> None:
    found = describe(pixels)
    assert list(found) == list(STATISTICS)
    assert all(type(value) is float and math.isfinite(value) and value >= 0 for value in found.values())
    assert all(found[name] <= 1 for name in ("black", "white", "bar_top", "bar_left", "mark_area"))


@pytest.mark.parametrize("shape", [(1, 1), (50, 1), (300, 200)])
def test_a_constant_picture_is_all_bar_and_nothing_else(shape: tuple[int, int]) -> None:
    for level in (0, 128, 255):
        found = describe(np.full(shape, level, np.uint8))
        assert found["brightness"] == found["border_brightness"] == found["corner_brightness"] == level
        assert [found[f"bar_{side}"] for side in ("top", "bottom", "left", "right")] == [1.0] * 4
        assert (found["black"], found["white"]) == (float(level == 0), float(level == 255))
        assert found["grey_levels"] == found["blockiness"] == 1
        assert found["contrast"] == found["sharpness"] == found["fine_detail"] == found["mark_count"] == 0


@examples(30)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.sampled_from([0, 3, 255]))
def test_a_bar_counts_by_its_rows(top: int, bottom: int, left: int, right: int, level: int) -> None:
    inner = noise(70, 60)
    pixels = np.pad(inner, ((top, bottom), (left, right)), constant_values=level)
    height, width = pixels.shape
    found = describe(pixels)
    assert found["bar_top"] == pytest.approx(top / height)
    assert found["bar_bottom"] == pytest.approx(bottom / height)
    assert found["bar_left"] == pytest.approx(left / width)
    assert found["bar_right"] == pytest.approx(right / width)


def test_a_bar_in_a_large_picture_is_exact_to_the_row_and_an_uneven_edge_is_none() -> None:
    assert describe(np.pad(noise(1000, 1300), ((37, 0), (0, 0))))["bar_top"] == pytest.approx(37 / 1037)
    assert describe(noise(80, 80, 0, 40))["bar_top"] == 0


def write(pixels: Grey, text: str, at: tuple[int, int], size: int, fill: int) -> tuple[Grey, tuple[int, ...]]:
    """Draw text; returns the picture and the text's left, top, right, bottom."""
    image = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    pen.text(at, text, fill=fill, font=font)
    return np.asarray(image), tuple(int(v) for v in pen.textbbox(at, text, font=font))


def overlap(box: Box, where: tuple[int, ...]) -> float:
    """Share of the text's box that lies inside the mark's."""
    left, top, right, bottom = where
    wide = min(right, box.left + box.width) - max(left, box.left)
    high = min(bottom, box.top + box.height) - max(top, box.top)
    return max(0, wide) * max(0, high) / ((right - left) * (bottom - top))


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(
    ("text", "size", "at"),
    [("R", 14, (12, 12)), ("L", 22, (225, 10)), ("AP PORTABLE", 11, (150, 12)), ("12.03.2020", 11, (20, 235))],
)
def test_bright_print_near_the_rim_is_found(
    picture: Callable[..., Grey], text: str, size: int, at: tuple[int, int], scale: int
) -> None:
    base = picture(256 * scale, 256 * scale, seed=3) // 2
    assert find_marks(base) == []
    pixels, where = write(base, text, (at[0] * scale, at[1] * scale), size * scale, 250)
    boxes = find_marks(pixels)
    assert sum(overlap(box, where) for box in boxes) > 0.5
    assert all(0.5 <= box.score <= 1 for box in boxes)
    left, top, right, bottom = where
    assert sum(box.width * box.height for box in boxes) < 2 * (right - left) * (bottom - top)
    found = describe(pixels)
    assert found["mark_count"] == len(boxes)
    assert found["mark_area"] == pytest.approx(sum(b.width * b.height for b in boxes) / pixels.size)
    assert all(box.left + box.width <= pixels.shape[1] and box.top + box.height <= pixels.shape[0] for box in boxes)


def test_black_print_on_bright_ground_is_found() -> None:
    pixels, where = write(np.full((256, 256), 200, np.uint8), "R", (20, 20), 18, 0)
    (box,) = find_marks(pixels)
    assert overlap(box, where) > 0.4


def blank(draw: Callable[[ImageDraw.ImageDraw], None], ground: int = 60) -> Grey:
    image = Image.new("L", (256, 256), ground)
    draw(ImageDraw.Draw(image))
    return np.asarray(image)


NO_MARKS: dict[str, Grey] = {
    "a catheter": blank(lambda pen: pen.line([(20, 0), (90, 120), (150, 250)], fill=240, width=2)),
    "a short wire": blank(lambda pen: pen.line([(15, 20), (50, 45)], fill=240, width=3)),
    "a steep line": blank(lambda pen: pen.line([(30, 20), (30, 60)], fill=255, width=3)),
    "a flat band": blank(lambda pen: pen.line([(20, 200), (80, 205)], fill=240, width=5)),
    "an electrode amid the chest": blank(lambda pen: pen.ellipse([118, 118, 132, 132], outline=180, width=3)),
    "a bright collimation edge": blank(lambda pen: pen.rectangle([0, 0, 255, 18], fill=255)),
    "a frame": blank(lambda pen: pen.rectangle([12, 12, 243, 243], outline=255, width=3)),
    "a saturated corner": blank(lambda pen: pen.polygon([(180, 0), (255, 0), (255, 90)], fill=255)),
    "a large disc": blank(lambda pen: pen.ellipse([190, 20, 240, 70], fill=255)),
    "smooth blobs": np.asarray(Image.fromarray(noise(16, 16, 0, 256, seed=4)).resize((256, 256))),
    "fine noise": noise(256, 256, 90, 130),
    "nothing": np.full((256, 256), 255, np.uint8),
    "a tiny picture": noise(20, 500),
}


@pytest.mark.parametrize("name", NO_MARKS)
def test_what_is_no_print_is_left_alone(name: str) -> None:
    assert find_marks(NO_MARKS[name]) == []


@examples(60)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=24)), st.sampled_from([1, 3, 5, 9]))
def test_extremes_around_a_pixel_are_those_of_scipy(pixels: Grey, size: int) -> None:
    for pick, slow in ((np.minimum, scipy.ndimage.minimum_filter), (np.maximum, scipy.ndimage.maximum_filter)):
        np.testing.assert_array_equal(_sliding(pixels, size, pick), slow(pixels, size, mode="nearest"))
        np.testing.assert_array_equal(_sliding(pixels > 99, size, pick), slow(pixels > 99, size, mode="nearest"))


def test_boxes_stand_from_top_to_bottom(picture: Callable[..., Grey]) -> None:
    pixels, _ = write(picture(256, 300, seed=5) // 2, "R", (14, 30), 16, 255)
    boxes = find_marks(write(pixels, "AP", (250, 12), 12, 255)[0])
    assert [box.left > 200 for box in boxes] == [True, False]


def test_marks_of_phantoms_are_found_and_unmarked_phantoms_left_alone() -> None:
    """All 15 marked ones, and one that is not; with the number, area and score of the marks as measured."""
    drawn = [draw_phantom(CLASSES[i % 3], rng=np.random.default_rng([11, i]), size=256) for i in range(24)]
    marks = [find_marks(phantom.pixels) for phantom in drawn]
    found = [(bool(phantom.attributes["marker"]), bool(boxes)) for phantom, boxes in zip(drawn, marks, strict=True)]
    assert Counter(found) == {(True, True): 15, (False, True): 1, (False, False): 8}
    boxes = [box for own in marks for box in own]
    assert len(boxes) == 18 and sum(box.width * box.height for box in boxes) == pytest.approx(3612, abs=10)
    assert statistics.fmean(box.score for box in boxes) == pytest.approx(0.7155, abs=0.001)


SEEN_WITH = ("00001285_001", "00003249_002", "00008715_000", "00004533_020", "00001301_039", "lancet-case2a")
SEEN_WITHOUT = ("31BA3780-2323-493F-8AED-62081B9C383B", "covid-19-pneumonia-28", "kjr-21-e24-g001-l-a")


def test_marks_of_real_pictures_that_were_looked_at(shared: Path) -> None:
    paths = {path.stem: path for path in (shared / "data" / "covid3-talo").rglob("*.jpg")}
    if not set(SEEN_WITH) <= set(paths):
        pytest.skip("covid3-talo absent")
    for name in SEEN_WITH + SEEN_WITHOUT:
        marks = find_marks(np.asarray(Image.open(paths[name]).convert("L")))
        assert bool(marks) == (name in SEEN_WITH), name
