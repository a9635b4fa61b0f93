"""The page without a browser: its files, its headers, what else exists, and the facts that the API tells it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.server.conftest import REPOSITORY
from tests.server.test_app import reason
from tests.small_install import run_small

from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.server.answers import About, BundleFacts
from thoraclip.server.limits import Limits

Opened = Callable[..., TestClient]

STATIC = REPOSITORY / "src" / "thoraclip" / "server" / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = ("nodes.js", "page.css", "page.js", "words.js")
SCRIPTS = "".join((STATIC / name).read_text(encoding="utf-8") for name in FILES if name.endswith(".js"))
HTML = (STATIC / "index.html").read_text(encoding="utf-8")


def test_every_file_comes_with_its_type_and_the_policy_and_no_other_file_exists(opened: Opened) -> None:
    client = opened(has_page=True)
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    assert {path.name for path in STATIC.iterdir()} == {*FILES, "index.html"}
    for path, name in (("/", "index.html"), *((f"/page/{name}", name) for name in FILES)):
        for method in ("GET", "HEAD"):
            response = client.request(method, path, headers={"x-forwarded-host": "evil.example"})
            assert response.status_code == 200, path
            assert response.headers["content-type"] == f"{types[name.rpartition('.')[2]]}; charset=utf-8"
            assert response.headers["content-security-policy"] == POLICY
            assert response.headers["x-content-type-options"] == "nosniff"
            assert not any(name.startswith(("access-control", "set-cookie")) for name in response.headers)
        assert client.get(path).content == (STATIC / name).read_bytes()


def test_no_route_exists_beside_the_api_and_the_page(opened: Opened) -> None:
    client = opened(has_page=True)
    api = set(client.get("/openapi.json").json()["paths"])
    found = {route.path for route in _routes(client.app)}
    assert found == api | {"/openapi.json", "/", "/page/{file}"}
    for path in (
        "/page/",
        "/page/index.html",
        "/page/page.py",
        "/page/..%2fpage.py",
        "/page/%2e%2e/page.py",
        "/static/page.js",
    ):
        assert reason(client.get(path), 404) == "Not Found"
    assert reason(client.post("/"), 405) == "Method Not Allowed"


def _routes(app: Any) -> list[Any]:
    """All routes with a path, also those of included routers."""
    from fastapi.routing import iter_route_contexts

    return [one for one in iter_route_contexts(app.routes) if getattr(one, "path", None)]


def test_synthetic_radiographs_are_a_function_of_their_number(opened: Opened) -> None:
    client = opened(has_page=True)
    (told,) = client.get("/v1/bundles").json()
    first, again, last = (client.get(f"/page/phantom-{n}.png") for n in (0, 0, told["phantoms"] - 1))
    assert first.content == again.content != last.content
    assert first.headers["content-type"] == "image/png" and Image.open(io.BytesIO(first.content)).mode == "L"
    for name in (f"phantom-{told['phantoms']}", "phantom--1", "phantom-00", "phantom-x"):
        assert reason(client.get(f"/page/{name}.png"), 404) == "Not Found"


def test_a_small_install_draws_them() -> None:
    done = run_small("from thoraclip.server.app import page_file; print(page_file('phantom-1.png').body[:4])")
    assert (done.returncode, done.stdout) == (0, "b'\\x89PNG'\n"), done.stderr


def test_metrics_name_the_routes_of_the_page(opened: Opened) -> None:
    client = opened(has_page=True)
    for path in ("/", "/page/page.js", "/page/DOE-JANE"):
        client.get(path)
    text = client.get("/metrics").text
    for route, status in (("/", 200), ("/page/{file}", 200), ("/page/{file}", 404)):
        assert f'thoraclip_requests_total{{method="GET",route="{route}",status="{status}"}} 1.0' in text
    assert "DOE" not in text


def test_a_bundle_tells_what_the_page_says_of_it(
    opened: Opened, classifier: BundleClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened(Limits(megabytes=2), has_page=True)
    (told,) = client.get("/v1/bundles").json()
    assert About.model_fields.keys() < BundleFacts.model_fields.keys() == told.keys()
    assert told["calibrated"] is (classifier.bundle.scaling is not None)
    assert told["detects_ood"] is (classifier.bundle.facts["novelty"] is not None)
    assert (told["methods"], told["most_bytes"]) == (["occlusion"], 2_000_000)
    fields = classifier.bundle.__dict__
    facts = {**classifier.bundle.facts, "novelty": {}, "thumbnails": {"images": 7}}
    for name, value in (("scaling", object()), ("sets", SimpleNamespace(alpha=0.05)), ("facts", facts)):
        monkeypatch.setitem(fields, name, value)
    (told,) = client.get("/v1/bundles").json()
    told = {name: told[name] for name in ("calibrated", "set_coverage", "detects_ood", "thumbnails")}
    assert told == {"calibrated": True, "set_coverage": 0.95, "detects_ood": True, "thumbnails": 7}
    for name, value in (("scaling", None), ("sets", None), ("facts", facts | {"novelty": None, "thumbnails": None})):
        monkeypatch.setitem(fields, name, value)
    (told,) = client.get("/v1/bundles").json()
    told = {name: told[name] for name in ("calibrated", "set_coverage", "detects_ood", "thumbnails")}
    assert told == {"calibrated": False, "set_coverage": None, "detects_ood": False, "thumbnails": 0}


def test_without_a_page_there_is_none(opened: Opened) -> None:
    client = opened()
    assert client.get("/v1/bundles").json()[0]["phantoms"] == 0
    for path in ("/", "/page/page.js", "/page/phantom-0.png"):
        assert reason(client.get(path), 404) == "Not Found"


def test_a_token_guards_the_page_too(opened: Opened) -> None:
    client = opened(has_page=True, token="t" * 20)
    for path in ("/", "/page/page.js"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("anybody", "t" * 20)).status_code == 200


def test_no_script_makes_html_of_text_and_nothing_is_asked_of_another_host() -> None:
    """The policy forbids inline scripts and styles, but not elements; a text that became HTML could still mislead."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(", SCRIPTS)
    assert not re.search(r"\bstyle=|\bon\w+=|<style|<script>", HTML)
    style = (STATIC / "page.css").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import", style)
    for address in re.findall(r"(?:src|href)=\"([^\"]*)\"|from \"([^\"]*)\"|fetch\(\"([^\"]*)\"", HTML + SCRIPTS):
        assert re.match(r"page/|\./|health$|data:,$", "".join(address)), address


def test_nothing_of_a_bundle_is_in_the_page_itself(opened: Opened, classifier: BundleClassifier) -> None:
    """What a bundle says comes by the API, so that one place, nodes.js, must treat it as text."""
    text = opened(has_page=True).get("/").text
    assert not [name for name in classifier.labels.names if name in text]
