"""A heat map over its radiograph, with the lungs outlined and what must be known beside it; Pillow and NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from thoraclip.dtypes import Greys, Masks, Singles
from thoraclip.heatmaps.perturbation import resized
from thoraclip.imaging import Preprocess

__all__ = ["colours", "display_size", "draw_overlay", "heat_layer", "outline_layer", "spread"]


_INFERNO = bytes.fromhex(
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754"
    "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)
"""Matplotlib's `inferno` (van der Walt & Smith 2015, CC0), 17 colours at equal steps: perceptually uniform."""
_DARKEST = 0.3
"""The scale begins here: what is darker would pass for a shadow in the radiograph."""
_OPACITY = 0.7
_OUTLINE = (0, 214, 230)
_BACKGROUND, _TEXT, _FAINT = (16, 16, 20), (236, 236, 236), (166, 166, 172)
_LARGEST, _SMALLEST = 1024, 448
_GAP, _PANEL = 12, 330


def display_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which a picture is shown: its own, between 448 and 1,024 pixels on the longer side."""
    longest = max(height, width)
    scale = min(1.0, _LARGEST / longest) if longest >= _SMALLEST else -(-_SMALLEST // longest)
    return max(1, round(height * scale)), max(1, round(width * scale))


def spread(heat: Singles, spec: Preprocess, height: int, width: int) -> tuple[Singles, Masks]:
    """Lay a map f32[S, S] of the network's input over the image, or the part that a remedy keeps of it, that
    `imaging.fit` made the input of; its inverse.

    Returns f32[height, width] (an image's or its display's), 0 where the network sees nothing, and bool[height, width],
    False there (`crop` cuts it off).
    """
    side = spec.size
    whole = np.ones((height, width), dtype=bool)
    short = spec.short_side or side
    if spec.geometry == "squash" and short == side:
        return resized(heat, height, width), whole
    if spec.geometry == "pad":
        scale = side / max(height, width)
        inner_w, inner_h = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (side - inner_w) // 2, (side - inner_h) // 2
        return resized(heat[top : top + inner_h, left : left + inner_w], height, width), whole
    # pixels of the resized picture per pixel of this one, in a row and in a column
    across, down = (short / (min(height, width) if spec.geometry == "crop" else own) for own in (width, height))
    before, above = (width - side / across) / 2, (height - side / down) / 2
    columns, rows = (np.arange(width) + 0.5 - before) * across, (np.arange(height) + 0.5 - above) * down
    seen = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]
    box = (-before * across, -above * down, (width - before) * across, (height - above) * down)
    image = Image.fromarray(np.ascontiguousarray(heat, dtype=np.float32))
    placed = image.transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    return np.where(seen, np.asarray(placed), 0).astype(np.float32), seen


def colours(level: npt.NDArray[np.floating]) -> Greys:
    """f[...] in [0, 1] -> u8[..., 3], of the scale that the overlay uses: even steps look even."""
    table = np.frombuffer(_INFERNO, np.uint8).reshape(-1, 3).astype(np.float64)
    place = (_DARKEST + (1 - _DARKEST) * np.clip(level, 0, 1)) * (len(table) - 1)
    steps = np.arange(len(table))
    return np.stack([np.interp(place, steps, table[:, k]) for k in range(3)], axis=-1).round().astype(np.uint8)


def draw_overlay(
    grey: Greys, heat: Singles, *, headline: str, lines: Sequence[str], footer: str, lungs: Masks, seen: Masks
) -> Image.Image:
    """The radiograph, beside it the same with the map over it, beside that the text; lungs are outlined in both. RGB.

    All are of `display_size`: the radiograph u8[H, W]; the map f32[H, W], 0 or larger, whose hottest pixel gets the end
    of the scale; the lungs bool[H, W], nothing set for no outline; what the network sees bool[H, W], the rest is
    shaded.
    """
    colour, cover = _painted(heat)
    opacity = (_OPACITY * cover)[..., None]
    base = np.repeat(grey[..., None], 3, axis=-1).astype(np.float64)
    mixed = (1 - opacity) * base + opacity * colour
    mixed[~seen] *= 0.4
    plain, painted = (Image.fromarray(pixels.round().astype(np.uint8)) for pixels in (base, mixed))
    if lungs.any():
        outline = _outline(lungs)
        for picture in (plain, painted):
            picture.paste(_OUTLINE, (0, 0), outline)
    height, width = grey.shape
    text = _draw_text(headline, lines, footer, height)
    sheet = Image.new("RGB", (2 * width + 4 * _GAP + text.width, max(height, text.height) + 2 * _GAP), _BACKGROUND)
    for number, part in enumerate((plain, painted, text)):
        sheet.paste(part, (number * width + (number + 1) * _GAP, _GAP))
    return sheet


def heat_layer(heat: Singles, seen: Masks) -> Image.Image:
    """What `draw_overlay` lays over the radiograph, as a picture of its own whose opacity can be changed: RGBA.

    What the network does not see is black, and as dark as in the overlay.
    """
    colour, cover = _painted(heat)
    pixels = np.dstack([colour, np.round(255 * cover).astype(np.uint8)])
    pixels[~seen] = (0, 0, 0, 153)
    return Image.fromarray(pixels)


def outline_layer(lungs: Masks) -> Image.Image:
    """The lungs' outline, as `draw_overlay` draws it, on nothing: RGBA."""
    line = Image.new("RGBA", (lungs.shape[1], lungs.shape[0]), (*_OUTLINE, 0))
    line.putalpha(_outline(lungs))
    return line


def _painted(heat: Singles) -> tuple[Greys, Singles]:
    """Colours u8[H, W, 3], and how much of the radiograph they hide at full opacity, f32[H, W] in [0, 1]."""
    level = heat / max(float(heat.max()), 1e-12)
    return colours(level), level**0.8


def _outline(mask: Masks) -> Image.Image:
    """A soft line along the inner border of a mask, its width by the size of the picture, as opacity."""
    image = Image.fromarray((255 * mask).astype(np.uint8))
    thickness = 3 if max(mask.shape) < 700 else 5
    inner = image.filter(ImageFilter.GaussianBlur(1.5)).point(lambda v: 255 * (v > 127))
    line = ImageChops.subtract(inner, inner.filter(ImageFilter.MinFilter(thickness)))
    return line.filter(ImageFilter.GaussianBlur(0.6)).point(lambda v: round(0.8 * v))


def _draw_text(headline: str, lines: Sequence[str], footer: str, least_height: int) -> Image.Image:
    """Text that grows with the pictures, and the scale of the colours."""
    scale = float(np.clip(least_height / _SMALLEST, 1, 2))
    width, margin = round(_PANEL * scale), round(20 * scale)
    large, normal, small = (ImageFont.load_default(size * scale) for size in (22, 15, 13))
    room = width - margin
    head, foot = _wrapped(headline, large, room), _wrapped(footer, small, room)
    body = [_wrapped(text, normal, room) for text in lines]
    top, line, gap, low = (round(size * scale) for size in (30, 20, 9, 18))
    needed = top * len(head) + round(60 * scale) + sum(line * len(part) + gap for part in body) + low * (len(foot) + 1)
    image = Image.new("RGB", (width, max(least_height, needed)), _BACKGROUND)
    draw, y = ImageDraw.Draw(image), 0
    for text in head:
        draw.text((0, y), text, font=large, fill=_TEXT)
        y += top
    bar = np.repeat(colours(np.linspace(0, 1, room))[None], round(12 * scale), axis=0)
    image.paste(Image.fromarray(bar), (0, y + gap))
    draw.text((0, y + round(25 * scale)), "less", font=small, fill=_FAINT)
    draw.text((room, y + round(25 * scale)), "more evidence", font=small, fill=_FAINT, anchor="ra")
    y += round(54 * scale)
    for part in body:
        y += gap
        for text in part:
            draw.text((0, y), text, font=normal, fill=_TEXT)
            y += line
    for number, text in enumerate(reversed(foot), start=1):
        draw.text((0, image.height - low * number), text, font=small, fill=_FAINT)
    return image


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """Lines that fit; a word that does not is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= room:
            lines[-1] = longer
            continue
        while font.getlength(word) > room:
            keep = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= room)
            lines.append(word[:keep])
            word = word[keep:]
        lines.append(word)
    return lines
