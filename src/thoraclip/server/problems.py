"""Errors as a client sees them: RFC 9457 problem details."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

__all__ = ["CROSS_SITE", "MEDIA_TYPE", "RefusedError", "problem", "reason_of"]

MEDIA_TYPE = "application/problem+json"
CROSS_SITE = "asked by a page of another site; start the server with --allow-origin to let it"


class RefusedError(HTTPException):
    """A request that is not served.

    Args:
        status_code, headers: of HTTP.
        detail: the reason and the remedy, one line.
        pictures: reason of each image that cannot be read: `{"index": 0, "error": "..."}`.
    """

    def __init__(
        self,
        status_code: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        pictures: list[Any] | None = None,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.pictures = pictures


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, without a name for it: the request has none."""
    return str(error).removeprefix("image: ")


def problem(error: HTTPException) -> Response:
    """The response to an error."""
    status, pictures = error.status_code, getattr(error, "pictures", None)
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": error.detail}
    if pictures:
        content["pictures"] = pictures
    return Response(json.dumps(content), status, headers=error.headers, media_type=MEDIA_TYPE)
