"""A disk that is full in the midst of the work: the kernel refuses to let any file grow beyond a limit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.cli.interrupted import run_on_a_full_disk
from tests.conftest import files
from tests.forked import finish

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.tables.manifest import write_manifest

pytest.importorskip("resource", reason="the system has no limits on the size of a file")

_FEW_STEPS = ["--set", "model=tiny-clip", "--set", "steps=2", "--set", "batch_size=8", "--set", "chunk_size=8"]
WORK: dict[str, tuple[list[str], int, str]] = {
    "index": (["index", "{images}", "--layout", "covid-qu-ex", "--out", "{out}/m.parquet"], 4_000, "m.facts.jsonl"),
    "check": (["check", "{manifest}", "--out", "{out}"], 100_000, "wholes.npy"),
    "embed": (["embed", "{manifest}", "--model", "tiny-clip", "--out", "{out}"], 3_000, "pooled.npy"),
    "finetune": (["finetune", "{manifest}", "--out", "{out}", *_FEW_STEPS, "--set", "rank=64"], 900_000, "/last: "),
    "baseline": (["baseline", "{manifest}", "--out", "{out}", *_FEW_STEPS], 900_000, "model.safetensors"),
}
"""Name -> the command, bytes that a file may have, and the file that is the first to be longer."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Phantoms and their manifest."""
    root = tmp_path_factory.mktemp("disk-full")
    images = write_phantoms(root / "phantoms", PhantomConfig(images=24, size=48, seed=1)).root
    write_manifest(root / "m.parquet", index(images, layout="covid-qu-ex").manifest)
    return {"images": images, "manifest": root / "m.parquet"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "finetune" else n for n in WORK])
def test_a_full_disk_is_one_line_and_the_work_goes_on(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    template, limit, first = WORK[name]
    out = tmp_path / "out"
    command = [part.format(out=out, **places) for part in template]

    full = finish(run_on_a_full_disk, command, limit, env={**os.environ, "COLUMNS": "200"})
    assert full.returncode == 2, full.stderr
    message = full.stderr.splitlines()[-1]
    assert message.startswith("error: ") and first in message and "make room" in message
    assert "Traceback" not in full.stderr
    left = files(out) if out.exists() else {}
    assert not {"m.parquet", "predictions.parquet", "done.json", "check.json", "embeddings.json"} & set(left)
    assert all(len(content) <= limit for content in left.values())

    assert run(command) == 0
    again = files(out)
    shutil.rmtree(out)
    assert run(command) == 0
    assert again == files(out)
