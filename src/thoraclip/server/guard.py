"""Two layers of ASGI around the app, and the images that a request brings it.

`Journal`, the outer one, gives every answer an id, safe headers, a log line and a place in the metrics, answers HEAD as
GET without the body, and turns an uncaught exception into a 500 without details. `Guard` refuses a client without the
token, and a body that is too large, too slow, or too much beside all others. `read_pictures` holds images in memory:
names that a client gives them are ignored, and nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoraclip.server.access import OPEN_ROUTES
from thoraclip.server.limits import MEGA, Limits, RefusedError, problem, turn_away
from thoraclip.server.monitoring import Metrics, log_event

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["MEDIA_TYPES", "Guard", "Journal", "read_pictures"]

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}  # where an answer brings none of its own
_CLOSE = {"connection": "close"}
_OTHER = "other"
MEDIA_TYPES = ("image/png", "image/jpeg", "application/dicom", "application/octet-stream")  # of a body
_FORM = "multipart/form-data"


class Journal:
    """See the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, request_id = time.perf_counter(), 0, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        is_head = scope["method"] == "HEAD"
        asked = {**scope, "method": "GET"} if is_head else scope

        async def answer(message: Message) -> None:
            nonlocal status
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if "GET" in headers.get("allow", ""):
                    headers["allow"] = "GET, HEAD"
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        async def fail(code: int, reason: str) -> None:
            if not status:
                headers = _CLOSE if code == 503 else None
                await problem(RefusedError(code, reason, headers=headers))(asked, receive, answer)

        try:
            await self._app(asked, receive, answer)
        except ClientDisconnect:
            status = 499  # nobody is there to read an answer
        except asyncio.CancelledError:  # the grace is over
            await fail(503, "the server is stopping; ask another one")
        except Exception as error:
            log_event("failure", level=logging.ERROR, error=error, request_id=request_id)
            await fail(500, f"a fault of the server; its log has more under {request_id}")
            status = 500
        finally:
            seconds = time.perf_counter() - begun
            # the template of the route, since what a client writes in a path may name a patient
            route = getattr(asked.get("route"), "path", None) or _OTHER
            method = scope["method"] if scope["method"] in {"GET", "POST", "HEAD", "OPTIONS"} else _OTHER
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if status >= 400 or route not in OPEN_ROUTES:  # which would fill the log
                facts: dict[str, Any] = {"request_id": request_id, "method": method, "route": route, "status": status}
                log_event("request", **facts, seconds=round(seconds, 4), **scope["state"].get("facts", {}))


class Guard:
    """See the module; for `token`, `create_app`."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, *, token: str = "") -> None:
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token.encode()
        self._held = 0  # bytes of the bodies of all requests in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, has_begun, own = Headers(scope=scope), False, 0
        deadline = asyncio.get_running_loop().time() + self._limits.upload_seconds

        async def receive_some() -> Message:
            nonlocal own
            if has_begun:  # the answer is on its way: what is waited for now is the client's going away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                reason = f"the request took longer than {self._limits.upload_seconds:g} s to arrive"
                raise RefusedError(408, reason, headers=_CLOSE) from error
            size = len(message.get("body", b""))
            own += size
            self._hold(size)
            self._refuse_size(own)
            return message

        async def answer(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            self._refuse_stranger(scope, headers)
            length = headers.get("content-length", "")
            self._refuse_size(int(length) if length.isdecimal() and length.isascii() else 0)
            await self._app(scope, receive_some, answer)
        except RefusedError as refused:
            if has_begun:
                raise
            await turn_away(refused, receive, send)
        finally:
            self._hold(-own)

    def _hold(self, size: int) -> None:
        self._held += size
        self._metrics.held.set(self._held)

    def _refuse_stranger(self, scope: Scope, headers: Headers) -> None:
        if not self._token or scope["path"] in OPEN_ROUTES:
            return
        if not hmac.compare_digest(_secret(headers.get("authorization", "")), self._token):
            # Basic alone: a browser that is offered Bearer beside it asks for no password
            challenge = 'Basic realm="thoraclip: any name, and the token as password", charset="UTF-8"'
            reason = "send the token: Authorization: Bearer TOKEN"
            raise RefusedError(401, reason, headers={"www-authenticate": challenge})

    def _refuse_size(self, size: int) -> None:
        limits = self._limits
        if size > limits.megabytes * MEGA:
            raise RefusedError(413, f"the request is larger than {limits.megabytes} MB; send fewer or smaller pictures")
        if self._held > limits.held_megabytes * MEGA:
            raise RefusedError(429, "too much is being received at once; come later", headers={"retry-after": "1"})


def _secret(authorization: str) -> bytes:
    """The token of a header: after `Bearer`, or the password after `Basic`, as a browser asks for it."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""


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
