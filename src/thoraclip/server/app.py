"""The API: FastAPI over a desk for each bundle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from thoraclip.bundle.format import CARD
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.heatmaps.picture import overlay_png
from thoraclip.server.answers import (
    NOTE,
    BundleFacts,
    Explained,
    Predicted,
    State,
    bundle_facts,
    explained,
    predicted,
    reason_of,
)
from thoraclip.server.desk import METHODS, BusyError, Desk, TooLongError
from thoraclip.server.guard import Guard, Held, Journal
from thoraclip.server.intake import read_pictures
from thoraclip.server.limits import Limits
from thoraclip.server.meters import EXPOSITION, Meters
from thoraclip.server.openapi import (
    EXPLAINED,
    ONE_PICTURE,
    PREDICTED,
    SOME_PICTURES,
    SOME_PROBLEMS,
    add_document,
    refusals,
)
from thoraclip.server.page import PHANTOMS, page_router
from thoraclip.server.problems import RefusedError, problem

__all__ = ["Counter", "create_app"]

_DESCRIPTION = f"""Frontal chest X-rays in, calibrated probabilities out. **{NOTE}**

A request is held in memory and gone with its answer. No name of a file is looked at; answers come in the order of the
pictures. What is wrong is told as problem details (RFC 9457)."""


@dataclass
class Counter:
    """What the handlers share.

    Args:
        desks: one for each bundle; the first answers where none is named.
        limits: of the server.
        meters: count what is done.
        has_page: whether there is a page at `/`.
        is_stopping: set when the server has been told to stop.
        is_in_a_hurry: set when it has been told twice.
    """

    desks: Sequence[Desk]
    limits: Limits
    meters: Meters
    held: Held = field(default_factory=Held)
    has_page: bool = False
    is_stopping: bool = False
    is_in_a_hurry: bool = False

    def desk(self, name: str) -> Desk:
        """The desk of a bundle, the first one for no name; raises RefusedError where there is none."""
        names = [desk.name for desk in self.desks]
        if name and name not in names:
            raise RefusedError(404, f"no bundle is called '{name}'{did_you_mean(name, names)}")
        return self.desks[names.index(name) if name else 0]

    @property
    def is_ready(self) -> bool:
        """Whether a picture that comes now would be taken."""
        return not self.is_stopping and all(desk.is_ready for desk in self.desks)


def create_app(counter: Counter, *, token: str = "", origins: Collection[str] = ()) -> FastAPI:
    """The app; whoever starts it stops it, and its desks with it.

    Args:
        counter: what the handlers share.
        token: that every client must bring, as `Authorization: Bearer TOKEN` or as the password of a browser; empty for
            none.
        origins: of pages on other hosts that may ask (CORS).
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        for desk in counter.desks:
            await asyncio.to_thread(desk.close, seconds=0 if counter.is_in_a_hurry else counter.limits.grace_seconds)

    app = FastAPI(
        title="ThoraCLIP",
        version=metadata.version("thoraclip"),
        description=_DESCRIPTION,
        lifespan=life,
        docs_url=None,
        redoc_url=None,  # they load scripts from another host
        responses=refusals(401) if token else {},
    )
    app.state.counter = counter
    app.include_router(_pictures)
    app.include_router(_server)
    if counter.has_page:
        app.include_router(page_router)
    labels = dict.fromkeys(name for desk in counter.desks for name in desk.classifier.labels.names)
    add_document(app, {"bundle": [desk.name for desk in counter.desks], "class": list(labels), "method": METHODS})
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, limits=counter.limits, held=counter.held, token=token, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(Journal, meters=counter.meters)
    counter.meters.watch(waiting=lambda: sum(desk.waiting for desk in counter.desks), held=lambda: counter.held.bytes)
    return app


def _counter(request: Request) -> Counter:
    found: Counter = request.app.state.counter
    return found


Shared = Annotated[Counter, Depends(_counter)]
BundleName = Annotated[
    str,
    Query(
        alias="bundle", description="Which bundle answers, by its name in `/v1/bundles`; the first if none is given."
    ),
]
Neighbours = Annotated[
    int, Query(ge=0, le=20, description="How many similar training pictures are told, where the bundle carries any.")
]

_pictures = APIRouter(tags=["pictures"])
_server = APIRouter(tags=["the server"])


@_pictures.post(
    "/v1/predict",
    summary="Score chest X-rays",
    response_description="Each picture's scores, or the reason why it has none; one of them at least can be read.",
    openapi_extra=SOME_PICTURES,
    responses={200: {"content": {"application/json": {"example": PREDICTED}}}, **refusals(*SOME_PROBLEMS)},
)
async def predict(request: Request, counter: Shared, bundle: BundleName = "", neighbours: Neighbours = 0) -> Predicted:
    """Calibrated probabilities, the classes that cannot be ruled out, and whether a picture is unlike the training
    images."""
    desk = counter.desk(bundle)
    pictures = await read_pictures(request, counter.limits)
    found = await desk.predict(pictures)
    bad = [{"index": i, "error": reason_of(one)} for i, one in enumerate(found) if isinstance(one, ImageError)]
    request.state.facts = {"pictures": len(found), "unreadable": len(bad), "bytes": sum(map(len, pictures))}
    if len(bad) == len(found):
        more = "" if len(bad) == 1 else f" (and {len(bad) - 1} more, none of which can be read)"
        raise RefusedError(422, f"{bad[0]['error']}{more}", pictures=bad)
    return await asyncio.to_thread(predicted, desk, found, neighbours=neighbours)  # thumbnails take their time


@_pictures.post(
    "/v1/explain",
    summary="Show where the evidence is",
    response_description="The scores, the radiograph and the evidence as layers; or, asked for as image/png, a sheet "
    "of it all.",
    response_model=Explained,
    openapi_extra=ONE_PICTURE,
    responses={
        200: {"content": {"application/json": {"example": EXPLAINED}, "image/png": {}}},
        **refusals(*SOME_PROBLEMS),
    },
)
async def explain(
    request: Request,
    counter: Shared,
    bundle: BundleName = "",
    class_name: Annotated[
        str, Query(alias="class", description="What is explained; the predicted class if none is given.")
    ] = "",
    method: Annotated[str, Query(description="occlusion, the only one for a bundle.")] = "occlusion",
    neighbours: Neighbours = 0,
) -> Response:
    """A heat map for one picture. It shows where the scores change when a part is blurred away, and proves nothing."""
    desk = counter.desk(bundle)
    pictures = await read_pictures(request, counter.limits)
    if len(pictures) > 1:
        raise RefusedError(422, f"{len(pictures)} pictures; one at a time is explained")
    request.state.facts = {"pictures": 1, "bytes": len(pictures[0])}
    found, shown = await desk.explain(pictures[0], class_name=class_name, method=method)
    if "image/png" in request.headers.get("accept", ""):
        return Response(await asyncio.to_thread(overlay_png, shown), media_type="image/png")
    told = await asyncio.to_thread(explained, desk, found, shown, neighbours=neighbours)
    return JSONResponse(told.model_dump())


@_server.get("/v1/bundles", summary="The bundles that answer")
async def bundles(counter: Shared) -> list[BundleFacts]:
    """The first one answers where none is named."""
    phantoms = PHANTOMS if counter.has_page else 0
    return [bundle_facts(desk, phantoms=phantoms) for desk in counter.desks]


@_server.get(
    "/card",
    summary="What the bundle is, promises, and must not be used for",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}, **refusals(404)},
)
async def card(counter: Shared, bundle: BundleName = "") -> Response:
    """The bundle's card, as Markdown."""
    text = (counter.desk(bundle).classifier.bundle.folder / CARD).read_bytes()
    return Response(text, media_type="text/markdown; charset=utf-8")


@_server.get("/health", summary="Whether the process lives")
async def health() -> State:
    """Always the same answer."""
    return State(status="alive")


@_server.get(
    "/ready",
    summary="Whether a picture that comes now would be taken",
    responses={503: {"model": State, "description": "Not now: the queue is full, or the server is stopping."}},
)
async def ready(counter: Shared, response: Response) -> State:
    """For a load balancer."""
    if counter.is_ready:
        return State(status="ready")
    response.status_code = 503
    return State(status="stopping" if counter.is_stopping else "busy")


@_server.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
async def metrics(counter: Shared) -> Response:
    """Requests, pictures, classes and queues; nothing of a picture."""
    return Response(counter.meters.text(), media_type=EXPOSITION)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return problem(error)


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    return problem(RefusedError(429, error.reason, headers={"retry-after": str(error.retry_after)}))


async def _unfit(request: Request, error: Exception) -> Response:
    return problem(RefusedError(422, reason_of(error)))


async def _wrong_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return problem(RefusedError(422, told))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(RefusedError(error.status_code, str(error.detail), headers=error.headers))


_HANDLERS = {
    RefusedError: _refused,
    BusyError: _busy,
    TooLongError: _unfit,
    ImageError: _unfit,
    ConfigError: _unfit,
    RequestValidationError: _wrong_parameter,
    HTTPException: _of_http,
}
