"""The server as a process: it ends well, it outlives bad manners, and it leaves nothing behind."""

from __future__ import annotations

import json
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripts.served import Served
from tests.imaging.files import encoded
from tests.server.test_app import forms, reason

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, InputError
from thoraclip.server.process import listen, read_token

Serve = Callable[..., Served]
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\n"


def noise(side: int) -> bytes:
    """A picture of some size that takes a moment to decode."""
    return encoded(Image.effect_noise((side, side), 60))


def connect(server: Served, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(sent)
    return connection


def answer(connection: socket.socket) -> bytes:
    """What comes up to the end of a short answer in JSON, or until the server closes."""
    told = b""
    while not told.endswith(b"}"):
        told += connection.recv(65536) or b"(closed)}"
    return told


def wait_until(is_so: Callable[[], bool], server: Served) -> None:
    """For half a minute at most."""
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end, server.log
        time.sleep(0.05)


def until_logged(server: Served, text: str) -> None:
    """Wait for a line of the log."""
    wait_until(lambda: any(text in line for line in server.log), server)


def until_taken(server: Served, connections: int) -> None:
    """Wait until the server has accepted so many connections."""
    process = psutil.Process(server.process.pid)
    wait_until(lambda: sum(one.status == "ESTABLISHED" for one in process.net_connections()) >= connections, server)


@contextmanager
def begun(server: Served) -> Iterator[socket.socket]:
    """A connection whose upload has begun and does not go on; no failure is in the log afterwards."""
    with connect(server, HEAD + b"content-length: 10\r\n\r\nx") as connection:
        until_taken(server, 1)
        yield connection
    assert not [line for line in server.log if "Traceback" in line or "exception" in line.lower()]


def test_told_to_stop_it_answers_what_is_in_flight_refuses_the_rest_and_ends_with_0(serve: Serve) -> None:
    server = serve("--threads", "1")
    picture, statuses, refused = noise(1500), list[int](), threading.Event()
    asked = threading.Semaphore(0)

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while True:
                try:
                    asked.release()
                    statuses.append(client.post("/v1/predict", files=forms(picture, picture)).status_code)
                except httpx.ConnectError:
                    refused.set()
                    return
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    # a kept connection was closed between two requests, as HTTP allows; the new one is refused
                    continue

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(8):
            asked.acquire()
        assert server.stop() == 0
        for one in asking:
            one.result(30)
    assert refused.is_set()
    assert set(statuses) == {200} and len(statuses) >= 4
    begun_there = [line for line in server.events("request") if line["route"] == "/v1/predict"]
    assert len(begun_there) == len(statuses), "a request that the server had begun was not answered"


def test_what_does_not_end_within_the_grace_is_cut_off(serve: Serve) -> None:
    server = serve("--set", "grace_seconds=1", "--set", "upload_seconds=600")
    with begun(server) as connection:
        assert server.stop() == 0, "within a minute, where the upload has ten"
        told = answer(connection)
        assert told.startswith(b"HTTP/1.1 503") and b"the server is stopping; ask another one" in told
    assert [line["status"] for line in server.events("request")] == [503]


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve("--set", "grace_seconds=600", "--set", "upload_seconds=600")
    with begun(server):
        server.process.send_signal(signal.SIGTERM)
        until_logged(server, "Shutting down")
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 0


def test_a_body_without_a_length_is_cut_at_the_limit_and_costs_no_memory(server: Served, png: bytes) -> None:
    """It would have a gigabyte."""
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        client.post("/v1/predict", files=forms(png))
        before, block, sent, told = process.memory_info().rss, b"x" * 1_000_000, 0, b""
        with connect(server, HEAD + b"transfer-encoding: chunked\r\n\r\n") as connection:
            while not told and sent < 1000:
                connection.sendall(b"%x\r\n" % len(block) + block + b"\r\n")
                sent += 1
                if select.select([connection], [], [], 0)[0]:
                    told = connection.recv(65536)
        assert told.startswith(b"HTTP/1.1 413")
        assert 64 < sent < 500
        assert process.memory_info().rss - before < 150e6
        assert client.post("/v1/predict", files=forms(png)).status_code == 200


def test_who_is_slow_holds_nobody_and_is_given_up(serve: Serve, png: bytes) -> None:
    """With the body, with the head, and with the first byte; between two requests one may be."""
    server = serve("--set", "upload_seconds=2", "--set", "head_seconds=2")
    silent, dripping, kept = (connect(server, sent) for sent in (b"", b"", HEALTH))
    assert answer(kept).startswith(b"HTTP/1.1 200")
    slow = [connect(server, HEAD + b"content-length: 1000\r\n\r\nxy") for _ in range(20)]
    with httpx.Client(base_url=server.address, timeout=60) as client:
        assert client.post("/v1/predict", files=forms(png)).status_code == 200
    assert {one.recv(65536)[:12] for one in slow} == {b"HTTP/1.1 408"}
    with pytest.raises(OSError):  # else the head may drip for ever
        for letter in b"GET /health HTTP/1.1\r\nx: " + b"y" * 1000:
            dripping.sendall(bytes([letter]))
            time.sleep(0.1)
    assert silent.recv(1) == b""
    kept.sendall(HEALTH)
    assert answer(kept).startswith(b"HTTP/1.1 200")
    for one in (*slow, silent, dripping, kept):
        one.close()


def test_connections_beyond_the_limit_come_later_and_a_token_comes_from_a_file(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    server = serve("--set", "connections=8", "--set", "head_seconds=600", "--token-file", str(tmp_path / "token"))
    held = [connect(server) for _ in range(8)]
    until_taken(server, 8)
    held[-1].sendall(HEALTH)
    assert answer(held[-1]).startswith(b"HTTP/1.1 200"), "the last one within the limit"
    refused = httpx.get(server.address + "/health")
    assert reason(refused, 503) == "too many connections are open; come later"
    assert refused.headers["retry-after"] == "5" and refused.headers["x-request-id"]
    for one in held:
        one.close()
    wait_until(lambda: httpx.get(server.address + "/health").status_code == 200, server)
    assert httpx.get(server.address + "/card").status_code == 401
    allowed = {"authorization": "Bearer a-token-of-some-length"}
    assert httpx.get(server.address + "/card", headers=allowed).status_code == 200


def test_nothing_is_written_to_disk(server: Served, homes: Path, png: bytes) -> None:
    """Its folders are looked at once more when it has ended."""
    large = noise(2500)
    assert len(large) > 2_000_000
    assert httpx.post(server.address + "/v1/predict", files=forms(large, png), timeout=60).status_code == 200
    assert not [one.path for one in psutil.Process(server.process.pid).open_files() if str(homes) in one.path]
    httpx.post(server.address + "/v1/explain", files=forms(png), timeout=60)
    assert [str(one) for one in homes.rglob("*") if one.is_file()] == []


def test_no_torch_in_the_process(serve: Serve) -> None:
    log = serve(environment={"PYTHONPROFILEIMPORTTIME": "1"}).log
    loaded = {line.rpartition("|")[2].strip() for line in log if line.startswith("import time:")}
    assert "onnxruntime" in loaded and not loaded & {"torch", "transformers", "scipy", "pandas"}


def test_a_taken_port_is_told_before_the_bundle_is_loaded(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(bundle / "no-such"), "--port", str(port)]) == 2
    told = f"--host 127.0.0.1 --port {port}: cannot listen there (Address already in use); name another port"
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "no-such-host.invalid"], "error: --host no-such-host.invalid --port 0: cannot listen there ("),
        (["--host", "192.0.2.1"], "error: --host 192.0.2.1 --port 0: cannot listen there ("),
        (["--allow-host", "x:80"], "error: --allow-host: 'x:80': must be the name or address of a host, without"),
        (["--allow-origin", "*"], "error: --allow-origin: '*': must be the scheme, host and port of a page, without"),
        (["--set", "fils=3"], "error: --set: unknown setting 'fils'; did you mean 'files'?"),
        (["--set", "files=0"], "error: --set: files = 0: a whole number from 1 to"),
        (["--token-file", "no-such-file"], "error: no-such-file: cannot be read ("),
        (["--beside", "no-such-bundle"], "error: no-such-bundle: no such folder; name a folder that `thoraclip export"),
    ],
)
def test_mistakes_are_a_line(bundle: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(bundle), "--port", "0", "--no-page", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1


HOSTS = [
    "..",
    "",
    " ",
    "http://x",
    "x:80",
    "1.2.3.4.5",
    "256.0.0.1",
    "127.1",
    "[::1",
    "::1]",
    "*",
    "a" * 70,
    "a..b",
    "-x",
    "x\ny",
    "x\0",
]


@given(
    st.one_of(st.sampled_from(HOSTS), st.from_regex(r"\A[ -~]*[ !/:\\\]%@,]+\Z").filter(lambda text: "::" not in text))
)
def test_what_is_no_host_is_a_line(host: str) -> None:
    with pytest.raises(ConfigError, match="^--host: .*: must be an address or name of this machine") as told:
        listen(host, 0)
    assert "\n" not in str(told.value) and str(told.value).endswith("0.0.0.0 for all of it")


@given(st.one_of(st.integers(max_value=-1), st.integers(min_value=65536), st.sampled_from(["80", 80.0, None])))
def test_what_is_no_port_is_a_line(port: Any) -> None:
    with pytest.raises(ConfigError, match="^--port: .*: must lie in 0 to 65535; 0 takes any that is free$"):
        listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "0.0.0.0"])
def test_addresses_and_names_of_this_machine_are_listened_at(host: str) -> None:
    with listen(host, 0) as place:
        assert place.getsockname()[1] > 0


def test_a_token_is_the_file_s_else_the_environment_s_and_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("THORACLIP_TOKEN", raising=False)
    assert read_token(None) == ""
    monkeypatch.setenv("THORACLIP_TOKEN", " e" + 15 * "n")
    assert read_token(None) == "e" + 15 * "n"
    file.write_text("f" * 16 + "\n")
    assert read_token(file) == "f" * 16
    for bad in ("f" * 15, "f" * 20 + " f", ""):
        file.write_text(bad)
        with pytest.raises(InputError, match="token: no token there; write one of 16 or more letters"):
            read_token(file)


def test_a_server_answers_by_the_names_that_it_was_given(serve: Serve) -> None:
    """`--host` names one itself; a token makes others needless."""
    for options, known in (
        (("--allow-host", "xray.example.org"), {"xray.example.org", "127.0.0.1"}),
        (("--host", "0.0.0.0"), {"127.0.0.1", "0.0.0.0"}),
    ):
        server = serve(*options)
        for host in ("xray.example.org", "evil.example", "127.0.0.1", "0.0.0.0"):
            told = httpx.get(f"http://127.0.0.1:{server.port}/card", headers={"host": f"{host}:{server.port}"})
            assert told.status_code == (200 if host in known else 421), (options, host)


def test_without_a_page_it_says_how_to_have_one(server: Served) -> None:
    answer = httpx.get(server.address)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert "start the server without --no-page" in answer.text
    assert "Research use only, not for diagnosis." in answer.text


def test_the_log_is_json_but_for_what_a_person_is_told(server: Served) -> None:
    httpx.get(server.address + "/card")
    until_logged(server, '"route": "/card"')
    plain = [line for line in server.log if not line.startswith("{")]
    assert plain == [f"serving at {server.address} (Ctrl+C ends)\n"]
    events = [json.loads(line)["event"] for line in server.log if line.startswith("{")]
    assert events.index("started") < events.index("request")
