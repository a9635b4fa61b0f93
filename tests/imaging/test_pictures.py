"""Pictures to 8-bit grey or to an error, and grey to the encoder's numbers; DICOM has its own files."""

from __future__ import annotations

import hashlib
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
from tests.conftest import examples
from tests.imaging.files import Array, dicom, encoded

from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging import (
    GEOMETRIES,
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

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


# pictures


def test_eight_bit_grey_is_taken_as_it_is() -> None:
    found = decode(encoded(Image.fromarray(RAMP)))
    np.testing.assert_array_equal(found.pixels, RAMP)
    assert found.pixels.dtype == np.uint8 and found.pixels.flags.writeable
    assert (found.width, found.height, found.mode, found.format) == (16, 16, "L", "PNG")


def test_a_path_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    grey, dcm = encoded(Image.fromarray(RAMP)), dicom(RAMP)
    for name, data in {"a.png": grey, "png-named.dcm": grey, "c": dcm, "no-preamble.dcm": dcm[132:]}.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(decode(tmp_path / name).pixels, decode(data).pixels)
        np.testing.assert_array_equal(decode(data).pixels, RAMP)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_deep_png_is_scaled_by_the_bits_that_it_uses(bits: int) -> None:
    samples = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    found = decode(encoded(Image.fromarray(samples)))
    assert found.mode == "I;16"
    np.testing.assert_array_equal(found.pixels, np.round(samples * 255.0 / (2**bits - 1)))
    assert found.pixels.max() == 255


def test_deep_png_is_not_stretched_below_eight_bits() -> None:
    found = decode(encoded(Image.fromarray(np.full((4, 4), 7, np.uint16))))
    assert (found.pixels == 7).all()


def test_grey_in_three_channels_is_the_same_grey() -> None:
    found = decode(encoded(Image.fromarray(np.stack([RAMP] * 3, axis=-1))))
    np.testing.assert_array_equal(found.pixels, RAMP)
    assert found.mode == "RGB"


def test_colour_becomes_luma() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    found = decode(encoded(Image.fromarray(rgb)))
    luma = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(found.pixels - luma).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_black(mode: str) -> None:
    alpha = np.tile(np.array([0, 64, 128, 255], np.uint8), (16, 4))
    channels = [RAMP] * (len(mode) - 1) + [alpha]
    found = decode(encoded(Image.fromarray(np.stack(channels, axis=-1), mode=None)))
    assert found.mode == mode
    assert np.abs(found.pixels - RAMP.astype(float) * alpha / 255).max() <= 1


def palette_image() -> Image.Image:
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), mode=None).convert("P")
    image.putpalette([10, 10, 10, 200, 200, 200, 255, 0, 0, 77, 77, 77])
    return image


def test_palette_is_looked_up() -> None:
    found = decode(encoded(palette_image()))
    assert found.mode == "P"
    np.testing.assert_array_equal(found.pixels, [[10, 200], [76, 77]])  # red's luma is 0.299 * 255


def test_what_is_transparent_is_black() -> None:
    for transparency in (1, bytes([255, 0, 255, 255])):
        found = decode(encoded(palette_image(), transparency=transparency))
        np.testing.assert_array_equal(found.pixels, [[10, 0], [76, 77]])
    found = decode(encoded(Image.fromarray(RAMP), transparency=200))
    np.testing.assert_array_equal(found.pixels, np.where(RAMP == 200, 0, RAMP))


def test_one_bit() -> None:
    bits = RAMP % 3 == 0
    found = decode(encoded(Image.fromarray(bits)))
    assert found.mode == "1"
    np.testing.assert_array_equal(found.pixels, bits * np.uint8(255))


def test_cmyk_jpeg_is_not_inverted(picture: Callable[..., Array]) -> None:
    grey = picture(64, 64)
    rgb = Image.fromarray(np.stack([grey] * 3, axis=-1))
    found = decode(encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    assert (found.mode, found.format) == ("CMYK", "JPEG")
    assert np.abs(found.pixels.astype(int) - grey).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(picture: Callable[..., Array], kind: str) -> None:
    grey, exif = picture(40, 64), Image.Exif()
    plain = decode(encoded(Image.fromarray(grey), kind)).pixels
    turns = {1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 6: np.rot90(plain, -1), 8: np.rot90(plain)}
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
        ({"size": 0}, "size 0, short_side None: size >= 1"),
        ({"size": 224, "short_side": 200}, "size 224, short_side 200: size >= 1 and short_side >= size"),
        ({"std": (1.0, 0.0, 1.0)}, r"std \(1.0, 0.0, 1.0\): three channels with positive std"),
        ({"mean": (0.5,)}, r"mean \(0.5,\)"),
    ],
)
def test_a_bad_spec_is_refused_with_the_value(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess(**wrong)


def test_a_spec_reads_back_from_its_dict() -> None:
    spec = Preprocess(size=32, geometry="crop", short_side=40, mean=(0.1, 0.2, 0.3))
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.as_dict().items()}
    assert Preprocess(**stored) == spec


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


def test_squash_takes_both_sides_to_the_size() -> None:
    stripes = np.repeat(np.arange(10, dtype=np.uint8) * 20, 3)[None].repeat(8, axis=0)  # 8 x 30
    out = fit(stripes, Preprocess(size=10, resample="nearest"))
    np.testing.assert_array_equal(out, np.tile(np.arange(10) * 20, (10, 1)))
    np.testing.assert_array_equal(fit(stripes.T, Preprocess(size=10, resample="nearest")), out.T)


@pytest.mark.parametrize("lack", range(8))
def test_pad_puts_the_odd_row_or_column_below_or_right(lack: int) -> None:
    """Without resampling: every pixel of the canvas, column by column."""
    grey = np.random.default_rng(lack).integers(1, 256, (9, 9 - lack), dtype=np.uint8)
    left = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3}[lack]
    expected = np.zeros((9, 9), np.uint8)
    for column in range(9 - lack):
        expected[:, left + column] = grey[:, column]
    spec = Preprocess(size=9, geometry="pad")
    np.testing.assert_array_equal(fit(grey, spec), expected)
    np.testing.assert_array_equal(fit(np.ascontiguousarray(grey.T), spec), expected.T)


@pytest.mark.parametrize("more", range(5))
def test_crop_takes_the_middle_and_loses_the_odd_row_or_column_below_or_right(more: int) -> None:
    grey = np.random.default_rng(more).integers(0, 256, (10, 10 + more), dtype=np.uint8)
    left = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2}[more]
    spec = Preprocess(size=10, geometry="crop")
    np.testing.assert_array_equal(fit(grey, spec), grey[:, left : left + 10])
    np.testing.assert_array_equal(fit(np.ascontiguousarray(grey.T), spec), grey[:, left : left + 10].T)
    inner = fit(grey, Preprocess(size=7, geometry="crop", short_side=10))
    np.testing.assert_array_equal(inner, grey[1:8, (3 + more) // 2 :][:, :7])


def test_pad_keeps_the_aspect_and_enlarges() -> None:
    ramp = np.tile(np.arange(10, 210, 10, dtype=np.uint8), (10, 1))  # 10 x 20
    for grey, canvas in ((ramp, lambda out: out), (ramp.T.copy(), np.transpose)):
        out = canvas(fit(grey, Preprocess(size=40, geometry="pad", resample="nearest")))
        np.testing.assert_array_equal(out[10:30], ramp.repeat(2, 0).repeat(2, 1))
        assert (out[:10] == 0).all() and (out[30:] == 0).all()


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


def test_normalise_is_the_formula_channel_by_channel() -> None:
    spec = Preprocess(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    out = normalise(RAMP, spec)
    assert out.dtype == np.float32 and out.shape == (3, 16, 16)
    for channel in range(3):
        exact = (RAMP / 255.0 - spec.mean[channel]) / spec.std[channel]
        np.testing.assert_allclose(out[channel], exact, atol=1e-6)
    np.testing.assert_array_equal(normalise(np.stack([RAMP, RAMP.T]), spec)[1], normalise(RAMP.T, spec))


def test_preprocess_takes_a_radiograph_or_its_pixels(picture: Callable[..., Array]) -> None:
    grey = picture(50, 40)
    spec = Preprocess(size=32)
    np.testing.assert_array_equal(
        preprocess(Radiograph(grey, 40, 50, "L", "PNG"), spec), normalise(fit(grey, spec), spec)
    )
    np.testing.assert_array_equal(preprocess(grey, spec), normalise(fit(grey, spec), spec))


# the gate

CLIP = Preprocess(size=48)
IMAGENET = Preprocess(size=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIGLIP = Preprocess(size=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
every_family = pytest.mark.parametrize("spec", [CLIP, IMAGENET, SIGLIP], ids=["clip", "imagenet", "siglip"])


@pytest.fixture(scope="module")
def greys(picture: Callable[..., Array]) -> Array:
    """u8[4, 48, 48]"""
    return np.stack([picture(48, 48, seed=s, patch=0.1 * s) for s in range(4)])


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
    check_pixels(normalise(RAMP[None].repeat(3, 1).repeat(3, 2), spec), spec)  # black and white are both in range
    one_blank = np.stack([np.zeros((48, 48), np.uint8), picture(48, 48)])
    check_pixels(normalise(one_blank, spec), spec)


@every_family
def test_the_gate_refuses_pixels_that_were_scaled_or_normalised_twice_or_never(greys: Array, spec: Preprocess) -> None:
    once, three = normalise(greys, spec), greys[:, None].repeat(3, 1)
    closed(again(once, spec), spec, "normalise once")
    closed(again(once / 255, spec), spec, "normalise once|normalised twice")  # floats taken for 0..255
    closed(again(again(three / 255 / 255, spec), spec), spec, "normalise once|normalised twice")
    closed(again(three / 255**2, spec), spec, r"contrast 0\.\d+ .*scaled or normalised twice")
    closed(again(three, spec), spec, r"run from .* to .*; expected \[0, 1\]")
    closed(three.astype(np.float32), spec, r"expected \[0, 1\]")


@pytest.mark.parametrize("spec", [CLIP, IMAGENET], ids=["clip", "imagenet"])
def test_the_gate_refuses_exchanged_channels_and_no_normalisation(greys: Array, spec: Preprocess) -> None:
    """With SigLIP's equal constants neither can be seen: grey is grey in any order, and [0, 1] lies inside [-1, 1]."""
    turned = normalise(greys, replace(spec, mean=spec.mean[::-1], std=spec.std[::-1]))
    closed(turned, spec, "channels differ by 0.0|expected")
    closed((greys[:, None].repeat(3, 1) / 255).astype(np.float32), spec, "channels differ by 0.0|expected")


def test_the_gate_refuses_colour_and_another_familys_constants(greys: Array) -> None:
    colour = normalise(greys, CLIP)
    colour[:, 0] = colour[:, 0, ::-1]
    closed(colour, CLIP, "channels differ by")
    closed(normalise(greys, SIGLIP), CLIP, "expected|channels differ")


@every_family
def test_the_gate_refuses_wrong_type_shape_and_blank_batches(greys: Array, spec: Preprocess) -> None:
    right = normalise(greys, spec)
    closed(right.astype(np.float64), spec, r"pixels float64\[4, 3, 48, 48\]: expected float32 \[B, 3, 48, 48\]")
    closed(right.astype(np.float16), spec, "pixels float16")
    closed(right[0], spec, r"pixels float32\[3, 48, 48\]")
    closed(right[:, :1], spec, r"pixels float32\[4, 1, 48, 48\]")
    closed(right[:, :, :40], spec, r"pixels float32\[4, 3, 40, 48\]")
    closed(right.transpose(0, 2, 3, 1), spec, r"pixels float32\[4, 48, 48, 3\]")
    closed(right[:0], spec, r"pixels float32\[0, 3, 48, 48\]")
    closed(normalise(np.full((2, 48, 48), 90, np.uint8), spec), spec, r"contrast \S+ .*every picture is blank")
    broken = right.copy()
    broken[1, 2, 3, 4] = np.nan
    closed(broken, spec, "run from nan to nan")


# perceptual hash


def distance(a: Array, b: Array) -> int:
    return (int(perceptual_hash(a), 16) ^ int(perceptual_hash(b), 16)).bit_count()


@pytest.mark.parametrize("seed", range(2))
def test_the_hash_is_that_of_scipys_dct(picture: Callable[..., Array], seed: int) -> None:
    grey = picture(90, 70, seed=seed)
    small = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(small, type=2)[:8, :8].ravel()
    bits = "".join("1" if v > np.median(low) else "0" for v in low)
    assert perceptual_hash(grey) == f"{int(bits, 2):016x}"


@pytest.mark.parametrize("seed", range(2))
def test_the_hash_survives_resizing_and_contrast(picture: Callable[..., Array], seed: int) -> None:
    grey = picture(256, 200, seed=seed)
    smaller = np.asarray(Image.fromarray(grey).resize((150, 190), Image.Resampling.BICUBIC))
    assert distance(grey, smaller) <= 3
    assert distance(grey, np.round(30 + 0.7 * grey).astype(np.uint8)) <= 3
    assert len(perceptual_hash(grey)) == 16


def test_the_hash_tells_pictures_apart(picture: Callable[..., Array]) -> None:
    greys = [picture(64, 64, seed=s) for s in range(8)]
    assert len({perceptual_hash(g) for g in greys}) == 8
    assert distance(greys[0], greys[0][:, ::-1]) > 10 and distance(greys[0], greys[0].T) > 10


@pytest.mark.parametrize(
    ("geometry", "digest"), [("squash", "c8609bde24f939cc"), ("crop", "e8fd715cd32f541c"), ("pad", "fe0d54d968963dd9")]
)
def test_a_tall_image_has_the_bytes_of_every_version_of_pillow(geometry: str, digest: str) -> None:
    """Made with Pillow 12.3.0; one call of `Image.resize` gives other bytes in Pillow 13.0.0."""
    tall = np.random.default_rng(0).integers(0, 256, (97, 41), dtype=np.uint8)
    fitted = fit(tall, Preprocess(size=16, geometry=geometry))
    assert hashlib.sha256(fitted.tobytes()).hexdigest()[:16] == digest
    assert perceptual_hash(tall) == "9c3127cfd4e81ae8"
