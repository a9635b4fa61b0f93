"""The server keeps to its own OpenAPI document, whatever schemathesis thinks up.

What a document cannot say is that the bytes must be a picture: a refusal with 422 is right for valid forms of other bytes, and 413
for too many of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts.served import Served
from tests.conftest import IS_DEEP
from tests.server.conftest import REPOSITORY

SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 413, 422, 429]
"""
HOOKS = """
import io
import schemathesis
from hypothesis import strategies as st
from PIL import Image

def picture(level):
    stream = io.BytesIO()
    Image.new("L", (9, 7), level).save(stream, "PNG")
    return stream.getvalue()

for kind in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.integers(0, 255).map(picture))
"""
TOKEN = "a-token-of-some-length"


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_knows(serve: Callable[..., Served], tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    (tmp_path / "hooks.py").write_text(HOOKS)
    server = serve(environment={"THORACLIP_TOKEN": TOKEN})
    command = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert command, "schemathesis is not installed"
    done = subprocess.run(
        [
            command, "--no-color", "--config-file", "settings.toml", "run", server.address + "/openapi.json", "--seed", "1",
            "--max-examples", "40" if IS_DEEP else "4", "--max-response-time", "10", "--header", f"Authorization: Bearer {TOKEN}",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks.py", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 7" in done.stdout, done.stdout
    assert not [line for line in server.log if '"level": "error"' in line]
