"""By which names the server is asked, and by the pages of which hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from tests.server.asking import Answer, ask

from thoraclip.errors import ConfigError
from thoraclip.server import limits
from thoraclip.server.access import OPEN_ROUTES, Access, allowed_hosts, allowed_origins

PAGE, NAME = "https://app.example.org", "xray.example.org"
CLOSED, ALLOWED = (
    Access(PlainTextResponse("answered"), origins=origins, hosts=hosts)
    for origins, hosts in (((), ()), ((PAGE,), (NAME, "192.0.2.7", "[2001:DB8::1]", "röntgen.example")))
)

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda name: name != "localhost")
foreign = st.ip_addresses().filter(lambda one: not one.is_loopback)
strangers = st.one_of(names, foreign.map(lambda one: f"[{one}]" if one.version == 6 else str(one)))
own = st.one_of(
    st.just("localhost"),
    st.integers(0, 2**24 - 1).map(lambda low: str(ipaddress.ip_address((127 << 24) + low))),
    st.sampled_from(["[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"]),
)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))


@st.composite
def spelled(draw: Any, texts: st.SearchStrategy[str]) -> str:
    """A text in upper and lower case, with blanks around it."""
    text = draw(texts)
    letters = [draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in text]
    blanks = st.text(" \t", max_size=2)
    return draw(blanks) + "".join(letters) + draw(blanks)


@given(host=spelled(st.tuples(own, ports).map("".join)))
def test_this_machine_s_own_names_are_answered(host: str) -> None:
    assert ask(CLOSED, headers=[("host", host)]).body == b"answered"


@given(host=spelled(st.tuples(strangers, ports).map("".join)))
def test_no_other_name_is_answered(host: str) -> None:
    answer = ask(CLOSED, headers=[("host", host)])
    assert answer.status == 421 and "--allow-host NAME" in answer.detail


ODD = [
    "localhost.",
    "localhost:",
    "localhost:0",
    "localhost:65536",
    "localhost:08000",
    "localhost:8000:8000",
    "localhost:http",
    "user@localhost",
    "user:password@localhost:8000",
    "localhost/",
    "localhost?",
    "localhost#",
    "localhost\\",
    "local host",
    "localhost,localhost",
    "localhost\x00",
    "local\thost",
    "http://localhost",
    "*",
    "*.localhost",
    "::1",
    "[::1",
    "[::1%lo]",
    "[::1%25lo]",
    "[localhost]",
    "[127.0.0.1]",
    "[]",
    "127.1",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "127.0.0.1.",
    "127.0.0.01",
    "1.2.3.4.5",
    "-localhost",
    ".localhost",
    "local..host",
    "",
    " ",
    ":8000",
    "l\xf6calhost",
    "a" * 64,
    ".".join(["abcdefg"] * 40),
]


@pytest.mark.parametrize("host", ODD)
@pytest.mark.parametrize("path", ["/v1/bundles", "/health"])
def test_what_is_no_name_of_a_host_is_refused(host: str, path: str) -> None:
    for app in (CLOSED, ALLOWED, Access(PlainTextResponse("answered"), any_host=True)):
        assert "Host must stand there once" in (answer := ask(app, path, [("host", host)])).detail
        assert answer.status == 400


def test_a_host_stands_there_once_and_the_target_is_a_path() -> None:
    for hosts in ((), ("localhost", "localhost"), ("localhost", "evil.example"), ("evil.example", "localhost")):
        answer = ask(CLOSED, headers=[("Host", host) for host in hosts])
        assert answer.status == 400 and answer.detail
    for target in ("http://localhost/v1/bundles", "localhost:8000", "*", "", "v1/bundles", "%2fv1"):
        status = 200 if target == "%2fv1" else 400
        assert ask(CLOSED, target).status == status
    assert ask(CLOSED, "/health", []).status == 200


def test_names_that_were_allowed_and_the_address_at_which_it_came_are_answered() -> None:
    for host in (NAME, NAME.upper() + ":443", "192.0.2.7:1", "[2001:db8:0::1]", "xn--rntgen-wxa.example"):
        assert ask(ALLOWED, headers=[("host", host)]).status == 200, host
        assert ask(CLOSED, headers=[("host", host)]).status == 421
    for host, address in (("192.0.2.9", "192.0.2.9"), ("[fe80::1]", "fe80::1%eth0"), ("192.0.2.9", "::ffff:192.0.2.9")):
        assert ask(CLOSED, headers=[("host", host)], server=(address, 8000)).status == 200
    assert ask(CLOSED, headers=[("host", "evil.example")], server=("evil.example", 8000)).status == 421
    assert ask(ALLOWED, headers=[("host", f"a.{NAME}")]).status == 421


def asked_by(
    origins: list[str], site: str = "", *, app: Access = CLOSED, host: str = "localhost:8000", **more: Any
) -> Answer:
    """The answer to a page."""
    headers = [("host", host), *(("Origin", origin) for origin in origins)]
    return ask(app, headers=headers + ([("Sec-Fetch-Site", site)] if site else []), **more)


origins = st.builds("{}://{}{}".format, st.sampled_from(["http", "https"]), st.one_of(own, strangers), ports)
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "QUERY", "odd"]


@given(
    origin=spelled(st.one_of(origins, st.sampled_from(["null", "file://", "chrome-extension://a", PAGE, ""]))),
    method=st.sampled_from(METHODS),
    site=st.sampled_from(["", "same-origin", "none", "same-site", "cross-site"]),
)
def test_only_pages_of_the_host_that_is_asked_may_ask(origin: str, method: str, site: str) -> None:
    """However the browser, or who plays one, spells it."""
    is_own = origin.strip().lower() == "http://localhost:8000"
    assert asked_by([origin], site, method=method).status == (200 if is_own and "-site" not in site else 403)


@given(host=spelled(st.tuples(own, ports).map("".join)), site=st.sampled_from(["", "same-origin", "None "]))
def test_a_page_may_ask_its_own_host(host: str, site: str) -> None:
    """At the port at which the server listens: else a proxy might be there, which `https` is tested for below."""
    port = int(host.strip().rpartition(":")[2]) if host.strip()[-1] != "]" and ":" in host else 80
    origin = "http://" + host.strip()
    assert asked_by([origin], site, host=host, server=("127.0.0.1", port)).status == 200
    assert asked_by([f" {origin.upper()}"], site, host=host, server=("127.0.0.1", port)).status == 200
    assert asked_by([origin.replace("http", "https")], site, host=host, server=("127.0.0.1", port)).status == 403
    assert asked_by([origin, origin], host=host).status == asked_by([f"{origin}, {origin}"], host=host).status == 403
    assert asked_by([f"{origin}/"], host=host).status == asked_by([f"http://u@{host.strip()}"], host=host).status == 403


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "is_own"),
    [
        (f"https://{NAME}", NAME, "http", True),  # TLS ends at a proxy that says nothing of it
        (f"https://{NAME}", NAME, "https", True),
        (f"https://{NAME}", f"{NAME}:443", "https", True),
        (f"https://{NAME}:8443", f"{NAME}:8443", "http", True),
        (f"https://{NAME}:8443", NAME, "http", False),
        (f"http://{NAME}", NAME, "https", False),
        (f"http://{NAME}", NAME, "http", True),
        (f"https://{NAME}:8000", f"{NAME}:8000", "http", False),  # no proxy: the server's own port, without TLS
        (f"https://a.{NAME}", NAME, "http", False),
        ("https://example.org", NAME, "http", False),
        (f"https://{NAME}.evil.example", NAME, "http", False),
        (f"https://{NAME}:443", NAME, "http", True),
    ],
)
def test_scheme_and_port_count(origin: str, host: str, scheme: str, is_own: bool) -> None:
    assert asked_by([origin], app=ALLOWED, host=host, scheme=scheme).status == (200 if is_own else 403)


@given(spelled(st.sampled_from(["cross-site", "same-site", "odd", "same-origin, cross-site", "none,same-site"])))
def test_a_request_of_another_site_is_refused_without_an_origin_too(site: str) -> None:
    """A browser names none where a page embeds an image or a script."""
    assert asked_by([], site).status == 403
    headers = [("host", "localhost"), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", site)]
    assert ask(CLOSED, headers=headers).status == 403
    link = [("host", "localhost"), ("sec-fetch-site", site), ("sec-fetch-mode", "navigate")]
    assert ask(CLOSED, "/", [*link, ("sec-fetch-dest", "document")]).status == 200
    assert ask(CLOSED, "/", [*link, ("sec-fetch-dest", "iframe")]).status == 403
    assert ask(CLOSED, "/v1/bundles", [*link, ("sec-fetch-dest", "document")]).status == 403
    assert ask(CLOSED, "/", [*link, ("sec-fetch-dest", "document")], method="POST").status == 403


def test_an_allowed_page_may_ask_and_is_told_so(opened: Callable[..., TestClient]) -> None:
    app = opened(origins=["HTTPS://App.Example.org:443"]).app
    preflight = [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization")]
    for origin, status in ((PAGE, 200), ("https://evil.example", 403), ("null", 403)):
        headers = [("host", "localhost"), ("origin", origin), ("sec-fetch-site", "cross-site")]
        for answer in (
            ask(app, "/v1/predict", headers + preflight, method="OPTIONS"),
            ask(app, "/v1/bundles", headers),
            ask(app, "/v1/bundles", headers, method="HEAD"),
        ):
            assert answer.status == status
            assert answer.headers.get("access-control-allow-origin") == (PAGE if status == 200 else None)
    evil = [("host", "evil.example"), ("origin", PAGE), *preflight]
    assert ask(app, "/v1/predict", evil, method="OPTIONS").status == 421


def test_no_route_but_the_probes_answers_a_stranger(
    opened: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_LINGER_SECONDS", 0.01)
    app: Any = opened(has_page=True).app
    paths = [*app.openapi()["paths"], "/", "/page/page.js", "/page/phantom-0.png", "/openapi.json", "/nothing", "//"]
    rebound = [("host", "evil.example:8000"), ("origin", "http://evil.example:8000"), ("sec-fetch-site", "same-origin")]
    foreign = [("host", "localhost"), ("origin", "http://evil.example")]
    for path, method in product(paths, METHODS):
        statuses = [ask(app, path, headers, method=method).status for headers in (rebound, foreign)]
        assert path in OPEN_ROUTES or statuses == [421, 403], (path, method)
    assert [ask(app, path, rebound).status for path in OPEN_ROUTES] == [200, 200]


def test_with_a_token_any_name_is_answered_unless_names_are_given(opened: Callable[..., TestClient]) -> None:
    """`serve` says so with `any_host`; a page of another host is refused all the same."""
    app = opened(token="a-token-of-some-length", any_host=True).app
    bearer = ("authorization", "Bearer a-token-of-some-length")
    assert ask(app, headers=[("host", "any.example")]).status == 401
    assert ask(app, headers=[("host", "any.example"), bearer]).status == 200
    assert ask(app, headers=[("host", "any.example"), ("origin", "http://evil.example"), bearer]).status == 403


BAD = ["", "*", "http://x", "x:80", "x/", "x.", "user@x", "1.2.3.4.5", "*.x", "a b", "x\n", "..", "[::1]:80", "%"]


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_name_to_allow_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^--allow-host: .*; write it as xray.example.org$"):
        allowed_hosts([NAME, text])


@pytest.mark.parametrize(
    "text",
    ["", "*", "null", NAME, f"{PAGE}/", f"{PAGE}/x", "ftp://x", "https://*.x", "https://u@x", "://x", "https://x:0"],
)
def test_a_wrong_origin_to_allow_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^--allow-origin: .*; write it as https://app.example.org$"):
        allowed_origins([PAGE, text])
