"""The page in a browser behind a proxy and a token, what its policy stops, and what happens when the server ends."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.ui.conftest import Bundles, Server, Visit, visiting

PREFIX = "/x-ray"


def test_a_script_that_came_in_with_a_text_does_not_run(browser: Any, server: Server) -> None:
    for visit in visiting(browser, server.address):
        bad = """<img src="data:," onerror="window.bad = 1"><a href="javascript:window.bad = 1" id="link">x</a>"""
        visit.tab.locator("[data-status]").evaluate("(place, bad) => { place.innerHTML = bad; }", bad)
        script = (
            "const s = document.createElement('script'); s.textContent = 'window.bad = 1'; document.body.append(s);"
        )
        visit.tab.evaluate(f"() => {{ {script} }}")
        visit.tab.locator("#link").dispatch_event("click")
        visit.tab.wait_for_timeout(100)
        assert visit.tab.evaluate("window.bad") is None
        assert any("policy: script-src" in one for one in visit.complaints)
        visit.complaints.clear()


class Proxy(ThreadingHTTPServer):
    """Passes on what it gets below a prefix, under the name by which it was asked, as `proxy_set_header Host` does.

    Args:
        address: of the server behind it.
    """

    def __init__(self, address: str) -> None:
        place = urlsplit(address)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not self.path.startswith(f"{PREFIX}/"):
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                inner = http.client.HTTPConnection(place.hostname or "", place.port)
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                inner.request(self.command, self.path.removeprefix(PREFIX), body, kept | {"Host": self.headers["Host"]})
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
        yield from visiting(browser, f"http://127.0.0.1:{proxy.server_port}{PREFIX}/")
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_it_works_behind_a_proxy_with_a_prefix(behind_proxy: Visit, pictures: dict[str, bytes]) -> None:
    behind_proxy.show(pictures["png"])
    behind_proxy.tab.get_by_role("button", name="Try a synthetic one").click()
    behind_proxy.tab.get_by_text("drawn by a program").wait_for()
    behind_proxy.wait_for_maps()
    behind_proxy.tab.get_by_text("About this bundle").click()
    behind_proxy.tab.get_by_role("heading", name="What it promises").wait_for()


def test_a_browser_is_asked_for_the_token_and_then_shows_the_page(
    browser: Any, bundles: Bundles, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length")
    known = {"username": "anybody", "password": token.read_text()}
    with Server(tmp_path / "server", bundles.probe, "--token-file", str(token)) as server:
        for visit in visiting(browser, server.address, http_credentials=known):
            visit.show(pictures["png"])


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
        visit.forgive("ERR_CONNECTION_REFUSED")
