"""Any form, however it is built, gives its parts or a reason below 500."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from thoraclip.server.guard import read_pictures
from thoraclip.server.limits import Limits, RefusedError


def read(content_type: str, chunks: Sequence[bytes], limits: Limits | None = None) -> list[bytes]:
    """What `read_pictures` makes of a body that comes in some chunks."""
    parts = list(chunks)

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0) if parts else b"", "more_body": bool(parts)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode("latin-1"))]}
    return asyncio.run(read_pictures(Request(scope, receive), limits or Limits()))


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """A body in pieces."""
    ends = sorted({place % (len(body) + 1) for place in places})
    return [body[start:end] for start, end in zip([0, *ends], [*ends, len(body)], strict=True)]


latin = st.text(st.characters(max_codepoint=255), max_size=20)
boundaries = st.from_regex(r"[A-Za-z0-9'()+_,./:=?-]{1,70}", fullmatch=True)
contents = st.lists(st.binary(max_size=40) | st.just(b"--inner\r\n\r\nx\r\n--inner--"), min_size=1, max_size=5)
places = st.lists(st.integers(0, 2000), max_size=6)


@given(
    boundary=boundaries,
    contents=contents,
    name=st.binary(max_size=60).filter(lambda name: not set(name) & set(range(32)) - {9} and 127 not in name),
    places=places,
)
def test_the_parts_come_back_whatever_their_names_and_wherever_the_body_is_cut(
    boundary: str, contents: list[bytes], name: bytes, places: list[int]
) -> None:
    mark = b"\r\n--" + boundary.encode()
    if any(mark in b"\r\n" + content + b"\r\n" for content in contents):
        return
    head = b'\r\nContent-Disposition: form-data; name="f"; filename="' + name + b'"\r\n\r\n'
    body = b"".join(mark + head + content for content in contents)[2:] + mark + b"--\r\n"
    assert read(f'multipart/form-data; boundary="{boundary}"', cut(body, places)) == contents


_PIECES = (
    b'--b|--b--|\r\n|\n|\r|\r\n\r\n|--|-|b|a: b|content-disposition: form-data; name="f"|:|: |--c|content-length: 9|\0|\xff'
    b"|content-type: multipart/mixed; boundary=c|content-transfer-encoding: base64|filename*=utf-8''%00"
    b'|content-type: text/plain; charset=utf-7|content-disposition: form-data; filename="a\0b'
)
pieces = st.sampled_from(_PIECES.split(b"|"))
kinds = st.sampled_from(
    ["multipart/form-data; boundary=b", "Multipart/Form-Data;BOUNDARY=b", 'multipart/form-data; boundary="b"']
    * 3  # most of them right, so that the bodies count
    + ["multipart/form-data", "multipart/form-data; boundary", "multipart/form-data; boundary=", "multipart/mixed"]
)


@given(
    kind=kinds | latin.map("multipart/form-data; boundary={}".format) | latin,
    body=st.lists(pieces | st.binary(max_size=8), max_size=40).map(b"".join),
    opens=st.booleans(),
    places=places,
)
def test_any_body_is_read_or_refused_with_a_reason(kind: str, body: bytes, opens: bool, places: list[int]) -> None:
    try:
        parts = read(kind, cut((b"--b\r\n\r\n" if opens else b"") + body, places), Limits(files=3))
    except RefusedError as refused:
        assert 400 <= refused.status_code < 500 and len(refused.detail) < 500 and refused.detail.isprintable()
    else:
        assert 1 <= len(parts) <= 3


@pytest.mark.parametrize("count", [4, 5000])
def test_more_parts_than_allowed_are_refused_at_the_first_too_many(count: int) -> None:
    def chunks() -> list[bytes]:
        return [b"--b\r\n\r\nx\r\n"] * count + [b"--b--\r\n"]

    with pytest.raises(RefusedError, match="more than 3 pictures in one request"):
        read("multipart/form-data; boundary=b", chunks(), Limits(files=3))
