"""A dry run: what it counts is what happens, it writes nothing, and nothing makes it fail."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Capture, files
from tests.study.conftest import method, write_study

from thoraclip.cli import start
from thoraclip.cli.app import run
from thoraclip.methods import baseline, supervised
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.supervised import Supervised
from thoraclip.methods.tuning import Tuning
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.study import plan_study, read_study, run_study

SETTINGS = 'resamples = 100\naudit = "none"\nonly_folds = [2, 0]\nbatch_size = 10\n'
ZERO_SHOT = method("zeroshot", "zero-shot")
BROKEN = method("probe", "broken", model="./nowhere")
TUNING = {"batch_size": 5, "chunk_size": 2, "steps": 3, "validate_every": 2, "val_fraction": 0.3, "select": "probe"}
STUDY = f"{SETTINGS}{ZERO_SHOT}" + method("probe", l2_steps=2) + method("finetune", "LoRA", **TUNING, then="probe")
STUDY += method("zeroshot", "zero-shot, tuned", after="LoRA") + method("zeroshot", "other geometry", geometry="pad")
STUDY += method("baseline", "network", batch_size=4, chunk_size=4, epochs=1)


@pytest.fixture
def study(images: Path, clip: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, clip, STUDY, manifest=images / "m.parquet")


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Name -> (encoded, trained), over the seeds; without those that do neither."""
    encoded, trained = Counter[str](), Counter[str]()
    for row in rows:
        encoded[row["name"]] += row["images_encoded"]
        trained[row["name"]] += row["images_trained"]
    return {name: (encoded[name], trained[name]) for name in encoded if encoded[name] or trained[name]}


class Spy:
    """Counts the images that go through the networks, by the method that a study is at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.name, self.encoded, self.trained = "", Counter[str](), Counter[str]()
        self._spy(patch, DualEncoder, "encode_greys", lambda _, greys: self.encoded.update({self.name: len(greys)}))
        for module in (supervised, baseline):
            self._spy(patch, module, "scores_of", lambda *a: self.encoded.update({self.name: len(a[2])}))
        for trainee in (Contrast, Supervised):
            self._spy(patch, trainee, "backward", lambda _, batch: self.trained.update({self.name: len(batch.rows)}))

    def _spy(self, patch: pytest.MonkeyPatch, owner: Any, name: str, count: Any) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            count(*args)
            return original(*args, **kwargs)

        patch.setattr(owner, name, counted)

    def announce(self, line: str) -> None:
        if line.startswith("row "):
            self.name = line.partition(": ")[2]

    @property
    def seen(self) -> dict[str, tuple[int, int]]:
        return {name: (self.encoded[name], self.trained[name]) for name in (*self.encoded, *self.trained)}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_is_counted_is_what_happens(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, methods = read_study(study, {})
    out = tmp_path / "out"
    runs = plan_study(config, methods, out)["runs"]
    assert not out.exists()
    # the last weights are kept: those of step 0 would be the base's, whose embeddings are there
    monkeypatch.setattr(Tuning, "criterion", lambda *_: None)
    spy = Spy(monkeypatch)
    report = run_study(config, methods, out, announce=spy.announce)
    assert not report["failed"]
    assert summed(runs) == spy.seen
    assert {"zero-shot", "LoRA", "network", "other geometry"} == set(spy.seen), "who comes first pays"
    assert spy.trained["LoRA"] == 2 * 3 * 5, "folds x steps x batch"

    again = plan_study(config, methods, out)["runs"]
    assert all(run["done"] and run["cached"] == ["run"] for run in again) and summed(again) == {}
    for name in ("probe", "lora-then-probe", "network"):
        shutil.rmtree(out / "runs" / name)
    before = files(out)
    lost = plan_study(config, methods, out)["runs"]
    assert files(out) == before
    cached = {run["name"]: run["cached"] for run in lost if not run["done"]}
    assert cached == {"probe": ["embeddings"], "LoRA, then probe": ["embeddings"], "network": ["pixels"]}
    assert summed(lost) == {"network": spy.seen["network"]}


def test_who_fails_costs_nothing_and_loses_only_its_followers(study: Path, tmp_path: Path) -> None:
    text = study.read_text().replace("batch_size = 5\n", "batch_size = 500\n")
    study.write_text(text + BROKEN)
    runs = plan_study(*read_study(study, {}), tmp_path / "out")["runs"]
    errors = {run["name"]: run["error"] for run in runs if run["error"]}
    assert set(errors) == {"LoRA", "LoRA, then probe", "zero-shot, tuned", "broken"}
    assert "larger than the training set" in errors["LoRA"] and "no such folder" in errors["broken"]
    assert errors["LoRA, then probe"] == errors["zero-shot, tuned"] == "its adapters are those of 'LoRA', which failed"
    assert all(run["images_encoded"] == run["images_trained"] == 0 for run in runs if run["error"])


def test_a_folder_that_is_not_there_is_said_of_every_run(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "s.toml").write_text(
        'folder = "nowhere"\n[[methods]]\nkind = "zeroshot"\n[[methods]]\nkind = "probe"\n'
    )
    command = ["study", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert run(command) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {row["error"] for row in plan["runs"]} == {"nowhere: no such folder; name the folder that holds the images"}
    assert len(plan["runs"]) == 2 and plan["images"] is None


@pytest.mark.slow
def test_the_command_prints_the_plan_and_writes_nothing(
    images: Path, clip: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"seeds = [0, 1]\n{SETTINGS}{ZERO_SHOT}{BROKEN}"
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    before = files(tmp_path)
    command = ["study", str(file), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert files(tmp_path) == before and not (tmp_path / "out").exists()
    keys = {"name", "kind", "seed", "done", "images_encoded", "images_trained", "seconds", "cached", "error"}
    assert all(keys <= set(row) for row in plan["runs"])
    fine, *others = plan["runs"]
    found = [fine[key] for key in ("name", "kind", "seed", "done", "cached", "error")]
    assert found == ["zero-shot", "zeroshot", None, False, [], None]
    assert (fine["images_encoded"], fine["images_trained"]) == (24, 0) and fine["seconds"] > 0
    assert [(row["name"], row["seed"], row["seconds"]) for row in others] == [("broken", 0, None), ("broken", 1, None)]
    assert all("no such folder" in row["error"] for row in others)

    monkeypatch.setattr("thoraclip.study.plan_study", lambda *_, **__: plan)
    assert run(command) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "zero-shot" in page and "cannot run: model './nowhere'" in page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (12.4, "12 s"), (89, "89 s"), (180, "3 min"), (7560, "2.1 h"), (302400, "3.5 days")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert start._duration(seconds) == text
