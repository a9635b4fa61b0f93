"""Draw a check as one HTML page, with the pairs of copies side by side, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from thoraclip.data.appearance import find_marks
from thoraclip.data.check.reading import reading
from thoraclip.imaging import decode
from thoraclip.pages import environment, picture_or_reason
from thoraclip.tables.manifest import Manifest

__all__ = ["html_page", "markdown_page"]

_PAIRS, _MARKED, _LISTED = 40, 12, 50
"""How many pairs and marked pictures the page shows, and how many rows of a list; `check.json` holds all."""
_SIDE = 220
_FRAME = (230, 159, 0)


def html_page(content: Mapping[str, Any], manifest: Manifest) -> str:
    """The content of a `check` as a self-contained page; the manifest tells where the images are."""
    looked = content.get("pictures", True)
    pairs, rows = content["duplicates"]["pairs"][:_PAIRS] if looked else [], content["marks"]["images"][:_MARKED]
    shown = {image for pair in pairs for image in pair["image_id"]} | {row["image_id"] for row in rows}
    paths = manifest.where(image_id=shown).paths_by_id() if shown else {}
    pictures = [[picture_or_reason(partial(_pixels, paths[i]), _SIDE) for i in pair["image_id"]] for pair in pairs]
    marked = [(row, picture_or_reason(partial(_framed, paths[row["image_id"]]), _SIDE)) for row in rows]
    context = _context(content) | {"pairs": list(zip(pairs, pictures, strict=True)), "marked": marked}
    return environment("thoraclip.data.check", html=True).get_template("check.html.j2").render(context)


def markdown_page(content: Mapping[str, Any]) -> str:
    """The check's sentences and tables as Markdown (GitHub's dialect)."""
    return environment("thoraclip.data.check", html=False).get_template("check.md.j2").render(_context(content))


def _context(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "check": content,
        "looked": content.get("pictures", True),
        "title": "Data check",
        "reading": reading(content),
        "classes": sorted({label for row in content["differences"] for label in row["per_class"]}),
        "cell": _cell,
        "percent": _percent,
        "listed": _LISTED,
    }


def _cell(shown: Mapping[str, Any] | None) -> str:
    """What a class looks like in one column: median and quartiles, or the commonest values."""
    if shown is None or not shown["n"]:
        return "unknown"
    if "shares" in shown:
        return ", ".join(f"{value} {_percent(share)}" for value, share in list(shown["shares"].items())[:3])
    return f"{_number(shown['median'])} [{_number(shown['q1'])}, {_number(shown['q3'])}]"


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    return decode(path).pixels


def _framed(path: Path) -> npt.NDArray[np.uint8]:
    """u8[H, W, 3]: a picture with a frame around each burned-in mark."""
    pixels = decode(path).pixels
    image = Image.fromarray(pixels).convert("RGB")
    width = max(1, min(image.size) // 120)
    draw = ImageDraw.Draw(image)
    for box in find_marks(pixels):
        left, top = box.left - width, box.top - width
        right, bottom = box.left + box.width + width, box.top + box.height + width
        draw.rectangle((left, top, right, bottom), outline=_FRAME, width=width)
    return np.asarray(image)
