"""A registry owns its entries: a new one needs one line, and the commands that should know it do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.checkpoints import save_checkpoint

from thoraclip.cli.app import run
from thoraclip.data.layouts import LAYOUTS, Listing, find_layout
from thoraclip.data.views import VIEWS, View
from thoraclip.evaluation.metrics import METRICS, Metric
from thoraclip.heatmaps import MAPS, MapMethod
from thoraclip.methods import METHODS, Method
from thoraclip.methods.caption import CAPTIONERS, CaptionSource
from thoraclip.methods.losses import LOSSES, Loss, Pairs
from thoraclip.methods.probe import SOLVERS, Solver
from thoraclip.models.heads import fit_lbfgs
from thoraclip.tables.captions import Captions, read_captions, write_captions
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest


def dummy_map(classifier: Any, grey: Any, class_index: int, *, seed: int) -> Any:
    return np.full(grey.shape, 1 + seed + class_index, dtype=np.float32)


@pytest.fixture
def folder(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user: `m.parquet` in three folds, and a small `clip`."""
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "m.parquet", manifest)
    save_checkpoint("clip", tmp_path / "clip", seed=10)
    return tmp_path


def study(folder: Path, *methods: str) -> str:
    tables = [f'[[methods]]\nname = "{text.partition(" ")[0]}"\n{text.partition(" ")[2]}\n' for text in methods]
    (folder / "s.toml").write_text(
        'manifest = "m.parquet"\nmodel = "clip"\nresamples = 100\naudit = "none"\nthumbnails = false\n'
        + "".join(tables)
    )
    return "s.toml"


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_loss_trains_and_an_unknown_one_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Pairs] = []

    def dummy(pairs: Pairs) -> Any:
        seen.append(pairs)
        return (1 - (pairs.image * pairs.text).sum(dim=1)).mean() + 0 * pairs.bias

    command = ["finetune", "m.parquet", "--out", "run"]
    for setting in ("model=clip", "steps=1", "batch_size=6", "chunk_size=3", "only_folds=[0]", "loss=dummy"):
        command += ["--set", setting]
    assert run(command) == 2
    assert "unknown loss 'dummy'" in capsys.readouterr().err
    monkeypatch.setitem(LOSSES, "dummy", Loss(dummy, has_bias=True))  # type: ignore[arg-type]
    assert run(command) == 0
    assert len(seen) == 1 and len(seen[0].image) == len(seen[0].text) == 6
    assert 'loss = "dummy"' in (folder / "run" / "config.toml").read_text()


def test_a_metric_stands_in_the_report_with_its_interval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "dummy", Metric("dummy score", lambda w: w.hit.sum(axis=1) / w.total[:, 0]))
    assert run(["study", study(folder, 'a kind = "zeroshot"'), "--out", "out"]) == 0
    found = read(folder / "out" / "report.json")["methods"][0]["metrics"]
    assert found["dummy"] == pytest.approx(found["accuracy"]), "from the same resamples"


@pytest.mark.slow
def test_a_method_is_studied_planned_audited_and_exported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Method("tests.contracts.dummy_method", "A dummy.", is_seeded=False, keeps_classifier=True, embeds=True)
    monkeypatch.setitem(METHODS, "dummy", entry)  # type: ignore[arg-type]
    file = study(folder, 'a kind = "dummy"', 'b kind = "zeroshot"')
    assert run(["study", file, "--out", "out", "--dry-run", "--json"]) == 0
    row, _ = json.loads(capsys.readouterr().out)["runs"]
    assert (row["kind"], row["images_encoded"], row["error"]) == ("dummy", 24, None)
    assert run(["study", file, "--out", "out"]) == 0
    first, second = (read(folder / "out" / "report.json")["methods"])[:2]
    assert first["kind"] == "dummy" and first["metrics"] == second["metrics"]
    run_folder = "out/runs/a"
    assert run(["audit", run_folder, "--out", "audit", "--set", "images=12"]) == 0
    assert run(["export", run_folder, "--out", "bundle"]) == 0
    image = read_manifest(folder / "m.parquet").paths()[0]
    assert run(["explain", run_folder, str(image), "--out", "map.png"]) == 0
    assert run(["predict", "bundle", str(image), "--out", "rows.csv"]) == 0


def test_a_layout_is_indexed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dummy(root: Path, **_: object) -> Listing:
        listing = LAYOUTS["folders"](root)
        for row in listing.rows:
            row["label"] = row["label"].replace("Normal", "dummy")
        return listing

    monkeypatch.setitem(LAYOUTS, "dummy", dummy)  # type: ignore[arg-type]
    assert find_layout("dummy") is dummy
    root = read_manifest(folder / "m.parquet").root
    assert run(["index", str(root), "--layout", "dummy", "--out", "d.parquet"]) == 0
    assert set(read_manifest(folder / "d.parquet").column("label")) == {"COVID-19", "Non-COVID", "dummy"}


def test_a_captioner_writes_for_the_command_and_for_a_study(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(manifest: Manifest, config: Any, named: Any, origin: dict[str, Any], out: Path, *_: Any) -> Captions:
        texts = tuple(f"dummy {n}" for n in range(len(manifest)))
        ids, contents = (tuple(manifest.column(name)) for name in ("image_id", "sha256"))
        write_captions(out, captions := Captions(ids, contents, texts, (False,) * len(ids), origin))
        return captions

    training = "steps = 1\nbatch_size = 6\nchunk_size = 6\nonly_folds = [0]"
    file = folder / study(folder, f'a kind = "finetune"\nloss = "unicl"\n{training}')
    file.write_text(f'captioner = "dummy"\n{file.read_text()}')
    command, whole = (
        ["caption", "m.parquet", "--captioner", "dummy", "--out", "c.parquet"],
        ["study", "s.toml", "--out"],
    )
    for words in (command, [*whole, "out", "--dry-run"], [*whole, "out"]):
        assert run(words) == 2
        assert "unknown captioner 'dummy'; known: blip, column, template" in capsys.readouterr().err
    assert not (folder / "out").exists()
    monkeypatch.setitem(CAPTIONERS, "dummy", CaptionSource(write))  # type: ignore[arg-type]
    for words in (command, [*whole, "out", "--dry-run"], [*whole, "out"]):
        assert run(words) == 0
    assert read_captions(folder / "c.parquet").text[3] == "dummy 3"
    assert read_captions(folder / "out" / "captions.parquet").text[3] == "dummy 3"


def test_a_heat_map_is_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAPS, "dummy", MapMethod(__name__, "dummy_map", needs_network=False))  # type: ignore[arg-type]
    assert run(["study", study(folder, 'a kind = "zeroshot"'), "--out", "out"]) == 0
    image = read_manifest(folder / "m.parquet").paths()[0]
    assert run(["explain", "out/runs/a", str(image), "--method", "dummy", "--out", "map.png"]) == 0
    assert (folder / "map.png").is_file()


@pytest.mark.parametrize("counts", [True, False])
def test_a_view_is_a_test_of_the_audit(folder: Path, counts: bool) -> None:
    left = View(
        "the left half replaced by one grey level", _left_half, "mean", needs_lungs=False, finds="the left half",
        counts=counts,
    )  # fmt: skip
    few = {name: VIEWS[name] for name in ("original", "sham", "border-only")} | {"dummy": left}
    assert run(["zeroshot", "m.parquet", "--out", "run", "--set", "model=clip"]) == 0
    command = ["audit", "run", "--manifest", "m.parquet", "--out", "audit"]
    with patch.dict(VIEWS, few, clear=True):  # type: ignore[call-overload]
        assert run([*command, "--set", "masks=none", "--set", "images=12"]) == 0
    tests = {test["name"]: test for test in read(folder / "audit" / "audit.json")["tests"]}
    assert tests["dummy"]["asks"] == ("classifier" if counts else "control") and tests["dummy"]["by"] == "classifier"
    assert "refitted dummy" in tests


def _left_half(scene: Any, rows: Any) -> Any:
    region = np.zeros((len(rows), *scene.greys.shape[1:]), dtype=bool)
    region[:, :, : region.shape[2] // 2] = True
    return region


def test_a_solver_fits_the_head_of_a_probe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def dummy(config: Any, x: Any, y: Any, labels: Any, l2: Any, *_: Any) -> Any:
        asked.extend(l2)
        return fit_lbfgs(x, y, labels, l2=l2, weighting="none")

    monkeypatch.setitem(SOLVERS, "dummy", Solver(dummy))  # type: ignore[arg-type]
    command = ["probe", "m.parquet", "--out", "run", "--set", "model=clip", "--set", "solver=dummy"]
    assert run([*command, "--set", "l2_steps=2", "--set", "only_folds=[1]"]) == 0
    assert len(asked) == 3, "two penalties, and the better one again"
