"""The page at `/`: static files, and synthetic radiographs to try. All answers come from the API."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np
from fastapi import APIRouter
from PIL import Image
from starlette.responses import Response

from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.server.limits import RefusedError

__all__ = ["PAGE_POLICY", "PHANTOMS", "page_router"]

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FILES = ("page.css", "page.js", "words.js", "nodes.js")
PHANTOMS = 12  # synthetic radiographs to try
_PHANTOM_SIDE = 384

page_router = APIRouter(include_in_schema=False)


@page_router.api_route("/", methods=["GET", "HEAD"])
def index() -> Response:
    """The page."""
    return _static("index.html")


@page_router.api_route("/page/{file}", methods=["GET", "HEAD"])
def page_file(file: str) -> Response:
    """A script or style of the page, or `phantom-N.png`, a synthetic radiograph."""
    if file in _FILES:
        return _static(file)
    phantoms = [f"phantom-{number}.png" for number in range(PHANTOMS)]
    if file in phantoms:
        number, stream = phantoms.index(file), io.BytesIO()
        rng, label = np.random.default_rng(1000 + number), CLASSES[number % len(CLASSES)]
        drawn = draw_phantom(label, rng=rng, size=_PHANTOM_SIDE, difficulty=0.0)
        Image.fromarray(drawn.pixels).save(stream, format="PNG")
        return Response(stream.getvalue(), media_type="image/png", headers={"cache-control": "no-cache"})
    raise RefusedError(404, "Not Found")


def _static(name: str) -> Response:
    content = (files(__package__) / "static" / name).read_bytes()
    kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    headers = {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
    return Response(content, media_type=kind, headers=headers)
