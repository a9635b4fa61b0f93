"""Decode thousands of damaged PNG, JPEG and DICOM files; each must be read or refused, soon and in little memory.

    python scripts/fuzz_pictures.py --files 10000 --seed 0 --out report.json     # about 20 seconds on one core
    python scripts/fuzz_pictures.py --seed 0 --keep 4711 --out file.bin          # write one file of the run again

File i of a seed is the same in every run with the same encoders. A worker process decodes; the parent sees it crash or
hang, notes the file, and starts another one behind it. Ends with 1 when anything but a `Radiograph` or an `ImageError`
came out, or a file took longer than `--limit` seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import re
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thoraclip.errors import ImageError
from thoraclip.imaging import Radiograph, decode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the makers of valid files, which the tests share

Mutation = Callable[[bytes, random.Random], bytes]
EXTREMES = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 31, 32, 127, 128, 255, 256, 32_767, 32_768, 65_535)


def valid_files() -> dict[str, bytes]:
    """Small and medium files of every kind that is decoded, by name."""
    from tests.imaging.files import FLAT, LOSSLESS, LOSSY, data_set, encoded, interlaced, waves

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
    fill = (
        rng.choice([b"\0", b"\xff", b"\x80", rng.randbytes(1)]) * length
        if rng.random() < 0.6
        else rng.randbytes(length)
    )
    return data[:at] + fill + data[at + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat_or_drop(data: bytes, rng: random.Random) -> bytes:
    start, to = (rng.randrange(len(data)) for _ in range(2))
    stop = min(len(data), start + rng.choice([1, 4, 50, 1000]))
    return (
        data[:to] + data[start:stop] * rng.choice([1, 1, 3, 200]) + data[to:]
        if rng.random() < 0.6
        else data[:start] + data[stop:]
    )


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def parts_of(data: bytes) -> list[bytes]:
    """The chunks of a PNG, the segments of a JPEG, or the pieces of a DICOM file between even-numbered group tags."""
    if data.startswith(b"\x89PNG"):
        return [png_chunk(*c) for c in png_chunks(data)]
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
    return data[:8] + b"".join(png_chunk(*c) for c in [*kept, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])


def mend_sums(data: bytes, rng: random.Random) -> bytes:
    """A PNG's checksums made right again, so that the damage reaches the decoder and not just the check."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.2:
        return data
    return data[:8] + b"".join(png_chunk(*c) for c in png_chunks(data))


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


# the run


def reason(error: ImageError) -> str:
    """The kind of a refusal: its message without names and numbers."""
    text = str(error).removeprefix("image: ")
    text = re.sub(r"0x[0-9a-fA-F]+|'[^']*'|b\"[^\"]*\"|\([0-9A-F]{4},\s?[0-9A-F]{4}\)|-?\d[\d,.]*", "_", text)
    return text[:90]


def outcome(data: bytes) -> str:
    """`read`, the kind of the refusal, or `FAILED: ` and what came out instead."""
    try:
        found = decode(data)
    except ImageError as error:
        return reason(error) if "\n" not in str(error) else f"FAILED: a message of several lines: {error!r}"
    except BaseException as error:
        return f"FAILED: {type(error).__name__}: {error}"[:300]
    fits = isinstance(found, Radiograph) and found.pixels.dtype == np.uint8 and found.pixels.ndim == 2
    return "read" if fits and found.pixels.shape == (found.height, found.width) else f"FAILED: {found!r}"[:300]


def work(pipe: Connection, seed: int, first: int, stop: int) -> None:
    """Decode files first..stop; tell the parent of each before and after, and of the memory at the end."""
    from thoraclip.imaging import isolated

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    files = valid_files()
    for number in range(first, stop):
        pipe.send((number, "?"))
        name, data = damaged(files, seed, number)
        pipe.send((number, name))
        begin = time.perf_counter()
        what = outcome(data)
        pipe.send((what, time.perf_counter() - begin))
    isolated._stop_idle()  # memory of child processes is known once they have ended
    pipe.send([resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)])


def run(files: int, seed: int, limit: float) -> dict[str, Any]:
    """The report of a whole run."""
    context = multiprocessing.get_context("spawn")
    formats: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    slowest: list[tuple[float, int, str]] = []
    failures: list[str] = []
    memory, number, name = [0.0, 0.0], -1, "start"
    while number + 1 < files:
        mine, theirs = context.Pipe()
        worker = context.Process(target=work, args=(theirs, seed, number + 1, files))
        worker.start()
        theirs.close()
        try:
            while True:
                if not mine.poll(limit + 30):
                    worker.kill()
                    raise EOFError
                message = mine.recv()
                if isinstance(message, list):
                    memory = [max(pair) for pair in zip(memory, message, strict=True)]
                    break
                if isinstance(message[0], int):
                    number, name = message
                    continue
                what, seconds = message
                is_read = what == "read"
                formats.setdefault(name.split()[0], Counter())["read" if is_read else "refused"] += 1
                reasons[what] += not is_read
                slowest = sorted([*slowest, (round(seconds, 3), number, name)], reverse=True)[:5]
                if what.startswith("FAILED") or seconds > limit:
                    failures.append(f"file {number} ({name}): {what}, {seconds:.1f} s")
        except EOFError:
            worker.join()
            failures.append(f"file {number} ({name}): the process ended with {worker.exitcode}, or hung")
            if number < 0:
                break
        worker.join()
    return {
        "files": files, "seed": seed, "formats": {k: dict(v) for k, v in sorted(formats.items())},
        "reasons": {text: count for text, count in reasons.most_common() if count}, "slowest": slowest,
        "peak_memory_mb": {"process": round(memory[0]), "helper": round(memory[1])}, "failures": failures,
    }  # fmt: skip


def told(report: dict[str, Any], begin: float, out: Path | None) -> int:
    """Print a report, with the seconds since it was begun, and write it to `out`; returns the exit code."""
    report["seconds"] = round(time.perf_counter() - begin)
    text = json.dumps(report, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    return 1 if report["failures"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that one file may take")
    parser.add_argument("--keep", type=int, help="write this file of the run to --out, decode nothing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.keep is not None:
        args.out.write_bytes(damaged(valid_files(), args.seed, args.keep)[1])
        return 0
    begin = time.perf_counter()
    report = run(args.files, args.seed, args.limit)
    return told(report, begin, args.out)


if __name__ == "__main__":
    raise SystemExit(main())
