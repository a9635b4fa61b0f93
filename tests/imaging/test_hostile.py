"""Files made to crash, hang or flood: each is read or refused, soon and in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import get_frame
from tests.conftest import IS_DEEP
from tests.imaging.damage import damaged, outcome, valid_files
from tests.imaging.files import (
    LOSSLESS,
    bare,
    chunk,
    data_set,
    dicom,
    encapsulated,
    encoded,
    interlaced,
    png,
    refused,
    waves,
    written,
)

from thoraclip.imaging import decode

pytest.importorskip("gdcm")
pytest.importorskip("openjpeg")
pytestmark = pytest.mark.filterwarnings("ignore")

PIXEL = chunk(b"IDAT", zlib.compress(b"\0\0"))
GREY = waves(8)
JPEG = encoded(Image.fromarray(GREY), "JPEG")


def survived(data: bytes) -> None:
    """It is read or refused."""
    found = outcome(data)
    assert not found.startswith("FAILED"), found


@pytest.fixture(autouse=True)
def soon_and_in_bounded_memory() -> Iterator[None]:
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


# what is no picture


def test_other_files_by_any_name(tmp_path: Path) -> None:
    archive, picture = io.BytesIO(), Image.fromarray(GREY)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    others = {
        "zip": archive.getvalue(), "gzip": gzip.compress(b"hello"), "elf": b"\x7fELF\x02\x01\x01" + bytes(100),
        "html": b"<!doctype html><html><body>Not found</body></html>", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "svg": b"<svg/>", "json": b'{"message": "not found"}', "npy": b"\x93NUMPY\x01\x00v\x00", "zeros": bytes(1000),
        "one": b"x", **{kind: encoded(picture, kind) for kind in ("gif", "bmp", "tiff", "webp", "ppm")},
    }  # fmt: skip
    foreign = {"gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "webp": "WebP"}
    for name, data in others.items():
        told = rf" \({foreign[name]} is not read; convert it to PNG\)" if name in foreign else ""
        for suffix in (".png", ".jpg", ".dcm"):
            (tmp_path / (name + suffix)).write_bytes(data)
            refused(tmp_path / (name + suffix), rf"{name}\{suffix}: not a PNG, JPEG or DICOM picture{told}$")


def test_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(512 * 1024**2 + 1)
    for name, message in (
        ("", "cannot be read"),
        ("gone", r"gone: cannot be read \(No such file"),
        ("empty", "empty: the file is empty"),
        ("loop", "cannot be read"),
        ("zero", r"zero: cannot be read \(not a regular file\)"),
        ("pipe", r"pipe: cannot be read \(not a regular file\)"),
        ("sparse", r"536,870,913 bytes is more than 536,870,912; not a radiograph"),
    ):
        refused(tmp_path / name, message)


# what ends early


def test_headers_alone() -> None:
    jpeg = (b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0")
    for data in (b"\x89PNG\r\n\x1a\n", *jpeg, bytes(128) + b"DICM", b"\x08\x00", b"\x02\x00"):
        refused(data, "not a PNG|damaged|header without pixel data")


SMALL = waves(8, height=12, width=9)


@pytest.mark.parametrize(
    "whole",
    [
        encoded(Image.fromarray(SMALL)),
        interlaced(SMALL),
        encoded(Image.fromarray(SMALL), "JPEG"),
        encoded(Image.fromarray(SMALL).convert("RGB"), "JPEG", progressive=True),
        encoded(Image.fromarray(SMALL).convert("RGB").quantize(9)),
    ],
    ids=["png", "interlaced", "jpeg", "progressive", "palette"],
)
def test_pictures_truncated_at_every_length(whole: bytes) -> None:
    pixels, read = decode(whole).pixels, 0
    assert pixels.shape == (12, 9)
    for length in range(1, len(whole)):
        found = outcome(whole[:length])
        if found != "read":
            assert found.startswith(("damaged picture (", "not a PNG, JPEG or DICOM picture")), (length, found)
        else:  # only the end chunk, a checksum or the end marker are missing
            np.testing.assert_array_equal(decode(whole[:length]).pixels, pixels)
            read += 1
    assert read <= 24


def test_dicom_truncated_at_many_lengths() -> None:
    for name in ("explicit", "implicit", "deflated", "RLE", "JPEG lossless"):
        whole = LOSSLESS[name](data_set(waves(12, height=9, width=7), bits=12, PatientID="1"))
        for length in range(1, len(whole) - 8, 11 if name == "JPEG lossless" else 3):
            survived(whole[:length])


# sizes


def jpeg_of(height: int, width: int, **options: object) -> bytes:
    data = bytearray(encoded(Image.fromarray(GREY), "JPEG", **options))
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(("height", "width"), [(3, 40), (40, 3)])
def test_the_limit_is_on_width_times_height_before_anything_is_decoded(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide or tall picture of exactly so many pixels is read, one more is refused, in every format."""
    grey = waves(8, height=height, width=width)
    frame = encoded(Image.fromarray(grey), "JPEG")
    files = [encoded(Image.fromarray(grey)), frame, encapsulated(data_set(grey), uid.JPEGBaseline8Bit, frame)]
    files += [dicom(grey), LOSSLESS["deflated"](data_set(grey)), LOSSLESS["RLE"](data_set(grey))]
    for data in files:
        assert decode(data, max_pixels=120).pixels.shape == (height, width)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("pydicom.pixels.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    for data in files:
        refused(data, "more than 119.*not a radiograph$", max_pixels=119)
    large = (1000 * height, 10**8 // (1000 * height) + 1)
    for data in (png((large[1], large[0], 8, 0), PIXEL), jpeg_of(*large), dicom(GREY, Rows=large[0], Columns=large[1])):
        refused(data, r"more than 100,000,000.*not a radiograph$")


@pytest.mark.parametrize("sides", [(2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (1, 100_000_001)])
def test_png_of_huge_size(sides: tuple[int, int]) -> None:
    refused(png((*sides, 8, 0), PIXEL), "pixels.*not a radiograph")


@pytest.mark.parametrize(
    "header", [(0, 9, 8, 0), (9, 0, 8, 0), (2**32 - 1, 9, 8, 0), (9, 9, 3, 0), (9, 9, 8, 1), (9, 9, 255, 255)]
)
def test_a_header_that_cannot_be(header: tuple[int, int, int, int]) -> None:
    refused(png(header, PIXEL), "damaged picture|not a PNG|not a radiograph")
    refused(jpeg_of(0, 40), "damaged picture|not a PNG")


@pytest.mark.parametrize(("rows", "columns"), [(65_535, 1), (0, 9), (9, 0), (9_999, 10_000)])
def test_dicom_of_absurd_sizes(rows: int, columns: int) -> None:
    for name in ("explicit", "RLE", "JPEG lossless", "JPEG 2000 lossless", "JPEG-LS"):
        ds = pydicom.dcmread(io.BytesIO(LOSSLESS[name](data_set(waves(12), bits=12))))
        ds.Rows, ds.Columns = rows, columns
        refused(written(ds), "not a radiograph|cannot be decoded")


# bombs


def inside(data: bytes, piece: bytes, *, at: int | bytes) -> bytes:
    """A piece put in at a place, or before these bytes."""
    where = at if isinstance(at, int) else data.index(at)
    return data[:where] + piece + data[where:]


def nested(depth: int, *, is_defined: bool, tag: bytes = b"\x40\x00\x75\x02") -> bytes:
    """A data set, implicit little endian, of sequences within each other, of defined length or not."""
    inner = b""
    end = b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)
    if not is_defined:
        return (tag + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * depth + end * depth
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
        inner = tag + struct.pack("<I", len(item)) + item
    return inner


def jpeg_2000(size: int, *, tile: int = 0, precinct: int = 0, layers: int = 0) -> bytes:
    """A frame of 64 x 64 pixels that says it has `size` x `size`, and a data set that agrees."""
    ds = data_set(np.zeros((64, 64), np.uint16))
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
    cod = frame.index(b"\xff\x52")
    frame[8:16], frame[24:32] = struct.pack(">II", size, size), struct.pack(">II", tile or size, tile or size)
    if precinct:
        length = int.from_bytes(frame[cod + 2 : cod + 4], "big") + 2
        segment, levels = frame[cod : cod + length], frame[cod + 9]
        segment[4] |= 1
        segment += bytes([precinct * 17]) * (levels + 1)
        segment[2:4] = struct.pack(">H", len(segment) - 2)
        frame[cod : cod + length] = segment
    if layers:
        frame[cod + 6 : cod + 8] = struct.pack(">H", layers)
    ds = data_set(np.zeros((64, 64), np.uint16), Rows=size, Columns=size)
    return encapsulated(ds, uid.JPEG2000Lossless, bytes(frame))


STREAM, PIXELS = zlib.compress(b"\0\0"), b"\xe0\x7f\x10\x00"
LONG = b"\x28\x00\x50\x10UN\x00\x00" + struct.pack("<I", 60_000) + b"1\\" * 30_000
IN_PIECES = [chunk(b"IDAT", STREAM[i : i + 1]) for i in range(len(STREAM))]
SEGMENTS = (b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xfe\x00\x02", b"\xff\xe2\x00\x10ICC_PROFILE\0\x01", b"\xff" * 50)


def bombs() -> Iterator[Callable[[], bytes]]:
    """Small files that name a million parts, or hold what grows a thousandfold."""
    yield lambda: png((16, 16, 8, 0), chunk(b"IDAT", zlib.compress(bytes(100_000_000), 9)))
    yield lambda: png((1, 1, 8, 0), *[chunk(b"tEXt", b"a\0b")] * 20_000, PIXEL)
    yield lambda: png((1, 1, 8, 0), *[chunk(b"IDAT", b"")] * 20_000, *IN_PIECES)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        text = partial(chunk, kind, head + zlib.compress(bytes(50_000_000), 9))
        yield lambda text=text: png((1, 1, 8, 0), *[text()] * 8, PIXEL)
        yield lambda text=text: png((1, 1, 8, 0), PIXEL, *[text()] * 8)
    yield lambda: jpeg_of(5_000, 5_000)  # it is cut short, and libjpeg fills up the rest
    for piece in SEGMENTS:
        yield lambda piece=piece: inside(JPEG, piece * 3000, at=2)
    yield lambda: inside(dicom(GREY), LONG, at=PIXELS)
    for tag in (b"\x40\x00\x75\x02", b"\x54\x00\x20\x02"):  # the second one is looked at
        for deep in (partial(nested, depth, is_defined=d, tag=tag) for depth in (50, 20_000) for d in (True, False)):
            yield lambda deep=deep: inside(bare(data_set(GREY), implicit=True), deep(), at=PIXELS)
    yield lambda: run_lengths(64, 65, b"\x81\x00" * 3000)
    for changes in ({"tile": 1}, {"tile": 8}, {"layers": 65_535}, {"precinct": 1}, {"precinct": 15}):
        yield partial(jpeg_2000, 1000, **changes)


@pytest.mark.parametrize("bomb", list(bombs()))
def test_a_bomb_is_read_or_refused(bomb: Callable[[], bytes]) -> None:
    survived(bomb())


def many_scans(count: int) -> bytes:
    """The last scan of a progressive JPEG, again and again."""
    data = jpeg_of(1000, 1100, progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


def test_jpeg_of_many_scans() -> None:
    ds, most = data_set(waves(8, height=1000, width=1100)), 101 - many_scans(1).count(b"\xff\xda")
    assert outcome(many_scans(most)) == "read"
    for data in (many_scans(most + 1), encapsulated(ds, uid.JPEGBaseline8Bit, many_scans(most + 1))):
        refused(data, "a JPEG of 101 scans; more than 100 are not decoded")


def test_exif_that_points_at_itself() -> None:
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    assert outcome(inside(JPEG, exif, at=2)) == "read"


def test_a_deflated_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thoraclip.imaging.dicom.MAX_INFLATED", 50_000_000)  # the real limit takes seconds
    plain = written(data_set(GREY), syntax=uid.DeflatedExplicitVRLittleEndian)
    head = plain[: 144 + int.from_bytes(plain[140:144], "little")]  # the group length is the first element of the meta
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(packer.compress(bytes(2**24)) for _ in range(6)) + packer.flush()
    for start in (0, 132):
        refused(head[start:] + body, "^image: a deflated DICOM of more than 50,000,000 bytes; not a radiograph$")


@pytest.mark.parametrize("length", [2**31 - 2, 2**32 - 2, 2**32 - 1])
def test_an_element_that_claims_to_be_giant(length: int) -> None:
    whole = dicom(GREY, PatientComments="x" * 20)
    for vr in (b"OB", b"UN", b"UT", b"SQ"):
        at = whole.index(b"\x10\x00\x00\x40LT")
        data = whole[:at] + b"\x10\x00\x00\x40" + vr + bytes(2) + struct.pack("<I", length) + whole[at + 8 :]
        refused(data, "damaged DICOM|without pixel data|cannot be decoded")


def test_many_elements() -> None:
    many = b"".join(b"\x11\x00" + struct.pack("<H", i) + b"LO\x02\x00a " for i in range(0x1000, 0xFFFF))
    assert outcome(inside(dicom(GREY), many, at=b"\x28\x00\x02\x00US")) == "read"


@pytest.mark.parametrize(
    "syntax",
    [uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.HTJ2K],
)
def test_encapsulated_nothing(syntax: str) -> None:
    headers = (b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 500, b"\xff\x4f\xff\x51", b"hello world")
    for items in ((), (b"", b"", b""), (b"\0" * 64,), (b"\xff" * 200,), *((header,) for header in headers)):
        refused(encapsulated(data_set(waves(12), bits=12), syntax, *items), "cannot be decoded")


def run_lengths(rows: int, columns: int, *segments: bytes) -> bytes:
    offsets, at = [], 64
    for segment in segments:
        offsets.append(at)
        at += len(segment)
    head = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    ds = data_set(np.zeros((8, 8), np.uint8), Rows=rows, Columns=columns)
    return encapsulated(ds, uid.RLELossless, head + b"".join(segments))


def test_run_length_bombs() -> None:
    run = b"\x81\x00"  # 128 zeros
    for rows, columns in ((16, 256), (256, 16)):
        data = run_lengths(rows, columns, run * 100_000)
        refused(data, "a run-length frame of 200,064 bytes for 4,096 bytes of pixels")
        assert outcome(run_lengths(rows, columns, run * 32)) == "read"
    refused(run_lengths(1000, 9000, run * 8_000_000), "unpacks to more than the 9,000,000 bytes of its pixels")
    assert outcome(run_lengths(3008, 3008, run * (3008 * 3008 // 128))) == "read"
    refused(run_lengths(64, 64, *[run * 32] * 15), "cannot be decoded")


def test_a_large_picture_in_run_lengths_is_read() -> None:
    """Above the size where frames are measured first; noise, so that nothing is saved."""
    noise = np.random.default_rng(0).integers(0, 256, (1210, 4000), dtype=np.uint8)
    rows = [line.tobytes() for line in noise.reshape(-1, 121)]
    data = run_lengths(1210, 4000, b"".join(b"\x78" + row for row in rows))  # 0x78: 121 bytes as they are
    np.testing.assert_array_equal(decode(data).pixels, noise)


# mutated files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return valid_files()


def test_every_valid_file_is_read(files: dict[str, bytes]) -> None:
    assert [name for name, data in files.items() if outcome(data) != "read"] == []


@pytest.mark.parametrize("part", range(6 if IS_DEEP else 2))
def test_mutated_files_are_read_or_refused(files: dict[str, bytes], part: int) -> None:
    outcomes = {}
    for number in range(100 * part, 100 * part + 100):
        name, data = damaged(files, 0, number)
        outcomes[number, name] = outcome(data)
    assert {which: found for which, found in outcomes.items() if found.startswith("FAILED")} == {}
    assert 10 < sum(found == "read" for found in outcomes.values()) < 90
