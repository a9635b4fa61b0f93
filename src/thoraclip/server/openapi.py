"""Bodies, problems and examples of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from thoraclip.server.access import not_named
from thoraclip.server.answers import NOTE, Problem
from thoraclip.server.guard import MEDIA_TYPES
from thoraclip.server.limits import CROSS_SITE, MEDIA_TYPE

__all__ = ["EXPLAIN", "EXPLAINED", "PREDICT", "PREDICTED", "SOME_PROBLEMS", "add_document", "refusals"]

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
    "remarks": [],
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
_WHY = {
    400: ("The form is damaged.", "the form is damaged; send multipart/form-data with its boundary"),
    401: ("No token, or a wrong one.", "send the token: Authorization: Bearer TOKEN"),
    403: ("Asked by a page of another site.", CROSS_SITE),
    404: ("No such bundle.", "no bundle is called 'bundel'; did you mean 'bundle'?"),
    408: ("The request took too long to arrive.", "the request took longer than 30 s to arrive"),
    413: ("Too large, or too many pictures.", "the request is larger than 64 MB; send fewer or smaller pictures"),
    415: ("Another content type.", "the content type must be multipart/form-data or one of image/png, ..."),
    421: ("Asked by a name that is not the server's.", not_named("xray.example.org")),
    422: ("No picture can be read, or a parameter is wrong.", "not a PNG, JPEG or DICOM picture"),
    429: ("Too much is waiting; `Retry-After` says when to come again.", "64 pictures are waiting already; come later"),
    500: ("A fault of the server.", "a fault of the server; its log has more under 0f8c..."),
}
SOME_PROBLEMS = (400, 403, 404, 408, 413, 415, 421, 422, 429, 500)  # of whatever takes images


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Problems for FastAPI's `responses`."""
    schema, found = {"$ref": "#/components/schemas/Problem"}, dict[int | str, dict[str, Any]]()
    for code in codes:
        description, detail = _WHY[code]
        example = {"type": "about:blank", "title": description.rstrip("."), "status": code, "detail": detail}
        found[code] = {"description": description, "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}
    return found


def _operation(form_text: str, example: dict[str, Any], *others: str, **counts: int) -> dict[str, Any]:
    """Description, for FastAPI, of a route that takes images; `others`: media types of its answer beside JSON."""
    files = {"type": "array", "items": _PICTURE, "minItems": 1, **counts}
    form = {"type": "object", "properties": {"files": files}, "required": ["files"], "description": form_text}
    one = {kind: {"schema": _PICTURE} for kind in MEDIA_TYPES}
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}, **one}}
    answer = {"content": {"application/json": {"example": example}, **{kind: {} for kind in others}}}
    return {"openapi_extra": {"requestBody": body}, "responses": {200: answer, **refusals(*SOME_PROBLEMS)}}


PREDICT = _operation("Each part is a picture, whatever its name.", PREDICTED)
EXPLAIN = _operation("One part, the picture.", EXPLAINED, "image/png", maxItems=1)


def add_document(app: FastAPI, choices: Mapping[str, Sequence[str]]) -> None:
    """Add the schema of problems, and what some parameters may be (`choices`: name -> values beside the default), to
    the OpenAPI document of an app that has all its routes."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        content = generate()
        _, own = models_json_schema([(Problem, "serialization")], ref_template="#/components/schemas/{model}")
        content.setdefault("components", {}).setdefault("schemas", {}).update(own["$defs"])
        operations = [operation for path in content["paths"].values() for operation in path.values()]
        for parameter in (parameter for operation in operations for parameter in operation.get("parameters", [])):
            if parameter["name"] in choices:
                values = [parameter["schema"].get("default", ""), *choices[parameter["name"]]]
                parameter["schema"]["enum"] = list(dict.fromkeys(values))
        return content

    app.openapi = document  # type: ignore[method-assign]
