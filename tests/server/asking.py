"""Requests to an ASGI app, byte by byte, as no client's library would send them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What was sent back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        """The reason of a problem, whose form is checked."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.headers, self.body)
        problem = json.loads(self.body)
        assert problem["status"] == self.status and "\n" not in problem["detail"]
        return str(problem["detail"])


def ask(
    app: ASGIApp,
    target: str = "/v1/bundles",
    headers: Pairs = (("host", "localhost"),),
    *,
    method: str = "GET",
    body: Sequence[bytes] = (b"",),
    server: tuple[str, int] = ("127.0.0.1", 8000),
    scheme: str = "http",
) -> Answer:
    """The answer to a request, as Uvicorn passes it on; of a HEAD or another, all that was sent."""
    raw, _, query = target.partition("?")
    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": method, "scheme": scheme}
    scope |= {"path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "server": server}
    scope["headers"] = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    parts, sent = list(body), list[Any]()

    async def receive() -> Any:
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))  # type: ignore[arg-type]
    start, *rest = sent
    told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], told, b"".join(message.get("body", b"") for message in rest))
