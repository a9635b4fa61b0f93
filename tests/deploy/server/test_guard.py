"""Who gets in, how much, how slowly, and what is written of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from starlette.testclient import TestClient
from tests.deploy.server.test_app import forms, reason

from thoraclip.deploy.server.limits import Limits
from thoraclip.deploy.server.logs import LOGGER, set_up_logs, tell

Opened = Callable[..., TestClient]
TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {TOKEN}",
        f"bearer  {TOKEN} ",
        "Basic " + base64.b64encode(f"anyone:{TOKEN}".encode()).decode(),
    ],
)
def test_the_token_lets_in(opened: Opened, png: bytes, header: str) -> None:
    response = opened(token=TOKEN).post("/v1/predict", files=forms(png), headers={"authorization": header})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        TOKEN,
        "Basic !!!",
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        "Bearer \xe4\xff",
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/bundles", "/card", "/metrics", "/openapi.json", "/nothing"])
def test_without_it_nothing_is_told(opened: Opened, png: bytes, header: str | None, path: str) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = opened(token=TOKEN).post(path, files=forms(png), headers=headers)  # type: ignore[arg-type]
    assert reason(response, 401) == "send the token: Authorization: Bearer TOKEN"
    assert response.headers["www-authenticate"].startswith("Basic realm=")


def test_what_watches_over_the_process_needs_no_token(opened: Opened) -> None:
    client = opened(token=TOKEN)
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_a_page_of_another_site_may_not_ask_unless_it_is_allowed(opened: Opened, png: bytes) -> None:
    foreign = {"sec-fetch-site": "cross-site", "origin": "https://elsewhere.example"}
    client = opened()
    response = client.post("/v1/predict", files=forms(png), headers=foreign)
    assert "asked by a page of another site" in reason(response, 403)
    assert "access-control-allow-origin" not in client.get("/health", headers=foreign).headers
    allowed = opened(origins=["https://elsewhere.example"], token=TOKEN)
    preflight = allowed.options(
        "/v1/predict",
        headers=foreign | {"access-control-request-method": "POST", "access-control-request-headers": "authorization"},
    )
    assert preflight.headers["access-control-allow-origin"] == "https://elsewhere.example"
    answer = allowed.post("/v1/predict", files=forms(png), headers=foreign | {"authorization": f"Bearer {TOKEN}"})
    assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"
    assert answer.status_code == 200
    other = foreign | {"origin": "https://third.example", "authorization": f"Bearer {TOKEN}"}
    assert allowed.post("/v1/predict", files=forms(png), headers=other).status_code == 403


def test_every_answer_has_safe_headers_and_an_id_of_its_own(opened: Opened) -> None:
    client = opened()
    answers = [client.get(path, headers={"x-request-id": "mine"}) for path in ("/health", "/card", "/nothing")]
    for one in answers:
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert one.headers["content-security-policy"].startswith("default-src 'none'")
    assert len({one.headers["x-request-id"] for one in answers} | {"mine"}) == 4


def test_a_body_that_tells_its_size_is_refused_unread(opened: Opened) -> None:
    response = opened(Limits(megabytes=1)).post(
        "/v1/predict", content=b"x" * 1_000_001, headers={"content-type": "image/png"}
    )
    assert reason(response, 413) == "the request is larger than 1 MB; send fewer or smaller pictures"


def test_a_body_that_does_not_is_refused_while_it_comes(opened: Opened) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b"x" * 100_000

    client = opened(Limits(megabytes=1))
    response = client.post("/v1/predict", content=chunks(), headers={"content-type": "image/png"})
    assert "larger than 1 MB" in reason(response, 413)


def client_of(client: TestClient) -> httpx.AsyncClient:
    """Asks the same app, several requests at once."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://here")  # type: ignore[arg-type]


def test_a_body_that_comes_too_slowly_is_given_up(opened: Opened, png: bytes) -> None:
    async def drip() -> AsyncIterator[bytes]:
        yield png[:10]
        await asyncio.sleep(5)
        yield png[10:]

    async def ask() -> httpx.Response:
        async with client_of(opened(Limits(upload_seconds=0.2))) as client:
            return await client.post("/v1/predict", content=drip(), headers={"content-type": "image/png"})

    assert reason(asyncio.run(ask()), 408) == "the request took longer than 0.2 s to arrive"


def test_all_bodies_together_are_held_to_a_limit_and_let_go(opened: Opened, png: bytes) -> None:
    app = opened(Limits(megabytes=1, held_megabytes=2))
    counter = app.app.state.counter  # type: ignore[attr-defined]

    async def ask() -> None:
        go = asyncio.Event()

        async def waits() -> AsyncIterator[bytes]:
            yield b"x" * 900_000
            await go.wait()

        async with client_of(app) as client:
            held = [
                asyncio.create_task(client.post("/v1/predict", content=waits(), headers={"content-type": "image/png"}))
                for _ in range(2)
            ]
            while counter.held.bytes < 1_800_000:
                await asyncio.sleep(0.001)
            more = await client.post("/v1/predict", content=b"x" * 300_000, headers={"content-type": "image/png"})
            assert reason(more, 429) == "too much is being received at once; come later"
            assert more.headers["retry-after"] == "1"
            go.set()
            assert [(await one).status_code for one in held] == [422, 422]
            assert counter.held.bytes == 0
            assert (
                await client.post("/v1/predict", content=png, headers={"content-type": "image/png"})
            ).status_code == 200

    asyncio.run(ask())
    assert counter.held.bytes == 0


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


def test_the_log_has_a_line_for_each_request_and_no_name_in_it(
    opened: Opened, png: bytes, written: io.StringIO
) -> None:
    client = opened()
    client.post("/v1/predict?bundle=Mueller^Hans", files=[("Mueller^Hans", ("Mueller^Hans.dcm", png))])
    client.post("/v1/predict", files=[("Mueller^Hans", ("Mueller^Hans.dcm", png)), ("x", ("y", b"Mueller^Hans"))])
    client.get("/images/Mueller^Hans.png", headers={"user-agent": "Mueller^Hans"})
    client.get("/health")
    assert "Mueller" not in written.getvalue()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(one["route"], one["status"]) for one in lines] == [
        ("/v1/predict", 404), ("/v1/predict", 200), ("other", 404),
    ]  # fmt: skip
    assert lines[1] | {"pictures": 2, "unreadable": 1, "bytes": len(png) + 12} == lines[1]
    assert all(one["time"].endswith("Z") and one["level"] == "info" and one["seconds"] >= 0 for one in lines)


def test_of_an_error_its_kind_and_place_are_logged_not_its_message(written: io.StringIO) -> None:
    logging.getLogger("pydicom").warning("Mueller^Hans")
    try:
        int("Mueller^Hans")
    except ValueError as error:
        tell("failure", error=error)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    mine, of_uvicorn = [json.loads(line) for line in written.getvalue().splitlines()]
    assert mine["error"] == "ValueError" and "test_guard.py" in mine["at"][0]
    assert "Mueller" not in written.getvalue()
    assert of_uvicorn["event"] == "Exception in ASGI application" and of_uvicorn["error"] == "ValueError"
