"""How much a server takes upon itself, and how it refuses the rest: RFC 9457 problem details."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Send

from thoraclip.config import Settings
from thoraclip.errors import ConfigError
from thoraclip.ranges import Range

__all__ = ["CROSS_SITE", "MEDIA_TYPE", "MEGA", "Limits", "RefusedError", "problem", "reason_of", "turn_away"]

MEGA = 1_000_000
MEDIA_TYPE = "application/problem+json"
_LINGER_SECONDS = 10.0  # a refused upload is read on, so that the client finds the answer and not a broken pipe
_LONGEST = 500
CROSS_SITE = "asked by a page of another site; start the server with --allow-origin to let it"


@dataclass(frozen=True, kw_only=True)
class Limits(Settings):
    """What a server refuses rather than to grow, hang or fall."""

    files: Annotated[int, Range(1, 100_000)] = 32
    """Pictures in one request."""
    megabytes: Annotated[int, Range(1, 1_000_000)] = 64
    """Size of one request, in millions of bytes."""
    megapixels: Annotated[int, Range(1, 10_000)] = 50
    """Size of one picture, in millions of pixels; larger ones are refused before they are decoded."""
    waiting: Annotated[int, Range(1, 100_000)] = 64
    """Pictures that wait for the classifier; who comes then is told to come later (429)."""
    explanations: Annotated[int, Range(1, 100_000)] = 4
    """Explanations that wait or are being made, one at a time."""
    seconds: Annotated[float, Range(0, 86_400, above=True)] = 30.0
    """Until the answer, once a request has arrived."""
    upload_seconds: Annotated[float, Range(0, 86_400, above=True)] = 30.0
    """For a request to arrive."""
    head_seconds: Annotated[float, Range(0, 86_400, above=True)] = 10.0
    """For a request's first lines, from the opening of the connection or from their first byte."""
    held_megabytes: Annotated[int, Range(1, 1_000_000)] = 256
    """Size of all requests that are being received or answered, in millions of bytes."""
    connections: Annotated[int, Range(1, 65_535)] = 256
    """Open at once; more are told to come later (503)."""
    grace_seconds: Annotated[float, Range(0, 86_400, above=True)] = 30.0
    """For the requests in flight when the server is told to stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, above, rule in (("files", "waiting", "can wait"), ("megabytes", "held_megabytes", "can be held")):
            value, most = getattr(self, name), getattr(self, above)
            if value > most:
                raise ConfigError(f"{name} = {value}: no more than {rule} ({most}); raise {above}, or lower {name}")


class RefusedError(HTTPException):
    """A request that is not served: the reason and the remedy in one line, and, in `pictures`, the reason of each image
    that cannot be read: `{"index": 0, "error": "..."}`."""

    def __init__(
        self, status_code: int, detail: str, *, headers: Mapping[str, str] | None = None, pictures: Sequence[Any] = ()
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.pictures = pictures


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, without a name for it: the request has none."""
    return str(error).removeprefix("image: ")


def problem(error: HTTPException) -> Response:
    """The response to an error."""
    status, pictures = error.status_code, getattr(error, "pictures", None)
    detail = error.detail[:_LONGEST]  # it may repeat what the client wrote
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if pictures:
        content["pictures"] = pictures
    return Response(json.dumps(content), status, headers=error.headers, media_type=MEDIA_TYPE)


async def turn_away(refused: RefusedError, receive: Receive, send: Send) -> None:
    """Answer at once, then let the client finish what it is sending."""
    response = problem(refused)
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": refused.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b""})
