"""deployment/: what docs/serving.md promises stands in the files; systemd and nginx take them, and nginx is run, where they are installed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from scripts.served import Served
from tests.server.conftest import REPOSITORY

from thoraclip.server.limits import MEGA, Limits

DEPLOYMENT = REPOSITORY / "deployment"
ADDRESS = "127.0.0.1:8000"


def read(name: str) -> str:
    """A file of deployment/, its comments left out."""
    return re.sub(r"^#.*\n| #.*", "", (DEPLOYMENT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


_, FIRST, LAST = re.split(r"^FROM ", read("Dockerfile").replace("\\\n", " "), flags=re.MULTILINE)
"""The stages of the image: where it is built, and what it is."""


def test_the_image_has_a_user_without_rights_and_no_shell_between_it_and_the_signal() -> None:
    told = dict(re.findall(r"^(USER|STOPSIGNAL|EXPOSE|ENTRYPOINT) (.*)$", LAST, re.MULTILINE))
    entry = '["thoraclip", "serve", "/bundle", "--host", "0.0.0.0", "--port", "8000"]'
    assert told == {"USER": "10001:10001", "STOPSIGNAL": "SIGTERM", "EXPOSE": "8000", "ENTRYPOINT": entry}
    assert not re.search(r"^(RUN|COPY \.|ADD)", LAST, re.MULTILINE)


def test_the_image_asks_itself_by_an_example_that_runs(server: Served) -> None:
    (told,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", LAST, re.MULTILINE)
    _, option, code = json.loads(told)
    codes = []
    for port in (server.port, 9):
        command = [sys.executable, option, code.replace(ADDRESS, f"127.0.0.1:{port}")]
        codes.append(subprocess.run(command, capture_output=True, check=False).returncode)
    assert codes == [0, 1]


def test_the_image_is_made_of_exact_versions_without_torch() -> None:
    assert "ARG EXTRAS=serve\n" in FIRST
    assert 'pip install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[${EXTRAS}]"' in FIRST
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", FIRST, re.MULTILINE) for name in line.split()}
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == copied
    assert not {"torch", "transformers"} & requirements("serve")
    assert "torch" not in requirements("ui,dicom")


def requirements(extras: str) -> set[str]:
    """Names of all packages that some extras of this package ask for by themselves."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found, waiting = set(project["dependencies"]), extras.split(",")
    while waiting:
        for one in project["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(r"thoraclip\[(.*)\]", one)
            waiting += own[1].split(",") if own else []
            found.add(one)
    return {re.split(r"[^\w-]", one)[0] for one in found}


def test_compose_lets_the_container_write_nothing_and_reach_nobody() -> None:
    (service,) = yaml.safe_load(read("compose.yaml"))["services"].values()
    closed = {"read_only": True, "cap_drop": ["ALL"], "volumes": ["./bundle:/bundle:ro"], "user": "10001:10001"}
    assert service | closed == service
    assert "no-new-privileges:true" in service["security_opt"] and "mem_limit" in service
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["command"][:2] == ["--token-file", "/run/secrets/token"]
    assert service["command"][-2:] == ["--threads", str(service["cpus"])]
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * Limits().grace_seconds


def test_the_unit_waits_long_enough_and_closes_what_it_says() -> None:
    told = read("thoraclip.service").partition("[Service]")[2].splitlines()
    (seconds,) = [int(line.partition("=")[2]) for line in told if line.startswith("TimeoutStopSec=")]
    assert seconds > 2 * Limits().grace_seconds
    closed = ["DynamicUser", "PrivateTmp", "NoNewPrivileges", "ProtectHome", "PrivateDevices", "MemoryDenyWriteExecute"]
    lines = [*(f"{name}=yes" for name in closed), "ProtectSystem=strict", "CapabilityBoundingSet=", "IPAddressDeny=any"]
    lines += ["LoadCredential=token:/etc/thoraclip/token", "SystemCallFilter=@system-service"]
    assert [line for line in lines if line not in told] == []
    (start,) = [line for line in told if line.startswith("ExecStart=")]
    assert "--token-file %d/token" in start and "--host 127.0.0.1" in start
    assert any(line.startswith("SystemCallFilter=~@privileged") for line in told)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "thoraclip.service"
    unit.write_text(read("thoraclip.service").replace("/opt/thoraclip/bin/thoraclip", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nginx_lets_through_what_the_server_lets_through_and_writes_nothing_down() -> None:
    told, limits = (
        dict(re.findall(r"^\s*(\w+) ([^;{]+);", read("nginx.conf"), re.MULTILINE)),
        Limits(),
    )  # the last values
    assert int(told["client_max_body_size"].removesuffix("m")) * 2**20 > limits.megabytes * MEGA
    assert int(told["proxy_read_timeout"].removesuffix("s")) > limits.upload_seconds + limits.seconds
    assert told["proxy_request_buffering"] == told["proxy_buffering"] == told["access_log"] == "off"
    assert told["error_log"].endswith(" crit")
    assert told["limit_req_status"] == told["limit_conn_status"] == "429"
    assert told["server"] == ADDRESS
    assert "TLSv1.1" not in told["ssl_protocols"]
    assert "proxy_set_header Host $http_host;" in read("nginx.conf")  # with its port, as the page's origin has it
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in read("nginx.conf")
    assert int(told["keepalive"]) < limits.connections


def test_what_nginx_says_itself_is_problem_details() -> None:
    text = read("nginx.conf")
    told = {int(code): json.loads(body) for code, body in re.findall(r"return (\d{3}) '(.*)';", text)}
    assert list(told) == [413, 429, 503]
    for code, body in told.items():
        assert body.keys() == {"type", "title", "status", "detail"} and body["status"] == code


def nginx_here(folder: Path, upstream: int, port: int) -> Path:
    """deployment/nginx.conf for somebody without rights, without TLS."""
    text = read("nginx.conf")
    text = re.sub(r"^server \{\n    listen 80;.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\s*(ssl_\w+|listen \[::\]).*\n", "", text, flags=re.MULTILINE)
    text = text.replace(ADDRESS, f"127.0.0.1:{upstream}").replace("listen 443 ssl http2", f"listen 127.0.0.1:{port}")
    text = text.replace("/var/log/nginx/thoraclip.log", str(folder / "site.log"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    inner = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds) + "\n" + text
    outer = f"daemon off; pid {folder}/pid; error_log {folder}/main.log; events {{}}"
    (folder / "nginx.conf").write_text(f"{outer}\nhttp {{ {inner}\n}}", encoding="utf-8")
    return folder / "nginx.conf"


@pytest.fixture
def proxied(serve: Callable[..., Served], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of nginx in front of a server, and the folder where it could write."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = serve("--allow-host", "xray.example.org")
    with subprocess.Popen([program, "-c", str(nginx_here(tmp_path, server.port, port))]) as process:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            client.get(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}", tmp_path
        process.terminate()


def test_behind_nginx_it_answers_and_refuses_as_without(proxied: tuple[str, Path], png: bytes) -> None:
    address, folder = proxied
    with httpx.Client(base_url=address, headers={"host": "xray.example.org"}, timeout=60) as client:
        answer = client.post("/v1/predict", content=png, headers={"content-type": "image/png"})
        assert answer.json()["pictures"][0]["error"] is None
        sizes = {Limits().megabytes * MEGA + 1: "larger than 64 MB; send fewer", 70_000_000: "the request is too large"}
        for size, reason in sizes.items():
            large = client.post("/v1/predict", content=bytes(size), headers={"content-type": "image/png"})
            assert large.status_code == large.json()["status"] == 413
            assert reason in large.json()["detail"]
        assert client.get("/metrics").status_code == 404
        for origin, status in (("https://xray.example.org", 200), ("http://evil.example", 403)):
            assert client.get("/v1/bundles", headers={"origin": origin}).status_code == status
        told = [client.get("/v1/bundles") for _ in range(120)]
        refused = [one for one in told if one.status_code == 429]
        assert refused, "nobody was sent away"
        assert {one.headers["retry-after"] for one in refused} == {"1"}
        assert refused[0].json()["detail"].startswith("too many requests from one address")
    mine = {"nginx.conf", "pid", "main.log", "site.log"}
    assert {path.name for path in folder.rglob("*") if path.is_file()} <= mine
    assert (folder / "site.log").read_text(encoding="utf-8") == ""
