"""Images of a request, in memory: names that a client gives them are ignored, and nothing is written to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from thoraclip.server.limits import Limits, RefusedError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["MEDIA_TYPES", "read_pictures"]

MEDIA_TYPES = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")  # of a body
_FORM = "multipart/form-data"


async def read_pictures(request: Request, limits: Limits) -> list[bytes]:
    """The body as one image, or every part of a form as one; raises RefusedError for another media type, a damaged
    form, no part, or too many. What is too large or too slow is refused by `Guard`."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    media_type = kind.decode("latin-1").lower()
    if media_type in MEDIA_TYPES:
        return [await request.body()]
    if media_type != _FORM:
        raise RefusedError(415, f"the content type must be {_FORM} or one of {', '.join(MEDIA_TYPES)}")
    boundary = options.get(b"boundary")
    if not boundary:
        raise RefusedError(400, "the content type names no boundary; let the client's library make the form")
    parts, ends = list[bytearray](), list[bool]()

    def begin() -> None:
        if len(parts) == limits.files:
            raise RefusedError(413, f"more than {limits.files} pictures in one request; send several requests")
        parts.append(bytearray())

    def add(data: bytes, start: int, end: int) -> None:
        parts[-1] += data[start:end]

    try:
        events: MultipartCallbacks = {"on_part_begin": begin, "on_part_data": add, "on_end": lambda: ends.append(True)}
        parser = MultipartParser(boundary, events)
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise RefusedError(400, "the form is damaged; send multipart/form-data with its boundary") from error
    if not ends:
        raise RefusedError(400, "the form ends before its last boundary; send all of it")
    if not parts:
        raise RefusedError(422, "the form has no picture; send one or more")
    return [bytes(part) for part in parts]
