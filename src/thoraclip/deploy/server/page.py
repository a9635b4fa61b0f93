"""The page at `/`, by Gradio: a picture is read in the browser, goes through an event into memory, and is gone with the answer.

    page.js --base64--> event --desk--> answers --page_words--> HTML and data URIs --> page.js
       |                  |
    size, name      /gradio_api/run/predict, which `page_door` lets in; uploads, files, queue and history are closed

Gradio's own uploads would be written to disk, its queue would keep answers that nobody fetches, and a session would keep the last
picture: none of the three is used.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI
from PIL import Image
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from thoraclip.deploy.server.answers import explained, predicted, reason_of
from thoraclip.deploy.server.desk import METHODS, BusyError, Desk, TooLongError
from thoraclip.deploy.server.limits import Limits
from thoraclip.deploy.server.logs import tell
from thoraclip.deploy.server.page_door import PageRoute
from thoraclip.deploy.server.page_words import STRANGE, answer_html, map_words, near_html, page_html, verdict
from thoraclip.errors import ConfigError, ImageError

if TYPE_CHECKING:
    import gradio

__all__ = ["mount_page"]

_NEIGHBOURS = 5
_PHANTOMS, _PHANTOM_SIDE = 12, 384
_ENVELOPE_BYTES = 10_000
"""Of an event beside the picture."""
_REST_SECONDS = 3600.0
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}

Told = dict[str, Any]


def mount_page(app: FastAPI, desks: Sequence[Desk], limits: Limits) -> None:
    """Add the page at `/`, after all other routes.

    Args:
        app: that serves the API.
        desks: one for each bundle, side by side.
        limits: of the server.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    inner, theme = FastAPI(), gr.themes.Base(font=list(_FONT), font_mono=["ui-monospace", "monospace"])
    _keep_quiet()
    with _nothing_on_disk():
        blocks = _blocks(desks, limits)
        gr.mount_gradio_app(
            inner, blocks, "/", footer_links=[], run_history=False, show_error=False, ssr_mode=False,
            enable_monitoring=False, pwa=False, mcp_server=False, theme=theme,
        )  # fmt: skip
    page: Any = inner.routes[-1].app  # type: ignore[attr-defined]
    page.state_holder = _forgetful()
    page.state_holder.set_blocks(blocks)
    app.router.routes.append(PageRoute(inner, _own_file))
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def life(host: FastAPI) -> AsyncIterator[Any]:
        async with inner.router.lifespan_context(inner), outer(host) as state:
            yield state

    app.router.lifespan_context = life


def _blocks(desks: Sequence[Desk], limits: Limits) -> gradio.Blocks:
    """The page, and a box for each kind of question; a box gets its own answer, one at a time."""
    import gradio as gr

    most = 3 * (limits.bytes - _ENVELOPE_BYTES) // 4  # base64 makes four letters of three bytes
    skeleton = page_html(desks, most_bytes=most, methods=METHODS, phantoms=_phantoms())
    with gr.Blocks(title="ThoraCLIP", analytics_enabled=False, delete_cache=None) as blocks:
        gr.HTML(
            skeleton, js_on_load="thoraclip.start(element)", apply_default_css=False, padding=False, elem_id="thoraclip"
        )
        _box("predict", _predictor(desks))
        for number, desk in enumerate(desks):
            _box(f"explain-{number}", _explainer(desk))
    blocks.queue(max_size=1, api_open=False)
    queue: Any = blocks._queue
    queue.sleep_when_free = queue.progress_update_sleep_when_free = (
        _REST_SECONDS  # no event is queued: do not look often
    )
    return blocks


def _box(name: str, answer: Callable[[Told], Awaitable[Told]]) -> None:
    import gradio as gr

    async def on_ask(event: Any) -> Told:
        told = event._data
        return await _safely(answer, told if isinstance(told, dict) else {})

    on_ask.__annotations__ = {"event": gr.EventData}
    script = f"thoraclip.box('{name}', told => trigger('ask', told), () => props.value, watch)"
    box = gr.HTML(
        None,
        html_template=" ",
        js_on_load=script,
        apply_default_css=False,
        elem_classes=["thoraclip-box"],
        padding=False,
    )
    box.ask(
        on_ask,
        inputs=None,
        outputs=box,
        queue=False,
        show_progress="hidden",
        trigger_mode="multiple",
        api_visibility="private",
    )


async def _safely(answer: Callable[[Told], Awaitable[Told]], told: Told) -> Told:
    """The answer, or the reason why there is none; a fault goes to the log, and not a word of it to the page."""
    number = told.get("number")
    number = number if isinstance(number, int) else None  # Gradio would go for the file that an object may name
    try:
        return {"number": number, **await answer(told)}
    except BusyError as error:
        reason = f"The server is busy: {error.reason}. Try again in {error.retry_after} s."
    except ImageError as error:
        reason = f"This picture cannot be read: {reason_of(error)}."
    except (TooLongError, ConfigError) as error:
        reason = f"No answer: {error}."
    except Exception as error:
        tell("failure", level=logging.ERROR, error=error, request_id="page")
        reason = "A fault of the server; its log has more."
    return {"number": number, "refused": reason}


def _predictor(desks: Sequence[Desk]) -> Callable[[Told], Awaitable[Told]]:
    async def answer(told: Told) -> Told:
        data = await _picture(told)
        found = await asyncio.gather(*(desk.predict([data]) for desk in desks))
        if isinstance(found[0][0], ImageError):
            raise found[0][0]
        return {
            "bundles": await asyncio.to_thread(
                lambda: [_shown(desk, one) for desk, one in zip(desks, found, strict=True)]
            )
        }

    return answer


def _shown(desk: Desk, found: Sequence[Any]) -> Told:
    one = predicted(desk, found, neighbours=_NEIGHBOURS).pictures[0]
    if one.error is not None:
        return {"answer": "", "near": "", "spoken": f"{desk.name}: {one.error}", "label": ""}
    said = verdict(one)
    spoken = STRANGE if one.ood else f"{said.headline}. {said.detail}"
    return {
        "answer": answer_html(desk, one),
        "near": near_html(one),
        "spoken": f"{desk.name}: {spoken}",
        "label": one.label,
    }


def _explainer(desk: Desk) -> Callable[[Told], Awaitable[Told]]:
    async def answer(told: Told) -> Told:
        data = await _picture(told)
        found, shown = await desk.explain(data, class_name=_text(told, "class"), method=_text(told, "method"))
        full = await asyncio.to_thread(explained, desk, found, shown)
        layers = {"picture": full.picture, "heat": full.heat, "outline": full.outline}
        return {"explained": full.explained, "method": full.method, "words": map_words(full), **layers}

    return answer


async def _picture(told: Told) -> bytes:
    """The bytes of the file."""
    try:
        return await asyncio.to_thread(base64.b64decode, _text(told, "picture"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError("the page sent something that is no file; reload it") from error


def _text(told: Told, name: str) -> str:
    found = told.get(name, "")
    if not isinstance(found, str):
        raise ConfigError(f"{name} must be text; reload the page")
    return found


def _keep_quiet() -> None:
    """Keep Gradio from printing errors, which may quote a request, and from loading Matplotlib, which makes folders."""
    from gradio import routes, utils

    def log() -> None:
        tell("failure", level=logging.ERROR, error=sys.exc_info()[1], request_id="page")

    routes.traceback = SimpleNamespace(print_exc=log)
    utils.MatplotlibBackendMananger = nullcontext


@contextmanager
def _nothing_on_disk() -> Iterator[None]:
    """Keep Gradio from making a folder for its editor, which is closed here."""
    from gradio import routes

    class _Unmade(type(Path())):  # type: ignore[misc]
        def mkdir(self, *args: Any, **options: Any) -> None:
            """Do nothing."""

    real = routes.Path
    routes.Path = _Unmade
    try:
        yield
    finally:
        routes.Path = real


def _forgetful() -> Any:
    """Gradio's sessions, but every one is new: else each keeps the last picture that it was shown."""
    from gradio.state_holder import SessionState, StateHolder

    class _Forgetful(StateHolder):  # type: ignore[misc]
        def __getitem__(self, session_id: str) -> SessionState:
            return SessionState(self.blocks)

    return _Forgetful()


async def _own_file(scope: Scope, receive: Receive, send: Send) -> None:
    """The page's script and style, or a synthetic radiograph."""
    name = scope["path"].removeprefix("/page/")
    stem, _, ending = name.rpartition(".")
    if ending in _TYPES:
        response = Response((files(__package__) / "static" / name).read_bytes(), media_type=_TYPES[ending])
    else:
        content = await asyncio.to_thread(_phantom, int(stem.removeprefix("phantom-")))
        response = Response(content, media_type="image/png")
    response.headers["cache-control"] = "no-cache"
    await response(scope, receive, send)


def _phantoms() -> int:
    """How many can be drawn: none where what draws them is not installed."""
    try:
        import thoraclip.data.phantom  # noqa: F401
    except ModuleNotFoundError:
        return 0
    return _PHANTOMS


def _phantom(number: int) -> bytes:
    """A PNG of a synthetic radiograph; the same number, the same picture."""
    from thoraclip.data.phantom import CLASSES, draw_phantom

    label = CLASSES[number % len(CLASSES)]
    drawn = draw_phantom(label, rng=np.random.default_rng(1000 + number), size=_PHANTOM_SIDE, difficulty=0.0)
    stream = io.BytesIO()
    Image.fromarray(drawn.pixels).save(stream, format="PNG")
    return stream.getvalue()
