"""What Pillow leaves out of a PNG: both bytes of 16-bit samples, and the chunks that say how they are to be shown.

Source: PNG Specification (Third Edition), https://www.w3.org/TR/png-3/, 11.3.2 (gAMA, sBIT, sRGB, iCCP, cICP), 11.3.1
(tRNS), 13.13 (gamma).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from thoraclip.dtypes import Greys
from thoraclip.imaging.depth import Depth, choose_depth, stated_in_text
from thoraclip.ranges import BITS

__all__ = ["alpha_remarks", "deep_grey", "display_exponent", "is_deep", "png_chunks"]

Samples = npt.NDArray[np.uint16]
_CHUNKS = (b"IHDR", b"sBIT", b"gAMA", b"sRGB", b"iCCP", b"cICP", b"tRNS")
_GREY, _RGB, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 4, 6
_LUMA = (0.299, 0.587, 0.114)
_SCREEN = 2.2
_NO_DIFFERENCE = 0.05
"""libpng does nothing where the exponent is closer to 1 (PNG_GAMMA_THRESHOLD)."""
_GAMMAS = (0.1, 10.0)
"""Beyond these, a picture would be shown all white or all black."""


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks before the pixels that say how they are to be shown, by kind; nothing for other files."""
    chunks: dict[bytes, bytes] = {}
    at = 8 if data.startswith(b"\x89PNG\r\n\x1a\n") else len(data)
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        if kind in _CHUNKS:
            chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    return chunks


def is_deep(chunks: dict[bytes, bytes]) -> bool:
    """Whether the samples have 16 bits."""
    return chunks.get(b"IHDR", b"")[8:9] == b"\x10"


def display_exponent(chunks: dict[bytes, bytes]) -> tuple[float, tuple[str, ...]]:
    """By which power a screen shows samples in 0..1, and a remark where gAMA is passed over: sRGB, iCCP and cICP go
    before it, and it may be no gamma of any screen or camera."""
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4], "big") / 100_000
    exponent = 1 / (gamma * _SCREEN) if gamma else 1.0
    if abs(exponent - 1) < _NO_DIFFERENCE:
        return 1.0, ()
    first = next((kind.decode() for kind in (b"cICP", b"iCCP", b"sRGB") if kind in chunks), "")
    if first or not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        why = f"for {first} goes before it" if first else "out of range"
        return 1.0, (f"its gAMA {gamma:g} is passed over, {why}",)
    return exponent, ()


def alpha_remarks(most: int, opaque: int) -> tuple[str, ...]:
    """A remark where nothing of a picture is opaque, and so it is darker over black; `most`: its largest alpha."""
    said = f"nothing of it is opaque (its alpha ends at {most:,} of {opaque:,}), so it is dark"
    return (said,) if most < opaque else ()


def deep_grey(
    data: bytes, image: Image.Image, chunks: dict[bytes, bytes], *, bits: int | None, of_set: int | None
) -> tuple[Greys, Depth]:
    """(u8[H, W], depth) of a PNG of 16-bit samples: luma over black, as `choose_depth` says.

    Args:
        data: the file.
        image: the same, opened by Pillow.
        chunks: of the file.
        bits, of_set: see `choose_depth`.
    """
    colour = chunks[b"IHDR"][9]
    halves = _halves(data, image, colour)
    has_alpha, hidden = colour in {_GREY_ALPHA, _RGB_ALPHA}, chunks.get(b"tRNS", b"")
    counts, most = np.zeros(65536, dtype=np.int64), 0
    for _, samples in _blocks(halves, colour):
        planes, alpha = _split(samples, hidden, has_alpha=has_alpha)
        luma = planes[..., 0] if planes.shape[-1] == 1 else np.round(planes @ np.array(_LUMA)).astype(np.uint16)
        counts += np.bincount(luma[alpha > 0], minlength=65536)
        most = max(most, int(alpha.max()))
    significant = max(chunks.get(b"sBIT", b"")[: 1 if colour in {_GREY, _GREY_ALPHA} else 3], default=0)
    declared = significant if 1 <= significant <= 16 else stated_in_text(getattr(image, "text", {}))
    depth = choose_depth(counts, stated=bits, declared=declared, of_set=of_set)
    opaque = most if most in {2**bits - 1 for bits in BITS} else 65535
    is_taken = (f"its alpha ends at {most:,}, which is taken for opaque",)
    taken = is_taken if opaque < 65535 else alpha_remarks(most, opaque)
    exponent, passed_over = display_exponent(chunks)
    depth = replace(depth, remarks=(*depth.remarks, *taken, *passed_over))
    table = 255.0 * np.minimum(np.arange(65536) / (2**depth.bits - 1), 1.0) ** exponent
    grey = np.empty((halves[0].height, halves[0].width), dtype=np.uint8)
    for rows, samples in _blocks(halves, colour):
        planes, alpha = _split(samples, hidden, has_alpha=has_alpha)
        shown = table[planes]
        levels = shown[..., 0] if planes.shape[-1] == 1 else shown @ np.array(_LUMA)
        grey[rows] = np.round(levels * (alpha / opaque))
    return grey, depth


def _halves(data: bytes, image: Image.Image, colour: int) -> list[Image.Image]:
    """Grey of 16 bits; grey and alpha as four bytes; or the high and the low bytes of a colour picture; turned upright.

    Grey and alpha of 16 bits have the bytes, and the filters, of red, green, blue and alpha of 8.
    """
    if colour == _GREY:
        images = [image]
    elif colour == _GREY_ALPHA:
        head = b"IHDR" + data[16:24] + bytes([8, _RGB_ALPHA]) + data[26:29]
        images = [_opened(data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:])]
    else:
        images = [image, _opened(data)]
        images[1].tile = [tile._replace(args=f"{image.mode};16L") for tile in images[1].tile]  # type: ignore[attr-defined]
    for one in images:
        one.load()
    return [ImageOps.exif_transpose(one) for one in images]


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=("PNG",))


def _blocks(halves: list[Image.Image], colour: int) -> Iterator[tuple[slice, Samples]]:
    """Slices of rows, about a megapixel each, and their samples u16[h, W, 1 to 4]."""
    width, height = halves[0].size
    step = max(1, 2**20 // width)
    for top in range(0, height, step):
        parts = [np.asarray(half.crop((0, top, width, min(top + step, height)))) for half in halves]
        if colour == _GREY:
            samples: Any = parts[0][..., None]
        elif colour == _GREY_ALPHA:
            samples = parts[0].view(">u2")
        else:
            samples = parts[0].astype(np.uint16) << 8 | parts[1]
        yield slice(top, top + step), samples.astype(np.uint16)


def _split(samples: Samples, hidden: bytes, *, has_alpha: bool) -> tuple[Samples, Samples]:
    """(grey or colour u16[h, W, 1 or 3], alpha u16[h, W]); `hidden`: the colour that tRNS makes transparent."""
    if has_alpha:
        return samples[..., :-1], samples[..., -1]
    key = np.frombuffer(hidden, ">u2") if len(hidden) == 2 * samples.shape[-1] else None
    is_hidden = np.zeros(samples.shape[:2], bool) if key is None else (samples == key).all(axis=-1)
    return samples, np.where(is_hidden, 0, 65535).astype(np.uint16)
