"""Errors as a client sees them: RFC 9457 problem details."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = ["MEDIA_TYPE", "RefusedError", "problem"]

MEDIA_TYPE = "application/problem+json"


class RefusedError(HTTPException):
    """A request that is not served.

    Args:
        status_code: of HTTP.
        detail: the reason and the remedy, one line.
        headers: more of them.
        pictures: reason of each picture that cannot be read: `{"index": 0, "error": "..."}`.
    """

    def __init__(
        self,
        status_code: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        pictures: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.pictures = list(pictures)


def problem(error: HTTPException) -> Response:
    """The response to an error."""
    status, pictures = error.status_code, getattr(error, "pictures", [])
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": error.detail}
    if pictures:
        content["pictures"] = pictures
    return Response(json.dumps(content), status, headers=error.headers, media_type=MEDIA_TYPE)
