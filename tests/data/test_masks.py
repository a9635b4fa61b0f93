"""Mask files of every mode, their rules, and that a mask stays on what it marks through every geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples

from thoraclip.data import masks
from thoraclip.data.masks import fit_mask, mask_problem, read_mask
from thoraclip.errors import ImageError
from thoraclip.imaging import Preprocess, fit
from thoraclip.imaging.preprocessing import GEOMETRIES

Mask = npt.NDArray[np.bool_]

HEIGHT, WIDTH = 40, 30
LEFT, RIGHT = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
LEFT[8:30, 3:12] = True
RIGHT[6:32, 18:27] = True
BOTH = LEFT | RIGHT


def painted(left: Any, right: Any, ground: Any = 0, dtype: Any = np.uint8) -> Image.Image:
    """Two lungs of two colours."""
    values = np.zeros((HEIGHT, WIDTH, *np.shape(left)), dtype) + np.asarray(ground, dtype)
    values[LEFT], values[RIGHT] = left, right
    return Image.fromarray(values)


FILES = {
    "0 and 255": painted(255, 255),
    "0 and 1": painted(1, 1),
    "numbered 1 and 2": painted(1, 2),
    "one bit": painted(True, True, dtype=bool),
    "16 bits": painted(40_000, 65_535, dtype=np.uint16),
    "red and blue": painted((255, 0, 0), (0, 0, 200)),
    "green and blue, opaque": painted((0, 220, 0, 255), (0, 0, 255, 255), (0, 0, 0, 255)),
    "grey with alpha": painted((200, 255), (255, 255), (0, 255)),
    "palette": painted(1, 2),
    "white, and only the lungs opaque": painted((255,) * 4, (255,) * 4, (255, 255, 255, 0)),
}
FILES["palette"].putpalette([0, 0, 0, 0, 0, 200, 180, 0, 0])


@pytest.mark.parametrize("kind", FILES)
def test_every_mode_is_read_alike(tmp_path: Path, kind: str) -> None:
    FILES[kind].save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", (HEIGHT, WIDTH))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, BOTH)


def test_a_jpeg_is_read_to_within_its_blur(tmp_path: Path) -> None:
    large = Image.fromarray(np.where(BOTH, 255, 0).astype(np.uint8)).resize((300, 400), Image.Resampling.NEAREST)
    large.save(tmp_path / "mask.jpg", quality=75)
    found = read_mask(tmp_path / "mask.jpg", (400, 300))
    assert (found != (np.asarray(large) > 0)).mean() < 0.002


def test_half_of_the_largest_value_is_inside_and_nothing_of_black(tmp_path: Path) -> None:
    """Edges may be smoothed."""
    for values, inside in (([0, 99, 100, 200], [False, False, True, True]), ([0] * 4, [False] * 4)):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / "mask.png")
        assert read_mask(tmp_path / "mask.png", (1, 4)).tolist() == [inside]


def test_another_size_is_resampled(tmp_path: Path) -> None:
    painted(255, 255).save(tmp_path / "mask.png")
    expected = BOTH.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (3 * HEIGHT, 3 * WIDTH)), expected)


def test_the_orientation_of_a_photograph_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    lying = Image.fromarray(np.rot90(np.where(BOTH, 255, 0).astype(np.uint8)).copy())
    lying.save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (HEIGHT, WIDTH)), BOTH)


def test_an_aspect_ratio_off_by_more_than_two_percent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((100, 100), 255, np.uint8)).save(path)
    for shape in ((200, 203), (203, 200)):
        assert read_mask(path, shape).shape == shape
    for height, width in ((200, 205), (205, 200)):
        with pytest.raises(ImageError) as error:
            read_mask(path, (height, width))
        assert str(error.value) == (
            f"{path}: the mask is 100 x 100 pixels and its picture {width} x {height}: their aspect ratios differ by more than "
            "2 %; give the mask of this very picture, uncropped"
        )


def test_what_is_no_mask_is_refused_by_name(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("left lung", encoding="utf-8")
    with pytest.raises(ImageError, match=r"text\.png: the mask is no PNG or JPEG picture; save it as PNG"):
        read_mask(text, (HEIGHT, WIDTH))
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"cut\.png: damaged mask \(.+\); write it again"):
        read_mask(cut, (HEIGHT, WIDTH))
    with pytest.raises(ImageError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        read_mask(tmp_path / "gone.png", (HEIGHT, WIDTH))


@pytest.mark.parametrize("shape", [(3, 40), (40, 3)])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_mask_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], kind: str
) -> None:
    path = tmp_path / f"mask.{kind}"
    Image.fromarray(np.full(shape, 255, np.uint8)).save(path)
    monkeypatch.setattr(masks, "MAX_PIXELS", 120)
    assert read_mask(path, shape).all()
    monkeypatch.setattr(masks, "MAX_PIXELS", 119)
    with pytest.raises(ImageError, match=rf"mask\.{kind}: {shape[1]} x {shape[0]} pixels is more than 119; not a mask"):
        read_mask(path, shape)


def test_problems_are_told_in_words() -> None:
    mask = np.zeros((20, 20), bool)
    assert mask_problem(mask) == "the mask is empty: no pixel lies inside"
    mask[3, 4] = True
    assert mask_problem(mask) is None
    mask[:19] = True  # 95 %: the most that is accepted
    assert mask_problem(mask) is None
    mask[19, 0] = True
    assert mask_problem(mask) == "the mask covers 95.2 % of the picture; more than 95 % tells nothing apart"


@pytest.mark.parametrize("geometry", GEOMETRIES)
@given(height=st.integers(40, 120), width=st.integers(40, 120), seed=st.integers(0, 999))
@examples(40)
def test_a_mask_stays_on_the_bright_pixels(geometry: str, height: int, width: int, seed: int) -> None:
    """Where the fitted picture is clear about its grey level, the fitted mask agrees; bars are outside."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    top, left = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
    mask[top : top + int(rng.integers(12, height)), left : left + int(rng.integers(12, width))] = True
    picture = np.where(mask, 220, 60).astype(np.uint8)
    spec = Preprocess(size=32, geometry=geometry, short_side=36 if geometry == "crop" else None, resample="bilinear")
    fitted, marked = fit(picture, spec), fit_mask(mask, spec)
    assert marked.shape == (32, 32) and marked.dtype == bool
    assert marked[fitted > 200].all()
    assert not marked[fitted < 80].any()
    assert ((fitted > 200) | (fitted < 80)).mean() > 0.5
