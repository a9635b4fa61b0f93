"""What the network reaches of Gradio, what leaves, what it keeps, and what happens when the server ends."""

from __future__ import annotations

import base64
import gc
import http.client
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from tests.ui.conftest import Bundles, Server, Visit, need_ui, visiting

from thoraclip.deploy.opening import open_bundle
from thoraclip.deploy.server.app import Counter, create_app
from thoraclip.deploy.server.desk import BusyError, Desk, TooLongError
from thoraclip.deploy.server.limits import Limits
from thoraclip.deploy.server.meters import Meters
from thoraclip.deploy.server.page import _safely, mount_page
from thoraclip.errors import ConfigError


def ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, str, str]:
    """Status, content type and text of an answer."""
    request = urllib.request.Request(server.address + path, body, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers["content-type"], response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read().decode(errors="replace")


def event(server: Server, told: Any) -> Any:
    """What the page is answered to an event."""
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "s", "event_data": told}).encode()
    status, _, text = ask(server, "POST", "/gradio_api/run/predict", body)
    assert status == 200
    return json.loads(text)["data"]


def test_no_other_route_of_gradio_is_reached(server: Server) -> None:
    need_ui()
    import gradio
    from fastapi.routing import iter_route_contexts

    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.HTML("")
    found = iter_route_contexts(gradio.routes.App.create_app(blocks).routes)
    routes, reached = [(one.path, one.methods or set()) for one in found if getattr(one, "path", None)], set()
    for path, methods in routes:
        for method in methods & {"GET", "POST"}:
            filled = path.replace("{path_or_url:path}", "/etc/passwd").replace("{path:path}", "x")
            filled = re.sub(r"\{[^}]*\}", "", filled.replace("{url_path:path}", "x"))
            if ask(server, method, filled.replace(" ", ""))[0] not in (404, 405):
                reached.add(path)
    assert len(routes) > 50
    assert reached <= {"/", "/theme.css", "/favicon.ico", "/openapi.json"}


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../index.html", "/assets/%2e%2e/index.html", "/static/", "/page/../page.py", "/page/page.py", "/page/phantom-123.png",
        "/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/heartbeat/x", "/gradio_api/run/predict/", "/gradio_api/call/predict", "/config", "/manifest.json", "/monitoring",
    ],
)  # fmt: skip
def test_these_do_not_exist(server: Server, path: str) -> None:
    """Also against a client that does not tidy its paths up."""
    place = urlsplit(server.address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    connection.request("GET", path)
    assert connection.getresponse().status in (404, 405)
    connection.close()


def test_the_page_itself_depends_on_nobody_and_lets_nothing_foreign_run(server: Server) -> None:
    headers = {"x-forwarded-host": "evil.example", "accept-encoding": "br", "origin": "http://evil.example"}
    request = urllib.request.Request(server.address + "/?deep_link=x&__theme=dark", headers=headers)
    with urllib.request.urlopen(request) as response:
        told, text = response.headers, response.read().decode()
    assert '"deep_link_state":"none"' in text
    assert "evil.example" not in text and "og:image" not in text and "manifest.json" not in text
    assert not any(name.lower().startswith(("access-control", "set-cookie")) for name in told)
    policy = dict(part.split(" ", 1) for part in told["content-security-policy"].split("; "))
    nonce = policy["script-src"].split("'nonce-")[1].split("'")[0]
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe-inline" not in policy["script-src"] and "http" not in told["content-security-policy"]
    assert text.count("<script") == text.count(f'<script nonce="{nonce}"') > 1


def test_a_script_that_came_in_with_a_text_does_not_run(browser: Any, server: Server) -> None:
    for visit in visiting(browser, server.address):
        bad = """<img src="data:," onerror="window.bad = 1"><a href="javascript:window.bad = 1" id="link">x</a>"""
        visit.tab.locator("[data-status]").evaluate("(place, bad) => { place.innerHTML = bad; }", bad)
        visit.tab.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1'; document.body.append(s); }"
        )
        visit.tab.locator("#link").dispatch_event("click")
        visit.tab.wait_for_timeout(100)
        assert visit.tab.evaluate("window.bad") is None
        assert any("policy: script-src" in one for one in visit.complaints)
        visit.complaints.clear()


class Proxy(ThreadingHTTPServer):
    """Passes on what it gets, as to a host that it calls by another name.

    Args:
        address: of the server behind it.
    """

    def __init__(self, address: str) -> None:
        place = urlsplit(address)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                inner = http.client.HTTPConnection(place.hostname or "", place.port)
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                inner.request(self.command, self.path, body, kept | {"Host": "inner.example:8080"})
                answer = inner.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.daemon_threads, self.block_on_close = True, False
        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def behind_proxy(browser: Any, server: Server) -> Iterator[Visit]:
    proxy = Proxy(server.address)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield from visiting(browser, f"http://127.0.0.1:{proxy.server_port}")
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_it_works_behind_a_proxy_that_calls_the_host_otherwise(behind_proxy: Visit, pictures: dict[str, bytes]) -> None:
    behind_proxy.show(pictures["png"])


def test_a_browser_is_asked_for_the_token_and_then_shows_the_page(
    browser: Any, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    known = {"username": "anybody", "password": token.read_text()}
    with Server(tmp_path / "server", bundles.probe, "--token-file", str(token)) as server:
        for visit in visiting(browser, server.address, http_credentials=known):
            visit.show(pictures["png"])
        assert ask(server, "GET", "/")[0] == ask(server, "GET", "/page/page.js")[0] == 401


def test_an_open_page_does_not_keep_the_server_and_tells_that_it_is_gone(
    browser: Any, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    with (
        Server(tmp_path, bundles.probe, "--set", "grace_seconds=120") as server,  # longer than `stop` waits
        contextmanager(visiting)(browser, server.address) as visit,
    ):
        visit.show(pictures["png"])
        assert server.stop() == 0
        gone = visit.tab.get_by_role("alert").filter(has_text="The server does not answer: it was stopped")
        gone.first.wait_for()
        visit.give(pictures["png"])
        visit.tab.locator("[data-error]").filter(has_text="The server does not answer").wait_for()
        server.start(server.port)
        visit.tab.locator("[data-gone]").wait_for(state="hidden")
        visit.show(pictures["png"])
        assert all("ERR_CONNECTION_REFUSED" in one for one in visit.complaints)
        visit.complaints.clear()


def test_gradio_keeps_no_picture(bundles: Bundles, pictures: dict[str, bytes]) -> None:
    need_ui()
    limits, meters = Limits(), Meters()
    desk = Desk(open_bundle(bundles.probe, threads=1), name="probe", limits=limits, meters=meters, threads=1)
    app = create_app(Counter([desk], limits, meters))
    mount_page(app, [desk], limits)
    sent = base64.b64encode(pictures["png"]).decode()

    def shown() -> str:
        told = {"number": 7, "picture": sent}
        asked = {"data": [], "fn_index": 1, "session_hash": "s", "event_data": told}
        response = client.post("/gradio_api/run/predict", json=asked)
        assert response.status_code == 200, response.text
        return str(response.json()["data"][0]["picture"])[:2000]

    with TestClient(app) as client:
        answer = shown()
        gc.collect()
        held = [one for one in gc.get_objects() if type(one) in (dict, list, tuple, set)]
        texts = (text for one in held for text in (one.values() if isinstance(one, dict) else one) if type(text) is str)
        kept = [text for text in texts if text is not sent and text is not answer and len(text) >= 2000]
        assert [text[:20] for text in kept if sent[:2000] in text or answer in text] == []


def test_what_the_page_never_sends_is_refused_and_an_odd_event_gets_an_answer_to_nobody(server: Server) -> None:
    no_file, no_text = "the page sent something that is no file; reload it", "picture must be text; reload the page"
    for picture, reason in (("no base64!", no_file), (5, no_text)):
        assert event(server, {"number": 1, "picture": picture}) == [{"number": 1, "refused": f"No answer: {reason}."}]
    nobody = [{"number": None, "refused": "This picture cannot be read: the file is empty."}]
    for odd in (None, [1], "x", {"number": {"a": 1}}):
        assert event(server, odd) == nobody


FOREIGN = {"path": "/etc/DOE-JANE", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "asked",
    [
        "{", "[]", {"data": "DOE-JANE", "fn_index": 0}, {"data": [], "fn_index": 99}, {"data": [], "fn_index": "DOE-JANE"},
        {"data": [], "fn_index": 0, "event_data": {"number": FOREIGN}}, {"data": [FOREIGN], "fn_index": 0, "event_data": FOREIGN},
    ],
)  # fmt: skip
def test_what_gradio_refuses_is_told_as_a_problem_and_never_quoted(server: Server, asked: Any) -> None:
    body = (asked if isinstance(asked, str) else json.dumps(asked)).encode()
    status, kind, text = ask(server, "POST", "/gradio_api/run/predict", body)
    assert status >= 400 and kind == "application/problem+json"
    assert json.loads(text)["detail"] == "the page does not ask so; reload it"
    assert not [line for line in [text, *server.log] if "DOE-JANE" in line or "Traceback" in line]


def test_reasons_are_told_in_words_and_a_fault_tells_nothing() -> None:
    def refused(error: Exception) -> str:
        async def answer(_: dict[str, Any]) -> dict[str, Any]:
            raise error

        with pytest.raises(StopIteration) as end:
            _safely(answer, {"number": 1}).send(None)  # it waits for nothing
        return str(end.value.value["refused"])

    assert refused(BusyError("9 wait", 4)) == "The server is busy: 9 wait. Try again in 4 s."
    assert refused(TooLongError("it takes longer than 30 s")) == "No answer: it takes longer than 30 s."
    assert refused(ConfigError("no such class")) == "No answer: no such class."
    assert refused(ValueError("DOE^JANE")) == "A fault of the server; its log has more."


def test_gradio_is_loaded_when_a_page_is_mounted_and_not_before() -> None:
    code = "import sys, thoraclip.deploy.server.page; print('gradio' in sys.modules, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
