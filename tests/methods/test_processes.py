"""Several processes give what one gives; each refusal is one line; trackers get the numbers too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from tests.checkpoints import save_checkpoint
from tests.conftest import write_class_folder
from tests.methods.processes_worker import CASES, LOSSES, compute
from torch import Tensor

from thoraclip.cli import app
from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.splits import split_folds
from thoraclip.methods import processes
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import read_predictions

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 180
TOLERANCE = 1e-5
"""fp32: sums in another order; measured 1e-6."""


def launch(count: int, *arguments: str, logs: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """torchrun on this machine; with `logs`, what each process says goes to files there."""
    redirects = ["--redirects", "3", "--log-dir", str(logs)] if logs else []
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), *redirects, "-m",
        *arguments,
    ]  # fmt: skip
    given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); a run that hangs is a failed test, and is ended with all its processes."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        raise
    return process.returncode, out, err


def said(logs: Path, rank: int, stream: str) -> str:
    (file,) = logs.rglob(f"{rank}/{stream}.log")
    return file.read_text(encoding="utf-8")


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative difference (norm of the difference over the norm) of every tensor."""
    return {n: float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12)) for n in other}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, checkpoints and a split manifest."""
    folder = tmp_path_factory.mktemp("processes")
    found = index(write_class_folder(folder / "images"), layout="folders").manifest
    patients = [f"p{row // 2:02d}" for row in range(len(found))]
    write_manifest(folder / "m.parquet", split_folds(found.with_columns(patient=patients), folds=3, seed=0))
    for family in ("clip", "vision-text-dual-encoder"):
        save_checkpoint(family, folder / family)
    return folder


@pytest.fixture(scope="module")
def alone(work: Path) -> dict[str, Tensor]:
    """The gradients and weights of one process that takes the whole batch at once."""
    return compute(work, chunk_size=24)


@pytest.fixture(scope="module", params=[2, 3])
def together(work: Path, alone: dict[str, Tensor], request: pytest.FixtureRequest) -> list[dict[str, Tensor]]:
    """The same, of each of several processes that take five at a time."""
    code, _, err = end_of(launch(request.param, "tests.methods.processes_worker", str(work)))
    assert code == 0, err
    return [load_file(work / f"found-{request.param}-{rank}.safetensors") for rank in range(request.param)]


def test_gradients_and_weights_are_those_of_one_process(
    alone: dict[str, Tensor], together: list[dict[str, Tensor]]
) -> None:
    for found in together:
        shared = {name: tensor for name, tensor in found.items() if name in alone}
        assert shared.keys() == alone.keys()
        far = {name: value for name, value in difference(shared, alone).items() if not value < TOLERANCE}
        assert not far
    for case, *_ in CASES:
        names = {name.removeprefix(f"{case}/gradient/") for name in alone if name.startswith(f"{case}/gradient/")}
        assert "log_scale" in names
        assert any("visual_projection" in name or "lora_B" in name for name in names)
        assert ("bias" in names) == case.endswith("siglip")
    assert {name.split("/")[0] for name in alone if "/weight/" in name} == set(LOSSES)


def test_all_processes_have_the_same_bits(together: list[dict[str, Tensor]]) -> None:
    for found in together[1:]:
        assert all(bool((found[name] == tensor).all()) for name, tensor in together[0].items())


def test_it_is_red_where_padding_counts(alone: dict[str, Tensor], together: list[dict[str, Tensor]]) -> None:
    right = {n: t for n, t in alone.items() if n.startswith("unicl/gradient/") and "vision_model" in n}
    wrong = {n: together[0][n.replace("unicl/", "wrong/")] for n in right}
    assert min(difference(wrong, right).values()) > 100 * TOLERANCE


def test_what_they_decide_by_is_the_first_ones(together: list[dict[str, Tensor]]) -> None:
    for found in together:
        assert float(found["first"]) == 0.5
        assert found["any"].tolist() == [True, False]


def settings(work: Path, **values: object) -> list[str]:
    given = {
        "model": work / "vision-text-dual-encoder", "precision": "fp32", "batch_size": 5, "chunk_size": 3, "steps": 40,
        "validate_every": 5, "select": "last", "learning_rate": 0.003, "only_folds": "[0, 2]", "lora_dropout": 0.1,
        **values,
    }  # fmt: skip
    return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]


WATCHER = """
import os, sys

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}

def watch(event, arguments):
    if event == "open":
        changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        changes = event in CHANGES
    if changes and str(arguments[0]).startswith(os.environ["WATCHED"]):
        os.write(LOG, f"{os.environ['RANK']} {event} {arguments[0]}\\n".encode())

if "RANK" in os.environ:
    LOG = os.open(os.environ["CHANGES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(watch)
"""


def test_interrupted_and_continued_two_processes_give_the_run_of_one(work: Path, tmp_path: Path) -> None:
    out, changes = tmp_path / "two", tmp_path / "changes.txt"
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCHER)
    environment = {"PYTHONPATH": str(tmp_path / "watch"), "WATCHED": str(out), "CHANGES": str(changes)}
    arguments = ["thoraclip", "finetune", str(work / "m.parquet"), "--out", str(out), "--set", "processes=2"]
    arguments += settings(work, checkpoint_minutes=0.002)

    first = launch(2, *arguments, logs=tmp_path / "first", **environment)
    end = time.monotonic() + SECONDS
    while not (kept := list(out.glob("fold-*/training.safetensors"))) and first.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert kept, end_of(first)[2]
    before = step_of(kept[0])
    first.send_signal(signal.SIGTERM)
    code, _, err = end_of(first)
    assert code != 0
    assert said(tmp_path / "first", 0, "stderr").endswith("interrupted; run the same command again to go on\n"), err
    assert said(tmp_path / "first", 1, "stderr") == ""
    assert not (out / "done.json").exists()
    (written,) = out.glob("fold-*/training.safetensors")
    assert written != kept[0] or step_of(written) > before, "written once more at the signal"

    code, _, err = end_of(launch(2, *arguments, logs=tmp_path / "second", **environment))
    assert code == 0, err
    assert said(tmp_path / "second", 0, "stderr").startswith("finetune: 2 processes\n")
    assert [said(tmp_path / "second", 1, stream) for stream in ("stdout", "stderr")] == ["", ""]
    ranks = [line.split()[0] for line in changes.read_text().splitlines()]
    assert len(ranks) > 20
    assert set(ranks) == {"0"}, "only the first process writes"

    one = tmp_path / "one"
    assert run(["finetune", str(work / "m.parquet"), "--out", str(one), *settings(work)]) == 0
    alone, together = read_predictions(one), read_predictions(out)
    assert together.image_id == alone.image_id
    assert len(alone) == 18
    far = np.abs(together.scores - alone.scores).max()
    assert far < TOLERANCE
    model = ["--set", f"model={work / 'vision-text-dual-encoder'}", "--set", "precision=fp32"]
    assert run(["zeroshot", str(work / "m.parquet"), "--out", str(tmp_path / "untrained"), *model]) == 0
    untrained = read_predictions(tmp_path / "untrained")
    rows = [untrained.image_id.index(name) for name in alone.image_id]
    assert np.abs(alone.scores - untrained.scores[rows]).max() > 100 * far, "the training tells in the scores"
    assert names_in(out) == names_in(one)
    for fold in ("fold-0", "fold-2"):
        found, expected = (load_file(f / fold / "adapter" / "adapter_model.safetensors") for f in (out, one))
        assert max(difference(found, expected).values()) < 0.01, "AdamW carries rounding on, as between chunk sizes"


def step_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(json.loads(file.metadata()["training"])["step"])


def names_in(folder: Path) -> set[str]:
    """Files of a run; the embeddings' folders are named after the weights, which differ in the last bit."""
    found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    return {
        "/".join(p for n, p in enumerate(name.split("/")) if (n, name.split("/")[0]) != (1, "embeddings"))
        for name in found
    }


def test_a_mistake_that_only_the_first_process_meets_ends_all(work: Path, tmp_path: Path) -> None:
    """The first one decodes and finds a picture gone, while the other one waits for it."""
    source = read_manifest(work / "m.parquet")
    found = index(write_class_folder(tmp_path / "images"), layout="folders").manifest
    write_manifest(tmp_path / "m.parquet", found.with_columns(fold=list(source.column("fold"))))
    read_manifest(tmp_path / "m.parquet").paths()[20].unlink()
    arguments = ["thoraclip", "finetune", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work)]
    code, out, err = end_of(launch(2, *arguments))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1, err
    assert len(lines) == 1, err
    assert "cannot be read any more" in lines[0]
    assert "exitcode  : 2" in err
    assert "src/thoraclip" not in err, "no traceback of ours"
    assert out == ""
    assert not (tmp_path / "out" / "done.json").exists()


def test_accelerates_launcher_on_cpus_is_refused(work: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(work / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "thoraclip"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=SECONDS, cwd=REPOSITORY
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 1, done.stderr
    assert "was asked for several processes and started one" in lines[0]
    assert "torchrun --nproc_per_node" in lines[0]
    assert "src/thoraclip" not in done.stderr, "no traceback of ours"
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
    def test_fewer_processes_than_asked_for(
        self, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["finetune", str(work / "m.parquet"), "--out", str(tmp_path / "out"), *settings(work, processes=2)]
        line = refused(arguments, capsys)
        assert "processes = 2, but 1 was started; start them with: torchrun --nproc_per_node 2" in line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "arguments",
        [
            ["probe", "m.parquet", "--out", "out"],
            ["study", "s.toml", "--out", "out"],
            ["index", "images", "--out", "m.parquet"],
            ["report", "run", "--out", "out"],
            ["demo"],
        ],
    )
    @pytest.mark.usefixtures("as_second")
    def test_a_command_that_does_not_share_its_work(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        expected = f"{arguments[0]} runs in one process, and 2 were started; only embed, finetune and baseline share their work"
        assert expected in refused(arguments, capsys)

    @pytest.mark.usefixtures("as_second")
    def test_a_helper_prints_no_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["finetune", "--settings"]) == 0
        assert capsys.readouterr().out == ""

    @pytest.mark.usefixtures("as_second")
    def test_a_helper_waits_before_it_speaks(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(app, "_GRACE_SECONDS", 0.3)
        began = time.monotonic()
        assert "no such settings file" in refused(["finetune", "m", "--out", "o", "--config", "nowhere.toml"], capsys)
        assert time.monotonic() - began >= 0.3

    def test_a_tracker_that_nobody_knows(self, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["finetune", str(work / "m.parquet"), "--out", str(tmp_path / "out")]
        line = refused([*arguments, *settings(work, trackers='["tensorbord"]')], capsys)
        assert "unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("tracker", "package"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")]
    )
    def test_a_tracker_that_is_not_installed(
        self,
        tracker: str,
        package: str,
        work: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(processes, "find_spec", lambda name: None)
        arguments = ["finetune", str(work / "m.parquet"), "--out", str(tmp_path / "out")]
        line = refused([*arguments, *settings(work, trackers=f'["{tracker}"]')], capsys)
        assert line == f"error: '{package}' is not installed; mend it with: pip install 'thoraclip[track]'"
        assert not (tmp_path / "out").exists()


class TestTrackers:
    def tracked(self, work: Path, out: Path, tracker: str) -> list[str]:
        values = settings(work, trackers=f'["{tracker}"]' if tracker else "[]", steps=2, validate_every=1)
        return ["finetune", str(work / "m.parquet"), "--out", str(out), *values]

    def test_tensorboard(self, work: Path, tmp_path: Path) -> None:
        pytest.importorskip("tensorboardX")
        plain, out = tmp_path / "plain", tmp_path / "out"
        assert run(self.tracked(work, plain, "")) == 0
        assert run(self.tracked(work, out, "tensorboard")) == 0
        (events,) = (out / "thoraclip").glob("events.out.tfevents.*")
        for name in (b"fold-0/loss", b"fold-2/loss", b"fold-2/val_macro_f1", b"fold-0/logit_scale"):
            assert name in events.read_bytes()
        assert b"batch_size" in b"".join(f.read_bytes() for f in (out / "thoraclip").rglob("*.*") if f.is_file())
        assert {n for n in names_in(out) if not n.startswith("thoraclip/")} == names_in(plain)
        scores = (plain / "predictions.parquet").read_bytes()
        assert (out / "predictions.parquet").read_bytes() == scores

        (out / "done.json").unlink()
        (out / "fold-2" / "adapter" / "thoraclip.json").unlink()
        assert run(self.tracked(work, out, "tensorboard")) == 0, "the tracker's folder is there already"
        assert (out / "predictions.parquet").read_bytes() == scores
        assert len(list((out / "thoraclip").glob("events.out.tfevents.*"))) >= 1

    def test_one_that_cannot_begin(
        self, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from accelerate import Accelerator

        def fail(*_: object, **__: object) -> None:
            raise OSError("no account\nsecond line")

        monkeypatch.setattr(Accelerator, "init_trackers", fail)
        line = refused(self.tracked(work, tmp_path / "out", "tensorboard"), capsys)
        assert "trackers = ['tensorboard']: cannot begin (no account); mend it or leave them out" in line


def test_manifest_fixture_is_the_same_as_everywhere(work: Path, manifest: Manifest) -> None:
    assert read_manifest(work / "m.parquet").column("fold") == manifest.column("fold")
