"""What trackers get, once: from real MLflow, trackio and TensorBoard, and from a stand-in where one fails."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate.tracking
import jsonschema
import pytest
from tensorboardX.proto.event_pb2 import Event
from tests import forked
from tests.methods import tracking_worker

from thoraclip.cards.model_card import judge_run
from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, TrainingError
from thoraclip.methods import tracking
from thoraclip.methods.tracking import FILE, TRACKERS, Results, TrackedRun, require_trackers, results_of
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import read_predictions

REAL = ("mlflow", "tensorboard", "trackio")
RESULTS = Results({"test/accuracy": 0.5}, [["run", "accuracy", 0.5, None, 1]], "# Card")


def events(folder: Path) -> Iterator[Any]:
    """The values of the event files of TensorBoard, in the order of the files: length, checksum, event, checksum."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield from Event.FromString(data[12 : 12 + size]).summary.value
            data = data[16 + size :]


def expected_of(out: Path) -> dict[str, float]:
    """The test metrics of a run and their ends, from its predictions."""
    report, _ = judge_run("x", "x", read_predictions(out))
    (row,) = [row for row in report["methods"] if row["name"] == "x"]
    ends = {"value": "", "low": "_low", "high": "_high"}
    values = {f"test/{name}{e}": m[end] for name, m in row["metrics"].items() if m for end, e in ends.items()}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.slow
def test_real_trackers_get_losses_test_metrics_table_and_card_once(
    models: dict[str, str], split_manifest: Manifest, tmp_path: Path
) -> None:
    write_manifest(tmp_path / "m.parquet", split_manifest)
    (tmp_path / "s.toml").write_text(
        f'manifest = "m.parquet"\nmodel = {json.dumps(models["clip"])}\ntrackers = {json.dumps(REAL)}\naudit = "none"\nresamples = 100\n'
        '[[methods]]\nname = "zero-shot, all"\nkind = "zeroshot"\n'
        '[[methods]]\nname = "head"\nkind = "baseline"\ntrain = "head"\nsteps = 2\nbatch_size = 5\nvalidate_every = 1\n'
    )
    place = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/ml.db", "TRACKIO_DIR": str(tmp_path / "trackio")}
    free = {
        name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")
    }  # which stop telemetry
    out, study = tmp_path / "study" / "runs" / "head", ["study", "s.toml", "--out", "study"]
    again = ["baseline", "m.parquet", "--out", str(out), "--config", str(out / "config.toml")]
    done = forked.finish(in_folder, str(tmp_path), [study, again, study], env=free | place)
    assert done.returncode == 0, done.stderr
    first, *more = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]
    assert not any("trackio" in line.lower() for line in done.stdout.splitlines() if not line.startswith('{"code"')), (
        "on standard error"
    )
    assert first["code"] == 0 and first["called"] == [], "nobody is called"
    assert more == [first, first], "a finished run and study say nothing more"

    expected, card = expected_of(out), (out / "README.md").read_text()
    assert {"test/accuracy", "test/macro_f1_low", "test/auroc"} <= set(expected)
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["step"], pytest.approx(row["loss"])) for row in losses if "loss" in row]
    (run_,) = [one for one in first["mlflow"] if one["name"].startswith("runs-head-")]
    assert run_["status"] == "FINISHED" and run_["settings"]["batch_size"] == "5"
    assert run_["history"]["loss"] == [list(pair) for pair in steps]
    assert {n: v for n, v in run_["history"].items() if n.startswith("test/")} == {
        n: [[0, pytest.approx(v)]] for n, v in expected.items()
    }
    assert run_["files"]["README.md"] == card
    table = json.loads(run_["files"]["results.json"])
    assert table["columns"] == ["method", "metric", "value", "low", "high"]
    assert len(table["data"]) == sum(name.count("_low") == name.count("_high") == 0 for name in expected)

    (name,) = [name for name in first["trackio"] if name.startswith("runs-head-")]
    logs = first["trackio"][name]
    assert [log["loss"] for log in logs if "loss" in log] == [value for _, value in steps]
    (last,) = [log for log in logs if "card" in log]
    assert {n: last[n] for n in expected} == pytest.approx(expected)
    assert last["card"]["_value"] == card and len(last["results"]["_value"]) == len(table["data"])

    seen: dict[str, list[Any]] = {}
    for value in events(out / "thoraclip"):
        seen.setdefault(value.tag, []).append(value)
    assert {n: [v.simple_value for v in seen[n]] for n in expected} == {
        n: [pytest.approx(v)] for n, v in expected.items()
    }
    assert [v.simple_value for v in seen["loss"]] == [value for _, value in steps]
    (text,) = seen["card/text_summary"]
    assert text.tensor.string_val[0].decode() == card
    assert "| run | accuracy | " in seen["results/text_summary"][0].tensor.string_val[0].decode()

    (whole,) = [one for one in first["mlflow"] if not one["name"].startswith("runs-head-")]
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    rows = {row["name"]: row["metrics"] for row in report["methods"]}
    for method, prefix in (("zero-shot, all", "zero-shot-all"), ("head", "head"), ("majority", "majority")):
        assert whole["history"][f"{prefix}/macro_f1"] == [[0, pytest.approx(rows[method]["macro_f1"]["value"])]]
    assert {"report.json", "report.html", "report.md", "results.json"} == set(whole["files"])
    assert "trackers" not in (tmp_path / "study" / "report.json").read_text()
    schema = json.loads((Path(__file__).parents[2] / "docs" / "schemas" / "report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    assert report.keys() <= schema["properties"].keys(), "a study's report is described, too"


def in_folder(folder: str, commands: list[list[str]]) -> int:
    os.chdir(folder)
    return tracking_worker.commands(*commands)


class StandIn:
    """A tracker of Accelerate whose runs are lists."""

    requires_logging_directory = False
    runs: dict[str, list[Any]]
    fails = ""

    def __init__(self, project: str, **given: Any) -> None:
        assert project == "thoraclip"
        self.name = given["id"]
        self.tracker = self

    def start(self) -> None:
        if self.fails == "start":
            raise OSError("no account\nsecond line")
        self.runs.setdefault(self.name, []).append("start")

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.runs[self.name].append(dict(values))

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        if self.fails == "log":
            raise OSError("no network")
        self.runs[self.name].append((step, dict(values)))

    def log_table(self, name: str, *, columns: list[str], data: list[Any]) -> None:
        self.runs[self.name].append((name, columns, data))

    def finish(self) -> None:
        self.runs[self.name].append("finish")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Name -> what a stand-in for W&B got."""
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", StandIn)
    monkeypatch.setattr(StandIn, "runs", {}, raising=False)
    monkeypatch.setattr(StandIn, "fails", "")
    return StandIn.runs


def tracked(folder: Path, fingerprint: str = "f", names: tuple[str, ...] = ("wandb",)) -> TrackedRun:
    return TrackedRun(
        names, folder, fingerprint=fingerprint, settings={"seed": 0, "rate": 0.5, "loss": "unicl", "folds": (1, 2)}
    )


def test_an_interrupted_run_goes_on_in_the_same_one_and_results_are_sent_once(
    runs: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), tracked(tmp_path) as one:
        one.log({"loss": 1.5}, step=7)
        raise KeyboardInterrupt
    said: list[str] = []
    for _ in range(2):
        tracked(tmp_path).send("r", lambda: RESULTS, said.append)
    settings = {"seed": 0, "rate": 0.5, "loss": "unicl", "folds": "(1, 2)"}
    table = ("results", ["method", "metric", "value", "low", "high"], [["run", "accuracy", 0.5, None, 1]])
    (name,) = runs
    assert name.startswith("-".join(tmp_path.parts[-2:]))
    assert runs[name] == [
        "start",
        settings,
        (7, {"loss": 1.5}),
        "finish",
        "start",
        (None, {"test/accuracy": 0.5}),
        table,
        "finish",
    ]
    tracked(tmp_path).send("other results", lambda: RESULTS, said.append)
    assert len(runs) == 1 and runs[name].count(table) == 2 and said == []
    for other in (tracked(tmp_path, "g"), tracked(tmp_path, names=("wandb",) * 2)):
        with other:
            assert json.loads((tmp_path / FILE).read_text())["sent"] is None
    assert len(runs) == 3, "another result, or other trackers: another run"
    monkeypatch.setattr(StandIn, "fails", "log")
    with (
        pytest.raises(TrainingError, match=r"tracker wandb failed at step 3 \(no network\); mend it, or leave"),
        tracked(tmp_path, "h") as one,
    ):
        one.log({"loss": 1.5}, step=3)
    with TrackedRun((), tmp_path / "nothing", fingerprint="f", settings={}) as nothing:
        nothing.log({"loss": 1.0}, step=1)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"key": 1, "ids": 5}'])
def test_a_damaged_note_begins_a_new_run(damage: str, runs: dict[str, list[Any]], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(damage)
    with tracked(tmp_path):
        pass
    assert len(runs) == 1


def test_a_tracker_that_fails_at_the_end_does_not_lose_the_run(
    runs: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for fails in ("log", "start", ""):
        monkeypatch.setattr(StandIn, "fails", fails)
        tracked(tmp_path).send("r", lambda: RESULTS, said.append)
    assert ["no network" in said[0], "no account" in said[1], len(said)] == [True, True, 2]
    assert all("the same command tries again" in line for line in said)
    assert next(iter(runs.values())).count((None, {"test/accuracy": 0.5})) == 1


def test_what_cannot_begin_is_one_line(
    runs: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "fails", "start")
    for mend in ("mend it or leave them out", "mend it, or remove .*trackers.json"):
        with (
            pytest.raises(ConfigError, match=rf"trackers = \['wandb'\]: cannot begin \(no account\); {mend}$"),
            tracked(tmp_path),
        ):
            pass
        monkeypatch.setattr(StandIn, "fails", "")
        with tracked(tmp_path):
            pass
        monkeypatch.setattr(StandIn, "fails", "start")
    with pytest.raises(ConfigError, match="unknown tracker 'wandd'; did you mean 'wandb'"):
        require_trackers(["wandd"])
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "tensorboardX")  # one of two is enough
    require_trackers(["tensorboard"], installed=True)


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("é")
    metrics = {
        "accuracy": {"value": 0.5, "low": None, "high": None},
        "auroc": None,
        "ece": {"value": None, "low": None, "high": None},
    }
    report = {"methods": [{"name": "a", "metrics": metrics}, {"name": "b", "metrics": metrics}, {"name": "c"}]}
    results = results_of(report, {"a": "test", "c": "c"}, tmp_path / "card.md")
    assert results == Results({"test/accuracy": 0.5}, [["a", "accuracy", 0.5, None, None]], "é", [tmp_path / "card.md"])
    assert (
        results.markdown
        == "| method | metric | value | low | high |\n| --- | --- | --- | --- | --- |\n| a | accuracy | 0.5000 |  |  |"
    )
    assert results_of({}, {"a": "test"}, tmp_path / "card.md").values == {}


@pytest.mark.usefixtures("plain")
def test_trackers_change_no_other_file_of_a_run(
    models: dict[str, str],
    split_manifest: Manifest,
    tmp_path: Path,
    runs: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_manifest(tmp_path / "m.parquet", split_manifest)
    monkeypatch.setattr("thoraclip.methods.tracking.results_of", lambda *_: RESULTS)  # there is no card here
    command = [
        "baseline",
        str(tmp_path / "m.parquet"),
        "--set",
        f"model={models['vit']}",
        "--set",
        "steps=2",
        "--set",
        "batch_size=5",
    ]
    for name, trackers in (("plain", "[]"), ("tracked", '["wandb"]')):
        assert run([*command, "--out", str(tmp_path / name), "--set", f"trackers={trackers}"]) == 0
    held = [
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("plain", "tracked")
    ]
    differ = {str(name) for name in held[0].keys() | held[1].keys() if held[0].get(name) != held[1].get(name)}
    assert differ == {"trackers.json", "config.toml"}
    (got,) = runs.values()
    assert got[-2][0] == "results" and set(TRACKERS) == {"mlflow", "tensorboard", "trackio", "wandb"}
