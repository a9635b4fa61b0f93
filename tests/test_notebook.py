"""The notebooks run from top to bottom as they stand in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Capture

import thoraclip

FOLDER = Path(thoraclip.__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


SMALLER = {
    "images=60, size=128": "images=42, size=64",
    "trivial(folds, ": "trivial(folds, max_iter=5, ",
    "probe(folds, ": "probe(folds, l2_steps=3, ",
    '"epochs": 4': '"epochs": 1',
    'out=out / "report")': 'out=out / "report", resamples=100)',
}
"""The same steps on less."""


def cells(notebook: Path) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return list(content["cells"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_every_step_is_explained_and_no_output_is_kept(notebook: Path) -> None:
    found = cells(notebook)
    assert [cell["cell_type"] for cell in found] == ["markdown", "code"] * (len(found) // 2) + ["markdown"]
    assert "Research use only, not for diagnosis" in "".join(found[0]["source"])
    assert len({cell["id"] for cell in found}) == len(found)
    assert not [cell for cell in found if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])]


@pytest.mark.slow
def test_the_main_job_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {"__name__": "notebook"}
    found = cells(FOLDER / "main-job.ipynb")
    code = "\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "code")
    for whole, smaller in SMALLER.items():
        assert code.count(whole) == 1, whole
        code = code.replace(whole, smaller)
    exec(compile(code, "main-job", "exec"), names)
    report = names["report"]
    assert {m["name"] for m in report["methods"]} == {"trivial", "zero-shot", "probe", "LoRA", "majority"}
    assert all(m["n"] == 42 for m in report["methods"])
    assert names["report"].figures["forest"].svg.startswith("<svg")
    assert {"report.html", "report.json", "report.md"} <= {f.name for f in Path("main-job/report").iterdir()}
    captured = capsys.readouterr()
    assert str(tmp_path / "main-job" / "report" / "report.html") in captured.out
    assert "trivial: 42 images scored" in captured.out and "Method     Accuracy" in captured.out
    assert "epoch 1 of 1" in captured.err and "images: 16/16" in captured.err
