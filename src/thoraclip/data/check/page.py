"""Draw a check as one HTML page, with the pairs of copies side by side, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from thoraclip.data.appearance import find_marks
from thoraclip.data.check.reading import reading
from thoraclip.errors import ThoraclipError
from thoraclip.imaging import decode
from thoraclip.pages import environment, inline_jpeg, inline_thumbnail
from thoraclip.tables.manifest import Manifest

__all__ = ["html_page", "markdown_page"]

_PAIRS, _MARKED, _LISTED = 40, 12, 50
"""How many pairs and marked pictures the page shows, and how many rows of a list; `check.json` holds all."""
_SIDE = 220


def html_page(content: Mapping[str, Any], manifest: Manifest) -> str:
    """The check as a self-contained page.

    Args:
        content: see `check`.
        manifest: where the pictures are.
    """
    paths = manifest.paths_by_id()
    pairs = content["duplicates"]["pairs"][:_PAIRS]
    pictures = [[_picture(paths[image]) for image in pair["image_id"]] for pair in pairs]
    marked = [(row, _marked(paths[row["image_id"]])) for row in content["marks"]["images"][:_MARKED]]
    context = _context(content) | {"pairs": list(zip(pairs, pictures, strict=True)), "marked": marked}
    return environment("thoraclip.data.check", html=True).get_template("check.html.j2").render(context)


def markdown_page(content: Mapping[str, Any]) -> str:
    """The check's sentences and tables as Markdown (GitHub's dialect)."""
    return environment("thoraclip.data.check", html=False).get_template("check.md.j2").render(_context(content))


def _context(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "check": content,
        "title": "Data check",
        "reading": reading(content),
        "classes": sorted({label for row in content["differences"] for label in row["per_class"]}),
        "cell": _cell,
        "number": _number,
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


def _picture(path: Any) -> dict[str, Any]:
    try:
        return {"jpeg": inline_thumbnail(decode(path).pixels, _SIDE), "error": None}
    except ThoraclipError as error:
        return {"jpeg": None, "error": str(error)}


def _marked(path: Any) -> dict[str, Any]:
    """A picture with a frame around each burned-in mark."""
    try:
        pixels = decode(path).pixels
    except ThoraclipError as error:
        return {"jpeg": None, "error": str(error)}
    image = Image.fromarray(np.repeat(pixels[:, :, None], 3, axis=2))
    width = max(1, min(image.size) // 120)
    draw = ImageDraw.Draw(image)
    for box in find_marks(pixels):
        corners: Sequence[int] = (box.left, box.top, box.left + box.width, box.top + box.height)
        draw.rectangle(
            (corners[0] - width, corners[1] - width, corners[2] + width, corners[3] + width),
            outline=(230, 159, 0), width=width,
        )  # fmt: skip
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return {"jpeg": inline_jpeg(image), "error": None}
