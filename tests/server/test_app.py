"""The API as a client sees it: the numbers of `thoraclip predict`, and a reason for whatever is wrong."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.imaging.files import LOSSLESS, data_set, waves

import thoraclip
from thoraclip.bundle.format import Thumbnails
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.heatmaps.overlay import draw_overlay, heat_layer, outline_layer
from thoraclip.server import answers as answers_module
from thoraclip.server.answers import Explained, Predicted
from thoraclip.server.batch_queue import BatchQueue
from thoraclip.server.guard import MEDIA_TYPES
from thoraclip.server.limits import Limits, RefusedError
from thoraclip.server.openapi import EXPLAINED, PREDICTED

Opened = Callable[..., TestClient]


def forms(*pictures: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"../../{i}.png", picture)) for i, picture in enumerate(pictures)]


def reason(response: Any, status: int) -> str:
    """What a refusal tells; it must be problem details."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == status and told["title"] and told["type"] == "about:blank"
    return str(told["detail"])


def pixels(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_the_numbers_are_those_of_predict(opened: Opened, bundle: Path, tmp_path: Path, png: bytes) -> None:
    dicom = LOSSLESS["RLE"](data_set(waves(12, height=60, width=50), bits=12))
    files = {"a.png": png, "b.dcm": dicom, "c.txt": b"text"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = thoraclip.predict(bundle, [tmp_path / name for name in files]).rows
    told = opened().post("/v1/predict", files=forms(*files.values())).json()
    assert [one["index"] for one in told["pictures"]] == [0, 1, 2]
    for row, one in zip(rows, told["pictures"], strict=True):
        if one["error"]:
            assert row["error"].endswith(one["error"]) and one["scores"] is None and one["set"] is None
            continue
        assert one["scores"] == {name[6:]: value for name, value in row.items() if name.startswith("score_")}
        assert (one["label"], one["set"], one["ood"]) == (row["label"], row["set"], row["ood"])
    assert told["note"] == "Research use only, not for diagnosis."
    assert told["bundle"]["fingerprint"] == thoraclip.open_bundle(bundle).bundle.fingerprint


def test_a_body_may_be_one_picture_whatever_it_claims_to_be(opened: Opened, png: bytes) -> None:
    client = opened()
    told = client.post("/v1/predict", files=forms(png)).json()
    for kind in (*MEDIA_TYPES, "Application/Octet-Stream; x=y"):
        assert client.post("/v1/predict", content=png, headers={"content-type": kind}).json() == told


def test_where_none_can_be_read_the_request_is_refused_with_each_reason(opened: Opened) -> None:
    response = opened().post("/v1/predict", files=forms(b"text", b""))
    assert reason(response, 422) == "not a PNG, JPEG or DICOM picture (and 1 more, none of which can be read)"
    reasons = ["not a PNG, JPEG or DICOM picture", "the file is empty"]
    assert response.json()["pictures"] == [{"index": i, "error": told} for i, told in enumerate(reasons)]


FORM = "multipart/form-data; boundary="


@pytest.mark.parametrize(
    ("asked", "body", "kind", "status", "message"),
    [
        ("predict", b"x", "", 415, "the content type must be multipart/form-data or one of image/png"),
        ("predict", b"x", "text/html", 415, "the content type must be"),
        ("predict", b"x", "multipart/form-data", 400, "names no boundary"),
        ("predict", b"x", FORM + "b" * 300, 400, "the form is damaged"),
        ("predict", b"x", FORM + "b", 400, "the form is damaged"),
        ("predict", b"", FORM + "b", 400, "the form ends before its last boundary"),
        ("predict", b"--b\r\n\r\nx", FORM + "b", 400, "the form ends before its last boundary"),
        ("predict", b"--b--\r\n", FORM + "b", 422, "the form has no picture"),
        ("predict", b"", "image/png", 422, "the file is empty"),
        ("explain", b"text", "image/png", 422, "not a PNG, JPEG or DICOM picture"),
        ("predict?bundle=prob", None, "image/png", 404, "no bundle is called 'prob'; did you mean 'probe'?"),
        ("predict?neighbours=-1", None, "image/png", 422, "neighbours: Input should be greater than or equal to 0"),
        ("predict?neighbours=21", None, "image/png", 422, "neighbours: Input should be less than or equal to 20"),
        ("explain?class=Nromal", None, "image/png", 422, "class: 'Nromal' is not one of the classes"),
        (
            "explain?method=oclusion",
            None,
            "image/png",
            422,
            "method: unknown method 'oclusion'; did you mean 'occlusion'?",
        ),
        ("explain?method=smoothgrad", None, "image/png", 422, "unknown method 'smoothgrad'; known: occlusion"),
    ],
)
def test_what_is_wrong_is_told(
    opened: Opened, png: bytes, asked: str, body: bytes | None, kind: str, status: int, message: str
) -> None:
    response = opened().post(f"/v1/{asked}", content=png if body is None else body, headers={"content-type": kind})
    assert message in reason(response, status)


def test_more_pictures_than_the_limit_are_refused_while_they_come(opened: Opened, png: bytes) -> None:
    client = opened(Limits(files=3))
    assert client.post("/v1/predict", files=forms(*[png] * 3)).status_code == 200
    assert "more than 3 pictures in one request" in reason(client.post("/v1/predict", files=forms(*[png] * 4)), 413)
    assert reason(client.post("/v1/explain", files=forms(png, png)), 422) == "2 pictures; one at a time is explained"


def test_an_explanation_is_the_command_s_in_layers(
    opened: Opened, classifier: BundleClassifier, bundle: Path, tmp_path: Path, png: bytes
) -> None:
    file, sheet = tmp_path / "a.png", tmp_path / "sheet.png"
    file.write_bytes(png)
    client, label = opened(), classifier.labels.names[1]
    command = thoraclip.explain(bundle, file, out=sheet, class_name=label, seen=True)
    assert command["note"].endswith(", which was trained or tuned on this image"), "the sheet says so, of both"
    told = client.post(f"/v1/explain?class={label}", files=forms(png)).json()
    assert told["prediction"] == client.post("/v1/predict", files=forms(png)).json()["pictures"][0]
    assert told["prediction"]["scores"] == {name: round(score, 6) for name, score in command["scores"].items()}  # type: ignore[attr-defined]
    for name in ("method", "evidence_in_lungs", "lung_area", "lungs_from"):
        assert told[name] == (round(command[name], 6) if isinstance(command[name], float) else command[name]), name
    assert told["explained"] == label == command["class"]
    assert pixels(told["heat"]).shape == (*pixels(told["picture"]).shape, 4)
    drawn = client.post(f"/v1/explain?class={label}", files=forms(png), headers={"accept": "image/png"})
    assert (drawn.headers["content-type"], drawn.content) == ("image/png", sheet.read_bytes())


def test_the_layers_laid_over_the_picture_are_the_sheet_s() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (60, 50), dtype=np.uint8)
    heat = rng.random((60, 50)).astype(np.float32)
    lungs, seen = np.zeros((60, 50), bool), np.ones((60, 50), bool)
    lungs[20:40, 10:40] = True
    seen[:5] = False
    drawn = draw_overlay(grey, heat, headline="", lines=[], footer="", lungs=lungs, seen=seen)
    sheet = np.asarray(drawn)[12:72, 74:124].astype(float)
    layer = heat_layer(heat, seen)
    cover = np.asarray(layer)[..., 3] * np.where(seen, 0.7, 1)  # the sheet's opacity, but for what is not seen
    layer.putalpha(Image.fromarray(cover.round().astype(np.uint8)))
    mixed = Image.alpha_composite(Image.fromarray(grey).convert("RGBA"), layer)
    mixed = Image.alpha_composite(mixed, outline_layer(lungs)).convert("RGB")
    assert np.abs(np.asarray(mixed)[seen] - sheet[seen]).max() <= 3
    assert np.asarray(mixed)[~seen].mean() < 0.5 * grey[~seen].mean()


def test_the_most_similar_training_pictures_are_told_when_asked_for(
    opened: Opened, classifier: BundleClassifier, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened()
    assert client.post("/v1/predict?neighbours=3", files=forms(png)).json()["pictures"][0]["neighbours"] is None
    features = classifier.classify(png).features
    greys = np.arange(4, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    unit = np.stack([features, -features, features * 0 + 1, features]) / np.linalg.norm(features)
    kept = Thumbnails(greys, ["a", "b", "c", "d"], unit)
    monkeypatch.setitem(classifier.bundle.__dict__, "thumbnails", kept)
    for told in (
        client.post("/v1/predict?neighbours=2", files=forms(png)).json()["pictures"][0],
        client.post("/v1/explain?neighbours=2", files=forms(png)).json()["prediction"],
    ):
        assert [(one["label"], one["similarity"]) for one in told["neighbours"]] == [("a", 1.0), ("d", 1.0)]
        assert np.array_equal(pixels(told["neighbours"][1]["picture"]), greys[3])
    assert client.post("/v1/predict", files=forms(png)).json()["pictures"][0]["neighbours"] is None


def test_what_the_desk_refuses_has_its_status(opened: Opened, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RefusedError(429, "64 pictures are waiting already; come later", headers={"retry-after": "7"})
    reasons = [full, RefusedError(422, "takes longer than 30 s")]
    answers = iter(reasons)

    async def refuse(*_: object, **__: object) -> None:
        raise next(answers)

    monkeypatch.setattr(BatchQueue, "predict", refuse)
    busy, long = (opened().post("/v1/predict", files=forms(png)) for _ in reasons)
    assert [reason(busy, 429), reason(long, 422)] == [one.detail for one in reasons]
    assert busy.headers["retry-after"] == "7" and "retry-after" not in long.headers


def test_two_bundles_are_asked_by_name(opened: Opened, bundle: Path, png: bytes) -> None:
    client = opened(names=("first", "second"))
    assert [one["name"] for one in client.get("/v1/bundles").json()] == ["first", "second"]
    asked = ("predict", "predict?bundle=second", "explain", "explain?bundle=second")
    told = [client.post(f"/v1/{one}", files=forms(png)).json()["bundle"]["name"] for one in asked]
    assert told == ["first", "second"] * 2
    card = client.get("/card")
    assert card.headers["content-type"] == "text/markdown; charset=utf-8"
    assert card.text == (bundle / "README.md").read_text()
    assert "did you mean 'second'" in reason(client.get("/card?bundle=secand"), 404)


def test_health_and_readiness(opened: Opened) -> None:
    """Of two bundles, both have to be ready."""
    client = opened(names=("first", "second"))
    state = client.app.state.server  # type: ignore[attr-defined]
    assert client.get("/ready").json() == {"status": "ready"}
    for place, name, status in ((state.queues[1], "_is_open", "busy"), (state, "is_stopping", "stopping")):
        setattr(place, name, not getattr(place, name))
        response = client.get("/ready")
        assert (response.status_code, response.json()) == (503, {"status": status})
        assert client.get("/health").json() == {"status": "alive"}
        setattr(place, name, not getattr(place, name))


def test_metrics_count_what_happened(opened: Opened, png: bytes) -> None:
    client = opened()
    label = client.post("/v1/predict", files=forms(png, b"text")).json()["pictures"][0]["label"]
    client.post("/v1/predict", files=forms(b"text"))
    client.get("/Mueller^Hans.png")
    text = client.get("/metrics").text
    for line in (
        f'thoraclip_pictures_total{{bundle="probe",outcome="{label}"}} 1.0',
        'thoraclip_pictures_total{bundle="probe",outcome="unreadable"} 2.0',
        'thoraclip_requests_total{method="POST",route="/v1/predict",status="422"} 1.0',
        'thoraclip_requests_total{method="GET",route="other",status="404"} 1.0',
        "thoraclip_waiting_pictures 0.0",
        "thoraclip_held_bytes 0.0",
    ):
        assert line in text.splitlines()
    assert "Mueller" not in text


def test_unknown_paths_and_methods_are_problems(opened: Opened) -> None:
    client = opened()
    assert reason(client.get("/nothing"), 404) == "Not Found"
    response = client.get("/v1/predict")
    assert reason(response, 405) == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


def test_a_fault_tells_nothing_but_where_to_look(
    opened: Opened, png: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("Mueller^Hans")

    monkeypatch.setattr(answers_module, "predicted", fail)
    response = opened().post("/v1/predict", files=forms(png))
    told = reason(response, 500)
    assert told == f"a fault of the server; its log has more under {response.headers['x-request-id']}"
    (line,) = [record for record in caplog.records if record.getMessage() == "failure"]
    assert line.facts["error"] == "KeyError" and line.facts["request_id"] in told  # type: ignore[attr-defined]
    assert "Mueller" not in json.dumps(line.facts)  # type: ignore[attr-defined]


def test_the_document_s_examples_are_answers_and_every_operation_has_its_refusals(opened: Opened) -> None:
    Predicted.model_validate(PREDICTED)
    Explained.model_validate(EXPLAINED)
    document = opened().get("/openapi.json").json()
    own = {"/v1/predict", "/v1/explain", "/v1/bundles", "/card", "/health", "/ready", "/metrics"}
    assert own == set(document["paths"])
    for path in ("/v1/predict", "/v1/explain"):
        found = document["paths"][path]["post"]
        assert {"200", "400", "403", "404", "408", "413", "415", "421", "422", "429", "500"} == set(found["responses"])
        for status, response in found["responses"].items():
            assert response["description"]
            assert any("example" in content for content in response["content"].values()), status
        assert set(found["requestBody"]["content"]) == {"multipart/form-data", *MEDIA_TYPES}
    guarded = opened(token="t" * 20).get("/openapi.json", headers={"authorization": "Bearer " + "t" * 20}).json()
    assert "401" in guarded["paths"]["/v1/predict"]["post"]["responses"]
    assert document["components"]["schemas"]["Problem"]["required"] == ["title", "status", "detail"]
