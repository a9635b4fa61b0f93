"""Any request, odd or hostile, gets an answer below 500: to the app in process, and over a socket."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts.served import Served
from starlette.testclient import TestClient
from tests.server.asking import Answer, ask

from thoraclip.server import limits
from thoraclip.server.limits import Limits

ROUTES = {"/v1/predict": "POST", "/v1/explain": "POST"} | dict.fromkeys(
    ("/v1/bundles", "/card", "/health", "/ready", "/metrics", "/openapi.json", "/", "/page/page.js"), "GET"
)
KNOWN = re.compile("|".join([*map(re.escape, ROUTES), r"/page/[^/]+"]))
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "QUERY", "get", "ODD"]


@pytest.fixture(scope="module")
def app(classifier: Any) -> Iterator[Any]:
    """An app with the page and small limits."""
    from thoraclip.server.app import ServerState, create_app
    from thoraclip.server.batch_queue import BatchQueue
    from thoraclip.server.monitoring import Metrics

    small, metrics = Limits(files=4, megabytes=1), Metrics()
    queue = BatchQueue(classifier, name="probe", limits=small, metrics=metrics, threads=1)
    with (
        pytest.MonkeyPatch.context() as patch,
        TestClient(
            create_app(ServerState([queue], small, metrics, has_page=True)), base_url="http://localhost"
        ) as client,
    ):
        patch.setattr(limits, "_LINGER_SECONDS", 0.01)
        yield client.app


# in words, since a list of them would take a line for each
_PIECES = r"/ // .. %2e%2e %2E%2E%2f %00 %ff % %zz %0d%0a \ ; ~ v1 predict card page page.js phantom-0.png phantom--1.png health : @ *"
_KINDS = """image/png|IMAGE/PNG; charset=utf-9|text/html|multipart/form-data|multipart/form-data; boundary=b|/|;|\xff|a/b/c
multipart/form-data; boundary=|multipart/form-data; boundary="b|multipart/mixed; boundary=b|application/json"""
_HEADERS = """content-length: -1|content-length: 1e3|content-length: 99999999999999999999999|expect: 100-continue|range: bytes=0-1
accept: image/png|accept: \xff;q=\x01|authorization: Basic ==|x-forwarded-proto: https|x-request-id: a\tb|if-none-match: *
x-http-method-override: PUT|upgrade: websocket|transfer-encoding: gzip|content-encoding: br|connection: upgrade|te: trailers"""
pieces = st.sampled_from([*_PIECES.split(), "a" * 5000])
targets = st.one_of(st.sampled_from(list(ROUTES)), st.lists(pieces, max_size=6).map(lambda parts: "/" + "".join(parts)))
values = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=12)
names = st.sampled_from(["bundle", "class", "method", "neighbours", "x"])
queries = st.lists(st.builds("{}={}".format, names, st.one_of(values, pieces)), max_size=3).map("&".join)
kinds = st.sampled_from(["", "multipart/form-data; boundary=" + "b" * 300, *re.split(r"[|\n]", _KINDS)])
extra = st.lists(st.sampled_from([tuple(one.split(": ")) for one in re.split(r"[|\n]", _HEADERS)]), max_size=4)
chunks = st.sampled_from([b"--b\r\n", b"\r\n\r\n", b"--b--\r\n", b"a: b\r\n", b"\x89PNG\r\n\x1a\n"])
bodies = st.lists(st.one_of(st.binary(max_size=60), chunks), min_size=1, max_size=6)


def judged(answer: Answer, method: str, path: str) -> None:
    """Check what holds for every answer."""
    assert 200 <= answer.status < 500, (answer.status, answer.body)
    if method == "HEAD":
        assert answer.body == b"" and "content-length" in answer.headers
    elif answer.status >= 400:
        assert answer.detail and len(answer.body) < 2000
    if answer.status == 405:
        allowed = answer.headers["allow"].split(", ")
        assert allowed and method not in allowed and KNOWN.fullmatch(path)
    if answer.status == 404 and method != "HEAD":
        assert not KNOWN.fullmatch(path) or "bundle" in answer.detail or path.startswith("/page/")


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(METHODS), path=targets, query=queries, kind=kinds, more=extra, body=bodies)
def test_any_request_is_answered_below_500(
    app: Any, method: str, path: str, query: str, kind: str, more: list[tuple[str, str]], body: list[bytes]
) -> None:
    headers = [("host", "localhost"), *([("content-type", kind)] if kind else []), *more]
    judged(ask(app, f"{path}?{query}", headers, method=method, body=body), method, path)


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_answers_its_own_methods_alone_and_says_which(app: Any, route: str) -> None:
    for method in METHODS:
        answer = ask(app, route, method=method)
        if method == ROUTES[route] or (method == "HEAD" and ROUTES[route] == "GET"):
            assert answer.status in (200, 415)
        else:
            assert answer.status == 405 and answer.headers["allow"] == ROUTES[route].replace("GET", "GET, HEAD"), method
    assert ask(app, route + "/").status == 404
    if ROUTES[route] == "GET" and route != "/metrics":
        whole, head = ask(app, route), ask(app, route, method="HEAD")
        own = {"x-request-id": ""}
        assert (
            head.headers | own == whole.headers | own
            and not head.body
            and len(whole.body) == int(head.headers["content-length"])
        )


def test_what_a_client_names_is_told_back_in_short(app: Any) -> None:
    answer = ask(app, f"/card?bundle={'a' * 20000}")
    assert answer.status == 404 and answer.detail.startswith("no bundle is called 'aaa") and len(answer.body) < 1000


ANSWERED = re.compile(rb"HTTP/1\.1 ([2345]\d\d) ")
HOST = b"Host: localhost\r\n"
END = b"Connection: close\r\n\r\n"


def exchange(server: Served, sent: bytes, *, seconds: float = 20) -> tuple[list[int], bytes]:
    """The statuses of all that is answered to some bytes until the server closes or, for so long, says no more; and
    the answer."""
    told = b""
    with suppress(TimeoutError, ConnectionResetError, BrokenPipeError), socket.socket() as connection:
        connection.settimeout(seconds)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(sent)
        while more := connection.recv(65536):
            told += more
    return [int(status) for status in ANSWERED.findall(told)], told


LINES = {
    b"GET /card HTTP/1.0": 200,
    b"HEAD /card HTTP/1.1": 200,
    b"GET http://localhost/card HTTP/1.1": 400,
    b"GET http://evil.example/card HTTP/1.1": 400,
    b"CONNECT localhost:80 HTTP/1.1": 400,
    b"OPTIONS * HTTP/1.1": 400,
    b"GET //card HTTP/1.1": 404,
    b"GET /%2e%2e/card HTTP/1.1": 404,
    b"GET /card%2f HTTP/1.1": 404,
    b"GET /card%00 HTTP/1.1": 404,
    b"GET /card\x00 HTTP/1.1": 400,
    b"GET /c\xc3\xa4rd HTTP/1.1": 400,
    b"GET /" + b"a" * 30000 + b" HTTP/1.1": 404,
    b"GET /" + b"a" * 300000 + b" HTTP/1.1": 400,
    b"GET /card": 400,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": 400,  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM": 400,
}
FIELDS = {
    b"Host: localhost": 400,  # once more
    b"Host: evil.example": 400,
    b"x: " + b"y" * 300000: 400,
    b"a: b\r\n" * 60000 + b"a: b": 400,
    b" folded: x": 400,
    b"bad name: x": 400,
    b"no colon": 400,
    b"Content-Length: 1\r\nContent-Length: 2": 400,
    b"Content-Length: 1, 2": 400,
    b"Content-Length: -1": 400,
    b"Transfer-Encoding: gzip": 400,
    b"Content-Length: 1\r\nTransfer-Encoding: gzip": 400,
    b"Content-Length: 0\r\nContent-Length: 0": 405,
    b"Content-Length: 9\r\nExpect: 100-continue": 405,  # is not waited for
    b"Transfer-Encoding: chunked": 405,
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13": 405,
    b"Origin: http://evil.example": 403,
}
RAW = {line + b"\r\n" + HOST + END: status for line, status in LINES.items()}
RAW |= {b"POST /card HTTP/1.1\r\n" + HOST + field + b"\r\n" + END: status for field, status in FIELDS.items()}
RAW |= {
    b"GET /card HTTP/1.1\r\n" + END: 400,  # no host
    b"GET /card HTTP/1.0\r\n" + END: 400,
    b"GET /health HTTP/1.0\r\n" + END: 200,
    b"POST /v1/predict HTTP/1.1\r\nHost: evil.example\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n": 421,
    b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n" + END + b"x": 415,
    b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n" + END + b"1\r\nx\r\n0\r\n\r\n": 415,
}


@pytest.mark.parametrize("sent", RAW, ids=lambda sent: re.sub(r"\W+", " ", repr(sent[:60])))
def test_bytes_over_a_socket(server: Served, sent: bytes) -> None:
    statuses, told = exchange(server, sent, seconds=3 if b"Expect" in sent else 20)
    # what is read no further is closed, which may overtake the answer
    assert statuses == [RAW[sent]] or (len(sent) > 2**17 and not statuses), told[:300]
    if statuses and RAW[sent] >= 400:
        head, _, body = told.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head and json.loads(body)["status"] == RAW[sent]


def test_a_body_in_bad_chunks_is_no_failure(server: Served) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    for chunks in (b"z\r\n", b"-1\r\nx", b"1\r\nxyz", b"f" * 40 + b"\r\n", b"1;" + b"e" * 300000 + b"\r\n"):
        statuses, told = exchange(server, head + chunks)
        assert statuses in ([400], []), told[:300]
    assert exchange(server, b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")[0] == [200]


_WORDS = (
    b"GET|POST|HEAD|OPTIONS| |  |/|/card|/v1/predict| HTTP/1.1| HTTP/1.0|\r\n|\n|\r|\r\n\r\n|0\r\n\r\n|\0|\xff|abc|: "
)
_LINES = b"Host: evil.example|Content-Length: 3|Transfer-Encoding: chunked|Expect: 100-continue|Connection: close|Origin: null"
words = st.sampled_from([*_WORDS.split(b"|"), HOST, *(line + b"\r\n" for line in _LINES.split(b"|"))])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.lists(words, max_size=14).map(b"".join), begins=st.booleans())
def test_any_bytes_over_a_socket_are_answered_below_500_or_closed(server: Served, head: bytes, begins: bool) -> None:
    """The log of the server, which is looked at in its end, holds no failure."""
    statuses, told = exchange(server, (b"GET /card HTTP/1.1\r\n" if begins else b"") + head, seconds=0.1)
    assert all(status < 500 for status in statuses), told
