"""Several processes give what one gives; each refusal is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.methods.conftest import draw_plainly, make_manifest
from tests.methods.processes_worker import CASES, LOSSES, command, compute, together, write_computed
from tests.methods.test_gradcache import difference, make_step
from tests.methods.threads import group_of, in_threads
from torch import nn

from thoraclip.cli import app
from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, TrainingError
from thoraclip.methods import tracking
from thoraclip.methods.training.processes import ProcessGroup, require_launch
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import read_predictions

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 180
TOLERANCE = 1e-5
"""fp32: sums in another order; measured 1e-6."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    """A split manifest, and the checkpoint and pictures that `make_step` writes."""
    folder = tmp_path_factory.mktemp("processes")
    write_manifest(folder / "m.parquet", manifest)
    make_step(folder, loss="unicl")
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 23])
def test_the_rows_of_the_processes_are_the_batch_in_order_and_what_is_added_is_counted(rows: int, count: int) -> None:
    shares = in_threads(count, lambda group: group.own(rows))
    assert [row for own, real in shares for row in own[:real].tolist()] == list(range(rows))
    assert {len(own) for own, _ in shares} == {-(-rows // count)}
    assert all(set(own[real:].tolist()) <= {rows - 1} for own, real in shares)


class TestGroup:
    """With a stand-in for Accelerate; the slow tests have the real one."""

    def test_what_several_send_each_other(self) -> None:
        def work(group: ProcessGroup) -> list[Any]:
            rank = group._accelerator.process_index
            encoder, idle, scale = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
            encoder.grad, scale.grad = torch.full((2, 2), 10.0**rank), torch.full((2, 2), 3.0 * rank)
            idle.grad = torch.ones(2, 2) if rank == 2 else None
            group.combine([encoder, idle], [scale])
            group.combine([], [])
            group.wait()
            grads = [float(p.grad.unique()) for p in (encoder, idle, scale)]  # type: ignore[union-attr]
            whole = group.gather(group.own(7)[0][:, None].double().requires_grad_(), 7)
            flags = [group.any(rank == 1), group.any(False)]
            return [
                grads,
                flags,
                group.first(rank + 0.5),
                group.total(rank + 0.5),
                whole.flatten().tolist(),
                group.is_main,
            ]

        found = in_threads(3, work)
        assert [one.pop() for one in found] == [True, False, False]
        assert found == [[[111, 1, 3], [True, False], 0.5, 4.5, list(range(7))]] * 3

    def test_one_sends_nothing_and_numbers_go_by_the_own_device(self) -> None:
        alone, parameter = group_of(SimpleNamespace(num_processes=1, is_main_process=True)), nn.Parameter()
        assert alone.gather(torch.arange(3), 2).tolist() == [0, 1]
        assert (alone.any(True), alone.any(False), alone.first(0.5), alone.total(0.5)) == (True, False, 0.5, 0.5)
        alone.combine([parameter], [])
        assert parameter.grad is None
        reduce = lambda local, **_: {"meta": torch.ones(1)}[local.device.type]  # noqa: E731
        assert group_of(SimpleNamespace(num_processes=2, device="meta", reduce=reduce)).total(0.3) == 1

    @pytest.mark.parametrize("gpu", [True, False])
    def test_what_accelerate_is_told(self, gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[dict[str, Any]] = []
        place = SimpleNamespace(num_processes=2)
        monkeypatch.setattr(accelerate, "Accelerator", lambda **given: told.append(given) or place)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
        monkeypatch.setenv("WORLD_SIZE", "2")
        require_launch()
        for given in (ProcessGroup() and told[-1], ProcessGroup(wanted=2) and told[-1]):
            (handler,) = given.pop("kwargs_handlers")
            assert handler.timeout == timedelta(days=7)
            assert given == {"cpu": not gpu, "mixed_precision": "no"}
        with pytest.raises(ConfigError, match="processes = 3, but 2 was started"):
            ProcessGroup(wanted=3)
        monkeypatch.delenv("WORLD_SIZE")
        with pytest.raises(ConfigError, match="2 processes were started by a launcher that does not set WORLD_SIZE"):
            ProcessGroup()

    @pytest.mark.parametrize(("said", "error"), [("[gloo] closed by peer", TrainingError), ("shapes", RuntimeError)])
    def test_another_process_that_has_ended_is_said_so(self, said: str, error: type[Exception]) -> None:
        def fail() -> None:
            raise RuntimeError(said)

        with pytest.raises(error, match="another process of this run has ended" if "gloo" in said else said):
            group_of(SimpleNamespace(wait_for_everyone=fail)).wait()

    @pytest.mark.parametrize("present", ["", "A", "M", "AM", "AMW"])
    def test_processes_that_accelerate_did_not_start_are_missed(
        self, present: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
            if name[0] in present:
                monkeypatch.setenv(name, "1")
        with pytest.raises(ConfigError, match="started one") if present == "AM" else nullcontext():
            require_launch()


@pytest.mark.slow
def test_gradients_and_weights_are_those_of_one_process(work: Path) -> None:
    """Three processes that take five images at a time, and one that takes the whole batch at once."""
    ended = together(3, write_computed, work)
    assert [one.returncode for one in ended] == [0, 0, 0], ended
    alone, ranks = compute(work, chunk_size=24), [load_file(work / f"found-{rank}.safetensors") for rank in range(3)]
    for found in ranks:
        assert float(found.pop("first")) == 0.5, "what they decide by is the first one's"
        assert found.pop("any").tolist() == [True, False]
        assert difference(found, alone) < TOLERANCE
        assert all(bool((found[name] == tensor).all()) for name, tensor in ranks[0].items()), "the same bits in all"
    for case, *_ in CASES:
        names = {name.removeprefix(f"{case}/gradient/") for name in alone if name.startswith(f"{case}/gradient/")}
        assert "log_scale" in names
        assert any("visual_projection" in name or "lora_B" in name for name in names)
        assert ("bias" in names) == (case == "siglip")
    assert {name.split("/")[0] for name in alone if "/weight/" in name} == set(LOSSES)


def settings(work: Path, **values: object) -> list[str]:
    given = {
        "model": work / "vision-text-dual-encoder", "precision": "fp32", "batch_size": 5, "chunk_size": 3, "steps": 5,
        "validate_every": 2, "select": "last", "learning_rate": 0.01, "only_folds": "[0, 2]", "lora_dropout": 0.1,
        "prompts": "reference", **values,
    }  # fmt: skip
    return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]


@pytest.mark.slow
def test_interrupted_and_continued_two_processes_give_the_run_of_one(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal reaches the first one alone, and both stop."""
    out, changes = tmp_path / "two", tmp_path / "changes.txt"
    arguments = ["finetune", str(work / "m.parquet"), "--out", str(out), "--set", "processes=2"]
    arguments += settings(work, checkpoint_minutes=1e-9)
    first, second = together(2, command, arguments, str(out), str(changes), 2)
    assert first.returncode == second.returncode == 130
    assert first.stderr.endswith("interrupted; run the same command again to go on\n")
    assert second.stderr == ""
    assert not (out / "done.json").exists()
    with safe_open(out / "fold-0" / "training.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["training"])["step"] == 3, "written once more at the signal"

    first, second = together(2, command, arguments, str(out), str(changes))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stderr.startswith("finetune: 2 processes\n")
    assert (second.stdout, second.stderr) == ("", "")
    lines = changes.read_text().splitlines()
    assert len(lines) > 20
    assert not [line for line in lines if not line.startswith("0 ")], "only the first process writes"

    draw_plainly(monkeypatch)
    one = tmp_path / "one"
    assert run(["finetune", str(work / "m.parquet"), "--out", str(one), *settings(work)]) == 0
    alone, both = read_predictions(one), read_predictions(out)
    assert both.image_id == alone.image_id
    far = np.abs(both.scores - alone.scores).max()
    assert far < TOLERANCE
    model = ["--set", f"model={work / 'vision-text-dual-encoder'}", "--set", "precision=fp32"]
    model += ["--set", "prompts=reference"]
    assert run(["zeroshot", str(work / "m.parquet"), "--out", str(tmp_path / "untrained"), *model]) == 0
    untrained = read_predictions(tmp_path / "untrained")
    rows = [untrained.image_id.index(name) for name in alone.image_id]
    assert np.abs(alone.scores - untrained.scores[rows]).max() > 100 * far, "the training tells in the scores"
    assert names_in(out) == names_in(one) | {"README.md"}
    for fold in ("fold-0", "fold-2"):
        found, expected = (load_file(f / fold / "adapter" / "adapter_model.safetensors") for f in (out, one))
        assert difference(found, expected) < 0.01, "AdamW carries rounding on, as between chunk sizes"


def names_in(folder: Path) -> set[str]:
    """Files of a run; the embeddings' folders are named after the weights, which differ in the last bit."""
    found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    return {
        "/".join(p for n, p in enumerate(name.split("/")) if (n, name.split("/")[0]) != (1, "embeddings"))
        for name in found
    }


def failed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """By a real launcher; its errors become the one line that is ours."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, timeout=SECONDS, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "src/thoraclip" not in done.stderr, "no traceback of ours"
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, done.stderr
    return done


@pytest.mark.slow
def test_a_mistake_that_only_the_first_process_meets_ends_all(work: Path, tmp_path: Path) -> None:
    """torchrun: the first one decodes and finds a picture gone, while the other one waits for it."""
    manifest = make_manifest(tmp_path / "images")
    write_manifest(tmp_path / "m.parquet", manifest)
    manifest.paths()[20].unlink()
    start = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "thoraclip", "finetune"]
    done = failed(*start, str(tmp_path / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work))
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be read any more" in done.stderr and "exitcode  : 2" in done.stderr
    assert not (tmp_path / "out" / "done.json").exists()


@pytest.mark.slow
def test_accelerates_launcher_on_cpus_is_refused(work: Path, tmp_path: Path) -> None:
    start = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "thoraclip", "finetune"]
    done = failed(*start, str(work / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work))
    assert done.returncode != 0
    assert "was asked for several processes and started one" in done.stderr
    assert "torchrun --nproc_per_node" in done.stderr
    assert not (tmp_path / "out").exists()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def as_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process was the second of two."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "_GRACE_SECONDS", 0.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"processes": 2}, "processes = 2, but 1 was started; start them with: torchrun --nproc_per_node 2"),
            ({"trackers": '["tensorbord"]'}, "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
            ({"trackers": '["tensorboard"]'}, "'tensorboardX' is not installed; mend it with: pip install 'thoraclip[track]'"),
            ({"trackers": '["mlflow"]'}, "'mlflow' is not installed; mend it with: pip install 'thoraclip[track]'"),
        ],
    )  # fmt: skip
    def test_what_cannot_start_is_one_line_and_nothing_is_written(
        self, values: dict[str, Any], message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(tracking, "find_spec", lambda name: None)
        arguments = ["finetune", str(work / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work, **values)]
        assert message in refused(arguments, capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "arguments", [["probe", "m.parquet", "--out", "out"], ["study", "s.toml", "--out", "out"], ["demo"]]
    )
    @pytest.mark.usefixtures("as_second")
    def test_a_command_that_does_not_share_its_work(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        expected = f"{arguments[0]} runs in one process, and 2 were started; only embed, finetune and baseline share their work"
        assert expected in refused(arguments, capsys)

    @pytest.mark.usefixtures("as_second")
    def test_a_helper_prints_no_table_and_waits_before_it_speaks(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert run(["finetune", "--settings"]) == 0
        assert capsys.readouterr().out == ""
        waited: list[float] = []
        monkeypatch.setattr(app, "_GRACE_SECONDS", 0.3)
        monkeypatch.setattr(time, "sleep", waited.append)
        assert "nowhere.toml: is missing" in refused(
            ["finetune", "m", "--out", "o", "--config", "nowhere.toml"], capsys
        )
        assert waited == [0.3]
