"""Requests made to crash, hang, flood or fool: each gets a 4xx with a reason, and the next honest one its answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import httpx
import psutil
import pytest
from PIL import Image
from scripts.served import Served
from tests.imaging.files import chunk, data_set, encoded, waves, written
from tests.server.test_app import forms, reason


@pytest.fixture
def ask(server: Served, png: bytes) -> Iterator[Callable[..., httpx.Response]]:
    """Asks to predict, at little cost; afterwards an honest picture is answered and memory is as it was."""
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.address, timeout=120) as client:

        def send(**request: object) -> httpx.Response:
            begin = sum(process.cpu_times()[:2])
            response = client.post("/v1/predict", **request)  # type: ignore[arg-type]
            assert sum(process.cpu_times()[:2]) - begin < 10, "seconds of a processor"
            return response

        client.post("/v1/predict", files=forms(png))
        before = process.memory_info().rss
        yield send
        assert client.post("/v1/predict", files=forms(png)).status_code == 200
        assert process.memory_info().rss - before < 100e6


@cache
def zeros(megabytes: int) -> bytes:
    """So many, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(megabytes)) + packer.flush()


def bomb(width: int, height: int, megabytes: int) -> bytes:
    """A PNG of little content that inflates to very much."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zeros(megabytes)) + chunk(b"IEND", b"")


PNG, JPEG = (encoded(Image.new("L", (8, 8)), kind) for kind in ("PNG", "JPEG"))
TEXT_BOMB = PNG[:33] + chunk(b"zTXt", b"x\0\0" + zeros(500)) + PNG[33:]
"""With a compressed text of half a gigabyte."""
SIZE = JPEG.index(b"\xff\xc0") + 5
HUGE_JPEG = JPEG[:SIZE] + b"\xff\xff\xff\xff" + JPEG[SIZE + 4 :]
"""A few bytes that say that they are as large as a JPEG can be."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(7000, 7200, 500), "50,400,000|more than|damaged"),
        (bomb(8, 8, 500), None),
        (bomb(50_000_001, 1, 1), "50000001 x 1 pixels is more than 50,000,000"),
        (bomb(0, 0, 1), ""),
        (TEXT_BOMB, None),
        (HUGE_JPEG, "more than 50,000,000 pixels; not a radiograph"),
        (written(data_set(waves(12), bits=12, Rows=65535, Columns=65535)), "more than 50,000,000 pixels"),
        (b"\x00" * 128 + b"DICM", "DICOM"),
    ],
)
def test_pictures_that_are_traps(ask: Callable[..., httpx.Response], content: bytes, message: str | None) -> None:
    """`None`: a valid picture with a trap that does not close is answered as any other."""
    response = ask(files=forms(content))
    if message is not None or response.status_code != 200:
        told = reason(response, 422)
        assert any(part in told for part in (message or "").split("|")), told


def test_names_mean_nothing(ask: Callable[..., httpx.Response], png: bytes) -> None:
    odd = [
        "../../../../etc/passwd",
        "C:\\windows\\win.ini",
        "\0",
        "a" * 5000,
        "$(id)",
        "a\r\nb: c",
        "<script>",
        ".",
        "",
    ]
    for name in odd:
        response = ask(files=[("files", (name, png)), (name or "x", ("b.png", png))])
        if response.status_code == 200:
            assert len(response.json()["pictures"]) == 2
            assert name in {".", ""} or name not in response.text
        else:
            reason(response, 400)


def test_a_form_of_near_boundaries_takes_no_time(ask: Callable[..., httpx.Response]) -> None:
    """What looks like the boundary at every byte is the parser's worst case."""
    for filling in (b"\r", b"\r\n--boundar"):
        body = b"--boundary\r\n\r\n" + filling * (5_000_000 // len(filling)) + b"\r\n--boundary--\r\n"
        told = reason(ask(content=body, headers={"content-type": "multipart/form-data; boundary=boundary"}), 422)
        assert told == "not a PNG, JPEG or DICOM picture"


def test_headers_of_a_part_are_bounded(ask: Callable[..., httpx.Response], png: bytes) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for head in (b"x: " + b"y" * 1_000_000, b"x: y\r\n" * 100_000):
        body = b"--b\r\n" + head + b"\r\n\r\n" + png + b"\r\n--b--\r\n"
        assert reason(ask(content=body, headers=kind), 400)


PATHS = ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/card/../../x", "/%00")


def test_paths_and_names_of_bundles_lead_nowhere(server: Served, png: bytes) -> None:
    with httpx.Client() as client:
        for path in PATHS:
            request = httpx.Request("GET", server.address)
            request.url = httpx.URL(server.address, raw_path=path.encode())
            response = client.send(request)
            assert response.status_code == 404 and "root:" not in response.text, path
    response = httpx.post(server.address + "/v1/predict?bundle=../../etc", files=forms(png))
    assert "no bundle is called '../../etc'" in reason(response, 404)
    assert "no bundle" in reason(httpx.get(server.address + "/card", params={"bundle": "/etc/passwd"}), 404)
