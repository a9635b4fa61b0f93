"""What goes wrong, as a client sees it: RFC 9457 problem details, whoever finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

__all__ = ["MEDIA_TYPE", "RefusedError", "problem"]

MEDIA_TYPE = "application/problem+json"


class RefusedError(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        detail: the reason and the remedy, one line.
        headers: more of them.
        pictures: reason of each picture that cannot be read: `{"index": 0, "error": "..."}`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        pictures: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.pictures = status, detail, dict(headers or {}), list(pictures)


def problem(refused: RefusedError) -> Response:
    """The response that tells it."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(refused.status).phrase,
        "status": refused.status,
        "detail": refused.detail,
    }
    if refused.pictures:
        content["pictures"] = refused.pictures
    return Response(json.dumps(content), refused.status, headers=refused.headers, media_type=MEDIA_TYPE)
