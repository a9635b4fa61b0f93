"""What stands between the network and the app, as two layers of ASGI.

`Journal` is outermost: every answer, whoever gives it, gets an id, safe headers, a log line and a place in the metrics,
and what nobody caught becomes a 500 that tells nothing. `Guard` lets nobody in without the token, and no body that is
too large, too slow, or too much beside all others.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoraclip.server.limits import Limits
from thoraclip.server.logs import tell
from thoraclip.server.meters import Meters
from thoraclip.server.problems import RefusedError, problem

__all__ = ["Guard", "Held", "Journal"]

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Content security policy of whatever brings none of its own: nothing is loaded and nothing runs."""
_OPEN = ("/health", "/ready")
"""Asked by what watches over the process; they tell nothing."""
_CLOSE = {"connection": "close"}
_LINGER_SECONDS = 10.0
"""A refused upload is read on for so long, and thrown away, so that the client finds the answer and not a broken
pipe."""
_OTHER = "other"


class Journal:
    """See the module.

    Args:
        app: what is within.
        meters: count the requests.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, told = time.perf_counter(), 0, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = told

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = told
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", _POLICY)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            status = 499  # nobody is there to read an answer
        except asyncio.CancelledError:  # the grace is over
            if not status:
                await problem(RefusedError(503, "the server is stopping; ask another one", headers=_CLOSE))(
                    scope, receive, answer
                )
        except Exception as error:
            tell("failure", level=logging.ERROR, error=error, request_id=told)
            if not status:
                await problem(RefusedError(500, f"a fault of the server; its log has more under {told}"))(
                    scope, receive, answer
                )
            status = 500
        finally:
            seconds, route = time.perf_counter() - begun, _route(scope)
            self._meters.request(route, _method(scope), status, seconds)
            if status >= 400 or route not in _OPEN:  # what watches over the process would fill the log
                tell(
                    "request",
                    request_id=told,
                    method=_method(scope),
                    route=route,
                    status=status,
                    seconds=round(seconds, 4),
                    **scope["state"].get("facts", {}),
                )


def _route(scope: Scope) -> str:
    """The template of the route that was matched: what a client writes in a path may name a patient."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else _OTHER


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in {"GET", "POST", "HEAD", "OPTIONS"} else _OTHER


class Held:
    """Bytes of the bodies of all requests in flight."""

    def __init__(self) -> None:
        self.bytes = 0


class Guard:
    """See the module.

    Args:
        app: what is within.
        limits: of the server.
        held: is kept up to date.
        token: that a client must bring; empty for none.
        origins: of pages on other hosts that may ask.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, held: Held, *, token: str = "", origins: Collection[str] = ()
    ) -> None:
        self._app, self._limits, self._held = app, limits, held
        self._token, self._origins = token.encode(), frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
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
            self._held.bytes += size
            self._refuse_size(own)
            return message

        async def answer(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            self._refuse_stranger(scope, headers)
            self._refuse_size(_told_size(headers))
            await self._app(scope, receive_some, answer)
        except RefusedError as refused:
            if has_begun:
                raise
            await self._turn_away(refused, scope, receive, send)
        finally:
            self._held.bytes -= own

    def _refuse_stranger(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] != "GET" and origin not in self._origins:
            raise RefusedError(403, "asked by a page of another site; start the server with --allow-origin to let it")
        if not self._token or scope["path"] in _OPEN or _is_preflight(scope, headers):
            return
        if not hmac.compare_digest(_secret(headers.get("authorization", "")), self._token):
            # Basic alone: a browser that is offered Bearer beside it asks for no password
            challenge = 'Basic realm="thoraclip: any name, and the token as password", charset="UTF-8"'
            raise RefusedError(
                401, "send the token: Authorization: Bearer TOKEN", headers={"www-authenticate": challenge}
            )

    def _refuse_size(self, size: int) -> None:
        limits = self._limits
        if size > limits.bytes:
            raise RefusedError(413, f"the request is larger than {limits.megabytes} MB; send fewer or smaller pictures")
        if self._held.bytes > limits.held_bytes:
            raise RefusedError(429, "too much is being received at once; come later", headers={"retry-after": "1"})

    @staticmethod
    async def _turn_away(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, then let the client finish what it is sending."""
        refused.headers["connection"] = "close"
        response = problem(refused)
        start = {"type": "http.response.start", "status": refused.status, "headers": response.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                message: Message = {"more_body": True}
                while message.get("more_body"):
                    message = await receive()
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _told_size(headers: Headers) -> int:
    told = headers.get("content-length", "")
    return int(told) if told.isdecimal() and told.isascii() else 0


def _secret(authorization: str) -> bytes:
    """The token of a header: after `Bearer`, or the password after `Basic`, as a browser asks for it."""
    scheme, _, told = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return told.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(told, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
