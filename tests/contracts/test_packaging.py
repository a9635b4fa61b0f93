"""The source distribution holds every tracked file."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_sdist_is_complete(tmp_path: Path) -> None:
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed")
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    archive = next(iter(sdist.SdistBuilder(os.fspath(REPOSITORY)).build(directory=os.fspath(tmp_path))))
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    missing = {name for name in listed.stdout.split("\0") if name} - held
    assert not missing
