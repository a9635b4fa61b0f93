"""The API: FastAPI over a batch queue for each bundle; and the page at `/`: static files, and synthetic radiographs to
try. All answers of the page come from the API."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from thoraclip.bundle.format import CARD
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.heatmaps.picture import overlay_png
from thoraclip.server import answers, openapi
from thoraclip.server.access import Access, allowed_origins
from thoraclip.server.batch_queue import METHODS, BatchQueue
from thoraclip.server.guard import Guard, Journal, read_pictures
from thoraclip.server.limits import Limits, RefusedError, problem, reason_of
from thoraclip.server.monitoring import Metrics

__all__ = ["ServerState", "create_app"]

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FILES = ("page.css", "page.js", "words.js", "nodes.js")
_PHANTOMS = 12  # synthetic radiographs to try
_PHANTOM_SIDE = 384
_DESCRIPTION = f"""Frontal chest X-rays in, calibrated probabilities out. **{answers.NOTE}**

A request is held in memory and gone with its answer. No name of a file is looked at; answers come in the order of the
pictures. What is wrong is told as problem details (RFC 9457)."""


@dataclass
class ServerState:
    """What the handlers share."""

    queues: Sequence[BatchQueue]  # one for each bundle; the first answers where none is named
    limits: Limits
    metrics: Metrics
    has_page: bool = False  # at `/`
    is_stopping: bool = False  # since the first signal to stop
    stop_now: bool = False  # since the second

    def queue(self, name: str) -> BatchQueue:
        """The queue of a bundle, the first one for no name; raises RefusedError where there is none."""
        names = [queue.name for queue in self.queues]
        if name and name not in names:
            raise RefusedError(404, f"no bundle is called '{name}'{did_you_mean(name, names)}")
        return self.queues[names.index(name) if name else 0]

    @property
    def is_ready(self) -> bool:
        """Whether an image that comes now would be taken."""
        return not self.is_stopping and all(queue.is_ready for queue in self.queues)


def create_app(
    state: ServerState,
    *,
    token: str = "",
    origins: Collection[str] = (),
    hosts: Collection[str] = (),
    any_host: bool = False,
) -> FastAPI:
    """The app; whoever starts it stops it, and its queues with it.

    Args:
        token: that every client must bring, as `Authorization: Bearer TOKEN` or a browser's password; empty for none.
        origins: of pages on other hosts that may ask (CORS).
        hosts, any_host: names that are answered, see `Access`.

    Raises:
        ConfigError: an origin or host is none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for queue in state.queues:
            await asyncio.to_thread(queue.close, seconds=0 if state.stop_now else state.limits.grace_seconds)

    app = FastAPI(
        title="ThoraCLIP",
        version=metadata.version("thoraclip"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,  # they load scripts from another host
        responses=openapi.refusals(401) if token else {},
    )
    app.state.server = state
    app.include_router(_pictures)
    app.include_router(_server)
    if state.has_page:
        app.include_router(_page)
    labels = dict.fromkeys(name for queue in state.queues for name in queue.classifier.labels.names)
    choices = {"bundle": [queue.name for queue in state.queues], "class": list(labels), "method": METHODS}
    openapi.add_document(app, choices)
    for kind in (HTTPException, RequestValidationError, ImageError, ConfigError):
        app.add_exception_handler(kind, _problem)
    app.add_middleware(Guard, limits=state.limits, metrics=state.metrics, token=token)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(Access, origins=origins, hosts=hosts, any_host=any_host)
    app.add_middleware(Journal, metrics=state.metrics)
    state.metrics.waiting.set_function(lambda: sum(queue.waiting for queue in state.queues))
    return app


async def _problem(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return problem(error)
    reason = reason_of(error)
    if isinstance(error, RequestValidationError):
        reason = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return problem(RefusedError(422, reason))


def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


Shared = Annotated[ServerState, Depends(_state)]
_WHICH = "Which bundle answers, by its name in `/v1/bundles`; the first if none is given."
BundleName = Annotated[str, Query(alias="bundle", description=_WHICH)]
_HOW_MANY = "How many similar training pictures are told, where the bundle carries any."
Neighbours = Annotated[int, Query(ge=0, le=20, description=_HOW_MANY)]
_EXPLAINED = "What is explained; the predicted class if none is given."
ClassName = Annotated[str, Query(alias="class", description=_EXPLAINED)]

_pictures = APIRouter(tags=["pictures"])
_server = APIRouter(tags=["the server"])
_page = APIRouter(include_in_schema=False)


@_pictures.post(
    "/v1/predict",
    summary="Score chest X-rays",
    response_description="Each picture's scores, or the reason why it has none; one of them at least can be read.",
    **openapi.PREDICT,
)
async def predict(
    request: Request, server: Shared, bundle: BundleName = "", neighbours: Neighbours = 0
) -> answers.Predicted:
    """Calibrated probabilities, the classes that cannot be ruled out, and whether a picture is unlike the training
    images."""
    queue = server.queue(bundle)
    pictures = await read_pictures(request, server.limits)
    results = await queue.predict(pictures)
    bad = [{"index": i, "error": reason_of(error)} for i, error in enumerate(results) if isinstance(error, ImageError)]
    request.state.facts = {"pictures": len(results), "unreadable": len(bad), "bytes": sum(map(len, pictures))}
    if len(bad) == len(results):
        more = "" if len(bad) == 1 else f" (and {len(bad) - 1} more, none of which can be read)"
        raise RefusedError(422, f"{bad[0]['error']}{more}", pictures=bad)
    # in a thread: thumbnails take their time
    return await asyncio.to_thread(answers.predicted, queue, results, neighbours=neighbours)


@_pictures.post(
    "/v1/explain",
    summary="Show where the evidence is",
    response_description="The scores, the radiograph and the evidence as layers; or, asked for as image/png, a sheet "
    "of it all.",
    response_model=answers.Explained,
    **openapi.EXPLAIN,
)
async def explain(
    request: Request,
    server: Shared,
    bundle: BundleName = "",
    class_name: ClassName = "",
    method: Annotated[str, Query(description="occlusion, the only one for a bundle.")] = "occlusion",
    neighbours: Neighbours = 0,
) -> answers.Explained | Response:
    """A heat map for one picture. It shows where the scores change when a part is blurred away, and proves nothing."""
    queue = server.queue(bundle)
    pictures = await read_pictures(request, server.limits)
    if len(pictures) > 1:
        raise RefusedError(422, f"{len(pictures)} pictures; one at a time is explained")
    request.state.facts = {"pictures": 1, "bytes": len(pictures[0])}
    prediction, shown = await queue.explain(pictures[0], class_name=class_name, method=method)
    if "image/png" in request.headers.get("accept", ""):
        return Response(await asyncio.to_thread(overlay_png, shown), media_type="image/png")
    return await asyncio.to_thread(answers.explained, queue, prediction, shown, neighbours=neighbours)


@_server.get("/v1/bundles", summary="The bundles that answer")
async def bundles(server: Shared) -> list[answers.BundleFacts]:
    """The first one answers where none is named."""
    phantoms = _PHANTOMS if server.has_page else 0
    return [answers.bundle_facts(queue, phantoms=phantoms) for queue in server.queues]


@_server.get(
    "/card",
    summary="What the bundle is, promises, and must not be used for",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}, **openapi.refusals(404)},
)
async def card(server: Shared, bundle: BundleName = "") -> Response:
    """The bundle's card, as Markdown."""
    text = server.queue(bundle).classifier.bundle.file(CARD).read_bytes()
    return Response(text, media_type="text/markdown; charset=utf-8")


@_server.get("/health", summary="Whether the process lives")
async def health() -> answers.State:
    """Always the same answer."""
    return answers.State(status="alive")


@_server.get(
    "/ready",
    summary="Whether a picture that comes now would be taken",
    responses={503: {"model": answers.State, "description": "Not now: the queue is full, or the server is stopping."}},
)
async def ready(server: Shared, response: Response) -> answers.State:
    """For a load balancer."""
    if server.is_ready:
        return answers.State(status="ready")
    response.status_code = 503
    return answers.State(status="stopping" if server.is_stopping else "busy")


@_server.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
async def metrics(server: Shared) -> Response:
    """Requests, pictures, classes and queues; nothing of a picture."""
    return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@_page.get("/")
def index() -> Response:
    """The page."""
    return _static("index.html")


@_page.get("/page/{file}")
def page_file(file: str) -> Response:
    """A script or style of the page, or `phantom-N.png`, a synthetic radiograph."""
    if file in _FILES:
        return _static(file)
    phantoms = [f"phantom-{number}.png" for number in range(_PHANTOMS)]
    if file in phantoms:
        number, stream = phantoms.index(file), io.BytesIO()
        rng, label = np.random.default_rng(1000 + number), CLASSES[number % len(CLASSES)]
        drawn = draw_phantom(label, rng=rng, size=_PHANTOM_SIDE, difficulty=0.0)
        Image.fromarray(drawn.pixels).save(stream, format="PNG")
        return Response(stream.getvalue(), media_type="image/png", headers={"cache-control": "no-cache"})
    raise RefusedError(404, "Not Found")


def _static(name: str) -> Response:
    content = (files(__package__) / "static" / name).read_bytes()
    kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
    return Response(content, media_type=kind, headers=headers)
