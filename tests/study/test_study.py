"""The main job: settings, skipping, failing methods, seeds, and the same bytes whatever happened on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files

from thoraclip.data import batches
from thoraclip.data.index import index
from thoraclip.data.splits import split_fractions
from thoraclip.errors import ConfigError, InputError, ThoraclipError
from thoraclip.study import plan_study, read_study, run_study
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest

STUDY = """
manifest = "m.parquet"
resamples = 200
audit = "none"
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "probe, L-BFGS"
kind = "probe"
l2_steps = 3
"""


@pytest.fixture
def study_file(manifest: Manifest, tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m.parquet", manifest)
    (tmp_path / "s.toml").write_text(STUDY)
    return tmp_path / "s.toml"


def test_a_study_writes_what_the_contract_names(study_file: Path, tmp_path: Path) -> None:
    report = run_study(*read_study(study_file, {}), tmp_path / "out")
    names = set(files(tmp_path / "out"))
    assert {
        "config.toml",
        "provenance.json",
        "metrics.jsonl",
        "predictions.parquet",
        "report.json",
        "report.md",
        "report.html",
        "report.tex",
    } <= names
    assert {"runs/zero-shot/predictions.parquet", "runs/probe-l-bfgs/head-fold-0.safetensors"} <= names
    assert [m["name"] for m in report["methods"]].count("majority") == 1
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    for method in report["methods"]:
        assert method["n"] == 24
    page = (tmp_path / "out" / "report.html").read_text()
    assert "squash" in page, "the geometry is printed in every report"
    assert "not for diagnosis" in page


def test_what_is_done_is_not_run_again(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(*read_study(study_file, {}), tmp_path / "out")
    before = files(tmp_path / "out")
    from thoraclip.methods import probe, zeroshot

    def refuse(*_: object) -> None:
        raise AssertionError("ran again")

    monkeypatch.setattr(probe, "run", refuse)
    monkeypatch.setattr(zeroshot, "run", refuse)
    run_study(*read_study(study_file, {}), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_the_best_network_is_audited_and_the_reading_says_so(study_file: Path, tmp_path: Path) -> None:
    report = run_study(*read_study(study_file, {"audit": "best", "audit_images": 12}), tmp_path / "out")
    (name,) = report["audits"]
    best = max(
        (m for m in report["methods"] if m["kind"] != "majority"), key=lambda m: m["metrics"]["macro_f1"]["value"]
    )
    assert name == best["name"]
    assert report["reading"][1].startswith(f"Audit of {name}: ") and "non-lung content" in report["reading"][1]
    assert report["audits"][name]["images"] == 12 and report["audits"][name]["lungs"]["origin"] == "estimated"
    folder = tmp_path / "out" / "audits" / ("zero-shot" if name == "zero-shot" else "probe-l-bfgs")
    assert json.loads((folder / "audit.json").read_text()) == report["audits"][name]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Audit of {name}" in page and "Lungs or shortcuts: every test" in page
    before = files(tmp_path / "out")
    run_study(*read_study(study_file, {"audit": "best", "audit_images": 12}), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_an_audit_that_fails_does_not_lose_the_report(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thoraclip.study import auditing

    def breaks(*_: object, **__: object) -> None:
        raise InputError("no lungs here")

    monkeypatch.setattr(auditing, "audit", breaks)
    lines: list[str] = []
    report = run_study(*read_study(study_file, {"audit": "all"}), tmp_path / "out", announce=lines.append)
    assert report["audits"] == {} and report["reading"][1].startswith("Not audited")
    assert sum("failed: no lungs here" in line for line in lines) == 2
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("dies_in", ["zeroshot", "probe", "judge"])
def test_an_interrupted_study_ends_with_the_same_bytes(
    dies_in: str, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(*read_study(study_file, {}), tmp_path / "whole")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target = {"zeroshot": "thoraclip.methods.zeroshot.class_vectors", "probe": "thoraclip.methods.probe.write_head"}
    monkeypatch.setattr(target.get(dies_in, "thoraclip.study.running.write_report"), die)
    with pytest.raises(KeyboardInterrupt):
        run_study(*read_study(study_file, {}), tmp_path / "broken")
    monkeypatch.undo()
    (tmp_path / "broken" / "runs" / ".report.json.abc.part").write_text("left by a killed process")
    run_study(*read_study(study_file, {}), tmp_path / "broken")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_failed_method_does_not_lose_the_others(study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(STUDY + '[[methods]]\nname = "broken"\nkind = "probe"\nembeddings = "nowhere"\n')
    lines: list[str] = []
    report = run_study(*read_study(study_file, {}), tmp_path / "out", announce=lines.append)
    assert [m["name"] for m in report["failed"]] == ["broken"]
    assert "no finished embeddings" in report["failed"][0]["error"]
    assert {m["name"] for m in report["methods"]} == {"zero-shot", "probe, L-BFGS", "majority"}
    assert any("broken failed" in line for line in lines)


def test_a_method_that_breaks_does_not_lose_the_others_either(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    with monkeypatch.context() as patch:
        patch.setattr("thoraclip.methods.probe.run", break_down)
        report = run_study(*read_study(study_file, {}), tmp_path / "out")
    (failed,) = report["failed"]
    assert failed["error"].startswith("ZeroDivisionError: nobody foresaw this; where it happened: runs/")
    place = tmp_path / "out" / failed["error"].rpartition(": ")[2]
    assert "break_down" in place.read_text(encoding="utf-8")
    assert run_study(*read_study(study_file, {}), tmp_path / "out")["failed"] == []
    assert not place.exists()


def test_a_study_that_was_moved_runs_nothing_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions and adapters lie in its folder, whose name is no part of a result."""
    write_manifest(tmp_path / "m.parquet", split_fractions(manifest, fractions=(0.5, 0.25, 0.25), seed=0))
    (tmp_path / "s.toml").write_text(
        'manifest = "m.parquet"\nmodel = "tiny-clip"\ncaptioner = "template"\nresamples = 100\nthumbnails = false\n'
        '[[methods]]\nname = "LoRA"\nkind = "finetune"\nappend_label = true\nsteps = 1\nbatch_size = 4\nchunk_size = 4\n'
        'then = "probe"\n'
    )
    first = run_study(*read_study(tmp_path / "s.toml", {}), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")

    def refuse(*_: object) -> None:
        raise AssertionError("it was run again")

    with monkeypatch.context() as patch:
        for kind in ("finetune", "probe"):
            patch.setattr(f"thoraclip.methods.{kind}.run", refuse)
        again = run_study(*read_study(tmp_path / "s.toml", {}), tmp_path / "there")
    assert again["failed"] == []
    assert [row["metrics"] for row in again["methods"]] == [row["metrics"] for row in first["methods"]]


def test_when_every_method_fails_the_study_does(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ThoraclipError, match="no such folder"):
        run_study(*read_study(study_file, {"model": "./nowhere"}), tmp_path / "out")


def test_seeds_repeat_only_what_is_seeded(study_file: Path, tmp_path: Path) -> None:
    config, methods = read_study(study_file, {"seeds": [0, 1]})
    report = run_study(config, methods, tmp_path / "out")
    runs = {f.parent.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out" / "runs").rglob("done.json")}
    assert runs == {"runs/zero-shot", "runs/probe-l-bfgs/seed-0", "runs/probe-l-bfgs/seed-1"}
    probe = next(m for m in report["methods"] if m["name"].startswith("probe"))
    assert len(probe["metrics"]["accuracy"]["per_seed"]) == 2


def test_settings_reach_the_methods_that_know_them(study_file: Path) -> None:
    config, methods = read_study(study_file, {"geometry": "pad", "l2_steps": 7, "prompts": "pairs"})
    assert config.geometry == "pad"
    assert [m.config.geometry for m in methods] == ["pad", "pad"]
    assert methods[0].config.prompts == "pairs"
    assert methods[1].config.l2_steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'manifest = "m.parquet"\ngeometri = "pad"\nmodle = "x"',
            "unknown setting 'geometri'; did you mean 'geometry'.*unknown setting 'modle'",
        ),
        ('manifest = "m.parquet"\n[[methods]]\nkind = "prob"', "unknown method 'prob'; did you mean 'probe'"),
        ('manifest = "m.parquet"\n[[methods]]\nname = "x"', "method 1 has no 'kind'"),
        (
            'manifest = "m.parquet"\n[[methods]]\nkind = "probe"\nsolvr = "adamw"',
            "method 'probe': unknown setting 'solvr'; did you mean 'solver'",
        ),
        ('manifest = "m.parquet"\n[[methods]]\nkind = "probe"\n[[methods]]\nkind = "probe"', "'probe' stands twice"),
        ('manifest = "m.parquet"\nfolder = "x"', "either 'manifest' or 'folder'"),
        ('folder = "x"\nlayout = "folder"', "unknown layout 'folder'; did you mean 'folders'"),
        ('manifest = "m.parquet"\naudit = "bets"', "unknown audit 'bets'; did you mean 'best'"),
        ('manifest = "m.parquet"\naudit_images = -1', "audit_images = -1"),
        ('manifest = "m.parquet"\nseeds = [1, 1]', r"seeds = \[1, 1\]"),
        ('manifest = "m.parquet"\nmethods = 3', "one \\[\\[methods\\]\\] table or more"),
        ("manifest = m.parquet", "not valid TOML"),
    ],
)
def test_mistakes_in_a_study_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.toml", {})


def test_an_unknown_set_value_is_named(study_file: Path) -> None:
    with pytest.raises(ConfigError, match="--set: unknown setting 'l2_stps'; did you mean 'l2_steps'"):
        read_study(study_file, {"l2_stps": 3})


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such settings file"):
        read_study(tmp_path / "s.toml", {})


def test_a_bare_folder_is_indexed_split_and_run(class_folder: Path, tmp_path: Path) -> None:
    config, methods = read_study(class_folder, {"folds": 2, "resamples": 100})
    assert {m.kind for m in methods} == {"zeroshot", "probe"}, "what trains for long is asked for"
    run_study(config, methods, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert set(manifest.column("fold")) == {0, 1}
    assert (tmp_path / "out" / "manifest.index.json").is_file()


def test_a_study_inside_its_own_images_is_refused(class_folder: Path) -> None:
    with pytest.raises(InputError, match="choose an --out elsewhere"):
        run_study(*read_study(class_folder, {}), class_folder / "out")
    assert not (class_folder / "out").exists()


def test_images_without_a_part_are_left_out_and_counted(manifest: Manifest, tmp_path: Path) -> None:
    labels = manifest.column("label")
    split: list[str | None] = [("train", "train", "val", "test")[i % 4] for i in range(len(labels))]
    split[3] = None
    mixed = manifest.with_columns(fold=[None] * len(labels), patient=[None] * len(labels)).with_columns(split=split)
    write_manifest(tmp_path / "m.parquet", mixed)
    (tmp_path / "s.toml").write_text(STUDY)
    report = run_study(*read_study(tmp_path / "s.toml", {}), tmp_path / "out")
    assert report["dataset"]["left_out"] == {"without split": 1}
    assert {m["n"] for m in report["methods"]} == {split.count("test")}


def test_the_plan_tells_what_is_done(study_file: Path, tmp_path: Path) -> None:
    config, methods = read_study(study_file, {})
    before = plan_study(config, methods, tmp_path / "out")
    assert [r["done"] for r in before["runs"]] == [False, False]
    assert before["images"] == 24
    assert not (tmp_path / "out").exists()
    run_study(config, methods, tmp_path / "out")
    assert [r["done"] for r in plan_study(config, methods, tmp_path / "out")["runs"]] == [True, True]
    changed = plan_study(*read_study(study_file, {"l2_steps": 4}), tmp_path / "out")
    assert [r["done"] for r in changed["runs"]] == [True, False]


def test_the_resolved_config_is_a_study_file(study_file: Path, tmp_path: Path) -> None:
    config, methods = read_study(study_file, {"seeds": [0, 1]})
    run_study(config, methods, tmp_path / "out")
    again, same = read_study(tmp_path / "out" / "config.toml", {})
    assert (again, same) == (config, methods)


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


def test_published_values_reach_the_report_and_the_resolved_config(study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(STUDY + PUBLISHED)
    config, methods = read_study(study_file, {})
    assert [(row.name, row.of, row.accuracy) for row in config.published] == [
        ("linear classifier", "probe, L-BFGS", 0.878),
        ("Xception", None, 0.961),
    ]
    report = run_study(config, methods, tmp_path / "out")
    assert [row["name"] for row in report["published"]] == ["linear classifier", "Xception"]
    assert "Published (not measured here)" in (tmp_path / "out" / "report.md").read_text()
    assert read_study(tmp_path / "out" / "config.toml", {}) == (config, methods)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '[[published]]\nname = "x"\nof = "prob, L-BFGS"',
            "s.toml, published 'x': of = 'prob, L-BFGS' names no method; did you mean 'probe, L-BFGS'",
        ),
        (
            '[[published]]\nname = "x"\nsorce = "y"',
            "s.toml, published 'x': unknown setting 'sorce'; did you mean 'source'",
        ),
        (
            '[[published]]\nname = "x"\naccuracy = 92.4',
            r"s.toml, published 'x': accuracy = 92.4; give a fraction in \[0, 1\]",
        ),
        ("[[published]]\naccuracy = 0.9", "s.toml, published 1: setting 'name' is needed"),
        ('[published]\nname = "x"', "s.toml: 'published' = .* must be one"),
    ],
)
def test_mistakes_in_published_values_are_named(table: str, message: str, study_file: Path) -> None:
    study_file.write_text(STUDY + table)
    with pytest.raises(ConfigError, match=message):
        read_study(study_file, {})


def test_published_values_cannot_be_set_from_the_command_line(study_file: Path) -> None:
    with pytest.raises(ConfigError, match="--set published: published values stand in the study file"):
        read_study(study_file, {"published": []})


def test_results_do_not_depend_on_the_order_of_the_rows(manifest: Manifest, tmp_path: Path) -> None:
    from thoraclip.methods.probe import Config as ProbeConfig
    from thoraclip.methods.running import run_method

    order = np.random.default_rng(0).permutation(len(manifest))
    config = ProbeConfig(precision="fp32")
    first, _ = run_method("probe", config, manifest, tmp_path / "a")
    second, _ = run_method("probe", config, manifest.take(order), tmp_path / "b")
    scores = dict(zip(second.image_id, second.scores, strict=True))
    np.testing.assert_allclose(first.scores, [scores[i] for i in first.image_id], atol=1e-3)


def without_parts(manifest: Manifest, tmp_path: Path) -> Path:
    """A study of images without split or folds, one of which stands there twice, recompressed, under another patient."""
    first = manifest.paths()[0]
    copy = Image.open(first).resize((60, 72))
    copy.save(manifest.root / "Normal" / "copy.jpg", quality=80)
    found = index(manifest.root, layout="folders").manifest
    write_manifest(tmp_path / "m.parquet", found.with_columns(patient=[f"p{row}" for row in range(len(found))]))
    (tmp_path / "s.toml").write_text(STUDY)
    return tmp_path / "s.toml"


@pytest.mark.parametrize("is_grouped", [True, False])
def test_folds_that_the_study_makes_keep_copies_together(manifest: Manifest, tmp_path: Path, is_grouped: bool) -> None:
    study = without_parts(manifest, tmp_path)
    told: list[str] = []
    settings = {"group_duplicates": is_grouped, "folds": 3}
    run_study(*read_study(study, settings), tmp_path / "out", announce=told.append)
    done = read_manifest(tmp_path / "out" / "manifest.parquet")
    cluster = done.by_id("duplicate_cluster") if is_grouped else {}
    assert {i for i, c in cluster.items() if c} == ({"COVID-19/0.png", "Normal/copy.jpg"} if is_grouped else set())
    if is_grouped:
        fold = done.by_id("fold")
        assert fold["COVID-19/0.png"] == fold["Normal/copy.jpg"]
        assert "pictures that stand there more than once: 1, in 2 images; kept together" in told
    else:
        assert not (tmp_path / "out" / "inspection").exists()


def test_identical_pictures_in_two_parts_are_warned_of_and_reported(manifest: Manifest, tmp_path: Path) -> None:
    first, other = manifest.column("fold").index(0), manifest.column("fold").index(1)
    hashes = manifest.column("sha256")
    hashes[other] = hashes[first]
    manifest.paths()[other].write_bytes(manifest.paths()[first].read_bytes())
    write_manifest(tmp_path / "m.parquet", manifest.with_columns(sha256=hashes))
    (tmp_path / "s.toml").write_text(STUDY)
    told: list[str] = []
    report = run_study(*read_study(tmp_path / "s.toml", {}), tmp_path / "out", announce=told.append)
    assert any(line.startswith("warning: pictures in two parts of the split: 1") for line in told)
    assert report["dataset"]["pictures_in_two_parts"].startswith("1 (identical files): a leak")
    assert report["dataset"]["near_duplicates"].startswith("not looked for")
    assert "pictures in two parts" in (tmp_path / "out" / "report.html").read_text()


def test_a_dry_run_looks_at_no_picture(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = without_parts(manifest, tmp_path)
    config, methods = read_study(study, {"folds": 3})
    with monkeypatch.context() as patch:
        patch.setattr("thoraclip.study.running.duplicate_clusters", lambda *_, **__: pytest.fail("looked"))
        plan = plan_study(config, methods, tmp_path / "out")
        assert plan["images"] == 25 and [run["done"] for run in plan["runs"]] == [False, False]
    run_study(config, methods, tmp_path / "out")
    monkeypatch.setattr("thoraclip.study.running.duplicate_clusters", lambda *_, **__: pytest.fail("looked"))
    assert [run["done"] for run in plan_study(config, methods, tmp_path / "out")["runs"]] == [True, True]
    relabelled = read_manifest(tmp_path / "m.parquet")
    labels = ["Normal", *relabelled.column("label")[1:]]
    write_manifest(tmp_path / "m.parquet", relabelled.with_columns(label=labels))
    assert [run["done"] for run in plan_study(config, methods, tmp_path / "out")["runs"]] == [False, False]


def test_a_study_decodes_each_picture_once(
    study_file: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = batches.read_indexed
    monkeypatch.setattr(batches, "read_indexed", lambda path, sha: (decoded.append(path.name), original(path, sha))[1])
    text = STUDY + '[[methods]]\nname = "other precision"\nkind = "zeroshot"\nprecision = "bf16"\n'
    study_file.write_text(text.replace("resamples = 200", 'resamples = 200\nprecision = "fp32"'))
    run_study(*read_study(study_file, {}), tmp_path / "out")
    assert len(decoded) == len(manifest)
    decoded.clear()
    run_study(*read_study(study_file, {"pixel_cache": False}), tmp_path / "direct")
    assert len(decoded) == 2 * len(manifest)
    assert not (tmp_path / "direct" / "pixels").exists()
    for name in ("zero-shot", "probe-l-bfgs", "other-precision"):
        kept, direct = (files(tmp_path / out / "runs" / name)["predictions.parquet"] for out in ("out", "direct"))
        assert kept == direct


TUNED = """
manifest = "m.parquet"
resamples = 100
seeds = [0, 1]
batch_size = 16
[[methods]]
name = "LoRA"
kind = "finetune"
then = "probe"
batch_size = 6
chunk_size = 6
epochs = 1
val_fraction = 0.3
[[methods]]
name = "projected"
kind = "probe"
after = "LoRA"
features = "projected"
"""


def test_a_fine_tuning_and_what_comes_after_it(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    (tmp_path / "s.toml").write_text(TUNED)
    config, methods = read_study(tmp_path / "s.toml", {})
    assert [(m.name, m.kind, m.seeds) for m in methods] == [
        ("LoRA", "finetune", (0, 1)),
        ("LoRA, then probe", "probe", (0, 1)),
        ("projected", "probe", (0, 1)),
    ]
    assert methods[0].config.batch_size == 6, "the study's batch_size is the images of a forward pass"
    assert methods[1].config.batch_size == 16
    assert methods[1].config.val_fraction == 0.3, "inherited from the training"
    report = run_study(config, methods, tmp_path / "out")
    assert {m["name"] for m in report["methods"]} == {"LoRA", "LoRA, then probe", "projected", "majority"}
    assert not report["failed"]
    for seed in (0, 1):
        adapter = (tmp_path / "out/runs/lora-then-probe" / f"seed-{seed}" / "config.toml").read_text()
        assert f'adapter = "{tmp_path}/out/runs/lora/seed-{seed}"' in adapter
    assert all(run["done"] for run in plan_study(config, methods, tmp_path / "out")["runs"])
    shown = {m["name"]: m["settings"] for m in report["methods"]}
    assert shown["projected"]["adapter"] == "of 'LoRA'"
    again = read_study(tmp_path / "out" / "config.toml", {})
    assert again[1] == methods


def test_what_comes_after_a_failed_training_fails_too(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    (tmp_path / "s.toml").write_text(
        TUNED.replace("batch_size = 6\n", "batch_size = 600\n") + '[[methods]]\nkind = "zeroshot"\n'
    )
    report = run_study(*read_study(tmp_path / "s.toml", {}), tmp_path / "out")
    failed = {f["name"]: f["error"] for f in report["failed"]}
    assert "larger than the training set" in failed["LoRA"]
    assert failed["LoRA, then probe"] == failed["projected"] == "its adapters are those of 'LoRA', which failed"
    assert {m["name"] for m in report["methods"]} == {"zeroshot", "majority"}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ('kind = "finetune"\nthen = "prob"', "unknown method 'prob'; did you mean 'probe'"),
        ('kind = "finetune"\nthen = "finetune"', "uses no adapter, so it cannot come after 'finetune'"),
        ('kind = "finetune"\nthen = 3', "then = 3 must be the kind of a method"),
        ('kind = "probe"\nafter = "LoRA"', "after = 'LoRA' must be the name of a finetune that stands above it"),
        ('kind = "zeroshot"\nthen = "probe"', "after = 'zeroshot' must be the name of a finetune"),
    ],
)
def test_mistakes_about_what_comes_after_are_named(methods: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'manifest = "m.parquet"\n[[methods]]\n{methods}\n')
    with pytest.raises(ConfigError, match=message):
        read_study(tmp_path / "s.toml", {})
