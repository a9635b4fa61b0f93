"""The server as a process: it ends well, it outlives bad manners, and it leaves nothing behind."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image
from scripts.served import Served
from tests.deploy.server.conftest import REPOSITORY
from tests.deploy.server.test_app import forms, reason
from tests.small_install import run_small

Serve = Callable[..., Served]


def noise(side: int) -> bytes:
    """A picture of some size that takes a moment to decode."""
    stream = io.BytesIO()
    Image.effect_noise((side, side), 60).save(stream, "PNG")
    return stream.getvalue()


def connect(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def first_answer(connection: socket.socket) -> bytes:
    """What comes up to the end of a short answer in JSON."""
    told = b""
    while not told.endswith(b"}"):
        told += connection.recv(65536) or b"(closed)}"
    return told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_is_in_flight_refuses_the_rest_and_ends_with_0(serve: Serve, number: int) -> None:
    server = serve("--threads", "1")
    picture, statuses, refused = noise(1500), list[int](), threading.Event()
    begun = threading.Semaphore(0)

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while True:
                try:
                    begun.release()
                    statuses.append(client.post("/v1/predict", files=forms(picture, picture)).status_code)
                except httpx.ConnectError:
                    refused.set()
                    return
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    # a kept connection was closed between two requests, as HTTP allows; the new one is refused
                    continue

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        begun.acquire()
    assert server.stop(number) == 0
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert refused.is_set()
    assert set(statuses) == {200} and len(statuses) >= 4
    asked = [line for line in server.events("request") if line["route"] == "/v1/predict"]
    assert len(asked) == len(statuses), "a request that the server had begun was not answered"


def test_what_does_not_end_within_the_grace_is_cut_off(serve: Serve) -> None:
    server = serve("--set", "grace_seconds=1")
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 10\r\n\r\nx"
        )
        time.sleep(0.3)
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 20
        told = answer(connection)
        assert told.startswith(b"HTTP/1.1 503") and b"the server is stopping; ask another one" in told
    assert [line["status"] for line in server.events("request")] == [503]
    assert not [line for line in server.log if "Traceback" in line or "exception" in line.lower()]


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve()
    with connect(server) as connection:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 10\r\n\r\nx"
        )
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 0
    assert not [line for line in server.log if "Traceback" in line or "exception" in line.lower()]


def test_a_gigabyte_is_refused_and_costs_no_memory(serve: Serve, png: bytes) -> None:
    server = serve()
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.address, timeout=60) as client:
        client.post("/v1/predict", files=forms(png))
        before = process.memory_info().rss
        block = b"x" * 1_000_000
        kind = {"content-type": "image/png"}
        told = client.post(
            "/v1/predict", content=(block for _ in range(1000)), headers=kind | {"content-length": "1000000000"}
        )
        assert "larger than 64 MB" in reason(told, 413)
        untold = client.post("/v1/predict", content=(block for _ in range(1000)), headers=kind)
        assert "larger than 64 MB" in reason(untold, 413)
        assert process.memory_info().rss - before < 200e6
        assert client.post("/v1/predict", files=forms(png)).status_code == 200


def test_a_slow_client_holds_nobody_and_is_given_up(serve: Serve, png: bytes) -> None:
    server = serve("--set", "upload_seconds=2")
    slow = [connect(server) for _ in range(20)]
    for connection in slow:
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\nxy"
        )
    with httpx.Client(base_url=server.address, timeout=10) as client:
        for _ in range(10):
            assert client.post("/v1/predict", files=forms(png)).status_code == 200
    for connection in slow:
        told = connection.recv(65536)
        assert told.startswith(b"HTTP/1.1 408"), told
        connection.close()


def test_a_head_that_does_not_come_is_given_up(serve: Serve) -> None:
    server = serve("--set", "head_seconds=0.5")
    silent, dripping, kept = (connect(server) for _ in range(3))
    kept.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
    assert first_answer(kept).startswith(b"HTTP/1.1 200")
    begun = time.monotonic()
    for letter in b"GET /health HTTP/1.1\r\nx: " + b"y" * 100:
        try:
            dripping.sendall(bytes([letter]))
        except OSError:
            break
        time.sleep(0.1)
    assert time.monotonic() - begun < 10, "the head may drip for ever"
    assert silent.recv(1) == b""
    kept.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")  # idle between two requests is not late
    assert first_answer(kept).startswith(b"HTTP/1.1 200")
    for one in (silent, dripping, kept):
        one.close()


def test_requests_that_are_none_get_a_400(serve: Serve) -> None:
    server = serve()
    for bad in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/x\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ):
        with connect(server) as connection:
            connection.sendall(bad)
            connection.shutdown(socket.SHUT_WR)
            told = answer(connection)
            assert told[9:10] in (b"4", b""), (bad[:40], told)
    assert httpx.get(server.address + "/health").status_code == 200


def test_more_connections_than_the_limit_are_told_to_come_later(serve: Serve) -> None:
    server = serve("--set", "connections=8")
    held = [connect(server) for _ in range(8)]
    time.sleep(0.2)
    refused = httpx.get(server.address + "/health")
    assert reason(refused, 503) == "too many connections are open; come later"
    assert refused.headers["retry-after"] == "5" and refused.headers["x-request-id"]
    for one in held:
        one.close()
    time.sleep(0.2)
    assert httpx.get(server.address + "/health").status_code == 200


def test_nothing_is_written_to_disk(serve: Serve, tmp_path: Path, png: bytes) -> None:
    folders = {name: tmp_path / name for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    for folder in folders.values():
        folder.mkdir()
    server = serve(environment={name: str(folder) for name, folder in folders.items()})
    large = noise(2500)
    assert len(large) > 2_000_000
    process = psutil.Process(server.process.pid)
    for _ in range(3):
        assert httpx.post(server.address + "/v1/predict", files=forms(large, png), timeout=60).status_code == 200
        assert not [one.path for one in process.open_files() if one.path.startswith(str(tmp_path))]
    httpx.post(server.address + "/v1/explain", files=forms(png), timeout=60)
    assert [str(one) for one in tmp_path.rglob("*") if one.is_file()] == []


def test_no_torch_in_the_process(bundle: Path) -> None:
    code = (
        "import sys, threading, time, urllib.request, os, signal\n"
        "from thoraclip.cli.app import run\n"
        "def ask():\n"
        "    while not heard: time.sleep(0.05)\n"
        "    urllib.request.urlopen(heard[0] + '/ready').read()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "heard = []\n"
        "import thoraclip.cli.deployment as deployment\n"
        "deployment.announce = lambda text: heard.append(text.split()[2]) if 'serving at' in text else None\n"
        "threading.Thread(target=ask).start()\n"
        f"code = run(['serve', {str(bundle)!r}, '--port', '0', '--no-page'])\n"
        "print(code, [name for name in ('torch', 'transformers', 'gradio', 'scipy', 'pandas') if sys.modules.get(name)])"
    )
    done = run_small(code)
    assert done.stdout == "0 []\n", done.stderr


def test_where_somebody_listens_already_it_says_so_before_the_bundle_is_loaded(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "thoraclip", "serve", str(bundle / "no-such"), "--port", str(port)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --host 127.0.0.1 --port {port}: cannot listen there (Address already in use); name another port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no-such-host.invalid"], "error: --host no-such-host.invalid --port 0: cannot listen there ("),
        (["--set", "fils=3"], "error: --set: unknown setting 'fils'; did you mean 'files'?"),
        (["--set", "files=0"], "error: --set: files = 0: must be larger than 0"),
        (["--token-file", "no-such-file"], "error: no-such-file: cannot be read ("),
        (["--beside", "no-such-bundle"], "error: no-such-bundle: no such folder; name a folder that `thoraclip export"),
    ],
)
def test_mistakes_are_one_line(bundle: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thoraclip", "serve", str(bundle), "--port", "0", "--no-page", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_token_comes_from_a_file_or_the_environment(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length\n")
    for server in (
        serve("--token-file", str(file)),
        serve(environment={"THORACLIP_TOKEN": "a-token-of-some-length"}),
    ):
        assert httpx.get(server.address + "/card").status_code == 401
        allowed = {"authorization": "Bearer a-token-of-some-length"}
        assert httpx.get(server.address + "/card", headers=allowed).status_code == 200


def test_a_short_token_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short")
    done = subprocess.run(
        [sys.executable, "-m", "thoraclip", "serve", str(bundle), "--token-file", str(tmp_path / "token")],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "no token there; write one of 16 or more letters" in done.stderr


def test_without_a_page_it_says_how_to_have_one(serve: Serve) -> None:
    answer = httpx.get(serve().address)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    assert "pip install 'thoraclip[ui]'" in answer.text and "Research use only, not for diagnosis." in answer.text


def test_the_log_is_json_but_for_what_a_person_is_told(serve: Serve) -> None:
    server = serve()
    httpx.get(server.address + "/card")
    assert server.stop() == 0
    plain = [line for line in server.log if not line.startswith("{")]
    assert plain == [f"serving at {server.address} (Ctrl+C ends)\n"]
    events = [json.loads(line)["event"] for line in server.log if line.startswith("{")]
    assert events.index("started") < events.index("request") < events.index("Shutting down")
