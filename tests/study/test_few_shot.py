"""A study's learning curve: which runs it makes, what they cost, and what comes of them through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import files
from tests.study.conftest import method, write_study

from thoraclip.cli.app import run
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.data.splits import split_fractions
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.models.files import read_note
from thoraclip.study import read_study, run_study
from thoraclip.study.checking import check_study
from thoraclip.study.few_shot import few_shot_entries
from thoraclip.tables.manifest import write_manifest
from thoraclip.tables.predictions import read_predictions

SHOTS = 'shots = [2, "all", 1]\ndraws = 2\nseeds = [5]\nresamples = 100\naudit = "none"\n'
METHODS = (
    method("zeroshot", "zero-shot")
    + method("probe", l2_steps=2)
    + method("finetune", "LoRA", then="probe")
    + method("zeroshot", "tuned", after="LoRA")
    + method("probe", "four", shots=4)
)


def test_every_method_that_trains_is_crossed_with_shots_and_draws(images: Path, clip: Path, tmp_path: Path) -> None:
    config, methods = read_study(write_study(tmp_path, clip, SHOTS + METHODS, manifest=images / "m.parquet"), {})
    few = few_shot_entries(config, methods)
    assert [(entry.of, entry.shots) for entry in few] == [
        (name, shots) for name in ("probe", "LoRA", "LoRA, then probe", "tuned") for shots in (1, 2)
    ]
    assert few[0].name == "probe, 1 shot" and few[1].name == "probe, 2 shots"
    runs = [
        (seed, settings.shots, str(folder.relative_to(tmp_path))) for seed, settings, folder in few[1].runs(tmp_path)
    ]
    assert runs == [(5, 2, "runs/probe/shots-2-draw-5"), (6, 2, "runs/probe/shots-2-draw-6")]
    for follower in few[4:]:
        for seed, settings, _ in follower.runs(tmp_path):
            assert settings.adapter == str(tmp_path / "runs" / "lora" / f"shots-{follower.shots}-draw-{seed}")
    assert [entry.config.shots for entry in methods if hasattr(entry.config, "shots")] == ["all", "all", "all", 4]
    assert few_shot_entries(read_study(images / "m.parquet", {})[0], methods) == []


def test_a_method_after_a_few_shot_fine_tuning_uses_its_patients(images: Path, clip: Path, tmp_path: Path) -> None:
    text = method("finetune", "LoRA", shots=2, then="probe")
    _, (tuned, follower) = read_study(write_study(tmp_path, clip, text, manifest=images / "m.parquet"), {})
    assert tuned.config.shots == follower.config.shots == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('shots = [1, 40, "all"]\n' + method("probe"), ManifestError, "shots = 40: class '.*' has . training patients"),
        ("shots = [1]\n" + method("zeroshot"), ConfigError, r"shots = \[1\]: nothing is trained on few labels"),
        ('shots = ["all"]\n' + method("probe"), ConfigError, "nothing is trained on few labels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(
    text: str, error: type[Exception], message: str, images: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for manifest in (images / "m.parquet", None):
        if manifest is None:  # a folder, which the study splits itself
            (tmp_path / "s.toml").write_text(f'folder = "{images / "images"}"\nmodel = "{clip}"\n' + text)
        config, methods = read_study(
            write_study(tmp_path, clip, text, manifest=manifest) if manifest else tmp_path / "s.toml", {}
        )
        with pytest.raises(error, match=message):
            check_study(config, methods, out)
    with pytest.raises(error, match=message):
        run_study(config, methods, out)
    assert not out.exists()


def test_from_phantoms_to_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_phantoms(tmp_path / "phantoms", PhantomConfig(images=60, size=32))
    found = index(tmp_path / "phantoms", layout="csv", csv_file=tmp_path / "phantoms" / "phantoms.csv").manifest
    manifest = split_fractions(found, fractions=(0.5, 0.1, 0.4), seed=0)
    write_manifest(tmp_path / "m.parquet", manifest)
    text = SHOTS + "thumbnails = false\n" + method("zeroshot", "zero-shot") + method("probe", l2_steps=2)
    study, out = write_study(tmp_path, Path("tiny-clip"), text), tmp_path / "out"
    assert run(["study", str(study), "--out", str(out), "--dry-run", "--json"]) == 0
    rows = [(row["name"], row["seed"]) for row in json.loads(capsys.readouterr().out)["runs"]]
    few = [(f"probe, {name}", draw) for name in ("1 shot", "2 shots") for draw in (5, 6)]
    assert rows == [("zero-shot", None), ("probe", 5), *few] and not out.exists()
    assert run(["study", str(study), "--out", str(out)]) == 0
    assert "Learning curve: With all labels" in capsys.readouterr().out.replace("\n", " ")
    curve = json.loads((out / "report.json").read_text())["learning_curve"]
    (probe,) = curve["methods"]
    assert [point["shots"] for point in probe["points"]] == [1, 2, "all"] and curve["floor"] == "zero-shot"
    split, labels = np.array(manifest.column("split")), np.array(manifest.column("label"))
    patients = np.array(manifest.column("patient"))
    for name, count in curve["patients"].items():
        assert count == len(set(patients[(split == "train") & (labels == name)]))
        assert curve["labelled"][name] == count + len(set(patients[(split == "val") & (labels == name)]))
    for point in probe["points"][:2]:
        for value, draw in zip(point["trainings"], (5, 6), strict=True):
            table = read_predictions(
                out / "runs" / "probe" / f"shots-{point['shots']}-draw-{draw}" / "predictions.parquet"
            )
            right = [table.labels.names[c] for c in table.scores.argmax(axis=1)]
            assert value == pytest.approx(_macro_f1([table.labels.names[c] for c in table.target], right))
    first = files(out)
    assert run(["study", str(study), "--out", str(out), "--dry-run", "--json"]) == 0
    assert all(row["done"] for row in json.loads(capsys.readouterr().out)["runs"])
    assert run(["study", str(study), "--out", str(out)]) == 0 and files(out) == first


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_comes_after_a_fine_tuning_uses_its_draw(images: Path, clip: Path, tmp_path: Path) -> None:
    tuning = method("finetune", "LoRA", steps=1, batch_size=6, chunk_size=4, select="last", then="probe")
    text = SHOTS + "only_folds = [0]\n" + tuning + method("zeroshot", "tuned", after="LoRA")
    config, methods = read_study(write_study(tmp_path, clip, text, manifest=images / "m.parquet"), {})
    few, out = few_shot_entries(config, methods), tmp_path / "out"
    report = run_study(config, methods, out)
    assert {m["name"] for m in report["learning_curve"]["methods"]} == {"LoRA", "LoRA, then probe", "tuned"}
    assert report["learning_curve"]["failed"] == []
    for entry in few:
        for _, _, folder in entry.runs(out):
            assert (folder / "done.json").is_file()
    note = read_note(out / "runs/lora/shots-2-draw-6/fold-0/adapter").facts
    used = json.loads((out / "runs/lora-then-probe/shots-2-draw-6/details.json").read_text())["chosen"][0]
    assert (used["train"], used["val"]) == (len(note["trained_on"]), len(note["chosen_on"])) and used["val"] > 0


def _macro_f1(target: list[str], predicted: list[str]) -> float:
    found = []
    for name in set(target):
        hit = sum(t == p == name for t, p in zip(target, predicted, strict=True))
        found.append(2 * hit / (target.count(name) + predicted.count(name)))
    return float(np.mean(found))
