"""What every page shares: one look (`templates/base.html.j2`), one way to show values, pictures inside the page.

Pages are self-contained: inline style, figures and pictures, no script, no request. A room's template extends
`base.html.j2`, which needs `title` and `reading` (sentences) and has the blocks `main` and `footer`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from thoraclip.dtypes import Greys
from thoraclip.errors import ThoraclipError, printable

__all__ = ["counted", "environment", "escape_markdown", "picture_or_reason", "show", "without_gaps"]

_HIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@cache
def environment(package: str, *, html: bool, **filters: Callable[..., str]) -> Environment:
    """Jinja's environment for the `templates/` of a package (such as `thoraclip.evaluation`) and its own filters, with
    the shared ones behind them; the same one for the same arguments, so that each template is compiled once. `html`:
    escape what is put into the page."""
    shared = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("thoraclip.pages")]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,
    )
    shared.filters |= {"md": escape_markdown, "show": show, **filters}
    shared.globals["counted"] = counted
    shared.tests["table"] = lambda v: bool(v) and isinstance(v, list) and all(isinstance(row, Mapping) for row in v)
    return shared


def _visible(value: object) -> object:
    """A value of a page, with control characters, marks of writing direction and lone surrogates as escapes."""
    if not isinstance(value, str) or not _HIDDEN.search(value):
        return value
    return type(value)(_HIDDEN.sub(lambda found: printable(found[0]), value))


def picture_or_reason(load: Callable[[], Greys], side: int) -> dict[str, str | None]:
    """`picture`: a JPEG in base64 of u8[H, W] or u8[H, W, 3], the longer side at most `side` pixels; or `error`: why
    there is none."""
    try:
        image = Image.fromarray(load())
    except (ThoraclipError, OSError) as error:
        return {"picture": None, "error": str(error)}
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=82)
    return {"picture": base64.b64encode(stream.getvalue()).decode("ascii"), "error": None}


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def without_gaps(markdown: str) -> str:
    """Markdown with single blank lines: a template leaves several where a part of it is empty."""
    return re.sub(r"\n{3,}", "\n\n", markdown)


def show(value: object) -> str:
    """A JSON value in a table cell."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(show(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {show(item)}" for key, item in value.items())
    return str(value)


def escape_markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table cell or at the start of a line."""
    line = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = "".join(f"\\{c}" if c in "\\`*_[]|#~$" else c for c in line)
    return re.sub(r"^([-+=]|\d+(?=[.)](?: |$)))", lambda m: f"{m[1]}\\" if m[1].isdigit() else f"\\{m[1]}", line)
