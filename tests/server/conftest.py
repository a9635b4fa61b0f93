"""An app over a small bundle, and a server of it in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts.served import Served
from starlette.testclient import TestClient
from tests.bundle.conftest import Workshop, exported, workshop

from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.server.app import ServerState, create_app
from thoraclip.server.batch_queue import BatchQueue
from thoraclip.server.limits import Limits
from thoraclip.server.monitoring import Metrics

__all__ = ["exported", "workshop"]  # fixtures of the tests of bundles
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests run in this loop."""
    return "asyncio"


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

    def make(
        limits: Limits | None = None, *, names: tuple[str, ...] = ("probe",), has_page: bool = False, **options: Any
    ) -> TestClient:
        limits, metrics = limits or Limits(), Metrics()
        queues = [BatchQueue(classifier, name=name, limits=limits, metrics=metrics, threads=1) for name in names]
        app = create_app(ServerState(queues, limits, metrics, has_page=has_page), **options)
        clients.append(TestClient(app, base_url="http://localhost", raise_server_exceptions=False))
        clients[-1].__enter__()
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__()


@pytest.fixture
def serve(bundle: Path) -> Iterator[Callable[..., Served]]:
    """`serve("--set", "files=2")` -> a running server of the small bundle."""
    running: list[Served] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Served:
        running.append(Served(bundle, "--no-page", *arguments, environment=environment))
        return running[-1]

    yield start
    for one in running:
        one.__exit__()


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `server` would write."""
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="session")
def server(bundle: Path, homes: Path) -> Iterator[Served]:
    """One with the usual limits; it ends with 0, without a failure in its log, and has written nothing."""
    environment = {name: str(homes / name) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    for folder in environment.values():
        Path(folder).mkdir()
    with Served(bundle, "--no-page", environment=environment) as one:
        yield one
        assert one.stop(signal.SIGINT) == 0
        assert not [line for line in one.log if '"level": "error"' in line]
    assert [str(path) for path in homes.rglob("*") if path.is_file()] == []
