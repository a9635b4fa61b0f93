"""DICOM headers that contradict themselves or write numbers in their own way: the right picture, or one line."""

from __future__ import annotations

import math
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from tests.conftest import examples
from tests.imaging.files import LOSSLESS, Array, bare, data_set, dicom, refused, waves, written

from thoraclip.errors import ImageError
from thoraclip.imaging import decode

TAGS = {
    "WindowCenter": (0x0028, 0x1050), "WindowWidth": (0x0028, 0x1051), "RescaleIntercept": (0x0028, 0x1052),
    "RescaleSlope": (0x0028, 0x1053), "PixelSpacing": (0x0028, 0x0030), "NumberOfFrames": (0x0028, 0x0008),
}  # fmt: skip
WINDOWED = {"RescaleIntercept": "-24", "RescaleSlope": "1.5", "WindowCenter": "1800", "WindowWidth": "3000"}


def with_texts(texts: dict[str, str], *, implicit: bool = False) -> bytes:
    """A file of 12 bits whose elements stand there as written, which no library of DICOM would write."""
    ds = data_set(waves(12), bits=12)
    data = bare(ds, implicit=True) if implicit else written(ds)
    elements = b""
    for name in sorted(texts, key=lambda name: TAGS[name]):
        value = texts[name].encode("latin-1")
        value += b" " * (len(value) % 2)
        kind = b"IS" if name == "NumberOfFrames" else b"DS"
        length = struct.pack("<I", len(value)) if implicit else kind + struct.pack("<H", len(value))
        elements += struct.pack("<HH", *TAGS[name]) + length + value
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + elements + data[at:]


def expected(numbers: dict[str, float]) -> Array:
    """PS3.3 C.11.1 and C.11.2.1.2; without a window from the smallest to the largest value."""
    values = waves(12) * (numbers.get("RescaleSlope") or 1) + numbers.get("RescaleIntercept", 0)
    low, high = values.min(), values.max()
    if "WindowCenter" in numbers and numbers.get("WindowWidth", 0) >= 1:
        c, w = numbers["WindowCenter"] - 0.5, numbers["WindowWidth"] - 1
        windowed = np.clip((values - c) / w + 0.5, 0, 1) if w else (values > c) * 1.0
        if np.ptp(windowed):
            return np.asarray(255 * windowed)
    return np.asarray(255 * (values - low) / (high - low))


def value_of(text: str) -> float | str | None:
    """The number that a text is, `None` for none, `?` for what must be refused; a reader of its own."""
    text = text.split("\\")[0].strip(" \0\t\r\n")
    if not text:
        return None
    if re.fullmatch(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}", text):
        return "?"
    plain = text.replace(",", ".") if "." not in text and text.count(",") < 2 else text
    if set(plain) - set("0123456789.+-eE"):
        return "?"
    try:
        return float(plain) if math.isfinite(float(plain)) else "?"
    except ValueError:
        return "?"


def check(texts: dict[str, str], *, implicit: bool = False) -> None:
    data = with_texts(texts, implicit=implicit)
    read = {name: value_of(text) for name, text in texts.items() if name != "PixelSpacing"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing but our one line
        try:
            found = decode(data)
        except ImageError as error:
            assert "\n" not in str(error)
            wrong = [name for name, value in read.items() if value == "?"]
            frames = read.get("NumberOfFrames") not in (None, 0, 1)
            huge = any(isinstance(v, float) and abs(v) > 1e290 for v in read.values())
            assert wrong or frames or huge, f"{texts}: {error}"
            assert huge or frames or any(name in str(error) for name in wrong)
            return
    assert "?" not in read.values(), texts
    numbers = {name: float(value) for name, value in read.items() if isinstance(value, float)}
    assert np.abs(found.pixels - expected(numbers)).max() <= 0.51, texts
    commas = sum(
        "," in text.split("\\")[0] for name, text in texts.items() if name not in {"PixelSpacing", "NumberOfFrames"}
    )
    others = [remark for remark in found.remarks if "decimal comma" not in remark]
    assert len(found.remarks) - len(others) == commas and all("passed over" in remark for remark in others)
    useless = numbers.get("RescaleSlope") == 0 or ("WindowCenter" in numbers and numbers.get("WindowWidth", 1) < 1)
    assert others or not useless


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "1800,5") for name in WINDOWED), ("RescaleSlope", "0,5"), ("RescaleSlope", "0,001"),
        ("WindowCenter", ",5"), ("WindowWidth", "4,096"), ("WindowWidth", "4,096.0"), ("WindowWidth", "1.024,5"),
        ("WindowCenter", "1,2,3"), ("WindowCenter", "NaN"), ("WindowWidth", "inf"), ("RescaleSlope", "-Infinity"),
        ("RescaleIntercept", "1e400"), ("WindowCenter", "1.8E+03"), ("WindowCenter", "  1800  "),
        ("WindowCenter", "1800\0"), ("WindowCenter", "1800\\40"), ("WindowCenter", "\\40"), ("WindowWidth", ""),
        ("WindowCenter", "1_800"), ("WindowCenter", "0x70"), ("WindowCenter", "1800 HU"), ("WindowCenter", "1 800"),
        ("RescaleSlope", "1e308"), ("RescaleSlope", "0"), ("WindowWidth", "0"), ("WindowWidth", "-5"),
        ("WindowCenter", "\xb2"), ("WindowCenter", "1800,5\\40,5"), ("NumberOfFrames", "1 "), ("NumberOfFrames", "1.0"),
        ("NumberOfFrames", "2"), ("NumberOfFrames", "one"), ("NumberOfFrames", ""), ("NumberOfFrames", "99999999999999"),
        ("PixelSpacing", "0,139\\0,139"), ("PixelSpacing", "NaN"), ("PixelSpacing", "abc"),
    ],
)  # fmt: skip
def test_numbers_are_read_or_refused_in_one_line(name: str, text: str, implicit: bool) -> None:
    check(WINDOWED | {name: text}, implicit=implicit)


digits = st.integers(-5000, 5000).map(str)
odd = st.builds(
    lambda sign, whole, point, part, exponent, pad, more: sign + whole + point + part + exponent + pad + more,
    st.sampled_from(["", "+", "-", "--"]), st.integers(0, 4000).map(str), st.sampled_from(["", ".", ",", "..", "_"]),
    st.sampled_from(["", "5", "25", "125", "0005"]), st.sampled_from(["", "e1", "E+00", "e-1", "e400", "d2"]),
    st.sampled_from(["", " ", "\0", "  \0"]), st.sampled_from(["", "\\7", "\\", "\\x", ",5"]),
)  # fmt: skip
texts = st.one_of(digits, odd, odd.map(lambda t: " " + t), st.text("0123456789.,eE+- \\\0naif", max_size=8))


@examples(300)
@given(st.dictionaries(st.sampled_from(list(WINDOWED)), texts), st.booleans())
def test_any_text_is_read_as_it_stands_or_refused(changed: dict[str, str], implicit: bool) -> None:
    check(WINDOWED | changed, implicit=implicit)


# the high bit


def with_high_bit(values: Array, stored: int, high: Any, **tags: Any) -> Dataset:
    ds = data_set(values, bits=stored, **tags)
    if high is None:
        del ds.HighBit
    else:
        ds.HighBit = high
    return ds


@examples(60)
@given(
    st.sampled_from([9, 10, 12, 14, 15, 16]), st.booleans(), st.integers(0, 20), st.sampled_from(["low", "shifted", "overlay"]),
    st.sampled_from(["implicit", "explicit", "big endian", "deflated", "RLE"]),
)  # fmt: skip
def test_the_high_bit_is_checked_against_the_values(
    stored: int, signed: bool, high: int, how: str, syntax: str
) -> None:
    plain = waves(stored, signed=signed)
    shift = high + 1 - stored if stored <= high < 16 else 0
    values = plain.copy()
    if how != "low":
        values = plain << shift
        if how == "overlay" and shift:
            values[::3, ::4] |= 1
    elif signed:  # without the sign in the unused bits
        values = (plain.astype(np.int64) & (2**stored - 1)).astype("u2").view("i2")
    tags = {"WindowCenter": 2 ** (stored - 1) if not signed else 0, "WindowWidth": 2**stored}
    found = decode(LOSSLESS[syntax](with_high_bit(values.astype(plain.dtype), stored, high, **tags)))
    np.testing.assert_array_equal(
        found.pixels, decode(written(with_high_bit(plain, stored, stored - 1, **tags))).pixels
    )
    assert len(found.remarks) == (high != stored - 1)
    if found.remarks:
        moved = f"shifted down by {shift} bits" if shift and how != "low" else "lie in the low bits"
        assert f"HighBit {high} contradicts {stored} bits stored" in found.remarks[0] and moved in found.remarks[0]


def test_a_missing_high_bit_is_that_of_the_stored_bits() -> None:
    found = decode(written(with_high_bit(waves(12), 12, None)))
    np.testing.assert_array_equal(found.pixels, decode(dicom(waves(12), bits=12)).pixels)
    assert found.remarks == ()


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_cut_off_with_a_remark(signed: bool) -> None:
    values = waves(12, signed=signed)
    over = (values.view("u2") & 0xFFF | 0x4000 * (np.arange(len(values)) < 5)[:, None]).astype("u2")
    found = decode(dicom(over.view(values.dtype), bits=12))
    np.testing.assert_array_equal(found.pixels, decode(dicom(values, bits=12)).pixels)
    assert found.remarks == ("bits above the 12 that are stored are set, as by an overlay, and are cut off",)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("kind", ["IS", "DS", "LO", "SS", "UL"])
@pytest.mark.parametrize("name", ["SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"])
def test_whole_numbers_of_another_representation_are_read(name: str, kind: str) -> None:
    ds = data_set(waves(12), bits=12, PhotometricInterpretation="monochrome2")
    plain = decode(dicom(waves(12), bits=12))
    ds.add_new(name, kind, str(ds[name].value) if kind in {"IS", "DS", "LO"} else ds[name].value)
    found = decode(written(ds))
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    assert found.remarks == () and found.mode == "MONOCHROME2"


@pytest.mark.parametrize("name", ["JPEG lossless", "JPEG-LS", "JPEG 2000 lossless"])
def test_a_compressed_frame_knows_its_bits(name: str) -> None:
    pytest.importorskip("gdcm")
    data = LOSSLESS[name](data_set(waves(12), bits=12))
    at = data.index(struct.pack("<HH", 0x28, 0x102) + b"US\x02\0") + 8
    found = decode(data[:at] + b"\x0f\0" + data[at + 2 :])
    np.testing.assert_array_equal(found.pixels, decode(data).pixels)
    assert len(found.remarks) == 1


def test_the_case_with_a_wrong_high_bit_is_decoded(shared: Path) -> None:
    file = shared / "cases" / "dicom" / "highbit_wrong.dcm"
    if not file.is_file():
        pytest.skip("no cases/dicom in the shared folder")
    assert decode(file).remarks == ("HighBit 15 contradicts 12 bits stored; the values lie in the low bits",)


# the presentation LUT shape


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "remarked"),
    [
        ("MONOCHROME2", None, False, False), ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME1", None, True, False), ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME2", "INVERSE", True, True), ("MONOCHROME1", "IDENTITY", True, True),
        ("MONOCHROME2", "LIN OD", False, False), ("MONOCHROME2", "", False, False),
    ],
)  # fmt: skip
def test_the_shape_and_the_photometric_interpretation_invert_once(
    photometric: str, shape: str | None, inverted: bool, remarked: bool
) -> None:
    """PS3.3 C.11.6.1.2, and table C.8-71: IDENTITY belongs to MONOCHROME2, INVERSE to MONOCHROME1."""
    plain = decode(dicom(waves(12), bits=12)).pixels
    tags = {} if shape is None else {"PresentationLUTShape": shape}
    found = decode(dicom(waves(12), bits=12, PhotometricInterpretation=photometric, **tags))
    assert np.abs(found.pixels.astype(int) - (255 - plain.astype(int) if inverted else plain)).max() <= 1
    assert bool(found.remarks) == remarked


def test_what_cannot_be_computed_is_refused() -> None:
    refused(with_texts({"RescaleSlope": "1e305"}), "RescaleSlope and RescaleIntercept lead beyond")
    refused(with_texts({"WindowWidth": "4,096", "WindowCenter": "3"}), "may be 4.096 or 4096; mend the header")
