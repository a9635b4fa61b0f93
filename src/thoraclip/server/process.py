"""The server as a process: Uvicorn with graceful shutdown and a header timeout."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from thoraclip.bundle.opening import open_bundle
from thoraclip.errors import ConfigError, InputError
from thoraclip.interrupts import handled
from thoraclip.memory import return_freed_memory
from thoraclip.server.access import host_name
from thoraclip.server.answers import NOTE
from thoraclip.server.app import ServerState, create_app
from thoraclip.server.batch_queue import BatchQueue
from thoraclip.server.guard import Journal
from thoraclip.server.limits import Limits, RefusedError, problem
from thoraclip.server.monitoring import Metrics, log_event, set_up_logs

__all__ = ["is_loopback", "listen", "read_token", "serve_bundles"]

_LEAST_TOKEN = 16
_REMEDIES = {errno.EADDRINUSE: "name another port", errno.EACCES: "name a port above 1023"}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 for any that is free. Raises ConfigError for what is no host or port, InputError
    for a host that is not this machine, or where somebody else listens."""
    name = host_name(host)
    if name is None:
        rule = "must be an address or name of this machine, without scheme and port"
        raise ConfigError(f"--host: {host!r}: {rule}; as 127.0.0.1 for this machine alone, or 0.0.0.0 for all of it")
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"--port: {port!r}: must lie in 0 to 65535; 0 takes any that is free")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closing:
            opened = closing.enter_context(socket.socket(family, kind, protocol))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(place)
            opened.listen(128)
            closing.pop_all()
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "name an address of this machine, as 127.0.0.1")
        reason = error.strerror or str(error)
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason}); {remedy}") from error
    return opened


def is_loopback(place: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(place.getsockname()[0]).is_loopback


def read_token(file: Path | None) -> str:
    """The token of a file, or of the environment's `THORACLIP_TOKEN`; empty for none. Raises InputError where the file
    cannot be read, or holds no token."""
    if file is None and not (told := os.environ.get("THORACLIP_TOKEN", "")):
        return ""
    where = "THORACLIP_TOKEN" if file is None else str(file)
    try:
        token = (told if file is None else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{where}: cannot be read ({reason}); name a text file that holds a token") from error
    if len(token) < _LEAST_TOKEN or any(letter.isspace() for letter in token):
        remedy = f"write one of {_LEAST_TOKEN} or more letters without a space, as from: "
        example = "python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise InputError(f"{where}: no token there; {remedy}{example}")
    return token


def serve_bundles(
    folders: Sequence[Path],
    place: socket.socket,
    *,
    limits: Limits,
    threads: int = 0,
    token: str = "",
    origins: Collection[str] = (),
    hosts: Collection[str] = (),
    any_host: bool = False,
    with_page: bool = True,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal to end, answering what is in flight first. The first bundle answers where none is named;
    `started` gets the address once it answers; for the rest see `api.deployment.serve`."""
    return_freed_memory()
    metrics, queues = Metrics(), list[BatchQueue]()
    for folder in folders:
        classifier = open_bundle(folder, threads=threads)
        _ = classifier.bundle.thumbnails  # refused now, and not by an answer
        wanted, taken = folder.resolve().name, [queue.name for queue in queues]
        names = (wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3)))
        name = next(name for name in names if name not in taken)
        queues.append(BatchQueue(classifier, name=name, limits=limits, metrics=metrics, threads=threads))
    state = ServerState(queues, limits, metrics, has_page=with_page)
    app = create_app(state, token=token, origins=origins, hosts=hosts, any_host=any_host)
    if not with_page:
        app.add_route("/", _front)
    set_up_logs()
    headers = {"retry-after": "5", "connection": "close"}
    crowded = problem(RefusedError(503, "too many connections are open; come later", headers=headers))
    config = uvicorn.Config(
        app,
        http=type("_Http", (_Protocol,), {"limits": limits, "crowded": Journal(crowded, metrics)}),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(limits.grace_seconds),
    )
    _Server(config, state, started).run(sockets=[place])


async def _front(_: Request) -> Response:
    """Names the routes, where there is no page."""
    return PlainTextResponse(
        f"ThoraCLIP answers here. {NOTE}\n\nPOST /v1/predict   POST /v1/explain   GET /card   GET /openapi.json\n\n"
        "A page for the browser: start the server without --no-page.\n"
    )


class _Server(uvicorn.Server):
    """Ends with exit code 0 after a signal, where Uvicorn raises it once more; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, state: ServerState, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._state, self._started = state, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log_event("started", address=address, bundles=[queue.name for queue in self._state.queues])
        self._started(address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # then Uvicorn leaves the app to itself
            await self.lifespan.shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask to stop at the first signal, and not to wait at the second."""
        with handled(self._stop):
            yield

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self._state.stop_now = self.should_exit
        self.should_exit = self._state.is_stopping = True


class _Protocol(H11Protocol):
    """Closes a connection whose request's head does not come in time, however slowly it drips."""

    limits: Limits
    crowded: Journal
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self.app = self.crowded  # which answers with the reason alone
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._late is None and self._is_between:
            self._wait()
        super().data_received(data)
        if not self._is_between:
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as any other mistake."""
        reason = "not a request of HTTP/1.1 that can be read; let a library make it"
        answer = problem(RefusedError(400, reason, headers={"connection": "close", "cache-control": "no-store"}))
        start = h11.Response(status_code=400, headers=answer.raw_headers)
        with suppress(h11.LocalProtocolError):  # an answer has begun already
            for event in (start, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _is_between(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self._is_between and not self.transport.is_closing():
            self.transport.close()
