"""Stored values to grey levels, against an oracle that looks at one pixel at a time and shares no code with the package."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
import pydicom.pixels
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from tests.conftest import examples
from tests.imaging.files import Array, bare, data_set, dicom, refused, written

from thoraclip.imaging import decode

HALF = 0.5 + 1e-6


@dataclass(frozen=True, kw_only=True)
class Table:
    """One item of a LUT sequence: (count, first, bits) and the entries."""

    first: int
    bits: int
    entries: list[int]

    def item(self, *, vr: str = "US", signed: bool = False) -> Dataset:
        item = Dataset()
        item.add_new("LUTDescriptor", "SS" if signed else "US", [len(self.entries) % 65536, self.first, self.bits])
        data: Any = self.entries
        if vr == "OW":
            data = np.array(self.entries, "<u2").tobytes()
        elif vr == "packed":  # two entries of 8 bits in a word
            data, vr = bytes(self.entries) + b"\0" * (len(self.entries) % 2), "OW"
        item.add_new("LUTData", vr, data)
        return item


@dataclass(frozen=True, kw_only=True)
class Display:
    """What a DICOM file says of its pixels."""

    bits: int = 12
    photometric: str = "MONOCHROME2"
    slope: float | None = None
    intercept: float | None = None
    modality: Table | None = None
    voi: Table | None = None
    centre: float | None = None
    width: float | None = None
    function: str | None = None
    padding: tuple[int, int | None] | None = None

    def tags(self, *, vr: str = "US", signed: bool = False) -> dict[str, Any]:
        named = {
            "PhotometricInterpretation": self.photometric, "RescaleSlope": self.slope, "RescaleIntercept": self.intercept,
            "WindowCenter": self.centre, "WindowWidth": self.width, "VOILUTFunction": self.function,
        }  # fmt: skip
        tags = {name: value for name, value in named.items() if value is not None}
        if self.modality:
            tags["ModalityLUTSequence"] = [self.modality.item(vr=vr, signed=signed)]
        if self.voi:
            tags["VOILUTSequence"] = [self.voi.item(vr=vr, signed=signed or self.voi.first < 0)]
        return tags


def file_of(values: Array, say: Display, **how: Any) -> bytes:
    ds = data_set(values, bits=say.bits, **say.tags(**how))
    if say.padding:
        vr = "SS" if values.dtype.kind == "i" else "US"
        for name, value in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), say.padding, strict=True):
            if value is not None:
                ds.add_new(name, vr, value)
    return written(ds)


# the oracle


def table_value(table: Table, x: float) -> int:
    """PS3.3 C.11.1.1.1 and C.11.2.1.1: below the first mapped value the first entry, beyond the last the last one."""
    index = round(x) - table.first
    return table.entries[0] if index < 0 else table.entries[-1] if index >= len(table.entries) else table.entries[index]


def measured(say: Display, stored: int) -> float:
    """PS3.3 C.11.1"""
    if say.modality:
        return table_value(say.modality, stored)
    return stored * (1 if say.slope is None else say.slope) + (0 if say.intercept is None else say.intercept)


def window_value(say: Display, x: float) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, with y from 0 to 255"""
    c, w = say.centre, say.width
    assert c is not None and w is not None
    if say.function == "SIGMOID":
        return 255 / (1 + math.exp(min(700, max(-700, -4 * (x - c) / w))))
    if say.function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 255.0 if x > c + w / 2 else ((x - c) / w + 0.5) * 255
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 255.0 if x > c - 0.5 + (w - 1) / 2 else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255


def oracle(values: Array, say: Display) -> Array:
    """f64[H, W] in 0..255, unrounded."""
    rows = values.astype(int).tolist()

    def is_padding(stored: int) -> bool:
        if say.padding is None:
            return False
        one, other = say.padding[0], say.padding[0] if say.padding[1] is None else say.padding[1]
        return min(one, other) <= stored <= max(one, other)

    inside = [measured(say, v) for row in rows for v in row if not is_padding(v)]
    low, high = (min(inside), max(inside)) if inside else (0, 0)
    can_window = say.width is not None and say.centre is not None and say.voi is None
    can_window = can_window and say.width >= (1 if say.function in (None, "LINEAR") else 1e-6)
    if can_window and low != high and len({window_value(say, x) for x in inside}) == 1:
        can_window = False  # it shows nothing
    is_plain = say.modality is None and all(measured(say, v) == v for row in rows for v in row)

    def level(stored: int) -> float:
        if is_padding(stored):
            return 0.0
        x = measured(say, stored)
        if say.voi:
            y = table_value(say.voi, x) * 255 / (2**say.voi.bits - 1)
        elif can_window:
            y = window_value(say, x)
        elif is_plain and say.bits <= 8:
            y = (x + (2 ** (say.bits - 1) if values.dtype.kind == "i" else 0)) * 255 / (2**say.bits - 1)
        else:
            y = (x - low) * 255 / (high - low) if high > low else 0.0
        y = min(255.0, max(0.0, y))
        return 255 - y if say.photometric == "MONOCHROME1" else y

    return np.array([[level(v) for v in row] for row in rows])


def check(values: Array, say: Display, **how: Any) -> Array:
    found = decode(file_of(values, say, **how)).pixels
    expected = oracle(values, say)
    assert np.abs(found - expected).max() <= HALF, say
    return expected


# picture by picture


def ramp(bits: int, *, signed: bool = False, low: float = 0.0, high: float = 1.0) -> Array:
    """256 values over a share of what the bits can hold."""
    span = 2**bits - 1
    values = np.linspace(low * span, high * span, 256).round().astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return values.reshape(8, 32).astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def square(count: int, bits: int, first: int = 0) -> Table:
    """A table that rises ever faster to the largest value of its bits."""
    return Table(first=first, bits=bits, entries=[int((2**bits - 1) * (i / (count - 1)) ** 2) for i in range(count)])


@pytest.mark.parametrize(
    ("bits", "signed", "photometric", "ends"),
    [
        (8, False, "MONOCHROME2", (51, 178)),
        (8, True, "MONOCHROME1", (77, 204)),
        (10, True, "MONOCHROME2", (0, 255)),
        (16, False, "MONOCHROME1", (0, 255)),
    ],
)
def test_without_a_window(bits: int, signed: bool, photometric: str, ends: tuple[int, int]) -> None:
    """8 bits as they are; deeper ones from black to white."""
    expected = check(ramp(bits, signed=signed, low=0.2, high=0.7), Display(bits=bits, photometric=photometric))
    assert (expected.min(), expected.max()) == ends


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_slopes_and_intercepts(function: str | None) -> None:
    for centre, width in ((1000, 500), (1000.5, 1), (3000, 2), (0, 4096), (2047.25, 333.3)):
        check(ramp(12), Display(centre=centre, width=width, function=function))
    for slope, intercept in ((2, -1000), (3, None), (None, -500), (-1, 4095)):
        expected = check(
            ramp(12), Display(slope=slope, intercept=intercept, centre=1500, width=2000, function=function)
        )
        assert function == "SIGMOID" or (expected == 0).sum() > 10


@pytest.mark.parametrize(("vr", "bits"), [("packed", 8), *((vr, bits) for vr in ("US", "OW") for bits in (8, 12, 16))])
def test_tables(vr: str, bits: int) -> None:
    """Above 256 entries of 8 bits an index in 8 bits would wrap."""
    check(ramp(12), Display(modality=square(1023, bits, first=800)), vr=vr)
    say = Display(photometric="MONOCHROME1", voi=square(3001, bits, first=400), centre=10, width=5)
    assert len(np.unique(check(ramp(12), say, vr=vr).round())) > 60
    if vr != "packed":
        check(ramp(12), Display(slope=1, intercept=-1024, voi=square(2048, bits, first=-1000)), vr=vr)
        say = Display(modality=square(3000, 16, first=-1500), centre=20_000, width=30_000)
        check(ramp(12, signed=True), say, vr=vr, signed=True)


def test_tables_of_more_entries_than_a_signed_number_holds() -> None:
    check(ramp(16), Display(bits=16, voi=square(65_536, 16)), vr="OW")
    check(ramp(16, signed=True), Display(bits=16, voi=square(40_000, 16, first=-32_768)), vr="OW", signed=True)


def test_tables_in_big_endian_and_in_implicit_files() -> None:
    table = square(4096, 12)
    expected = oracle(ramp(12), Display(voi=table))
    swapped = table.item(vr="OW")
    swapped.LUTData = np.frombuffer(swapped.LUTData, "<u2").astype(">u2").tobytes()
    plain = table.item()
    for item, implicit, little in (
        (plain, True, True),
        (plain, False, True),
        (plain, False, False),
        (swapped, False, False),
    ):
        data = bare(data_set(ramp(12), bits=12, VOILUTSequence=[item]), implicit=implicit, little=little)
        assert np.abs(decode(data).pixels - expected).max() <= HALF


def test_a_table_shorter_than_it_says_is_refused() -> None:
    item = square(100, 12).item(vr="OW")
    item.LUTDescriptor = [200, 0, 12]
    refused(dicom(ramp(12), bits=12, VOILUTSequence=[item]), "^image: DICOM pixels cannot be decoded")


@pytest.mark.filterwarnings("ignore:Value length")
@pytest.mark.parametrize("bits", [8, 12])
def test_empty_numbers_count_as_missing_and_so_does_a_window_that_shows_nothing(bits: int) -> None:
    values = ramp(bits, low=0.3, high=0.6)
    expected = oracle(values, Display(bits=bits))
    for centre, width, function in (
        (10, 0, None), (10, 0.5, "LINEAR"), (None, None, None), (10, None, None), (None, 10, None), (10, 0, "SIGMOID"),
        (10, 0, "LINEAR_EXACT"), (60_000, 100, None), (-60_000, 100, None),
    ):  # fmt: skip
        tags = {"WindowCenter": centre, "WindowWidth": width, "RescaleSlope": None, "RescaleIntercept": None}
        tags |= {"VOILUTFunction": function} if function else {}
        assert np.abs(decode(dicom(values, bits=bits, **tags)).pixels - expected).max() <= HALF, tags


def test_the_first_of_several_windows_and_of_several_tables_is_taken() -> None:
    tables = [square(4096, 12), square(3000, 12)]
    for tags, say in (
        ({"WindowCenter": [1000, 3000], "WindowWidth": [500, 700]}, Display(centre=1000, width=500)),
        ({"VOILUTSequence": [table.item() for table in tables]}, Display(voi=tables[0])),
    ):
        assert np.abs(decode(dicom(ramp(12), bits=12, **tags)).pixels - oracle(ramp(12), say)).max() <= HALF


@pytest.mark.parametrize("padding", [(0, None), (4095, None), (0, 300), (4095, 3900), (300, 0)])
def test_padding_is_black_and_does_not_count(padding: tuple[int, int | None]) -> None:
    values = ramp(12, low=0.2, high=0.8)
    values[:3], values[0, :4] = padding[0], padding[1] if padding[1] is not None else padding[0]
    assert (check(values, Display(padding=padding, centre=2000, width=3000))[:3] == 0).all()
    expected = check(values, Display(photometric="MONOCHROME1", padding=padding))
    assert (expected[:3] == 0).all() and (expected[3:].min(), expected[3:].max()) == (0, 255)
    assert (check(np.full((4, 5), padding[0], "u2"), Display(photometric="MONOCHROME1", padding=padding)) == 0).all()


@pytest.mark.parametrize("padding", [-2000, -32_768])
def test_padding_of_signed_pixels(padding: int) -> None:
    """Files say US where the rule is SS; 63,536 and -2,000 are the same 16 bits."""
    values = ramp(16, signed=True, low=0.45, high=0.6)
    values[:2] = padding
    check(values, Display(bits=16, padding=(padding, padding + 100), slope=2, intercept=7))
    ds = data_set(values)
    ds.add_new("PixelPaddingValue", "US", padding % 2**16)
    expected = oracle(values, Display(bits=16, padding=(padding, None)))
    assert np.abs(decode(written(ds)).pixels - expected).max() <= HALF


@pytest.mark.parametrize(("bits", "signed"), [(6, False), (10, False), (15, False), (12, True)])
def test_unused_high_bits_are_not_part_of_a_value(bits: int, signed: bool) -> None:
    """Old files keep an overlay there."""
    values = ramp(bits, signed=signed).astype("i2" if signed else "u2")
    garbage = np.random.default_rng(0).integers(0, 2 ** (16 - bits), values.shape) << bits
    dirty = ((values.astype(np.int64) & (2**bits - 1)) | garbage).astype("u2").view(values.dtype)
    say = Display(bits=bits, centre=None if signed else 500, width=None if signed else 700)
    assert np.abs(decode(file_of(dirty, say)).pixels - oracle(values, say)).max() <= HALF


# against pydicom


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "table"])
def test_the_oracle_agrees_with_pydicom(function: str) -> None:
    say, low, high = Display(slope=2, intercept=-1000, centre=900, width=1200, function=function), -1000, 7190
    if function == "table":
        say, low, high = Display(modality=square(3500, 16, first=100), voi=square(30_000, 12, first=500)), 0, 4095
    data = file_of(ramp(12), say, vr="OW")
    ds = pydicom.dcmread(io.BytesIO(data))
    y = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(ds.pixel_array, ds), ds).astype(float)
    assert np.abs(oracle(ramp(12), say) - (y - low) * 255 / (high - low)).max() <= HALF  # its range: that of the values


# everything at once


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Array, Display, str]:
    bits = draw(st.sampled_from([8, 10, 12, 14, 15, 16]))
    signed = draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    stored = st.integers(low, low + 2**bits - 1)
    sides = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    flat = draw(st.lists(stored, min_size=sides[0] * sides[1], max_size=sides[0] * sides[1]))
    values = np.array(flat).reshape(sides).astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    say: dict[str, Any] = {"bits": bits, "photometric": draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"]))}

    def table(depths: list[int], first: st.SearchStrategy[int]) -> Table:
        depth, count = draw(st.sampled_from(depths)), draw(st.integers(2, 600))
        step = draw(st.integers(1, 5000))
        return Table(first=draw(first), bits=depth, entries=[i * step % 2**depth for i in range(count)])

    kind = draw(st.sampled_from(["plain", "rescale", "table"]))
    if kind == "rescale":
        say |= {"slope": draw(st.sampled_from([-3, -1, None, 2, 0.25]))}
        say |= {"intercept": draw(st.none() | st.integers(-2000, 2000))}
    elif kind == "table":
        say["modality"] = table([8, 16], stored.map(lambda v: max(low, v // 2)))
    shown = draw(st.sampled_from(["nothing", "window", "window", "table"]))
    if shown == "window":
        function = draw(st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
        say |= {"function": function, "centre": draw(st.integers(-3000, 60_000)), "width": draw(st.integers(1, 70_000))}
        if function == "SIGMOID":  # far from its centre every level differs by less than a double can hold
            say["width"] = max(say["width"], 10_000)
    elif shown == "table" and say.get("slope") != 0.25:  # a table wants whole numbers
        say["voi"] = table([8, 10, 12, 16], st.integers(0, 30_000))
    if draw(st.booleans()):
        say["padding"] = draw(stored), draw(st.none() | stored)
    return values, Display(**say), draw(st.sampled_from(["US", "OW"]))


@examples(200)
@given(pictures())
def test_any_picture_is_that_of_the_oracle(picture: tuple[Array, Display, str]) -> None:
    values, say, vr = picture
    check(values, say, vr=vr, signed=values.dtype.kind == "i" and say.modality is not None)
