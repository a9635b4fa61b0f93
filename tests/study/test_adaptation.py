"""The adaptation curve of an external set: who is drawn, what is trained, where it is scored, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tests.study.conftest import method, write_study

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, ManifestError
from thoraclip.evaluation.external import ExternalResult
from thoraclip.evaluation.results import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.methods.parts import Part
from thoraclip.methods.probe import Config
from thoraclip.study import adaptation, read_study, run_study
from thoraclip.study.images import External
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import Predictions, read_predictions

LORA = {"steps": 1, "batch_size": 4, "loss": "prompt_ce", "then": "probe"}
SETTINGS = 'resamples = 100\nseeds = [0, 1]\ndraws = 2\naudit = "none"\nthumbnails = false\n'


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures of 18 patients from elsewhere, two of one whom the study has, too."""
    folder = tmp_path_factory.mktemp("there")
    assert run(["phantom", str(folder / "in"), "--images", "36", "--seed", "7", "--size", "64"]) == 0
    assert run(["index", str(folder / "in"), "--out", str(folder / "b.parquet")]) == 0
    found = read_manifest(folder / "b.parquet", may_leak=True)
    order = {label: np.flatnonzero([one == label for one in found.column("label")]) for label in found.column("label")}
    patients = ["" for _ in range(len(found))]
    for label, rows in order.items():
        for number, row in enumerate(rows):
            patients[row] = f"{label} {number // 2}"
    patients[0] = patients[1] = "p00"
    write_manifest(folder / "b.parquet", found.with_columns(patient=patients, split=[None] * len(found)).strict())
    return folder / "b.parquet"


def study_file(folder: Path, clip: Path, images: Path, there: Path, adapt: str) -> Path:
    text = SETTINGS + method("zeroshot", "zero-shot") + method("probe", l2_steps=2)
    text += method("finetune", "LoRA", **LORA) + method("trivial", max_iter=5)
    text += f'[external.b]\nmanifest = "{there}"\nadapt = {adapt}\n'
    return write_study(folder, clip, text, manifest=images / "m.parquet")


@pytest.fixture(scope="module")
def done(
    clip: Path, images: Path, there: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """(study folder, its report, what every head was fitted on)."""
    folder, fits = tmp_path_factory.mktemp("adapted"), list[dict[str, Any]]()
    real = adaptation.fit_fold

    def fit_fold(config: Any, fold: Any, targets: Any, labels: Any, sources: Any) -> Any:
        fits.append({"config": config, "part": fold[0], "features": fold[1], "targets": targets, "sources": sources})
        return real(config, fold, targets, labels, sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "fit_fold", fit_fold)
        run_study(*read_study(study_file(folder, clip, images, there, '[0, 1, 3, "all"]'), {}), folder / "out")
    return folder / "out", json.loads((folder / "out" / "report.json").read_text()), fits


def entry_of(report: dict[str, Any]) -> dict[str, Any]:
    return dict(report["external"][0]["adaptation"])


def test_who_is_adapted_and_how_often(done: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    entry = entry_of(done[1])
    assert [m["name"] for m in entry["methods"]] == ["probe", "LoRA, then probe"]
    assert [[(p["labels"], len(p["trainings"])) for p in m["points"]] for m in entry["methods"]] == [
        [(0, 2), (1, 2), (3, 2), ("all", 2)]
    ] * 2
    reasons = {row["name"]: row["reason"] for row in entry["not_adapted"]}
    assert reasons == {
        "zero-shot": "its network would have to be trained again",
        "LoRA": "its network would have to be trained again",
        "trivial": "keeps no model",
    }
    assert len(done[2]) == 2 * 3 * (2 + 2 + 2), "methods, folds; two draws of 1 and of 3, two seeds of all"
    assert not entry["failed"] and entry["unit"] == "patient" and entry["shared"] == 2


def test_drawn_images_join_the_training_and_count_as_much_as_the_studys(
    done: tuple[Path, dict[str, Any], list[dict[str, Any]]], images: Path, there: Path
) -> None:
    own, set_b = read_manifest(images / "m.parquet"), read_manifest(there)
    patients, count = np.array(set_b.column("patient")), len(own)
    for fit in done[2]:
        drawn = fit["part"].train[fit["part"].train >= count] - count
        assert fit["config"].class_weight == "source"
        assert fit["sources"].tolist() == [0] * count + [1] * (len(fit["features"]) - count)
        assert not {*fit["part"].val.tolist()} & {*fit["part"].train.tolist()}
        assert set(fit["part"].val.tolist()) < set(range(count)), "the penalty is chosen at home"
        assert len(drawn) == len(fit["features"]) - count
    table = entry_of(done[1])["test"]
    halves = {name for name in patients if name != "p00"}
    assert table["groups"] + sum(entry_of(done[1])["patients"].values()) == len(halves)


def test_smaller_draws_lie_in_larger_ones_and_in_the_pool(
    clip: Path, images: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = list[tuple[Any, Any]]()
    real = adaptation._jobs

    def spied(study: Any, config: Any, halves: Any, external: Any, *, is_first: bool) -> Any:
        for job in real(study, config, halves, external, is_first=is_first):
            jobs.append((job, halves))
            yield job

    monkeypatch.setattr(adaptation, "_jobs", spied)
    text = SETTINGS + method("probe", l2_steps=1)
    text += f'only_folds = [0]\n[external.b]\nmanifest = "{there}"\nadapt = [1, 2, "all"]\n'
    run_study(*read_study(write_study(tmp_path, clip, text, manifest=images / "m.parquet"), {}), tmp_path / "out")
    by = {(job.labels, job.config.seed): set(job.drawn.tolist()) for job, _ in jobs}
    halves = jobs[0][1]
    assert by.keys() == {(1, 0), (1, 1), (2, 0), (2, 1), ("all", 0), ("all", 1)}
    pool = set(halves.pool.tolist())
    assert not {*halves.groups[halves.pool].tolist()} & {*halves.groups[halves.test].tolist()}, "no patient in both"
    assert set(halves.target[halves.test].tolist()) == {0, 1, 2}
    for draw in (0, 1):
        assert by[1, draw] < by[2, draw] <= by["all", draw] == pool
        for k in (1, 2):
            rows = np.array(sorted(by[k, draw]))
            for label in range(3):
                assert len(set(halves.groups[rows[halves.target[rows] == label]].tolist())) == k
    assert by[1, 0] != by[1, 1]


def test_without_labels_the_scores_are_those_of_the_study(
    done: tuple[Path, dict[str, Any], list[dict[str, Any]]], images: Path
) -> None:
    out, report, _ = done
    [probe, _] = entry_of(report)["methods"]
    tables = [
        read_predictions(out / "runs" / "probe" / f"seed-{seed}" / f"external-b-fold-{fold}.parquet")
        for seed in (0, 1)
        for fold in range(3)
    ]
    study: Any = SimpleNamespace(
        manifest=read_manifest(images / "m.parquet"), config=SimpleNamespace(classes=(), seeds=(0,))
    )
    scored = read_manifest(out / "external" / "b" / "manifest.parquet", may_leak=True)
    halves, _ = adaptation._cut(study, External(name="b", manifest="b.parquet"), scored)
    values = [
        f1_score(table.target[halves.test], table.scores[halves.test].argmax(axis=1), average="macro", zero_division=0)
        for table in tables
    ]
    assert entry_of(report)["test"]["n"] == len(halves.test)
    assert probe["points"][0]["value"] == pytest.approx(np.mean(values))
    inside = {m["name"]: m for m in report["methods"]}["probe"]["metrics"]["macro_f1"]
    assert probe["points"][0]["inside"]["value"] == pytest.approx(inside["value"])
    assert probe["points"][0]["change"] is None and probe["points"][1]["change"] is not None


def test_again_it_is_the_same_report(done: tuple[Path, dict[str, Any], list[dict[str, Any]]], clip: Path) -> None:
    out, report, _ = done
    again = run_study(*read_study(out.parent / "s.toml", {}), out)
    assert again["external"] == report["external"]


def test_labels_from_there_help_where_classes_look_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of known truth: one number tells the classes at home, another one there."""
    rng, labels = np.random.default_rng(0), LabelSet(("a", "b"))

    def rows(n: int, sign: float, name: str) -> tuple[Manifest, Any]:
        target = np.arange(n) % 2
        x = rng.normal(size=(n, 6)).astype(np.float32)
        x[:, 0 if sign > 0 else 2] += 4 * target - 2
        listed = [
            {
                "image_id": f"{name}{i}",
                "path": f"{name}{i}.png",
                "label": "ab"[t],
                "split": ("train", "val", "test")[i % 3] if sign > 0 else None,
            }
            for i, t in enumerate(target)
        ]
        return Manifest.from_rows(listed, tmp_path), x

    (home, x), (away, there_x) = rows(240, 1.0, "h"), rows(200, -1.0, "t")
    parts = [np.flatnonzero([s == name for s in home.column("split")]) for name in ("train", "val", "test")]
    monkeypatch.setattr(adaptation, "fold_inputs", lambda *_: iter([(Part(None, *parts), x, None)]))
    monkeypatch.setattr(adaptation, "_features", lambda *_: there_x)
    config = Config(l2_steps=3)
    method = SimpleNamespace(name="p", kind="probe", config=config, seeds=(0,), runs=lambda _: [(0, config, tmp_path)])
    study: Any = SimpleNamespace(
        config=SimpleNamespace(classes=(), seeds=(0,), draws=3), manifest=home, methods=[method], out=tmp_path,
        pixels=None, log=lambda _: None,
    )  # fmt: skip
    table = Predictions(
        labels,
        tuple(away.column("image_id")),
        away.targets(labels),
        np.full((200, 2), 0.5),
        split=(None,) * 200,
        fold=(None,) * 200,
        patient=(None,) * 200,
    )
    result = ExternalResult(name="b", methods=(MethodResult(name="p", kind="probe", predictions=(table,)),))
    external = External(name="b", manifest="b.parquet", adapt=(0, 1, 40, "all"))
    made = adaptation.adapt_set(study, external, away, result).adaptation
    assert made is not None

    def accuracy(place: Any, count: Any) -> float:
        return float(np.mean([(t.scores.argmax(axis=1) == t.target).mean() for t in place["p", count].predictions]))

    assert accuracy(made.outside, 40) > 0.8 and accuracy(made.outside, "all") > 0.8
    assert accuracy(made.inside, "all") > 0.8
    assert len(made.outside["p", 40].predictions) == 3 and len(made.outside["p", "all"].predictions) == 1


@pytest.mark.parametrize(
    ("adapt", "error", "said"),
    [
        ("[0, -1]", ConfigError, "adapt = -1: all, or a whole number from 0 to 1,000,000 is needed"),
        ('["some"]', ConfigError, "adapt = 'some': all, or a whole number"),
        ("3", ConfigError, "adapt = 3: a list is needed"),
    ],
)
def test_bad_numbers_of_labels(
    adapt: str, error: type[Exception], said: str, clip: Path, images: Path, there: Path, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read_study(study_file(tmp_path, clip, images, there, adapt), {})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("undrawn")
def test_a_class_of_one_patient_cannot_be_cut(clip: Path, images: Path, there: Path, tmp_path: Path) -> None:
    found = read_manifest(there)
    labels, patients = found.column("label"), found.column("patient")
    rows = [row for row in range(len(found)) if labels[row] != "Normal" or patients[row] == "Normal 1"]
    write_manifest(tmp_path / "few.parquet", found.take(np.array(rows)))
    text = (
        SETTINGS + method("probe", l2_steps=1) + f'[external.b]\nmanifest = "{tmp_path / "few.parquet"}"\nadapt = [1]\n'
    )
    config, methods = read_study(write_study(tmp_path, clip, text, manifest=images / "m.parquet"), {})
    with pytest.raises(ManifestError, match=r"external 'b': adapt: class 'Normal' has 1 patients there"):
        run_study(config, methods, tmp_path / "out")
