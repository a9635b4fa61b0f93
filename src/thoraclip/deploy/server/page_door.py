"""What of Gradio the network reaches: a list of what is let in, and how it leaves.

Gradio brings some fifty routes: uploads to disk, files, a proxy, a queue, histories, monitoring. The page needs a handful; all
else does not exist here, and the app's own 404 and 405 answer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thoraclip.deploy.server.problems import RefusedError, problem

__all__ = ["LET_IN", "PageRoute", "policy"]

_READ = frozenset({"GET", "HEAD"})
_ASSET = r"[\w.-]+\.(?:js|css|woff2?|svg|png)"
LET_IN: Mapping[str, tuple[re.Pattern[str], frozenset[str]]] = {
    "/": (re.compile(r"/"), _READ),
    "/assets/{file}": (re.compile(rf"/assets/{_ASSET}"), _READ),
    "/static/img/{file}": (re.compile(rf"/static/img/{_ASSET}"), _READ),
    "/theme.css": (re.compile(r"/theme\.css"), _READ),
    "/favicon.ico": (re.compile(r"/favicon\.ico"), _READ),
    "/page/{file}": (re.compile(r"/page/(?:page\.(?:js|css)|phantom-\d{1,2}\.png)"), _READ),
    "/gradio_api/run/predict": (re.compile(r"/gradio_api/run/predict"), frozenset({"POST"})),
}
"""Template, as logs and metrics call it -> paths and methods that reach the page. No other path does."""
_KEPT = ("content-type", "content-length", "content-encoding", "etag", "last-modified", "vary")
"""Headers of Gradio's answers that leave; it also lets other origins in."""
_HIDDEN = (b"x-forwarded-", b"forwarded", b"accept-encoding", b"cookie")
"""Headers of a request for the page itself that Gradio does not see: it is written anew, and depends on nobody."""
_CACHED = "private, max-age=86400"
_NOISE = (
    re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>'),
    re.compile(r'<link rel="manifest"[^>]*>'),
    re.compile(r"<script>\s*\(\(\) => \{(?:(?!</script>).)*?iframeResizer(?:(?!</script>).)*</script>", re.DOTALL),
    re.compile(r"<script data-gradio-mode>.*?</script>", re.DOTALL),
)
"""For previews on other sites, an app on a phone's desk, and frames of other sites."""
_OWN = """
<link rel="stylesheet" href="./page/page.css">
<script>window.__gradio_mode__ = "app"; window.gradio_config.root = new URL(".", location.href).href.replace(/[/]$/, "");</script>
<script src="./page/page.js"></script>
"""
"""Whatever a proxy calls the host: the page asks where it came from."""


class PageRoute(BaseRoute):
    """See the module; stands after all other routes.

    Args:
        page: Gradio's app.
        own: the page's own files.
    """

    def __init__(self, page: ASGIApp, own: ASGIApp) -> None:
        self._page, self._own = page, own

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whole, or not at all."""
        if scope["type"] == "http":
            for template, (paths, methods) in LET_IN.items():
                if scope["method"] in methods and paths.fullmatch(scope["path"]):
                    return Match.FULL, {"route": _Named(template)}
        return Match.NONE, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        """There are no names."""
        from starlette.routing import NoMatchFound

        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        path = scope["path"]
        if path == "/":
            await self._front(scope, receive, send)
        elif path.startswith("/page/"):
            await self._own(scope, receive, send)
        else:
            cached = _CACHED if path.startswith("/assets/") else "no-store"
            await self._page(dict(scope), receive, _refusing(_leaving(send, cached), scope, receive, send))

    async def _front(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's page without its noise, with ours, and with a policy that nothing else can run in it."""
        headers = [(name, value) for name, value in scope["headers"] if not name.startswith(_HIDDEN)]
        status, body = 500, bytearray()

        async def kept(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))

        await self._page(dict(scope) | {"headers": headers, "query_string": b"", "method": "GET"}, receive, kept)
        nonce = secrets.token_urlsafe(16)
        content = _front(body.decode(), nonce).encode()
        told = {
            "content-type": "text/html; charset=utf-8", "content-length": str(len(content)),
            "content-security-policy": policy(nonce), "cache-control": "no-store",
        }  # fmt: skip
        raw = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content if scope["method"] == "GET" else b""})


class _Named:
    """What logs and metrics call a request."""

    def __init__(self, path: str) -> None:
        self.path = path


def policy(nonce: str) -> str:
    """Content security policy of the page.

    Scripts are the server's own files, and those within the page that bear the nonce; Gradio compiles its templates, for which it
    needs `eval`, and sets styles from scripts.
    """
    return (
        "default-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; font-src 'self'; "
        f"img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'"
    )


def _front(page: str, nonce: str) -> str:
    for noise in _NOISE:
        page = noise.sub("", page)
    before, module, after = page.partition('<script type="module"')
    return re.sub(r"<script(?=[\s>])", f'<script nonce="{nonce}"', f"{before}{_OWN}{module}{after}")


def _leaving(send: Send, cached: str) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if name.decode("latin-1").lower() in _KEPT]
            message = {**message, "headers": kept}
            MutableHeaders(raw=kept)["cache-control"] = cached
        await send(message)

    return answer


def _refusing(send: Send, scope: Scope, receive: Receive, plain: Send) -> Send:
    """What Gradio refuses becomes problem details, without what was sent."""
    is_refused = False

    async def answer(message: Message) -> None:
        nonlocal is_refused
        if message.get("status", 200) >= 400:
            is_refused = True
            reason = "not found" if message["status"] == 404 else "the page does not ask so; reload it"
            await problem(RefusedError(message["status"], reason))(scope, receive, plain)
        elif not is_refused:
            await send(message)

    return answer
