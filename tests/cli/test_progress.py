"""What is shown while work goes on: the stage, how much is done, the rate and the time left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tests.checkpoints import save_classifier
from tests.conftest import Capture

from thoraclip.cli import console
from thoraclip.cli.app import run


class Terminal(io.StringIO):
    """A stream that is watched."""

    def isatty(self) -> bool:
        return True


def test_a_bar_names_the_stage_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress_bar() as progress:
        console.announce("row 2 of 3: LoRA [a] (something more)")
        progress(10, 40)
        console.announce("fold 1 of 3, epoch 2 of 7 (validation macro F1 0.5)")
        progress(40, 40)
    shown = terminal.getvalue()
    assert "10/40" in shown and "40/40" in shown and "images" in shown
    assert "row 2 of 3: LoRA [a] " in shown.replace("(something more)", "")
    assert "fold 1 of 3, epoch 2 of 7 \x1b" in shown, "beside the bar, without the brackets"


def test_lines_where_nobody_watches_are_few(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with console.progress_bar() as progress:
        for done in range(1, 101):
            now[0] += 0.5
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "images: 20/100, 2/s, 40 s left"
    assert lines[-1] == "images: 100/100, 2/s" and len(lines) == 5


def test_training_names_fold_and_epoch(manifest_file: Path, tmp_path: Path, capsys: Capture) -> None:
    settings = {"model": save_classifier("resnet", tmp_path / "resnet"), "epochs": 2, "batch_size": 4, "chunk_size": 4}
    arguments = [f"--set={name}={value}" for name, value in settings.items()]
    assert run(["baseline", str(manifest_file), "--out", str(tmp_path / "out"), *arguments]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch" in line]
    assert [line.split(" (")[0] for line in lines] == [
        f"fold {fold} of 3, epoch {epoch} of 2" for fold in (1, 2, 3) for epoch in (1, 2)
    ]
    assert all("(validation macro F1 0." in line for line in lines)
