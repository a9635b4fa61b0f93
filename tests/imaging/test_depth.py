"""16-bit PNG: the same anatomy is the same grey whatever else is in the picture, and gamma as a screen shows it.

The files are written by hand, so that no reader of ours or of Pillow's decides what stands in them.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from tests.conftest import draw_picture, examples
from tests.imaging.files import Array, chunk, encoded, png

from thoraclip.imaging import Radiograph, decode
from thoraclip.imaging.depth import common_depth, estimate_depth

KINDS = {"grey": 0, "RGB": 2, "LA": 4, "RGBA": 6}
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def written(samples: Array, colour: int, *chunks: bytes, interlace: bool = False, bits: int = 16) -> bytes:
    """A PNG of samples [H, W, channels]; row r has the filter r % 3: none, left, or up."""
    kind = ">u2" if bits == 16 else "u1"
    lines = b""
    for y, x, dy, dx in ADAM7 if interlace else [(0, 0, 1, 1)]:
        part = samples[y::dy, x::dx]
        if not part.size:
            continue
        size = part.shape[2] * bits // 8
        above = np.zeros(part.shape[1] * size, np.uint8)
        for number, row in enumerate(part):
            line = np.frombuffer(row.astype(kind).tobytes(), np.uint8)
            left = np.concatenate([np.zeros(size, np.uint8), line[:-size]])
            lines += bytes([number % 3]) + (line - [0 * line, left, above][number % 3]).astype(np.uint8).tobytes()
            above = line
    height, width = samples.shape[:2]
    return png((width, height, bits, colour), *chunks, chunk(b"IDAT", zlib.compress(lines)), interlace=int(interlace))


def as_kind(grey: Array, kind: str, alpha: int = 65535) -> Array:
    """[H, W, channels] of a grey picture."""
    planes = [grey] * (3 if kind.startswith("RGB") else 1)
    return np.stack([*planes, *([np.full_like(grey, alpha)] if kind.endswith("A") else [])], axis=-1)


def file_of(grey: Array, kind: str = "grey", *chunks: bytes, **how: Any) -> bytes:
    return written(as_kind(grey, kind), KINDS[kind], *chunks, **how)


def scaled(values: Any, bits: int, exponent: float = 1.0) -> Array:
    return np.asarray(255 * np.minimum(np.asarray(values, float) / (2**bits - 1), 1) ** exponent)


def close(found: Radiograph, expected: Array, within: float = 0.51) -> None:
    assert np.abs(found.pixels - expected).max() <= within


ANY = np.random.default_rng(0).integers(0, 65536, (19, 23, 4)).astype(np.uint16)


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_bytes_of_every_sample_are_read(kind: str, interlace: bool) -> None:
    """Low bytes decide: all high bytes are 1."""
    samples = (256 + ANY % 256)[..., : as_kind(ANY[..., 0], kind).shape[-1]]
    grey = samples[..., :3] @ [0.299, 0.587, 0.114] if kind.startswith("RGB") else samples[..., 0]
    if kind.endswith("A"):
        samples[..., -1] = ANY[..., -1]
    share = samples[..., -1] / 65535 if kind.endswith("A") else 1.0
    close(decode(written(samples, KINDS[kind], interlace=interlace), bits=9), scaled(grey, 9) * share)


@pytest.mark.parametrize("kind", ["grey", "RGB"])
def test_the_transparent_colour_of_16_bits_lies_over_black(kind: str) -> None:
    grey = np.full((8, 9), 3000, np.uint16)
    grey[2:4], grey[5] = 3001, 65535  # which must neither be hidden nor decide the depth
    data = file_of(grey, kind, chunk(b"tRNS", struct.pack(">H", 3001) * (3 if kind == "RGB" else 1)))
    close(decode(data, bits=12), np.where(grey == 3001, 0, scaled(grey, 12)))


def test_deep_pictures_are_turned_as_their_exif_says() -> None:
    image = Image.fromarray(ANY[..., 0] >> 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    close(decode(encoded(image, exif=exif)), scaled(np.rot90(ANY[..., 0] >> 4, -1), 12))


# the depth: the rule


@st.composite
def anatomies(draw: st.DrawFn) -> tuple[Array, int]:
    """(u16[H, W] of a depth, the depth); exposures from dark to bright, the background black or not."""
    bits, size = draw(st.integers(9, 16)), draw(st.sampled_from([48, 64, 96]))
    grey = draw_picture(size, size, seed=draw(st.integers(0, 99))).astype(float)
    fine = np.random.default_rng(draw(st.integers(0, 99))).normal(0, 2, grey.shape)
    grey = np.clip(grey + fine, 0, None) / (grey + fine).max()
    grey = grey ** draw(st.sampled_from([0.7, 1.0, 1.3]))
    if draw(st.booleans()):
        grey[grey < 0.2] = 0
    return np.round(grey * (2**bits - 1) * draw(st.sampled_from([0.65, 0.8, 1.0]))).astype(np.uint16), bits


@st.composite
def disturbances(draw: st.DrawFn, size: int) -> Array:
    """bool[H, W]: where a pixel, a marker or a border lies."""
    where = np.zeros((size, size), bool)
    kind = draw(st.sampled_from(["none", "pixel", "marker", "border"]))
    if kind == "pixel":
        where[draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))] = True
    elif kind == "marker":
        side = round(size * draw(st.sampled_from([0.1, 0.2])))
        top, left = draw(st.integers(0, size - side)), draw(st.integers(0, size - side))
        where[top : top + side, left : left + side] = True
    elif kind == "border":
        width = draw(st.integers(1, size // 5))  # up to 64 % of the picture
        where[:] = True
        where[width:-width, width:-width] = False
    return where


def disturbed(data: st.DataObject) -> tuple[Array, Array, Array, int]:
    """(the anatomy, the same with something on it, where that lies, the depth)."""
    plain, bits = data.draw(anatomies())
    where = data.draw(disturbances(len(plain)))
    level = data.draw(st.sampled_from([0, 2**bits - 1, min(2**bits, 65535), 4096, 40_000, 65535]))
    return plain, np.where(where, level, plain).astype(np.uint16), where, bits


@examples(150)
@given(st.data(), st.sampled_from(list(KINDS)), st.booleans())
def test_the_same_anatomy_is_the_same_grey_whatever_else_is_in_the_picture(
    data: st.DataObject, kind: str, is_declared: bool
) -> None:
    plain, other, where, bits = disturbed(data)
    chunks = [chunk(b"tEXt", b"BitsStored\0%d" % bits)] if is_declared else []
    first, second = decode(file_of(plain, kind, *chunks)), decode(file_of(other, kind, *chunks))
    assert (
        first.bits == second.bits == bits
        and first.depth is not None
        and first.depth.origin == ("file" if is_declared else "estimate")
    )
    close(first, scaled(plain, bits))
    close(second, scaled(other, bits))
    assert np.abs(first.pixels[~where].astype(int) - second.pixels[~where]).max(initial=0) <= 1
    assert bool(second.remarks) == bool((other >= 2**bits).any()), second.remarks


@examples(40)
@given(st.data(), st.integers(9, 14))
def test_soft_edges_and_noise_of_a_marker_do_not_decide_the_depth(data: st.DataObject, bits: int) -> None:
    plain = np.round(draw_picture(96, 96, seed=data.draw(st.integers(0, 99))) / 255 * (2**bits - 1)).astype(np.uint16)
    marked = plain.astype(float)
    level = data.draw(st.sampled_from([2 ** (bits + 2) - 1, 65535]))
    y, x = np.ogrid[:96, :96]
    soft = np.clip(9 - np.hypot(y - 30, x - 60), 0, 1)
    marked = marked * (1 - soft) + soft * level
    marked[80:90, 10:40] = data.draw(st.sampled_from([0, 0.97 * level])) or plain[80:90, 10:40]
    assert decode(file_of(plain)).bits == bits == decode(file_of(np.round(marked).astype(np.uint16))).bits


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 256])
def test_a_wedge_of_few_levels_keeps_its_depth(levels: int) -> None:
    wedge = np.linspace(0, 65535, levels).round().astype(np.uint16).repeat(max(1, 1024 // levels))[None]
    close(decode(file_of(wedge)), scaled(wedge, 16), within=0.51)


def test_a_continuous_tail_is_anatomy() -> None:
    """A dark exposure with half a percent above 2,047, and white air beside it."""
    rng = np.random.default_rng(0)
    dark = rng.uniform(0, 1900, (100, 100)).astype(np.uint16)
    dark[0, :50] = np.linspace(2048, 3000, 50)
    dark[-10:] = 4095
    assert decode(file_of(dark)).bits == 12


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
def test_what_is_transparent_does_not_decide_the_depth(kind: str) -> None:
    samples = as_kind(ramp(11), kind)
    samples[:15, :, :-1] = ANY[:15, :1, :1] | 0x8000
    samples[:15, :, -1] = 0
    found = decode(written(samples, KINDS[kind]))
    assert found.bits == 11 and found.remarks == () and not found.pixels[:15].any()


def test_bad_counts_do_not_stop_the_estimate() -> None:
    for level in (0, 5, 255, 256, 40_000, 65535):
        even = np.full((4, 4), level, np.uint16)
        assert decode(file_of(even)).bits == max(8, level.bit_length())
    hidden = np.zeros((4, 4, 2), np.uint16)
    assert (decode(written(hidden, 4)).pixels == 0).all()  # nothing is visible
    assert estimate_depth(np.zeros(65536, np.int64)) == 8


# who states the depth


def ramp(bits: int, high: float = 1.0) -> Array:
    return np.linspace(0, high * (2**bits - 1), 40 * 50).round().astype(np.uint16).reshape(40, 50)


def text(kind: bytes, key: bytes, value: bytes) -> bytes:
    if kind == b"tEXt":
        return chunk(kind, key + b"\0" + value)
    if kind == b"zTXt":
        return chunk(kind, key + b"\0\0" + zlib.compress(value))
    return chunk(kind, key + b"\0\1\0\0\0" + zlib.compress(value))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize(
    ("key", "value", "bits"),
    [
        (b"bits", b"12", 12), (b"Bits Stored", b" 12-bit ", 12), (b"BitDepth", b"12 bits", 12),
        (b"(0028,0101)", b"12", 12), (b"Comment", b"12", 10), (b"bits", b"twelve", 10), (b"bits", b"77", 10),
        (b"bits", b"0", 10), (b"dicom:BitsStored", b"12.0", 12), (b"unused bits", b"12", 10),
    ],
)  # fmt: skip
def test_text_of_the_file_states_the_depth(kind: bytes, key: bytes, value: bytes, bits: int) -> None:
    found = decode(file_of(ramp(10), "grey", text(kind, key, value)))
    assert found.bits == bits
    close(found, scaled(ramp(10), bits))


def test_what_is_stated_goes_before_the_file_the_set_and_the_estimate() -> None:
    said, silent = file_of(ramp(10), "grey", text(b"tEXt", b"bits", b"12")), file_of(ramp(10))
    order = [
        decode(said, bits=14, of_set=13), decode(said, of_set=13), decode(silent, of_set=13), decode(silent),
        decode(silent, bits=14),
    ]  # fmt: skip
    assert [(r.bits, r.depth and r.depth.origin) for r in order] == [
        (14, "stated"), (12, "file"), (13, "set"), (10, "estimate"), (14, "stated")
    ]  # fmt: skip
    eight = decode(encoded(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))), bits=12, of_set=12)
    assert (eight.depth, int(eight.pixels.max())) == (None, 63)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("significant", [9, 10, 12, 15, 16])
@pytest.mark.parametrize("how", ["as they were", "zeros below", "high bits repeated"])
def test_significant_bits_are_scaled_to_16_by_the_standard_and_not_by_many_writers(
    kind: str, significant: int, how: str
) -> None:
    """PNG, third edition, 11.3.2.5 and 13.12."""
    values, step = ramp(significant, 0.9).astype(np.int64), 16 - significant
    samples = values if how == "as they were" else values << step
    if how == "high bits repeated":
        samples = samples | values >> (significant - step)
    sbit = chunk(b"sBIT", bytes([significant] * as_kind(values, kind).shape[-1]))
    found = decode(file_of(samples.astype(np.uint16), kind, sbit))
    assert found.depth is not None and found.depth.origin == "file" and not found.remarks
    close(found, scaled(values, significant), within=1)


@pytest.mark.parametrize("broken", [b"", b"\0", b"\x11", b"\xff"])
def test_a_count_of_significant_bits_that_cannot_be_is_passed_over(broken: bytes) -> None:
    assert decode(file_of(ramp(11), "grey", chunk(b"sBIT", broken))).bits == 11


def test_a_range_that_does_not_fit_its_depth_is_remarked() -> None:
    above = decode(file_of(ramp(13)), bits=12)
    assert above.remarks == ("1,000 of 2,000 pixels exceed 4,095, the largest value of 12 bits, and are shown white",)
    close(above, scaled(ramp(13), 12))
    (dark,) = decode(file_of(ramp(12)), bits=16).remarks
    assert dark == "its values take 12 of 16 bits, so it is shown dark; state the depth with --bits"
    assert decode(file_of(ramp(12)), bits=14).remarks == ()  # a dark exposure
    assert decode(file_of(0 * ramp(12)), bits=16).remarks == ()


@examples(100)
@given(st.data(), st.sampled_from(list(KINDS)), st.integers(8, 15), st.booleans(), st.integers(0, 30))
def test_a_depth_that_does_not_hold_the_anatomy_is_passed_over(
    data: st.DataObject, kind: str, too_few: int, in_file: bool, dark: int
) -> None:
    """Neither one picture of 16 bits among many of 12 nor a wrong sBIT turns anatomy white."""
    bits = data.draw(st.integers(too_few + 1, 16))
    values = ramp(bits, 1 - dark / 100)
    said = [chunk(b"sBIT", bytes([too_few] * as_kind(values, kind).shape[-1]))] if in_file else []
    found = decode(file_of(values, kind, *said), of_set=None if in_file else too_few)
    assert found.depth is not None and (found.depth.origin, found.bits) == ("estimate", bits)
    of = "that it declares" if in_file else "of the other images"
    assert found.remarks == (f"the {too_few} bits {of} do not hold its values, so {bits} are taken",)
    close(found, scaled(values, bits))


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
@pytest.mark.parametrize("bits", range(9, 16))
def test_alpha_of_the_depth_of_the_picture_is_opaque(kind: str, bits: int) -> None:
    """A writer that leaves samples of 12 bits as they are leaves 4095 for opaque."""
    found = decode(written(as_kind(ramp(bits), kind, alpha=2**bits - 1), {"LA": 4, "RGBA": 6}[kind]))
    close(found, scaled(ramp(bits), bits))
    assert found.remarks == (f"its alpha ends at {2**bits - 1:,}, which is taken for opaque",)


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
@pytest.mark.parametrize(("bits", "alpha"), [(16, 255), (16, 30_000), (16, 0), (8, 128), (8, 0)])
def test_a_picture_of_which_nothing_is_opaque_is_remarked(kind: str, bits: int, alpha: int) -> None:
    found = decode(written(as_kind(ramp(min(bits, 12)), kind, alpha=alpha), {"LA": 4, "RGBA": 6}[kind], bits=bits))
    if alpha == 255:  # as a writer of 8 bits has it
        close(found, scaled(ramp(12), 12))
        assert found.remarks == ("its alpha ends at 255, which is taken for opaque",)
    else:
        (remark,) = found.remarks
        assert remark == f"nothing of it is opaque (its alpha ends at {alpha:,} of {2**bits - 1:,}), so it is dark"


def test_the_depth_of_a_set_is_not_that_of_one_in_twenty() -> None:
    assert common_depth([11]) == 11
    assert common_depth([11] * 5 + [12] * 5) == 12
    assert common_depth([12] * 39 + [16]) == 12 and common_depth([12] * 9 + [16]) == 16


# gamma


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("gamma", "more", "exponent"),
    [
        (100_000, (), 1 / 2.2), (22_727, (), 2.0), (45_455, (), 1), (47_000, (), 1), (0, (), 1), (None, (), 1),
        (100_000, (b"sRGB",), 1), (100_000, (b"iCCP",), 1), (100_000, (b"cICP",), 1),
        (2**31 - 1, (), 1), (1, (), 1),
    ],
)  # fmt: skip
def test_gamma_is_honoured_as_a_screen_does(
    kind: str, bits: int, gamma: int | None, more: tuple[bytes, ...], exponent: float
) -> None:
    """PNG, third edition, 13.13: screen = sample ^ (1 / (2.2 gamma)); sRGB, iCCP and cICP go before gAMA."""
    body = {b"sRGB": b"\0", b"iCCP": b"x\0\0" + zlib.compress(b"profile"), b"cICP": bytes([1, 13, 0, 1])}
    chunks = [chunk(name, body[name]) for name in more]
    chunks += [] if gamma is None else [chunk(b"gAMA", struct.pack(">I", gamma))]
    values = ramp(bits, 0.99)
    found = decode(written(as_kind(values, kind, 2**bits - 1), KINDS[kind], *chunks, bits=bits))
    close(found, scaled(values, bits, exponent))
    is_passed_over = exponent == 1 and gamma not in (None, 0, 45_455, 47_000)
    assert [" is passed over, " in remark for remark in found.remarks] == [True] * is_passed_over


def test_gamma_of_palettes_and_of_what_is_transparent() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    image.putpalette([10, 10, 10, 200, 200, 200, 100, 100, 100, 50, 50, 50])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=bytes([255, 128, 0, 255]))
    data = stream.getvalue()
    linear = data[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + data[33:]
    shown = scaled([[10, 200], [100, 50]], 8, 1 / 2.2) * np.array([[255, 128], [0, 255]]) / 255
    close(decode(linear), shown, within=1)


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of version 2 for grey pictures (ICC.1:2001-04): its white point, and a curve of one number."""
    white = struct.pack(">3i", *(round(65536 * part) for part in (0.9642, 1, 0.8249)))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(256 * gamma))}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI12s12x4s28x", size, 0x02100000, b"mntrGRAYXYZ ", b"acsp") + white
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2, 3.0, None])
def test_a_profile_that_shows_other_greys_is_remarked(kind: str, mode: str, gamma: float | None) -> None:
    if (kind, mode) == ("JPEG", "I;16"):
        return
    image, stream = (
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("L").convert(mode),
        io.BytesIO(),
    )
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(stream, kind, icc_profile=srgb if gamma is None else grey_profile(gamma))
    (said,) = [remark for remark in decode(stream.getvalue()).remarks if "ICC" in remark] or [None]
    level = np.arange(48, 256, 16) / 255
    power = level ** (gamma or 2.2)
    shown = np.where(power <= 0.0031308, 12.92 * power, 1.055 * power ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    change = 255 * (shown - level)[np.abs(shown - level).argmax()]
    if gamma in (2.2, None):
        assert abs(change) < 8 and said is None
    else:
        assert said is not None and ("brighter" if change > 0 else "darker") in said
        assert abs(int(re.findall(r"\d+", said)[0]) - abs(change)) <= 1


@examples(200)
@given(place=st.integers(0, 200), junk=st.binary(min_size=1, max_size=8), cut=st.integers(0, 300))
@example(place=16, junk=b"\xc6", cut=0)
def test_a_damaged_profile_changes_nothing(place: int, junk: bytes, cut: int) -> None:
    profile = bytearray(grey_profile(1.8))
    profile[place : place + len(junk)] = junk
    image, stream = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), io.BytesIO()
    image.save(stream, "PNG", icc_profile=bytes(profile[cut:]))
    assert np.array_equal(decode(stream.getvalue()).pixels, np.asarray(image))


def test_two_files_that_differ_in_one_pixel(shared: Path) -> None:
    folder = shared / "cases" / "pictures"
    if not folder.is_dir():
        pytest.skip("no cases/pictures in the shared folder")
    first, second = (decode(folder / f"grey16_12bit{name}.png") for name in ("", "_one_pixel_4096"))
    assert (first.pixels != second.pixels).sum() <= 1
    assert first.remarks == () and len(second.remarks) == 1
