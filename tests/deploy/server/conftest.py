"""An app over a small bundle, and a server of it in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.deploy.conftest import Workshop

from thoraclip.deploy.runtime import BundleClassifier, open_bundle
from thoraclip.deploy.server.app import Counter, create_app
from thoraclip.deploy.server.desk import Desk
from thoraclip.deploy.server.limits import Limits
from thoraclip.deploy.server.meters import Meters

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def bundle(workshop: Workshop) -> Path:
    """Folder of a small bundle."""
    return workshop.bundle("probe")


@pytest.fixture(scope="session")
def classifier(bundle: Path) -> BundleClassifier:
    return open_bundle(bundle, threads=1)


@pytest.fixture(scope="session")
def png(workshop: Workshop) -> bytes:
    """A picture that the bundle knows."""
    return sorted((workshop.root / "images").rglob("*.png"))[0].read_bytes()


@pytest.fixture
def opened(classifier: BundleClassifier) -> Iterator[Callable[..., TestClient]]:
    """`opened(limits, token=...)` -> a client of the app, without a socket."""
    clients: list[TestClient] = []

    def make(limits: Limits | None = None, *, names: tuple[str, ...] = ("probe",), **options: Any) -> TestClient:
        limits, meters = limits or Limits(), Meters()
        desks = [Desk(classifier, name=name, limits=limits, meters=meters, threads=1) for name in names]
        app = create_app(Counter(desks, limits, meters), **options)
        clients.append(TestClient(app, raise_server_exceptions=False))
        clients[-1].__enter__()
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__()


class Server:
    """`thoraclip serve` in a process of its own, on a free port of this machine.

    Args:
        bundle: folder.
        arguments: more of them.
        environment: more variables.
    """

    def __init__(self, bundle: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "thoraclip", "serve", str(bundle), "--port", "0", "--no-page", *arguments]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | (environment or {}), stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._heard = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._heard.wait(60), "".join(self.log)
        found = re.search(r"serving at http://127\.0\.0\.1:(\d+)", "".join(self.log))
        assert found, "".join(self.log)
        self.port = int(found[1])
        self.address = f"http://127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("serving at "):
                self._heard.set()
        self._heard.set()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of a kind."""
        told = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in told if line["event"] == name]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop; returns its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(5)
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self._reader.join(5)
        self.process.stderr.close()


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Server]]:
    """`serve("--set", "files=2")` -> a running server of the small bundle."""
    running: list[Server] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Server:
        running.append(Server(bundle, *arguments, environment=environment))
        return running[-1]

    yield start
    for one in running:
        one.__exit__()
