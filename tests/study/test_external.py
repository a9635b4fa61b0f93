"""External sets of a study: settings, overlap, scores of every classifier, resuming, counting, and bad input."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import CLASSES, draw_picture, files
from tests.study.conftest import method, write_study

from thoraclip.data.index import index
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError
from thoraclip.imaging import fit
from thoraclip.labels import LabelSet
from thoraclip.methods.predictors import read_run
from thoraclip.study import external, plan_study, read_study, run_study
from thoraclip.study.external import select
from thoraclip.study.images import External
from thoraclip.study.reading import study_toml
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import Predictions, read_predictions

SETTINGS = 'resamples = 100\nseeds = [0, 1]\naudit = "none"\nthumbnails = false\n'
METHODS = method("zeroshot", "zero-shot") + method("probe", l2_steps=2) + method("trivial", max_iter=5)
STUDY = SETTINGS + METHODS
EXTERNAL = """
[external.hospital-b]
manifest = "b.parquet"
labels = { "covid" = "COVID-19", "healthy" = "Normal" }
note = "Another hospital's."
"""
LABELS = LabelSet(CLASSES)

Done = tuple[Path, dict[str, Any], list[str]]


def write_other_images(folder: Path, study: Manifest) -> Manifest:
    """Eight new pictures, and of every reason for leaving one out at least one, as `b.parquet`."""
    root = folder / "b"
    for name in ("covid", "healthy", "tb"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        name = ("covid", "healthy")[i % 2]
        pixels = draw_picture(56, 48, seed=900 + i, lungs=(0.25, 0.15)[i % 2], patch=(0.4, 0.0)[i % 2])
        Image.fromarray(pixels).save(root / name / f"new{i}.png")
    Image.fromarray(draw_picture(56, 48, seed=990)).save(root / "tb" / "other.png")
    ours = study.paths_by_id()
    shutil.copy(ours["COVID-19/0.png"], root / "covid" / "same.png")
    again = Image.open(ours["Normal/3.png"]).resize((160, 190), Image.Resampling.BICUBIC)
    again.save(root / "healthy" / "near.jpg", quality=90)
    shutil.copy(root / "healthy" / "near.jpg", root / "healthy" / "near-too.jpg")
    shutil.copy(root / "covid" / "new0.png", root / "covid" / "zcopy.png")
    Image.fromarray(draw_picture(56, 48, seed=991)).save(root / "covid" / "torn.png")
    found = index(root, layout="folders").manifest
    (root / "covid" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ids = found.column("image_id")
    patients = [{"covid/new0.png": "p03", "covid/new2.png": "p03", "healthy/new1.png": "q1"}.get(name) for name in ids]
    manifest = found.with_columns(patient=patients)
    write_manifest(folder / "b.parquet", manifest)
    return manifest


def looked_at_alone(run: Path, fold: int, images: Manifest) -> np.ndarray:
    """What the classifier of a fold says of the images, prepared by the library's own `fit`."""
    classifier = read_run(run).classifier(fold, LABELS)
    greys = [fit(np.asarray(Image.open(path).convert("L")), classifier.preprocess) for path in images.paths()]
    return np.asarray(classifier.look(np.stack(greys))[1])


def scored(run: Path, name: str, fold: int) -> Predictions:
    return read_predictions(run / f"external-{name}-fold-{fold}.parquet")


@pytest.fixture(scope="module")
def done(images: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """(folder of a finished study with an external set, its report, what was announced)."""
    folder = tmp_path_factory.mktemp("external")
    write_other_images(folder, read_manifest(images / "m.parquet"))
    write_study(folder, clip, STUDY + EXTERNAL, manifest=images / "m.parquet")
    told: list[str] = []
    report = run_study(*read_study(folder / "s.toml", {}), folder / "out", announce=told.append)
    return folder, report, told


# --- a finished study ---


def test_overlapping_pictures_are_left_out_and_named(done: Done) -> None:
    folder, report, told = done
    (one,) = report["external"]
    assert one["left_out"] == {
        "identical": 1, "near": 2, "copies": 1, "unreadable": 1, "label not in the mapping": 1, "unlabelled": 0,
        "other splits": 0,
    }  # fmt: skip
    found = json.loads((folder / "out" / "external" / "hospital-b" / "left-out.json").read_text())
    assert found["counts"] == one["left_out"] and found["labels_not_in_the_mapping"] == {"tb": 1}
    near = ("near", "Normal/3.png")
    assert {row["image_id"]: (row["reason"], row.get("of")) for row in found["images"]} == {
        "covid/same.png": ("identical", "COVID-19/0.png"),
        **{f"healthy/{name}.jpg": near for name in ("near", "near-too")},
        "covid/zcopy.png": ("copies", "covid/new0.png"),
        "covid/torn.png": ("unreadable", None),
    }
    (torn,) = (row for row in found["images"] if row["reason"] == "unreadable")
    assert "changed since it was indexed" in torn["detail"]
    assert one["n"] == 8 and one["images_per_class"] == {"COVID-19": 4, "Non-COVID": 0, "Normal": 4}
    assert one["absent"] == ["Non-COVID"]
    assert (one["patients_shared"], one["images_of_shared"], one["unit"]) == (1, 2, "patient")
    assert any(
        "8 images are judged, left out: 1 identical to a picture of the study, 2 nearly" in line for line in told
    )


def test_every_classifier_scores_every_image(done: Done) -> None:
    """Against the classifiers themselves, one picture at a time."""
    folder, report, _ = done
    images = read_manifest(folder / "out" / "external" / "hospital-b" / "manifest.parquet")
    places = [folder / "out" / "runs" / "probe" / f"seed-{seed}" for seed in (0, 1)]
    correct = []
    for place, fold in itertools.product(places, (0, 1, 2)):
        table = scored(place, "hospital-b", fold)
        assert table.image_id == tuple(images.column("image_id")) and set(table.fold) == {fold}
        assert table.scores == pytest.approx(looked_at_alone(place, fold, images), abs=1e-5)
        correct.append(np.mean(table.scores.argmax(axis=1) == table.target))
    assert not (folder / "out" / "runs" / "zero-shot" / "external-hospital-b-fold-0.parquet").exists(), (
        "one for all folds"
    )
    entries = {m["name"]: m for m in report["external"][0]["methods"]}
    assert (entries["probe"]["classifiers"], entries["zero-shot"]["classifiers"]) == (6, 1)
    assert entries["probe"]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(correct))
    assert report["external"][0]["not_scored"] == [{"name": "trivial", "reason": "keeps no model"}]
    inside = [read_predictions(place / "predictions.parquet") for place in places]
    kept = np.array([CLASSES[target] != "Non-COVID" for target in inside[0].target])
    value = np.mean([np.mean((t.scores.argmax(axis=1) == t.target)[kept]) for t in inside])
    assert entries["probe"]["inside"]["accuracy"]["value"] == pytest.approx(value)
    assert entries["probe"]["drop"]["accuracy"]["value"] == pytest.approx(value - np.mean(correct))


def test_the_reading_and_the_pages_tell_it(done: Done) -> None:
    folder, report, _ = done
    assert any(line.startswith("On hospital-b (8 images, 2 of 3 classes) ") for line in report["reading"])
    page = (folder / "out" / "report.html").read_text()
    assert "Another hospital&#39;s." in page and "trivial (keeps no model)" in page
    assert "external hospital-b" in json.loads((folder / "out" / "provenance.json").read_text())["inputs"]


def without_some(folder: Path, tmp_path: Path, keep: Callable[[int], bool]) -> Path:
    """A copy of the finished study without what the external set has left there, but for some of it."""
    shutil.copytree(folder / "out", tmp_path / "out")
    own = tmp_path / "out" / "external" / "hospital-b"
    made = [*own.glob("*"), *own.glob("embeddings/*"), *(tmp_path / "out" / "runs").rglob("external-*")]
    assert len(made) > 18
    for number, place in enumerate(sorted(made, key=str)):
        if not keep(number) and place.is_dir():
            shutil.rmtree(place)
        elif not keep(number):
            place.unlink(missing_ok=True)
    return tmp_path / "out"


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.usefixtures("undrawn")
def test_what_is_lost_is_made_again_with_the_same_bytes(lost: int, done: Done, tmp_path: Path) -> None:
    out = without_some(done[0], tmp_path, lambda number: number % 2 != lost)
    table = out / "runs" / "probe" / "seed-1" / "external-hospital-b-fold-2.parquet"
    shutil.copy(done[0] / "out" / "runs" / "probe" / "seed-1" / "external-hospital-b-fold-1.parquet", table)
    run_study(*read_study(done[0] / "s.toml", {}), out)
    assert files(out) == files(done[0] / "out")


@pytest.mark.usefixtures("undrawn")
def test_killed_meanwhile_it_ends_with_the_same_bytes(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed four times, each time a little later."""
    out = without_some(done[0], tmp_path, lambda _: False)
    for place, call in (
        ("data.check.inspection.find_duplicates", 1), ("study.external.write_manifest", 1),
        ("study.external._scores", 4), ("study.external.write_json", 4),
    ):  # fmt: skip
        name = f"thoraclip.{place}"
        real, left = resolve_name(name), iter(range(call - 1))

        def die(*arguments: Any, _real: Any = real, _left: Any = left, **named: Any) -> Any:
            if next(_left, None) is None:
                raise KeyboardInterrupt
            return _real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(name, die)
            with pytest.raises(KeyboardInterrupt):
                run_study(*read_study(done[0] / "s.toml", {}), out)
    run_study(*read_study(done[0] / "s.toml", {}), out)
    assert files(out) == files(done[0] / "out")
    for place in ("data.check.inspection.find_duplicates", "study.external._scores"):
        monkeypatch.setattr(f"thoraclip.{place}", lambda *_, **__: pytest.fail("done again"))
    run_study(*read_study(done[0] / "s.toml", {}), out)
    assert files(out) == files(done[0] / "out")


@pytest.mark.usefixtures("undrawn")
def test_other_labels_there_are_judged_anew(done: Done, images: Path, clip: Path, tmp_path: Path) -> None:
    folder, report, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    turned = EXTERNAL.replace(
        '"covid" = "COVID-19", "healthy" = "Normal"', '"covid" = "Normal", "healthy" = "COVID-19"'
    )
    file = write_study(folder, clip, STUDY + turned, manifest=images / "m.parquet", name="turned.toml")
    again = run_study(*read_study(file, {}), tmp_path / "out")
    assert again["external"][0]["methods"] != report["external"][0]["methods"]
    name = "out/runs/zero-shot/external-hospital-b.parquet"
    one, other = (read_predictions(where / name) for where in (folder, tmp_path))
    assert np.array_equal(one.scores, other.scores) and not np.array_equal(one.target, other.target)


@pytest.mark.usefixtures("undrawn")
def test_a_method_whose_model_is_gone_loses_no_other(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = done
    shutil.copytree(folder / "out", tmp_path / "out")
    for file in (tmp_path / "out" / "runs").rglob("external-*"):
        file.unlink()
    (tmp_path / "out" / "runs" / "probe" / "seed-1" / "head-fold-1.safetensors").unlink()
    told: list[str] = []
    report = run_study(*read_study(folder / "s.toml", {}), tmp_path / "out", announce=told.append)
    (one,) = report["external"]
    reasons = {row["name"]: row["reason"] for row in one["not_scored"]}
    assert "head-fold-1.safetensors" in reasons["probe"] and [m["name"] for m in one["methods"]] == ["zero-shot"]
    assert any("probe is not scored" in line for line in told)

    def break_down(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(external, "_scores", break_down)
    (tmp_path / "out" / "runs" / "zero-shot" / "external-hospital-b.json").unlink()
    (one,) = run_study(*read_study(folder / "s.toml", {}), tmp_path / "out")["external"]
    (reason,) = (row["reason"] for row in one["not_scored"] if row["name"] == "zero-shot")
    assert reason.startswith("ZeroDivisionError: nobody foresaw this; where it happened: runs/zero-shot/")
    assert "break_down" in (tmp_path / "out" / reason.rpartition(": ")[2]).read_text()


@pytest.mark.usefixtures("untimed")
def test_the_plan_counts_the_images_and_what_is_there(done: Done, images: Path, clip: Path, tmp_path: Path) -> None:
    folder, _, _ = done

    def stage(file: Path, out: Path) -> dict[str, Any]:
        plan = plan_study(*read_study(file, {}), out)
        return next(one for one in plan["stages"] if one["name"] == "external hospital-b")

    new = stage(folder / "s.toml", tmp_path / "new")
    assert new["images_encoded"] == 12 and not new["done"], "one pass for all heads, without the study's own image"
    there = stage(folder / "s.toml", folder / "out")
    assert there["images_encoded"] == 0 and there["done"]


def test_the_resolved_config_reads_back(done: Done) -> None:
    folder, _, _ = done
    config, methods = read_study(folder / "s.toml", {})
    assert config.external[0].labels == (("covid", "COVID-19"), ("healthy", "Normal"))
    assert config.external[0].manifest == str(folder / "b.parquet"), "beside the study file"
    (folder / "again.toml").write_text(study_toml(config, methods))
    assert read_study(folder / "again.toml", {})[0] == config


# --- other shapes ---


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_baseline_and_tuned_folds_score_a_folder(images: Path, clip: Path, tmp_path: Path) -> None:
    """Networks that are no frozen encoder, on a folder that the study indexes, some of it unreadable."""
    for name in CLASSES[:2]:
        (tmp_path / "c" / name).mkdir(parents=True)
        for i in range(3):
            pixels = draw_picture(40, 40, seed=700 + i + 10 * len(name))
            Image.fromarray(pixels).save(tmp_path / "c" / name / f"{i}.png")
    (tmp_path / "c" / CLASSES[0] / "bad.png").write_bytes(b"no picture")
    few = {"select": "last", "steps": 1, "batch_size": 4, "chunk_size": 4}
    methods = method("finetune", "LoRA", then="probe", **few) + method("baseline", "tower", **few)
    text = SETTINGS.replace("[0, 1]", "[0]") + "only_folds = [0, 1]\n" + methods
    text += '[external.c]\nfolder = "c"\nlayout = "folders"\n'
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    report = run_study(*read_study(file, {}), tmp_path / "out")
    (one,) = report["external"]
    assert {m["name"]: m["classifiers"] for m in one["methods"]} == {"LoRA": 2, "LoRA, then probe": 2, "tower": 2}
    assert one["left_out"]["unreadable"] == 1 and one["n"] == 6
    found = json.loads((tmp_path / "out" / "external" / "c" / "left-out.json").read_text())
    assert [row["path"] for row in found["not_indexed"]] == [f"{CLASSES[0]}/bad.png"]
    judged = read_manifest(tmp_path / "out" / "external" / "c" / "manifest.parquet")
    for name in ("lora", "lora-then-probe", "tower"):
        run = tmp_path / "out" / "runs" / name
        found = [scored(run, "c", fold).scores for fold in (0, 1)]
        for fold in (0, 1):
            assert found[fold] == pytest.approx(looked_at_alone(run, fold, judged), abs=1e-5), name
        assert not np.array_equal(*found), "each fold has a network of its own"
    assert sorted(p.name for p in (tmp_path / "out" / "pixels").iterdir()), "decoded pictures are kept"


# --- bad input ---


def rows(*labels: str | None, split: str = "") -> Manifest:
    """Images of these labels; `split` names that of each, or none."""
    splits = split.split() or [None] * len(labels)
    table = [
        {"image_id": f"{i}.png", "path": f"{i}.png", "label": label, "split": one}
        for i, (label, one) in enumerate(zip(labels, splits, strict=True))
    ]
    return Manifest.from_rows(table, Path(), may_leak=True)


def test_labels_are_mapped_kept_and_left_out() -> None:
    external = External(name="x", manifest="x", labels=(("sick", "COVID-19"), ("Non-COVID", ""), ("odd", "")))
    found = select(external, rows("sick", "Normal", "Non-COVID", "odd", "tb", None), LABELS)
    assert found.images.column("label") == ["COVID-19", "Normal"]
    assert found.images.column("their_label") == ["sick", "Normal"]
    assert found.left_out == {"label not in the mapping": 3, "unlabelled": 1}
    assert found.unmapped == {"Non-COVID": 1, "odd": 1, "tb": 1} and found.splits == ()


def test_one_split_can_be_taken() -> None:
    manifest = rows(*["Normal", "COVID-19", "tb"] * 2, split="test test test train train train")
    found = select(External(name="x", manifest="x", split="test"), manifest, LABELS)
    assert found.images.column("image_id") == ["0.png", "1.png"] and found.splits == ("test",)
    assert found.left_out == {"other splits": 3, "label not in the mapping": 1}
    assert found.images.parts() == [None, None], "its split says nothing about this study"
    assert select(External(name="x", manifest="x"), manifest, LABELS).splits == ("test", "train")


@pytest.mark.parametrize(
    ("more", "manifest", "message"),
    [
        ({}, rows("sick", "well"), "no label in common: its labels are sick, well, the study's classes COVID-19, Non-COVID, "
                                   'Normal; add labels = { "sick" = "COVID-19" } to \\[external.x\\]'),
        ({"labels": (("sik", "COVID-19"),)}, rows("sick", "Normal"), "no image has the label 'sik'; did you mean 'sick'"),
        ({"labels": (("sick", "COVID19"),)}, rows("sick"), "'COVID19', which is no class of the study; did you mean 'COVID-19'"),
        ({"labels": (("Normal", ""),)}, rows("Normal"), "no label in common"),
        ({}, rows(None), "no image has a label"),
        ({"split": "test"}, rows("Normal"), "its images name no split; leave split out"),
        ({"split": "val"}, rows("Normal", "tb", split="train test"), "no image of split 'val'; its splits are test, train"),
        ({"split": "test"}, rows("Normal", "tb", split="train test"), "no image of split 'test' has a class of the study"),
    ],
)  # fmt: skip
def test_labels_and_splits_that_do_not_fit_are_named(more: dict[str, Any], manifest: Manifest, message: str) -> None:
    with pytest.raises(ThoraclipError, match=message) as caught:
        select(External(name="x", manifest="x", **more), manifest, LABELS)
    assert type(caught.value) is (ManifestError if manifest.column("label") == [None] else ConfigError)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[external.x]\nmanifst = "b"', "external 'x': unknown setting 'manifst'; did you mean 'manifest'"),
        ("[external.x]\n", "external 'x': give either 'manifest' or 'folder'"),
        ('[external.x]\nmanifest = "b"\nfolder = "c"', "external 'x': give either 'manifest' or 'folder', and not both"),
        ('[external."a/b"]\nmanifest = "b"', r"external 'a/b': the name becomes a folder; use letters, digits, - and _"),
        ('[external.".."]\nmanifest = "b"', r"external '\.\.': the name becomes a folder"),
        ('[external.x]\nmanifest = "b"\nname = "y"', r"the name stands in the header \[external.x\]"),
        ('[external.x]\nmanifest = "b"\nlabels = ["a"]', r"labels = \['a'\] must name a class of the study"),
        ('[external.x]\nmanifest = "b"\nlabels = { a = 1 }', "must name a class of the study"),
        ('[external.x]\nmanifest = "b"\nsplit = "tests"', "split = 'tests' is unknown; did you mean 'test'"),
        ('[external.x]\nfolder = "b"\nlayout = "folder"', "unknown layout 'folder'; did you mean 'folders'"),
        ('[external.x]\nmanifest = "b"\nlayout = "folders"', "'layout' says how a folder is read"),
        ('[external.x]\nfolder = "b"\nlayout = "csv"', "layout 'csv' needs the table: csv = FILE"),
        ('[[external]]\nmanifest = "b"', r"'external' must be \[external.NAME\] tables"),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_are_named(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'manifest = "m.parquet"\n{table}\n')
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.toml", {})


@pytest.mark.parametrize(
    ("is_there", "message"),
    [
        (True, "no image is left to judge \\(24 identical to a picture of the study\\)"),
        (False, "b.parquet: no such manifest"),
    ],
)
def test_a_set_without_images_is_refused_before_anything_runs(
    is_there: bool, message: str, images: Path, clip: Path, tmp_path: Path
) -> None:
    if is_there:
        study = read_manifest(images / "m.parquet")
        nothing = [None] * len(study)
        write_manifest(tmp_path / "b.parquet", study.with_columns(fold=nothing, patient=nothing))
    text = STUDY + '[external.b]\nmanifest = "b.parquet"\n'
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    with pytest.raises(ThoraclipError, match=f"external 'b': {message}"):
        run_study(*read_study(file, {}), tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()
