"""What the OpenAPI document says beside the schemas: bodies, problems, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from thoraclip.server.answers import NOTE, Problem
from thoraclip.server.intake import MEDIA_TYPES
from thoraclip.server.problems import MEDIA_TYPE

__all__ = ["EXPLAINED", "ONE_PICTURE", "PREDICTED", "SOME_PICTURES", "SOME_PROBLEMS", "add_document", "refusals"]

_PNG = "data:image/png;base64,iVBORw0KGgo..."
_BUNDLE = {
    "name": "bundle",
    "title": "probe on clip-vit-base-patch32, int8",
    "labels": ["COVID-19", "Non-COVID", "Normal"],
    "fingerprint": "3f1c9a52" * 8,
}
_READ: dict[str, Any] = {
    "index": 0,
    "label": "Normal",
    "scores": {"COVID-19": 0.031207, "Non-COVID": 0.041116, "Normal": 0.927677},
    "set": ["Normal"],
    "ood": False,
    "ood_score": 412.083117,
    "neighbours": None,
    "error": None,
}
_UNREADABLE = dict.fromkeys(_READ) | {"index": 1, "error": "not a PNG, JPEG or DICOM picture"}

PREDICTED = {"bundle": _BUNDLE, "pictures": [_READ, _UNREADABLE], "note": NOTE}
EXPLAINED = {
    "bundle": _BUNDLE,
    "prediction": _READ,
    "explained": "Normal",
    "method": "occlusion",
    "evidence_in_lungs": 0.61,
    "lung_area": 0.34,
    "lungs_from": "estimated",
    "picture": _PNG,
    "heat": _PNG,
    "outline": _PNG,
    "note": NOTE,
}

_PICTURE = {"type": "string", "format": "binary", "description": "Content of a PNG, JPEG or DICOM file."}
_ONE = {kind: {"schema": _PICTURE} for kind in MEDIA_TYPES}


def _form(description: str, most: int | None) -> dict[str, Any]:
    files = {"type": "array", "items": _PICTURE, "minItems": 1} | ({} if most is None else {"maxItems": most})
    return {
        "schema": {
            "type": "object",
            "properties": {"files": files},
            "required": ["files"],
            "description": description,
        }
    }


SOME_PICTURES = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _form("Each part is a picture, whatever its name.", None), **_ONE},
    }
}
ONE_PICTURE = {
    "requestBody": {"required": True, "content": {"multipart/form-data": _form("One part, the picture.", 1), **_ONE}}
}

_WHY = {
    400: ("The form is damaged.", "the form is damaged; send multipart/form-data with its boundary"),
    401: ("No token, or a wrong one.", "send the token: Authorization: Bearer TOKEN"),
    403: (
        "Asked by a page of another site.",
        "asked by a page of another site; start the server with --allow-origin to let it",
    ),
    404: ("No such bundle.", "no bundle is called 'bundel'; did you mean 'bundle'?"),
    408: ("The request took too long to arrive.", "the request took longer than 30 s to arrive"),
    413: ("Too large, or too many pictures.", "the request is larger than 64 MB; send fewer or smaller pictures"),
    415: ("Another content type.", "the content type must be multipart/form-data or one of image/png, ..."),
    422: ("No picture can be read, or a parameter is wrong.", "not a PNG, JPEG or DICOM picture"),
    429: ("Too much is waiting; `Retry-After` says when to come again.", "64 pictures are waiting already; come later"),
    500: ("A fault of the server.", "a fault of the server; its log has more under 0f8c..."),
}
SOME_PROBLEMS = (400, 403, 404, 408, 413, 415, 422, 429, 500)
"""Of whatever takes pictures."""


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`."""
    titles = {code: _WHY[code] for code in codes}
    return {
        code: {
            "description": description,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": {
                        "type": "about:blank",
                        "title": description.rstrip("."),
                        "status": code,
                        "detail": detail,
                    },
                }
            },
        }
        for code, (description, detail) in titles.items()
    }


def add_document(app: FastAPI, choices: Mapping[str, Sequence[str]]) -> None:
    """Have the app serve its OpenAPI document, with the schema of problems.

    Args:
        app: all its routes are there.
        choices: name of a parameter -> what it may be, beside nothing.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _, own = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
            found.setdefault("components", {}).setdefault("schemas", {}).update(own["$defs"])
            for operation in (one for path in found["paths"].values() for one in path.values()):
                for parameter in operation.get("parameters", []):
                    if parameter["name"] in choices:
                        told = [parameter["schema"].get("default", ""), *choices[parameter["name"]]]
                        parameter["schema"]["enum"] = list(dict.fromkeys(told))
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
