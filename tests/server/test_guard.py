"""Who gets in, how much, how slowly, and what is written of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from tests.server.asking import ask
from tests.server.test_app import forms, reason

from thoraclip.server import limits, monitoring
from thoraclip.server.guard import Journal
from thoraclip.server.limits import Limits
from thoraclip.server.monitoring import LOGGER, Metrics, log_event, set_up_logs

Opened = Callable[..., TestClient]
TOKEN = "a-token-of-some-length"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(f"anyone:{TOKEN}")])
def test_the_token_lets_in(opened: Opened, header: str) -> None:
    assert opened(token=TOKEN).get("/card", headers={"authorization": header}).status_code == 200


def test_a_token_of_any_letters_lets_in(opened: Opened) -> None:
    token = "Schlüssel-für-Röntgenbilder"
    for header in (f"Bearer {token}", basic(f"anyone:{token}")):
        assert opened(token=token).get("/card", headers={"authorization": header.encode()}).status_code == 200


def test_without_it_nothing_is_told_but_to_what_watches_over_the_process(opened: Opened) -> None:
    client = opened(token=TOKEN)
    headers = [
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        "Basic !!!",
        basic(TOKEN),
        "Bearer \xe4\xff",
    ]
    asked = [("POST", "/v1/predict", {"authorization": one.encode("latin-1")}) for one in ("", *headers)]
    asked += [
        ("GET", path, {}) for path in ("/v1/bundles", "/card", "/metrics", "/openapi.json", "/nothing", "/health/x")
    ]
    for method, path, sent in [*asked, ("POST", "/v1/predict", {}), ("OPTIONS", "/v1/predict", {})]:
        response = client.request(method, path, headers=sent)
        assert reason(response, 401) == "send the token: Authorization: Bearer TOKEN"
        assert response.headers["www-authenticate"].startswith("Basic realm=")
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_an_allowed_page_needs_the_token_and_learns_why_it_is_refused(opened: Opened, png: bytes) -> None:
    site = "https://elsewhere.example"
    client = opened(origins=[site], token=TOKEN)
    for bearer, status in (({"authorization": f"Bearer {TOKEN}"}, 200), ({}, 401)):
        headers = {"sec-fetch-site": "cross-site", "origin": site} | bearer
        answer = client.post("/v1/predict", files=forms(png), headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, site)
    preflight = {"access-control-request-method": "POST"}
    assert reason(opened(token=TOKEN).options("/v1/predict", headers=preflight), 401)


def test_every_answer_has_safe_headers_and_an_id_of_its_own(opened: Opened) -> None:
    client = opened()
    answers = [client.get(path, headers={"x-request-id": "mine"}) for path in ("/health", "/card", "/nothing")]
    for one in answers:
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert one.headers["cross-origin-resource-policy"] == "same-origin"
        assert one.headers["content-security-policy"].startswith("default-src 'none'")
    assert len({one.headers["x-request-id"] for one in answers} | {"mine"}) == 4


PNG = {"content-type": "image/png"}


def held(app: Any) -> float:
    """Bytes of all bodies in flight."""
    return app.state.server.metrics.registry.get_sample_value("thoraclip_held_bytes")  # type: ignore[no-any-return]


def test_a_body_may_be_as_large_as_the_limit_and_no_byte_larger(opened: Opened) -> None:
    """Whether its length is told or not."""
    client, large = opened(Limits(megabytes=1)), "larger than 1 MB; send fewer or smaller"
    for size, status, told in ((1_000_000, 422, "not a PNG"), (1_000_001, 413, large)):
        body = b"x" * size
        for content in (body, (body[at : at + 100_000] for at in range(0, size, 100_000))):
            assert told in reason(client.post("/v1/predict", content=content, headers=PNG), status)
            assert held(client.app) == 0  # type: ignore[attr-defined]


Sent = list[dict[str, Any]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sent]:
    """`talk(client, receive, ...)` -> all that is sent to one who posts a picture; `receive(sent so far)` gives its next part."""
    monkeypatch.setattr(limits, "_LINGER_SECONDS", 0.01)

    def make(client: TestClient, receive: Callable[[Sent], Awaitable[Any]], length: int | None = None) -> Sent:
        sent, headers = Sent(), PNG | ({} if length is None else {"content-length": str(length)})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "http_version": "1.1"}
        scope["headers"] = [
            (name.encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()
        ]
        asyncio.run(client.app(scope, lambda: receive(sent), send))  # type: ignore[arg-type]
        return sent

    return make


def test_a_body_announced_too_large_is_refused_unread(opened: Opened, talk: Callable[..., Sent]) -> None:
    async def nothing(sent: Sent) -> None:
        assert len(sent) == 2, "it was read before the refusal"
        await asyncio.Event().wait()

    for size in (1_000_001, 10**15):
        sent = talk(opened(Limits(megabytes=1)), nothing, size)
        assert sent[0]["status"] == 413 and b"larger than 1 MB" in sent[1]["body"]
        assert (b"connection", b"close") in sent[0]["headers"]


def test_a_body_that_drips_is_given_up_and_who_goes_away_is_no_failure(
    opened: Opened, talk: Callable[..., Sent], caplog: pytest.LogCaptureFixture
) -> None:
    """All of it has to come in time, not each part."""
    parts = iter(range(1000))

    async def drip(sent: Sent) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": next(parts) < 998}

    async def gone(sent: Sent) -> dict[str, Any]:
        return {"type": "http.disconnect"}

    caplog.set_level(logging.INFO, LOGGER.name)
    client = opened(Limits(upload_seconds=0.2))
    sent = talk(client, drip)
    assert sent[0]["status"] == 408 and b"the request took longer than 0.2 s to arrive" in sent[1]["body"]
    assert talk(client, gone, 9) == []
    assert [record.facts["status"] for record in caplog.records] == [408, 499]  # type: ignore[attr-defined]
    assert held(client.app) == 0  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_all_bodies_together_are_held_to_a_limit_and_let_go(opened: Opened, png: bytes) -> None:
    app, go = opened(Limits(megabytes=1, held_megabytes=2)).app, asyncio.Event()

    async def waits() -> AsyncIterator[bytes]:
        yield b"x" * 900_000
        await go.wait()

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", headers=PNG
    ) as client:  # type: ignore[arg-type]
        first = [asyncio.create_task(client.post("/v1/predict", content=waits())) for _ in range(2)]
        while held(app) < 1_800_000:
            await asyncio.sleep(0.001)
        more = await client.post("/v1/predict", content=b"x" * 300_000)
        assert reason(more, 429) == "too much is being received at once; come later"
        assert more.headers["retry-after"] == "1"
        go.set()
        assert [(await one).status_code for one in first] == [422, 422]
        assert held(app) == 0
        assert (await client.post("/v1/predict", content=png)).status_code == 200
    assert held(app) == 0


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the logs write to standard error."""
    names = [LOGGER.name, "uvicorn", "pydicom", "PIL"]
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    stream = io.StringIO()
    set_up_logs()
    handler = LOGGER.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield stream
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def test_the_log_has_a_line_for_each_request_and_no_name(opened: Opened, png: bytes, written: io.StringIO) -> None:
    client, name = opened(), "Mueller^Hans"
    client.post(f"/v1/predict?bundle={name}", files=[(name, (f"{name}.dcm", png))])
    client.post("/v1/predict", files=[(name, (f"{name}.dcm", png)), ("x", ("y", name.encode()))])
    client.get(f"/images/{name}.png", headers={"user-agent": name})
    client.get("/health")
    assert "Mueller" not in written.getvalue()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    answers = [(one["route"], one["status"]) for one in lines]
    assert answers == [("/v1/predict", 404), ("/v1/predict", 200), ("other", 404)]
    assert lines[1] | {"pictures": 2, "unreadable": 1, "bytes": len(png) + 12} == lines[1]
    assert all(one["time"].endswith("Z") and one["level"] == "info" and one["seconds"] >= 0 for one in lines)


def deep(depth: int) -> None:
    """Fail far down."""
    if not depth:
        raise RuntimeError("x" * 10_000)
    deep(depth - 1)


@given(texts=st.lists(st.text(max_size=2000), max_size=3), depth=st.integers(0, 200))
def test_a_line_of_the_log_is_short_and_a_line(texts: list[str], depth: int) -> None:
    stream, record = io.StringIO(), logging.getLogger("thoraclip.server")
    set_up_logs()
    record.handlers[0].setStream(stream)  # type: ignore[attr-defined]
    try:
        deep(depth)
    except RuntimeError as error:
        log_event("failure", error=error, **{f"fact{number}": text for number, text in enumerate(texts)})
    logging.getLogger("uvicorn.error").handlers = record.handlers
    logging.getLogger("uvicorn.error").warning("".join(texts) + "\r\nlevel: \x1b[31m")
    for line in stream.getvalue().splitlines():
        assert json.loads(line) and len(line) < 20_000 and line.isprintable() and line.isascii()


def test_a_flood_of_requests_is_told_in_few_lines(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how many were left out is told, once there is room."""
    now = [1e6]
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    LOGGER.handlers[0].filters[0].__init__()  # type: ignore[misc]
    for _ in range(5000):
        log_event("request")
    assert len(written.getvalue().splitlines()) == 1000
    now[0] += 0.5
    for _ in range(5000):
        log_event("request")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert len(lines) == 1050
    assert [line["lines_left_out"] for line in lines if "lines_left_out" in line] == [4000]


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=300))
def test_an_id_is_never_the_client_s(name: str) -> None:
    metrics, app = Metrics(), PlainTextResponse("answered")
    headers = [("host", "localhost"), ("x-request-id", name), ("x-request-id", "mine"), ("user-agent", name)]
    assert re.fullmatch("[0-9a-f]{32}", ask(Journal(app, metrics), headers=headers).headers["x-request-id"])


def test_of_an_error_its_kind_and_place_are_logged_not_its_message(written: io.StringIO) -> None:
    logging.getLogger("pydicom").warning("Mueller^Hans")
    try:
        int("Mueller^Hans")
    except ValueError as error:
        log_event("failure", error=error)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    mine, of_uvicorn = [json.loads(line) for line in written.getvalue().splitlines()]
    assert mine["error"] == "ValueError" and "test_guard.py" in mine["at"][0]
    assert "Mueller" not in written.getvalue()
    assert of_uvicorn["event"] == "Exception in ASGI application" and of_uvicorn["error"] == "ValueError"
