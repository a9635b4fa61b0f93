"""docs/serving.md: every example is run, every table is that of the code.

Of an example only the address is another: `127.0.0.1:8000` is that of a running server. It runs in a folder that holds `chest.png`,
`image.dcm` and `token`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from scripts.served import Served
from starlette.testclient import TestClient
from tests.imaging.files import dicom
from tests.server.conftest import REPOSITORY

from thoraclip.config import field_help, toml_value
from thoraclip.server.answers import BundleFacts, OnePicture
from thoraclip.server.app import ServerState, create_app
from thoraclip.server.limits import Limits
from thoraclip.server.monitoring import Metrics
from thoraclip.server.openapi import SOME_PROBLEMS

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"
TOKEN = "0123456789-abcdefghij"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ASKING = [one for one in BLOCKS if ADDRESS in one[1] and "docker" not in one[1] and "thoraclip serve" not in one[1]]


def section(title: str) -> str:
    """What stands under a headline, up to the next one of its level."""
    level = PAGE[: PAGE.index(f" {title}\n")].rpartition("\n")[2]
    return re.split(rf"^{level} ", PAGE.partition(f"\n{level} {title}\n")[2], flags=re.MULTILINE)[0]


@pytest.fixture(scope="module")
def guarded(bundle: Path) -> Iterator[Served]:
    """A server that demands a token."""
    with Served(bundle, "--no-page", "--threads", "1", environment={"THORACLIP_TOKEN": TOKEN}) as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path, png: bytes) -> Path:
    """The files that the examples name."""
    (tmp_path / "chest.png").write_bytes(png)
    pixels = np.random.default_rng(0).integers(0, 4000, (60, 50)).astype(np.uint16)
    (tmp_path / "image.dcm").write_bytes(dicom(pixels, bits=12))
    (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("kind", "code"), ASKING)
def test_every_example_runs(kind: str, code: str, server: Served, guarded: Served, folder: Path) -> None:
    port = (guarded if code in section("Tokens") else server).port
    asked = code.replace(ADDRESS, f"127.0.0.1:{port}")
    command = [sys.executable, "-c", asked]
    if kind == "sh":
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        command = ["sh", "-e", "-c", asked.replace("curl ", "curl --fail --silent --show-error ")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{asked}\n{done.stderr}"
    if "explain" in code and kind == "sh":
        layers = json.loads((folder / "layers.json").read_text(encoding="utf-8"))
        assert layers["heat"].startswith("data:image/png;base64,")
        assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    elif "explain" in code:
        assert {path.name for path in folder.glob("*.png")} >= {"picture.png", "heat.png"}
    else:
        assert re.search("COVID|Normal|labels", done.stdout), done.stdout


def test_there_are_examples_of_everything() -> None:
    asked = "\n".join(code for _, code in ASKING)
    parts = ("-F files=", "--data-binary", "httpx", "urllib", "Accept: image/png", "Retry-After", "Bearer", "image.dcm")
    assert len(ASKING) == 9 and [part for part in parts if part not in asked] == []


@pytest.mark.parametrize("is_patient", [True, False])
def test_the_retry_example_waits_as_told_and_gives_up_with_the_reason(
    is_patient: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [code for _, code in ASKING if "Retry-After" in code]
    away, good = (429, b'{"detail": "come later"}'), (200, b'{"pictures": [{"label": "Normal"}]}')
    answers, slept = [away, (503, b"Service Unavailable"), good] if is_patient else [away] * 5, list[float]()

    def urlopen(request: urllib.request.Request, *, timeout: float) -> io.BytesIO:
        status, body = answers.pop(0)
        if status != 200:
            raise urllib.error.HTTPError(request.full_url, status, "", {"Retry-After": "7"}, io.BytesIO(body))  # type: ignore[arg-type]
        return io.BytesIO(body)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.chdir(folder)
    with nullcontext() if is_patient else pytest.raises(RuntimeError, match='^{"detail": "come later"}$'):
        exec(code, {})
    assert answers == [] and slept == [7] * (2 if is_patient else 4)
    assert capsys.readouterr().out == ("Normal\n" if is_patient else "")


def test_the_table_of_limits_is_that_of_the_code() -> None:
    texts = field_help(Limits)
    rows = [f"| `{f.name}` | `{toml_value(f.default)}` | {texts[f.name]} |" for f in dataclasses.fields(Limits)]
    assert [line for line in section("Limits").splitlines() if line.startswith("| `")] == rows


def test_every_route_is_told() -> None:
    app = create_app(ServerState([], Limits(), Metrics()))
    told = set(re.findall(r"^\| `(GET|POST) (/\S*)` \|", PAGE, re.MULTILINE))
    there = {(method.upper(), path) for path, ways in app.openapi()["paths"].items() for method in ways}
    assert told == there | {("GET", "/openapi.json")}
    assert TestClient(app, base_url="http://localhost").get("/openapi.json").status_code == 200


def test_every_status_and_every_field_is_told() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d{3}) \|", section("When it does not answer"), re.MULTILINE)}
    assert told == {*SOME_PROBLEMS, 200, 401, 405, 503}
    rows = "\n".join(line.split("|")[1] for line in section("Predict").splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(OnePicture.model_fields)
    rows = "\n".join(line.split("|")[1] for line in section("Bundles").splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(BundleFacts.model_fields)


def test_every_metric_is_told_and_every_one_that_is_told_exists(server: Served, png: bytes) -> None:
    httpx.post(server.address + "/v1/predict", content=png, headers={"content-type": "image/png"}, timeout=60)
    text = httpx.get(server.address + "/metrics").text
    kinds = dict(re.findall(r"^# TYPE (thoraclip_\w+) (\w+)$", text, re.MULTILINE))
    there = {name for name in kinds if not name.endswith("_created")}
    rows = "\n".join(line.split("|")[1] for line in section("Metrics").splitlines() if line.startswith("| `"))
    assert set(re.findall(r"thoraclip_\w+", rows)) == there
    (queries,) = re.findall(r"```promql\n(.*?)```", section("Metrics"), re.DOTALL)
    used = set(re.findall(r"thoraclip_\w+", queries))
    assert used <= there | {f"{name}_bucket" for name in there if kinds[name] == "histogram"}
    assert "/v1/predict" in re.findall(r'route="([^"]+)"', text)
    (scraped,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[:1]
    assert yaml.safe_load(scraped)["scrape_configs"][0]["job_name"] == "thoraclip"


def test_it_begins_with_what_it_is_not_for_and_is_found() -> None:
    assert PAGE.split("\n\n")[1] == "**Research use only, not for diagnosis.**"
    for name in ("docs/deploy.md", "README.md", "mkdocs.yml"):
        assert "serving.md" in (REPOSITORY / name).read_text(encoding="utf-8")
