"""PNG, JPEG and DICOM files damaged by seeded mutations; file i of a seed is the same in every run with the same encoders."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from tests.imaging.files import FLAT, LOSSLESS, LOSSY, chunk, data_set, encoded, interlaced, waves

from thoraclip.errors import ImageError
from thoraclip.imaging import Radiograph, decode

Mutation = Callable[[bytes, random.Random], bytes]
EXTREMES = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 31, 32, 127, 128, 255, 256, 32_767, 32_768, 65_535)


def valid_files() -> dict[str, bytes]:
    """Small and medium files of every kind that is decoded, by name."""
    grey, large = waves(8), waves(8, height=260, width=300)
    colour = Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1))
    alpha = Image.fromarray(np.stack([grey, grey[::-1]], axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "png 8": encoded(Image.fromarray(grey)),
        "png 8 large": encoded(Image.fromarray(large)),
        "png 16": encoded(Image.fromarray(waves(16))),
        "png 1": encoded(Image.fromarray(grey > 100)),
        "png rgb": encoded(colour),
        "png palette": encoded(colour.quantize(60), transparency=3),
        "png alpha": encoded(alpha, exif=exif),
        "png rgba": encoded(colour.convert("RGBA")),
        "png interlaced": interlaced(grey),
        "jpeg": encoded(Image.fromarray(grey), "JPEG"),
        "jpeg large": encoded(Image.fromarray(large), "JPEG", quality=95, restart_marker_rows=2),
        "jpeg rgb": encoded(colour, "JPEG", exif=exif),
        "jpeg progressive": encoded(colour, "JPEG", progressive=True),
        "jpeg cmyk": encoded(colour.convert("CMYK"), "JPEG"),
    }
    window = {"WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 1, "RescaleIntercept": 0, "PatientAge": "045Y"}
    for name, encode in (LOSSLESS | LOSSY | FLAT).items():
        for bits in (8,) if name in {"JPEG baseline", "JPEG extended"} else (8, 12, 16):
            files[f"dicom {name} {bits}"] = encode(data_set(waves(bits), bits=bits, PixelPaddingValue=0, **window))
    files["dicom RLE large"] = LOSSLESS["RLE"](data_set(waves(12, height=260, width=300), bits=12, **window))
    files["dicom JPEG lossless large"] = LOSSLESS["JPEG lossless"](data_set(waves(12, height=260, width=300), bits=12))
    return files


# mutations


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16, 64])):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def set_run(data: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(data)), rng.randint(1, 200)
    same = rng.choice([b"\0", b"\xff", b"\x80", rng.randbytes(1)])
    return data[:at] + (same * length if rng.random() < 0.6 else rng.randbytes(length)) + data[at + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat_or_drop(data: bytes, rng: random.Random) -> bytes:
    start, to = (rng.randrange(len(data)) for _ in range(2))
    stop = min(len(data), start + rng.choice([1, 4, 50, 1000]))
    if rng.random() < 0.6:
        return data[:to] + data[start:stop] * rng.choice([1, 1, 3, 200]) + data[to:]
    return data[:start] + data[stop:]


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def parts_of(data: bytes) -> list[bytes]:
    """The chunks of a PNG, the segments of a JPEG, or the pieces of a DICOM file between even-numbered group tags."""
    if data.startswith(b"\x89PNG"):
        return [chunk(*c) for c in png_chunks(data)]
    mark = rb"(?=\xff[\xc0-\xfe])" if data.startswith(b"\xff\xd8") else rb"(?=[\x08\x10\x20\x28]\x00..[A-Z][A-Z])"
    return re.split(mark, data, flags=re.DOTALL)


def shuffle_parts(data: bytes, rng: random.Random) -> bytes:
    parts, head = parts_of(data), data[:8] if data.startswith(b"\x89PNG") else b""
    if len(parts) < 2:
        return data
    one, other = (rng.randrange(len(parts)) for _ in range(2))
    what = rng.randrange(3)
    if what == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif what == 1:
        parts[one:one] = [parts[other]] * rng.choice([1, 2, 50])
    else:
        del parts[one]
    return head + b"".join(parts)


def set_field(data: bytes, rng: random.Random) -> bytes:
    """An extreme number where the header holds one: IHDR, SOFn or SIZ, a DICOM element's value or length."""
    value, out = rng.choice(EXTREMES), bytearray(data)
    if data.startswith(b"\x89PNG") and len(data) > 32:
        if rng.random() < 0.5:
            at = 16 + 4 * rng.randrange(2)
            out[at : at + 4] = struct.pack(">I", rng.choice([value, value * 65_537 % 2**32]))
        else:
            out[24 + rng.randrange(5)] = value % 256
        return bytes(out)
    found = [m.start() for m in re.finditer(rb"\xff[\xc0-\xc3\xf7\x51\xda\xc4\xdb]", data)]
    elements = [m.start() for m in re.finditer(rb"[\x08\x10\x20\x28\xe0][\x00\x7f]..[A-Z][A-Z]", data, re.DOTALL)]
    if elements and (not found or rng.random() < 0.7):
        at = rng.choice(elements) + rng.choice([6, 8, 8, 8, 10])
        out[at : at + 2] = struct.pack("<H", value)
    elif found:
        at = rng.choice(found) + rng.randint(2, 20)
        out[at : at + 2] = struct.pack(">H", value)
    return bytes(out)


def set_samples(data: bytes, rng: random.Random) -> bytes:
    """Damage under the compression of a PNG: filter bytes and samples; other files as `set_bytes`."""
    if not data.startswith(b"\x89PNG"):
        return set_bytes(data, rng)
    chunks = list(png_chunks(data))
    try:
        raw = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    except zlib.error:
        return set_bytes(data, rng)
    raw = rng.choice([set_bytes, set_run, truncate, repeat_or_drop])(raw, rng) if raw else raw
    kept = [(kind, content) for kind, content in chunks if kind not in {b"IDAT", b"IEND"}]
    return data[:8] + b"".join(chunk(*c) for c in [*kept, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def mend_sums(data: bytes, rng: random.Random) -> bytes:
    """A PNG's checksums made right again, so that the damage reaches the decoder and not just the check."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.2:
        return data
    return data[:8] + b"".join(chunk(*c) for c in png_chunks(data))


MUTATIONS: tuple[Mutation, ...] = (
    set_bytes, set_bytes, set_samples, set_run, truncate, repeat_or_drop, shuffle_parts, set_field, set_field,
)  # fmt: skip


def damaged(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(name of the valid file, its damaged bytes): file `number` of a run."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(["png", "jpeg", "dicom", "dicom"])
    name = rng.choice([name for name in files if name.startswith(kind)])
    data = files[name]
    if kind == "dicom" and rng.random() < 0.5 and (at := data.find(b"\xe0\x7f\x10\x00")) > 0:
        return name, data[:at] + rng.choice(MUTATIONS)(data[at:], rng)  # the pixels alone
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = rng.choice(MUTATIONS)(data, rng) if data else data
    return name, mend_sums(data, rng)


def outcome(data: bytes) -> str:
    """`read`, the refusal, or `FAILED: ` and what came out instead."""
    try:
        found = decode(data)
    except ImageError as error:
        text = str(error).removeprefix("image: ")
        return text if "\n" not in text else f"FAILED: a message of several lines: {error!r}"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {error}"[:300]
    fits = isinstance(found, Radiograph) and found.pixels.dtype == np.uint8 and found.pixels.ndim == 2
    return "read" if fits and found.pixels.shape == (found.height, found.width) else f"FAILED: {found!r}"[:300]
