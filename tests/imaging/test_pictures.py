"""Pictures to 8-bit grey or to an error, and grey to the encoder's numbers; DICOM has its own files."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn
from tests.conftest import draw_picture, examples
from tests.imaging.files import Array, dicom, encoded

from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging import (
    Preprocess,
    Radiograph,
    check_pixels,
    decode,
    decoding,
    fit,
    normalise,
    perceptual_hash,
    preprocess,
    preprocessing,
)
from thoraclip.imaging import dicom as dicom_module
from thoraclip.imaging.preprocessing import GEOMETRIES

RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)


# pictures


def test_a_path_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    grey, dcm = encoded(Image.fromarray(RAMP)), dicom(RAMP)
    for name, data in {"a.png": grey, "png-named.dcm": grey, "c": dcm, "no-preamble.dcm": dcm[132:]}.items():
        (tmp_path / name).write_bytes(data)
        for found in (decode(tmp_path / name), decode(data)):
            np.testing.assert_array_equal(found.pixels, RAMP)
            assert found.pixels.dtype == np.uint8 and found.pixels.flags.writeable
            mode, kind = ("L", "PNG") if data is grey else ("MONOCHROME2", "DICOM")
            assert (found.width, found.height, found.mode, found.format) == (32, 8, mode, kind)


@pytest.mark.parametrize(("bits", "high"), [(8, 255), (12, 4095), (16, 65_535), (10, 700), (9, 300), (8, 7)])
def test_deep_png_is_scaled_by_the_bits_that_it_uses_and_not_below_eight(bits: int, high: int) -> None:
    samples = np.linspace(0, high, 256).astype(np.uint16).reshape(8, 32)
    found = decode(encoded(Image.fromarray(samples)))
    assert found.mode == "I;16"
    np.testing.assert_array_equal(found.pixels, np.round(samples * 255.0 / (2**bits - 1)))


ALPHA = np.tile(np.array([0, 64, 128, 255], np.uint8), (8, 8))
RGB = np.random.default_rng(0).integers(0, 256, (8, 32, 3), dtype=np.uint8)
PALETTE = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), mode=None).convert("P")
PALETTE.putpalette([10, 10, 10, 200, 200, 200, 255, 0, 0, 77, 77, 77])  # red's luma is 0.299 * 255


@pytest.mark.parametrize(
    ("mode", "image", "options", "expected", "within"),
    [
        ("RGB", Image.fromarray(np.stack([RAMP] * 3, axis=-1)), {}, RAMP, 0),
        ("RGB", Image.fromarray(RGB), {}, RGB @ np.array([0.299, 0.587, 0.114]), 0.51),  # ITU-R BT.601
        ("RGBA", Image.fromarray(np.stack([RAMP, RAMP, RAMP, ALPHA], axis=-1)), {}, RAMP * (ALPHA / 255), 1),
        ("LA", Image.fromarray(np.stack([RAMP, ALPHA], axis=-1)), {}, RAMP * (ALPHA / 255), 1),
        ("P", PALETTE, {}, [[10, 200], [76, 77]], 0),
        ("P", PALETTE, {"transparency": 1}, [[10, 0], [76, 77]], 0),
        ("P", PALETTE, {"transparency": bytes([255, 0, 255, 255])}, [[10, 0], [76, 77]], 0),
        ("L", Image.fromarray(RAMP), {"transparency": 200}, np.where(RAMP == 200, 0, RAMP), 0),
        ("1", Image.fromarray(RAMP % 3 == 0), {}, (RAMP % 3 == 0) * 255, 0),
    ],
)
def test_colours_become_luma_and_what_is_transparent_lies_over_black(
    mode: str, image: Image.Image, options: dict[str, Any], expected: Any, within: float
) -> None:
    found = decode(encoded(image, **options))
    assert found.mode == mode
    assert np.abs(found.pixels - np.asarray(expected, float)).max() <= within


def test_cmyk_jpeg_is_not_inverted(picture: Callable[..., Array]) -> None:
    grey = picture(64, 48)
    rgb = Image.fromarray(np.stack([grey] * 3, axis=-1))
    found = decode(encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    assert (found.mode, found.format) == ("CMYK", "JPEG")
    assert np.abs(found.pixels.astype(int) - grey).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(picture: Callable[..., Array], kind: str) -> None:
    grey, exif = picture(40, 64), Image.Exif()
    plain = decode(encoded(Image.fromarray(grey), kind)).pixels
    turns = {1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 5: plain.T, 6: np.rot90(plain, -1), 8: np.rot90(plain)}
    for orientation, turned in turns.items():
        exif[0x0112] = orientation
        found = decode(encoded(Image.fromarray(grey), kind, exif=exif))
        np.testing.assert_array_equal(found.pixels, turned)
        assert (found.height, found.width) == found.pixels.shape


def test_decoding_leaves_the_warning_filters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to the process: with `catch_warnings` in a thread, the last one out restores another's filters."""
    seen: list[Any] = []

    def spy(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: (seen.append(list(warnings.filters)), original(*a))[1]

    monkeypatch.setattr(decoding, "_to_grey", spy(decoding._to_grey))
    monkeypatch.setattr("thoraclip.imaging.dicom.display", spy(dicom_module.display))
    decode(encoded(Image.fromarray(RAMP)))
    decode(dicom(RAMP))
    assert seen == [list(warnings.filters)] * 2


# Preprocess and geometry


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"geometry": "squish"}, "unknown geometry 'squish'; did you mean 'squash'"),
        ({"resample": "cubic"}, "unknown resample 'cubic'; did you mean 'bicubic'"),
        ({"size": 0}, "preprocess: size = 0: a whole number from 1 to 4096 is needed"),
        ({"size": 224, "short_side": 200}, "size 224, short_side 200: short_side >= size"),
        ({"std": (1.0, 0.0, 1.0)}, r"std\[1\] = 0.0: a number from 1e-06 to 1000"),
        ({"mean": (0.5,)}, r"mean = \(0.5,\): a list of 3 is needed"),
    ],
)
def test_a_bad_spec_is_refused_with_the_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess(**wrong)


def test_a_spec_reads_back_from_its_dict() -> None:
    spec = Preprocess(size=32, geometry="crop", short_side=40, mean=(0.1, 0.2, 0.3))
    assert Preprocess.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@examples(40)
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from(GEOMETRIES), st.integers(1, 40), st.sampled_from([0, 5]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)  # fmt: skip
def test_every_geometry_gives_a_square_and_keeps_a_flat_picture_flat(
    height: int, width: int, geometry: str, size: int, more: int, resample: str
) -> None:
    spec = Preprocess(size=size, geometry=geometry, short_side=size + more, resample=resample)
    out = fit(np.full((height, width), 100, np.uint8), spec)
    assert out.shape == (size, size) and out.dtype == np.uint8
    if geometry == "pad":
        assert set(np.unique(out)) <= {0, 100} and 100 in out
    else:
        assert (out == 100).all()


@pytest.mark.parametrize("lack", range(8))
def test_pad_puts_the_odd_row_or_column_below_or_right(lack: int) -> None:
    """Without resampling: every pixel of the canvas, column by column."""
    grey = np.random.default_rng(lack).integers(1, 256, (9, 9 - lack), dtype=np.uint8)
    left = [0, 0, 1, 1, 2, 2, 3, 3][lack]
    expected = np.zeros((9, 9), np.uint8)
    for column in range(9 - lack):
        expected[:, left + column] = grey[:, column]
    spec = Preprocess(size=9, geometry="pad")
    np.testing.assert_array_equal(fit(grey, spec), expected)
    np.testing.assert_array_equal(fit(np.ascontiguousarray(grey.T), spec), expected.T)


def test_pad_keeps_the_aspect_and_enlarges() -> None:
    ramp = np.tile(np.arange(10, 210, 10, dtype=np.uint8), (10, 1))  # 10 x 20
    expected = np.pad(ramp.repeat(2, 0).repeat(2, 1), ((10, 10), (0, 0)))
    spec = Preprocess(size=40, geometry="pad", resample="nearest")
    np.testing.assert_array_equal(fit(ramp, spec), expected)
    np.testing.assert_array_equal(fit(ramp.T.copy(), spec), expected.T)


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_long_strip_is_not_blown_up(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    strip = np.zeros(shape, np.uint8)
    message = f"{shape[1]} x {shape[0]} pixels: too long a strip for geometry 'crop'; use squash or pad"
    with pytest.raises(ImageError, match=message):
        fit(strip, Preprocess(geometry="crop"))
    assert fit(strip, Preprocess()).shape == fit(strip, Preprocess(geometry="pad")).shape == (224, 224)
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 2000)
    assert fit(strip[:20, :20], Preprocess(size=10, geometry="crop", short_side=10)).shape == (10, 10)
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 1999)
    with pytest.raises(ImageError, match="too long a strip"):
        fit(strip[:20, :20], Preprocess(size=10, geometry="crop", short_side=10))


def test_preprocess_takes_a_radiograph_or_its_pixels(picture: Callable[..., Array]) -> None:
    """The numbers themselves are those of Transformers: see `tests/parity`."""
    spec, grey = Preprocess(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)), picture(50, 40)
    expected = normalise(fit(grey, spec), spec)
    assert expected.dtype == np.float32 and expected.shape == (3, 16, 16)
    for either in (grey, Radiograph(grey, 40, 50, "L", "PNG")):
        np.testing.assert_array_equal(preprocess(either, spec), expected)
    np.testing.assert_array_equal(normalise(np.stack([RAMP, RAMP[::-1]]), spec)[1], normalise(RAMP[::-1], spec))


# the gate

CLIP = Preprocess(size=48)
IMAGENET = Preprocess(size=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIGLIP = Preprocess(size=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
every_family = pytest.mark.parametrize("spec", [CLIP, IMAGENET, SIGLIP], ids=["clip", "imagenet", "siglip"])
GREYS = np.stack([draw_picture(48, 48, seed=s, patch=0.1 * s) for s in range(4)])


def again(pixels: Array, spec: Preprocess) -> npt.NDArray[np.float32]:
    """The normalisation applied to [B, 3, H, W] as if it were in [0, 1]."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    return ((pixels - mean) / std).astype(np.float32)


def closed(pixels: Array, spec: Preprocess, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_pixels(pixels, spec)


@every_family
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_gate_lets_right_pixels_through(picture: Callable[..., Array], spec: Preprocess, geometry: str) -> None:
    spec = replace(spec, geometry=geometry)
    check_pixels(np.stack([preprocess(picture(70, 55, seed=s), spec) for s in range(3)]), spec)
    one_blank = np.zeros((2, 48, 48), np.uint8)
    one_blank[1, :, 24:] = 255  # black and white are both in range
    check_pixels(normalise(one_blank, spec), spec)


@every_family
def test_the_gate_refuses_pixels_that_were_scaled_or_normalised_twice_or_never(spec: Preprocess) -> None:
    once, three = normalise(GREYS, spec), GREYS[:, None].repeat(3, 1)
    closed(again(once, spec), spec, "normalise once")
    closed(again(once / 255, spec), spec, "normalise once|normalised twice")  # floats taken for 0..255
    closed(again(again(three / 255 / 255, spec), spec), spec, "normalise once|normalised twice")
    closed(again(three / 255**2, spec), spec, r"contrast 0\.\d+ .*scaled or normalised twice")
    closed(again(three, spec), spec, r"run from .* to .*; expected \[0, 1\]")
    closed(three.astype(np.float32), spec, r"expected \[0, 1\]")
    if spec is not SIGLIP:  # by its equal constants grey is grey in any order, and [0, 1] lies inside [-1, 1]
        turned = normalise(GREYS, replace(spec, mean=spec.mean[::-1], std=spec.std[::-1]))
        closed(turned, spec, "channels differ by 0.0|expected")
        closed((three / 255).astype(np.float32), spec, "channels differ by 0.0|expected")
        closed(normalise(GREYS, SIGLIP), spec, "expected|channels differ")


@every_family
def test_the_gate_refuses_wrong_types_and_shapes_colour_and_blank_batches(spec: Preprocess) -> None:
    right = normalise(GREYS, spec)
    colour, broken = right.copy(), right.copy()
    colour[:, 0], broken[1, 2, 3, 4] = colour[:, 0, ::-1], np.nan
    for pixels, message in (
        (right.astype(np.float64), r"pixels float64\[4, 3, 48, 48\]: expected float32 \[B, 3, 48, 48\]"),
        (right[0], r"pixels float32\[3, 48, 48\]"),
        (right[:, :1], r"pixels float32\[4, 1, 48, 48\]"),
        (right[:, :, :40], r"pixels float32\[4, 3, 40, 48\]"),
        (right[..., :40], r"pixels float32\[4, 3, 48, 40\]"),
        (right[:0], r"pixels float32\[0, 3, 48, 48\]"),
        (colour, "channels differ by"),
        (broken, "run from nan to nan"),
        (normalise(np.full((2, 48, 48), 90, np.uint8), spec), r"contrast \S+ .*every picture is blank"),
    ):
        closed(pixels, spec, message)


# perceptual hash


def test_the_hash_is_that_of_scipys_dct(picture: Callable[..., Array]) -> None:
    grey = picture(90, 70)
    small = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(small, type=2)[:8, :8].ravel()
    bits = "".join("1" if v > np.median(low) else "0" for v in low)
    assert perceptual_hash(grey) == f"{int(bits, 2):016x}"


@pytest.mark.parametrize(
    ("geometry", "digest"), [("squash", "c8609bde24f939cc"), ("crop", "e8fd715cd32f541c"), ("pad", "fe0d54d968963dd9")]
)
def test_a_tall_image_has_the_bytes_of_every_version_of_pillow(geometry: str, digest: str) -> None:
    """Made with Pillow 12.3.0; one call of `Image.resize` gives other bytes in Pillow 13.0.0."""
    tall = np.random.default_rng(0).integers(0, 256, (97, 41), dtype=np.uint8)
    fitted = fit(tall, Preprocess(size=16, geometry=geometry))
    assert hashlib.sha256(fitted.tobytes()).hexdigest()[:16] == digest
    assert perceptual_hash(tall) == "9c3127cfd4e81ae8"
