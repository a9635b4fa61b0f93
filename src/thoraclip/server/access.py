"""The names in a request: the host that it asks for, and the page whose browser sends it.

A page of another site can have a browser ask a server on its user's own machine. What it may not do is told by two
headers that no page can change:

Origin, Sec-Fetch-Site   the page: one of the host that is asked, or one that was allowed
Host                     the host that is asked: else a page calls its own name an address of this machine (DNS
                         rebinding), and is then a page of the host that is asked

Sources: RFC 6454 (origin), RFC 9110 section 7.2 (Host), Fetch Metadata (https://www.w3.org/TR/fetch-metadata/).
Starlette's TrustedHostMiddleware knows no network of addresses, takes the first of several hosts, answers in plain text
and redirects to `www.`; its CORSMiddleware (in use for allowed pages) tells browsers who may read an answer, and
answers everybody all the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from thoraclip.errors import ConfigError
from thoraclip.server.limits import CROSS_SITE, RefusedError, turn_away

__all__ = ["OPEN_ROUTES", "Access", "allowed_hosts", "allowed_origins", "host_name", "not_named"]

OPEN_ROUTES = ("/health", "/ready")  # probes of the process: whoever asks, and by whatever name
_PORTS = {"http": 80, "https": 443}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([1-9][0-9]{0,4}))?")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # an address or nothing in a URL (WHATWG)
_LONGEST = 253


class _Place(NamedTuple):
    """`name[:port]` of a URL."""

    name: str
    port: int | None


def host_name(text: str) -> str | None:
    """The name or IP address of a host as it is compared: in lower case, in ASCII, an address in its shortest form
    without brackets; `None` for anything else."""
    bracketed = re.fullmatch(r"\[(.*:.*)\]", text)
    with suppress(ValueError):
        address = ipaddress.ip_address(bracketed[1] if bracketed else text)
        return str(getattr(address, "ipv4_mapped", None) or address)
    try:
        name = (text if text.isascii() else text.encode("idna").decode("ascii")).lower()
    except UnicodeError:
        return None
    is_name = _NAME.fullmatch(name) and not _NUMBER.fullmatch(name) and len(name) <= _LONGEST
    return name if is_name else None


def allowed_hosts(names: Collection[str]) -> frozenset[str]:
    """Names as `host_name` gives them; raises ConfigError for what is none."""
    rule = "must be the name or address of a host, without scheme, port or wildcard; write it as xray.example.org"
    return frozenset(_each(names, host_name, f"--allow-host: {{!r}}: {rule}"))


def allowed_origins(texts: Collection[str]) -> frozenset[str]:
    """Origins as browsers write them; raises ConfigError for what is none."""
    rule = (
        "must be the scheme, host and port of a page, without a path or wildcard; write it as https://app.example.org"
    )
    return frozenset(_each(texts, _origin, f"--allow-origin: {{!r}}: {rule}"))


def _each(texts: Collection[str], read: Callable[[str], str | None], message: str) -> Iterator[str]:
    for text in texts:
        value = read(text)
        if value is None:
            raise ConfigError(message.format(text))
        yield value


def not_named(name: str) -> str:
    """Why a request for a name is refused."""
    return f"'{name}' is not a name of this server; start it with --allow-host NAME to answer by it"


def _place(text: str) -> _Place | None:
    match = _AUTHORITY.fullmatch(text)
    name = host_name(match[1]) if match else None
    port = int(match[2]) if match and match[2] else None
    return None if name is None or (port or 0) > 65535 else _Place(name, port)


def _origin(text: str) -> str | None:
    """An origin as browsers write it; `None` for anything else."""
    scheme, separator, rest = text.partition("://")
    scheme, place = scheme.lower(), _place(rest)
    return None if not separator or scheme not in _PORTS or place is None else _written(scheme, place)


def _written(scheme: str, place: _Place) -> str:
    name = f"[{place.name}]" if ":" in place.name else place.name
    return f"{scheme}://{name}" + ("" if place.port in (None, _PORTS[scheme]) else f":{place.port}")


class Access:
    """An ASGI layer that refuses a request for another host (421), by a page of another one (403), or with such a
    header that is none (400), with the reason.

    Args:
        app: what answers the others.
        origins: of pages on other hosts that may ask.
        hosts: names beside this machine's own (localhost, 127.0.0.0/8, ::1), and the address at which a request came.
        any_host: whether to answer by any name; for a server that demands a token, which no browser has for another
            name.
    """

    def __init__(
        self, app: ASGIApp, *, origins: Collection[str] = (), hosts: Collection[str] = (), any_host: bool = False
    ) -> None:
        self._app, self._any_host = app, any_host
        self._origins, self._hosts = allowed_origins(origins), allowed_hosts(hosts) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._refuse(scope)
        except RefusedError as refused:
            await turn_away(refused, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> None:
        if not scope["path"].startswith("/"):
            raise RefusedError(400, "the request must name a path, as /v1/predict, and the host in its header Host")
        headers, is_open = Headers(scope=scope), scope["path"] in OPEN_ROUTES
        given = [text.strip(" \t") for text in headers.getlist("host")]
        if is_open and not given:  # HTTP/1.0, as some probes speak
            return
        place = _place(given[0]) if len(given) == 1 else None
        if place is None:
            raise RefusedError(400, "the header Host must stand there once, as name or name:port")
        if is_open:
            return
        if not self._is_known(place.name, scope):
            raise RefusedError(421, not_named(place.name))
        if not self._may_ask(scope, headers, place):
            raise RefusedError(403, CROSS_SITE)

    def _is_known(self, name: str, scope: Scope) -> bool:
        """Whether the server answers by a name; an address at which the request came cannot be made up by a page."""
        if self._any_host or name in self._hosts:
            return True
        with suppress(ValueError):
            came_to = (scope.get("server") or ("", None))[0].partition("%")[0]
            return ipaddress.ip_address(name).is_loopback or name == str(host_name(came_to))
        return False

    def _may_ask(self, scope: Scope, headers: Headers, asked: _Place) -> bool:
        """Whether it is no page that asks, one of the host that is asked, or one that was allowed."""
        origins = [_origin(text) for text in _values(headers.getlist("origin"))]
        sites = {text.lower() for text in _values(headers.getlist("sec-fetch-site"))}
        if len(origins) > 1:
            return False
        if origins and origins[0] in self._origins:
            return True
        is_own = not origins or origins[0] in _own_origins(asked, scope)
        return is_own and (sites <= {"same-origin", "none"} or _is_link(scope, headers))


def _values(lines: Iterable[str]) -> list[str]:
    return [text.strip() for line in lines for text in line.split(",")]


def _own_origins(asked: _Place, scope: Scope) -> set[str]:
    """Of pages of the host that is asked. A proxy that ends TLS may leave no word of it: then, and only where the port
    is not this server's own, https counts as the scheme that was asked for."""
    by_proxy = (asked.port or _PORTS["http"]) != (scope.get("server") or ("", None))[1]
    schemes = {scope.get("scheme", "http"), *(["https"] if by_proxy else [])}
    return {_written(scheme, asked) for scheme in schemes}


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether somebody has followed a link of another site to the page."""
    to_page = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
    return to_page and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
