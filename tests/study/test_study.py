"""The main job: settings, skipping, failing methods, seeds, and the same bytes whatever happened on the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files
from tests.study.conftest import method, without_pages, write_study

from thoraclip.data import batches
from thoraclip.data.index import index
from thoraclip.data.splits import split_fractions
from thoraclip.errors import ConfigError, InputError, ThoraclipError
from thoraclip.methods import probe, zeroshot
from thoraclip.methods.running import run_method
from thoraclip.study import plan_study, read_study, run_study
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import read_predictions

SETTINGS = 'resamples = 100\naudit = "none"\n'
STUDY = SETTINGS + method("zeroshot", "zero-shot") + method("probe", "probe, L-BFGS", l2_steps=3)
MORE = method("probe", "AdamW", solver="adamw", epochs=2) + method("finetune", "broken", batch_size=600)
PUBLISHED = """
[[published]]
name = "linear classifier"
of = "probe, L-BFGS"
accuracy = 0.878
macro_recall = 1
source = 'the "study"'
note = "n = 6,788"
[[published]]
name = "Xception"
accuracy = 0.961
"""
PAGES = ("report.html", "report.md", "report.tex")


class Done(NamedTuple):
    """A finished study of two seeds, one of whose methods failed; read only."""

    out: Path
    config: StudyConfig
    methods: list[MethodEntry]
    report: dict[str, Any]
    lines: list[str]


@pytest.fixture
def study_file(images: Path, clip: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, clip, STUDY, manifest=images / "m.parquet")


@pytest.fixture(scope="module")
def done(images: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    config, methods = read_study(write_study(images, clip, "seeds = [0, 1]\n" + STUDY + MORE + PUBLISHED), {})
    out, lines = tmp_path_factory.mktemp("done") / "out", list[str]()
    return Done(out, config, methods, run_study(config, methods, out, announce=lines.append), lines)


@pytest.fixture
def copied(done: Done, tmp_path: Path) -> Path:
    """The finished study again, to be changed."""
    return Path(shutil.copytree(done.out, tmp_path / "copied"))


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("done again")


def test_a_study_writes_what_the_contract_names(done: Done) -> None:
    names, report = set(files(done.out)), done.report
    assert {"config.toml", "provenance.json", "metrics.jsonl", "predictions.parquet", "report.json", *PAGES} <= names
    assert {"runs/zero-shot/predictions.parquet", "runs/probe-l-bfgs/seed-0/head-fold-0.safetensors"} <= names
    assert report == json.loads((done.out / "report.json").read_text())
    assert [(m["name"], m["n"]) for m in report["methods"]].count(("majority", 24)) == 1
    assert {method["n"] for method in report["methods"]} == {24}
    page = (done.out / "report.html").read_text()
    assert "squash" in page, "the geometry is printed in every report"
    assert "not for diagnosis" in page
    assert read_study(done.out / "config.toml", {}) == (done.config, done.methods)
    rows = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"]: row["accuracy"] for row in rows} == {
        method["name"]: method["metrics"]["accuracy"]["value"] for method in report["methods"]
    }
    best = max((row for row in rows if row["name"] != "majority"), key=lambda row: row["macro_f1"])["name"]
    folder = min((done.out / "runs" / next(m.folder for m in done.methods if m.name == best)).rglob("done.json")).parent
    assert (done.out / "predictions.parquet").read_bytes() == (folder / "predictions.parquet").read_bytes()


def test_groups_and_a_stated_prevalence_reach_the_report(images: Path, clip: Path, tmp_path: Path) -> None:
    given = read_manifest(images / "m.parquet").with_columns(sex=["F", "M"] * 12, age_years=[20.0, 70.0, None] * 8)
    write_manifest(tmp_path / "m.parquet", given)
    file = write_study(tmp_path, clip, SETTINGS + 'prevalence = ["Normal=0.9"]\n' + method("zeroshot"))
    with without_pages():
        entry = run_study(*read_study(file, {}), tmp_path / "out")["methods"][0]
    assert [(column["column"], column["unknown"]) for column in entry["subgroups"]] == [("sex", 0), ("age", 8)]
    assert entry["predictive_values"]["Normal"]["stated"]["prevalence"] == 0.9


def test_the_prevalence_of_no_class_ends_a_study_before_its_work(study_file: Path, tmp_path: Path) -> None:
    config, methods = read_study(study_file, {"prevalence": ["Norml=0.9"]})
    with pytest.raises(ConfigError, match="prevalence of 'Norml': no such class; did you mean 'Normal'"):
        run_study(config, methods, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="prevalence of 'Norml': no such class"):
        plan_study(config, methods, tmp_path / "out")


def test_failed_methods_and_published_values_reach_the_report(done: Done) -> None:
    (failed,) = done.report["failed"]
    assert failed["name"] == "broken" and "larger than the training set" in failed["error"]
    assert {m["name"] for m in done.report["methods"]} == {"zero-shot", "probe, L-BFGS", "AdamW", "majority"}
    assert any("broken failed" in line for line in done.lines)
    for name in ("report.md", "report.html"):
        assert "larger than the training set" in (done.out / name).read_text(), name
    published = [(row["name"], row["of"], row["accuracy"]) for row in done.report["published"]]
    assert published == [("linear classifier", "probe, L-BFGS", 0.878), ("Xception", None, 0.961)]
    assert "Published (not measured here)" in (done.out / "report.md").read_text()


def test_every_run_has_its_seed_and_its_settings(done: Done, tmp_path: Path) -> None:
    """Against the methods themselves, run with the settings that the study file names."""
    runs = {f.parent.relative_to(done.out / "runs").as_posix() for f in (done.out / "runs").rglob("done.json")}
    probes = {f"{name}/seed-{seed}" for name in ("probe-l-bfgs", "adamw") for seed in (0, 1)}
    assert runs == {"zero-shot"} | probes, "what knows no seed runs once"
    manifest = read_manifest(Path(done.config.manifest))
    for name, given in (("probe-l-bfgs", {"l2_steps": 3}), ("adamw", {"solver": "adamw", "epochs": 2})):
        values = []
        for seed in (0, 1):
            own = probe.Config(model=done.config.model, seed=seed, **given)
            expected, _ = run_method("probe", own, manifest, tmp_path / name / str(seed), cache=done.out / "embeddings")
            found = read_predictions(done.out / "runs" / name / f"seed-{seed}" / "predictions.parquet")
            np.testing.assert_array_equal(found.scores, expected.scores)
            values.append(found.scores)
        row = named(done.report["methods"], next(m.name for m in done.methods if m.folder == name))
        assert row["seeds"] == [0, 1]
        apart = 1 if name == "probe-l-bfgs" else 2  # a convex fit ends at the same place from any seed
        assert len({one.tobytes() for one in values}) == len(set(row["metrics"]["log_loss"]["per_seed"])) == apart


@pytest.mark.usefixtures("undrawn")
def test_other_settings_run_again_what_they_touch_alone(
    done: Done, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [
        dataclasses.replace(m, config=dataclasses.replace(m.config, l2_steps=4)) if m.folder == "probe-l-bfgs" else m
        for m in done.methods
    ]
    ran, original = [], probe.run
    monkeypatch.setattr(
        probe, "run", lambda config, context: (ran.append(context.folder.path), original(config, context))[1]
    )
    monkeypatch.setattr(zeroshot, "run", refuse)
    plan = plan_study(done.config, methods, copied)
    assert {(r["name"], r["done"]) for r in plan["runs"]} == {
        ("zero-shot", True), ("probe, L-BFGS", False), ("AdamW", True), ("broken", False),
    }  # fmt: skip
    report = run_study(done.config, methods, copied)
    expected = [copied / "runs" / "probe-l-bfgs" / f"seed-{seed}" for seed in (0, 1)]
    assert [place for place in ran if place.parent.name != "broken"] == expected
    assert named(report["methods"], "probe, L-BFGS")["settings"]["l2_steps"] == "4"
    monkeypatch.undo()
    assert report == run_study(done.config, methods, tmp_path / "fresh")
    for name in ("predictions.parquet", "config.toml", "details.json", "done.json"):
        places = [out / "runs" / "probe-l-bfgs" / "seed-1" / name for out in (copied, tmp_path / "fresh", done.out)]
        again, alone, before = (place.read_bytes() for place in places)
        assert again == alone, name
        assert again != before or name == "predictions.parquet", name


@pytest.mark.usefixtures("undrawn")
def test_interrupted_it_ends_with_the_same_bytes(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "interrupted"
    for place in ("methods.zeroshot.class_vectors", "methods.probe.write_head", "study.running.write_report"):
        with monkeypatch.context() as patch:
            patch.setattr(f"thoraclip.{place}", die)
            with pytest.raises(KeyboardInterrupt):
                run_study(done.config, done.methods, out)
    run_study(done.config, done.methods, out)
    assert files(out) == {name: content for name, content in files(done.out).items() if name not in PAGES}


@pytest.mark.slow
def test_the_best_network_is_audited_and_the_reading_says_so(done: Done, copied: Path) -> None:
    config = dataclasses.replace(done.config, audit="best", audit_images=9)
    report = run_study(config, done.methods, copied)
    (name,) = report["audits"]
    able = [m for m in report["methods"] if m["kind"] != "majority"]
    assert name == max(able, key=lambda m: m["metrics"]["macro_f1"]["value"])["name"]
    assert report["reading"][1].startswith(f"Audit of {name}: ")
    assert report["reading"][2] == report["audits"][name]["reading"][1]
    assert report["audits"][name]["images"] == 9 and report["audits"][name]["lungs"]["origin"] == "estimated"
    folder = copied / "audits" / next(m.folder for m in done.methods if m.name == name)
    assert json.loads((folder / "audit.json").read_text()) == report["audits"][name]
    page = (copied / "report.html").read_text()
    assert f"Audit of {name}" in page and "Lungs or shortcuts: every test" in page
    before = files(copied)
    with without_pages():
        run_study(config, done.methods, copied)
    assert files(copied) == before


@pytest.mark.usefixtures("undrawn")
def test_an_audit_that_fails_loses_no_report(done: Done, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([InputError("no lungs here"), ZeroDivisionError("nobody foresaw this"), InputError("none here")])

    def breaks(*_: object, **__: object) -> None:
        raise next(errors)

    monkeypatch.setattr("thoraclip.study.auditing.audit", breaks)
    (copied / "report.json").unlink()
    lines: list[str] = []
    report = run_study(dataclasses.replace(done.config, audit="all"), done.methods, copied, announce=lines.append)
    assert report["audits"] == {} and report["reading"][1].startswith("Not audited")
    failures = [line.partition(" failed: ")[2] for line in lines if line.startswith("audit of ")]
    assert [text for text in failures if text] == [
        "no lungs here",
        "ZeroDivisionError: nobody foresaw this; where it happened: audits/probe-l-bfgs/error.txt",
        "none here",
    ]
    assert [file.parent.name for file in copied.glob("audits/*/error.txt")] == ["probe-l-bfgs"]
    assert (copied / "report.json").is_file()


@pytest.mark.usefixtures("undrawn")
def test_a_method_that_breaks_loses_no_other(done: Done, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    shutil.rmtree(copied / "runs" / "adamw")
    with monkeypatch.context() as patch:
        patch.setattr(probe, "run", break_down)
        error = named(run_study(done.config, done.methods, copied)["failed"], "AdamW")["error"]
    assert error.startswith("ZeroDivisionError: nobody foresaw this; where it happened: runs/")
    place = copied / error.rpartition(": ")[2]
    assert "break_down" in place.read_text(encoding="utf-8")
    assert [m["name"] for m in run_study(done.config, done.methods, copied)["failed"]] == ["broken"]
    assert not place.exists()


def test_when_every_method_fails_the_study_does(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ThoraclipError, match="no such folder"):
        run_study(*read_study(study_file, {"model": "./nowhere"}), tmp_path / "out")


def test_settings_reach_the_methods_that_know_them(study_file: Path) -> None:
    """The command's before the method's own before the study's."""
    config, methods = read_study(study_file, {"geometry": "pad", "l2_steps": 7, "prompts": "pairs", "only_folds": [2]})
    assert config.geometry == "pad"
    assert [m.config.geometry for m in methods] == ["pad", "pad"]
    assert [m.config.only_folds for m in methods] == [(2,), (2,)]
    assert methods[0].config.prompts == "pairs"
    assert methods[1].config.l2_steps == 7
    text = study_file.read_text()
    head = 'class_weight = "balanced"\ngeometry = "crop"\nbatch_size = 3\n'
    study_file.write_text(f'{head}{text}geometry = "pad"\n{method("zeroshot", "Zero shot?")}')
    _, methods = read_study(study_file, {})
    assert [m.folder for m in methods] == ["zero-shot", "probe-l-bfgs", "zero-shot-2"]
    assert [m.config.geometry for m in methods] == ["crop", "pad", "crop"]
    assert [m.config.batch_size for m in methods] == [3, 3, 3]
    assert methods[1].config.class_weight == "balanced" and methods[1].config.l2_steps == 3


ON = 'manifest = "m.parquet"\n'
PROBE = ON + '[[methods]]\nkind = "probe"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ON + 'geometri = "pad"\nmodle = "x"', "unknown setting 'geometri'; did you mean 'geometry'.*setting 'modle'"),
        (ON + '[[methods]]\nkind = "prob"', "unknown method 'prob'; did you mean 'probe'"),
        (ON + '[[methods]]\nname = "x"', "method 1 has no 'kind'"),
        (PROBE + 'solvr = "adamw"', "method 'probe': unknown setting 'solvr'; did you mean 'solver'"),
        (PROBE + '[[methods]]\nkind = "probe"', "'probe' stands twice"),
        (ON + 'folder = "x"', "either 'manifest' or 'folder'"),
        ('folder = "x"\nlayout = "folder"', "unknown layout 'folder'; did you mean 'folders'"),
        (ON + 'audit = "bets"', "unknown audit 'bets'; did you mean 'best'"),
        (ON + 'audit_masks = "givn"', "audit_masks"),
        (ON + "audit_images = -1", "audit_images = -1"),
        (ON + "seeds = [1, 1]", r"seeds = \[1, 1\]"),
        (ON + "seeds = [0, -1]", "seeds = -1: a whole number from 0 to"),
        (ON + "resamples = 99", "resamples = 99: a whole number from 100 to 100,000 is needed"),
        (ON + 'prevalence = ["Normal=2"]', r"prevalence of 'Normal' = 2\.0: a number between 0 and 1"),
        (ON + 'captioner = "template"\ncaptions = "c.csv"', "captioner = 'template' has nothing to write"),
        (ON + "methods = 3", r"one \[\[methods\]\] table or more"),
        ("manifest = m.parquet", "not valid TOML"),
        (PROBE + '[[published]]\nname = "x"\nof = "prob"', "s.toml, published 'x': of = 'prob' names no method; did you mean 'probe'"),
        (ON + '[[published]]\nname = "x"\nsorce = "y"', "s.toml, published 'x': unknown setting 'sorce'; did you mean 'source'"),
        (ON + '[[published]]\nname = "x"\naccuracy = 92.4', r"published 'x': accuracy = 92.4: a number from 0 to 1 is needed"),
        (ON + "[[published]]\naccuracy = 0.9", "published 1: setting 'name' is needed"),
        (ON + '[published]\nname = "x"', "'published' = .* must be one"),
        (ON + '[[methods]]\nkind = "finetune"\nthen = "prob"', "unknown method 'prob'; did you mean 'probe'"),
        (ON + '[[methods]]\nkind = "finetune"\nthen = "finetune"', "no adapter, so it cannot come after 'finetune'"),
        (ON + '[[methods]]\nkind = "finetune"\nthen = 3', "then = 3 must be the kind of a method"),
        (PROBE + 'after = "LoRA"', "after = 'LoRA' must be the name of a finetune that stands above it"),
        (ON + '[[methods]]\nkind = "zeroshot"\nthen = "probe"', "after = 'zeroshot' must be the name of a finetune"),
    ],
)  # fmt: skip
def test_mistakes_in_a_study_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.toml", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l2_stps": 3}, "--set: unknown setting 'l2_stps'; did you mean 'l2_steps'"),
        ({"published": []}, "--set published: published values stand in the study file"),
        ({"external": "x"}, "--set external: external sets stand in the study file"),
    ],
)
def test_mistakes_on_the_command_line_are_named(settings: dict[str, Any], message: str, study_file: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study_file, settings)


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing; name a study file"):
        read_study(tmp_path / "s.toml", {})


@pytest.mark.usefixtures("undrawn")
def test_a_bare_folder_is_indexed_split_and_run(images: Path, clip: Path, tmp_path: Path) -> None:
    config, methods = read_study(images / "images", {"folds": 2, "resamples": 100, "model": str(clip), "audit": "none"})
    assert {m.kind for m in methods} == {"zeroshot", "probe"}, "what trains for long is asked for"
    plan = plan_study(config, methods, tmp_path / "out")
    assert plan["images"] == 24
    assert [(r["done"], r["images_encoded"]) for r in plan["runs"]] == [(False, 24), (False, 0)]
    run_study(config, methods, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert set(manifest.column("fold")) == {0, 1}
    assert (tmp_path / "out" / "manifest.index.json").is_file()
    assert all(r["done"] for r in plan_study(config, methods, tmp_path / "out")["runs"])


def test_a_study_inside_its_own_images_is_refused(images: Path) -> None:
    with pytest.raises(InputError, match="choose an --out elsewhere"):
        run_study(*read_study(images / "images", {}), images / "images" / "out")
    assert not (images / "images" / "out").exists()


def test_what_is_wrong_with_the_split_is_counted_and_printed(manifest: Manifest, clip: Path, tmp_path: Path) -> None:
    """An image without a part is left out; one that stands in two parts is a leak."""
    split: list[str | None] = [("train", "train", "val", "test")[i % 4] for i in range(len(manifest))]
    split[3] = None
    hashes, nothing = manifest.column("sha256"), [None] * len(manifest)
    hashes[7] = hashes[0]
    manifest.paths()[7].write_bytes(manifest.paths()[0].read_bytes())
    mixed = manifest.with_columns(fold=nothing, patient=nothing, sha256=hashes).with_columns(split=split)
    write_manifest(tmp_path / "m.parquet", mixed)
    told: list[str] = []
    study = read_study(write_study(tmp_path, clip, STUDY), {})
    report = run_study(*study, tmp_path / "out", announce=told.append)
    assert report["dataset"]["left_out"] == {"without split": 1}
    assert {m["n"] for m in report["methods"]} == {split.count("test")}
    assert any(line.startswith("warning: pictures in two parts of the split: 1") for line in told)
    assert report["dataset"]["pictures_in_two_parts"].startswith("1 (identical files): a leak")
    assert report["dataset"]["near_duplicates"].startswith("not looked for")
    assert "pictures in two parts" in (tmp_path / "out" / "report.html").read_text()


def test_results_do_not_depend_on_the_order_of_the_rows(images: Path, clip: Path, tmp_path: Path) -> None:
    manifest = read_manifest(images / "m.parquet")
    order = np.random.default_rng(0).permutation(len(manifest))
    config = probe.Config(precision="fp32", model=str(clip))
    first, _ = run_method("probe", config, manifest, tmp_path / "a")
    second, _ = run_method("probe", config, manifest.take(order), tmp_path / "b")
    scores = dict(zip(second.image_id, second.scores, strict=True))
    np.testing.assert_allclose(first.scores, [scores[i] for i in first.image_id], atol=1e-3)


@pytest.mark.usefixtures("undrawn", "untimed")
@pytest.mark.parametrize("is_grouped", [True, False])
def test_folds_that_the_study_makes_keep_copies_together_and_a_dry_run_looks_at_no_picture(
    manifest: Manifest, clip: Path, tmp_path: Path, is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images without split or folds, one of which stands there twice, recompressed, under another patient."""
    copy = Image.open(manifest.paths()[0]).resize((60, 72))
    copy.save(manifest.root / "Normal" / "copy.jpg", quality=80)
    found = index(manifest.root, layout="folders").manifest
    found = found.with_columns(patient=[f"p{row}" for row in range(len(found))])
    write_manifest(tmp_path / "m.parquet", found)
    out, told = tmp_path / "out", list[str]()
    study = read_study(write_study(tmp_path, clip, STUDY), {"group_duplicates": is_grouped, "folds": 3})

    def planned() -> list[bool]:
        with monkeypatch.context() as patch:
            patch.setattr("thoraclip.study.running.duplicate_clusters", lambda *_, **__: pytest.fail("looked"))
            plan = plan_study(*study, out)
        assert plan["images"] == 25
        return [run["done"] for run in plan["runs"]]

    assert planned() == [False, False] and not out.exists()
    run_study(*study, out, announce=told.append)
    assert planned() == [True, True]
    done = read_manifest(out / "manifest.parquet")
    cluster = done.by_id("duplicate_cluster") if is_grouped else {}
    assert {i for i, c in cluster.items() if c} == ({"COVID-19/0.png", "Normal/copy.jpg"} if is_grouped else set())
    if is_grouped:
        fold = done.by_id("fold")
        assert fold["COVID-19/0.png"] == fold["Normal/copy.jpg"]
        assert "pictures that stand there more than once: 1, in 2 images; kept together" in told
    else:
        assert not (out / "inspection").exists()
    write_manifest(tmp_path / "m.parquet", found.with_columns(label=["Normal", *found.column("label")[1:]]))
    assert planned() == [False, False], "under other labels, the folds of before are no longer these"


@pytest.mark.usefixtures("undrawn")
def test_a_study_decodes_each_picture_once(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = batches.read_indexed
    monkeypatch.setattr(batches, "read_indexed", lambda path, sha: (decoded.append(path.name), original(path, sha))[1])
    text = study_file.read_text() + method("zeroshot", "other precision", precision="bf16")
    study_file.write_text(text.replace("resamples = 100", 'resamples = 100\nprecision = "fp32"'))
    run_study(*read_study(study_file, {}), tmp_path / "out")
    assert len(decoded) == 24
    decoded.clear()
    run_study(*read_study(study_file, {"pixel_cache": False}), tmp_path / "direct")
    assert len(decoded) == 2 * 24
    assert not (tmp_path / "direct" / "pixels").exists()
    for name in ("zero-shot", "probe-l-bfgs", "other-precision"):
        kept, direct = (files(tmp_path / out / "runs" / name)["predictions.parquet"] for out in ("out", "direct"))
        assert kept == direct


TRAINING = {
    "then": "probe",
    "loss": "unicl",
    "append_label": True,
    "batch_size": 4,
    "chunk_size": 4,
    "steps": 1,
    "val_fraction": 0.3,
}
TUNED = SETTINGS + 'seeds = [0, 1]\nbatch_size = 16\ncaptioner = "template"\n' + method("finetune", "LoRA", **TRAINING)
TUNED += method("probe", "projected", after="LoRA", features="projected")


def test_the_captions_of_a_study_reach_the_losses_that_take_captions(tmp_path: Path) -> None:
    losses = ("infonce", "unicl", "siglip", "prompt_ce", "supcon", "cross_entropy")
    text = SETTINGS + 'captioner = "template"\n' + "".join(method("finetune", loss, loss=loss) for loss in losses)
    (tmp_path / "s.toml").write_text(text + method("finetune", "default"))
    methods = read_study(tmp_path / "s.toml", {"manifest": "m.parquet"})[1]
    assert [m.name for m in methods if m.has_own_captions] == ["infonce", "unicl", "siglip"]
    with pytest.raises(ConfigError, match="unknown loss 'infonse'; did you mean 'infonce'"):
        (tmp_path / "s.toml").write_text(SETTINGS + 'captioner = "template"\n' + method("finetune", loss="infonse"))
        read_study(tmp_path / "s.toml", {"manifest": "m.parquet"})


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_fine_tuning_and_what_comes_after_it(
    images: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_fractions(read_manifest(images / "m.parquet"), fractions=(0.5, 0.25, 0.25), seed=0)
    write_manifest(tmp_path / "m.parquet", split)
    study = write_study(tmp_path, clip, TUNED)
    config, methods = read_study(study, {})
    assert [m.name for m in methods] == ["LoRA", "LoRA, then probe", "projected"]
    assert [m.kind for m in methods] == ["finetune", "probe", "probe"]
    assert {m.seeds for m in methods} == {(0, 1)}
    assert methods[0].config.batch_size == 4, "the study's batch_size is the images of a forward pass"
    assert methods[1].config.batch_size == 16
    assert methods[1].config.val_fraction == 0.3, "inherited from the training"
    here, there = tmp_path / "here", tmp_path / "there"
    first = run_study(config, methods, here)
    assert {m["name"] for m in first["methods"]} == {"LoRA", "LoRA, then probe", "projected", "majority"}
    assert not first["failed"]
    for seed in (0, 1):
        assert f"seed = {seed}\n" in (here / f"runs/lora/seed-{seed}/config.toml").read_text()
        adapter = (here / f"runs/lora-then-probe/seed-{seed}/config.toml").read_text()
        assert f'adapter = "{here}/runs/lora/seed-{seed}"' in adapter
    assert all(run["done"] for run in plan_study(config, methods, here)["runs"])
    assert named(first["methods"], "projected")["settings"]["adapter"] == "of 'LoRA'"
    assert read_study(here / "config.toml", {})[1] == methods

    here.rename(there)  # captions and adapters lie in its folder, whose name is no part of a result
    with monkeypatch.context() as patch:
        for kind in ("finetune", "probe"):
            patch.setattr(f"thoraclip.methods.{kind}.run", refuse)
        again = run_study(*read_study(study, {}), there)
    assert again["failed"] == []
    assert [row["metrics"] for row in again["methods"]] == [row["metrics"] for row in first["methods"]]


@pytest.mark.usefixtures("undrawn")
def test_what_comes_after_a_failed_training_fails_too(images: Path, clip: Path, tmp_path: Path) -> None:
    text = TUNED.replace("batch_size = 4\n", "batch_size = 600\n").replace('captioner = "template"\n', "")
    text = text.replace("append_label = true\n", "") + method("zeroshot")
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    report = run_study(*read_study(file, {}), tmp_path / "out")
    failed = {f["name"]: f["error"] for f in report["failed"]}
    assert "larger than the training set" in failed["LoRA"]
    assert failed["LoRA, then probe"] == failed["projected"] == "its adapters are those of 'LoRA', which failed"
    assert {m["name"] for m in report["methods"]} == {"zeroshot", "majority"}
