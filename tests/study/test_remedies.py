"""`remedies = [...]`: every method beside itself with each remedy, inside and outside, and the same pixels in a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import save_checkpoint
from tests.study.conftest import method, write_study

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError
from thoraclip.evaluation.render import html_page, markdown_page
from thoraclip.imaging.remedies import REMEDIES as PIXEL_REMEDIES
from thoraclip.study.reading import read_study, study_toml
from thoraclip.study.remedies import REMEDIES, Remedy, settings_of
from thoraclip.study.running import run_study

LORA = {"steps": 1, "batch_size": 4, "loss": "prompt_ce", "then": "probe"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("clip", tmp_path_factory.mktemp("clip") / "clip")


def entries(tmp_path: Path, clip: Path, manifest: Path, text: str) -> list[Any]:
    return read_study(write_study(tmp_path, clip, text, manifest=manifest), {})[1]


def test_each_method_runs_with_each_remedy_whose_settings_it_has(
    clip: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REMEDIES, "weights", Remedy("rarer classes weigh more", {"class_weight": "balanced"}))  # type: ignore[index]
    monkeypatch.setitem(REMEDIES, "half", Remedy("half of the adapter", {"adapter_scale": 0.5}))  # type: ignore[index]
    text = 'remedies = ["centre+weights", "centre", "half"]\n' + method("zeroshot", "zero-shot")
    text += method("probe", "probe", l2_steps=2) + method("finetune", "LoRA", **LORA) + method("trivial", "trees")
    rows = {m.name: m for m in entries(tmp_path, clip, images / "m.parquet", text)}
    assert list(rows) == [
        "zero-shot", "zero-shot, centre", "zero-shot, half",
        "probe", "probe, centre+weights", "probe, centre", "probe, half",
        "LoRA", "LoRA, centre+weights", "LoRA, centre",
        "LoRA, then probe", "LoRA, then probe, centre+weights", "LoRA, then probe, centre", "LoRA, then probe, half",
        "trees", "trees, centre+weights", "trees, centre",
    ]  # fmt: skip
    both = rows["LoRA, then probe, centre+weights"]
    assert both.after is rows["LoRA, centre+weights"] and both.config.remedy == both.after.config.remedy == "centre"
    assert both.after.config.class_weight == "balanced" and both.config.class_weight == "none", "one of both weighs"
    half = rows["LoRA, then probe, half"]
    assert half.after is rows["LoRA"] and (half.config.adapter_scale, half.config.remedy) == (0.5, "none")
    assert (half.plain, half.with_remedy) == ("LoRA, then probe", "half") and not rows["LoRA"].plain


def test_a_study_that_was_written_back_is_the_same_study(clip: Path, images: Path, tmp_path: Path) -> None:
    text = 'remedies = ["centre", "clahe+centre"]\n' + method("probe", "probe") + method("finetune", "LoRA", **LORA)
    file = write_study(tmp_path, clip, text, manifest=images / "m.parquet")
    config, methods = read_study(file, {})
    again = tmp_path / "again.toml"
    again.write_text(study_toml(config, methods), encoding="utf-8")
    assert read_study(again, {}) == (config, methods)


@pytest.mark.parametrize(
    ("remedies", "said"),
    [
        ('["lung"]', "unknown remedy 'lung'"),
        ('["clahee"]', "did you mean 'clahe'"),
        ('["weights+none"]', "unknown remedy 'none'"),
        ('["weights+other"]', "sets class_weight to both 'balanced' and 'none'"),
        ('["deep"]', "no method of the study can use 'deep', which needs the setting depth"),
    ],
)
def test_what_cannot_be_done_is_refused(
    remedies: str, said: str, clip: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, settings in (
        ("weights", {"class_weight": "balanced"}),
        ("other", {"class_weight": "none"}),
        ("deep", {"depth": 3}),
    ):
        monkeypatch.setitem(REMEDIES, name, Remedy("", settings))  # type: ignore[index]
    with pytest.raises(ConfigError) as caught:
        entries(tmp_path, clip, images / "m.parquet", f"remedies = {remedies}\n" + method("probe", "probe"))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_every_remedy_names_settings_that_a_method_has() -> None:
    from thoraclip.methods import METHODS

    known = set().union(*(m.config_type.__dataclass_fields__ for m in METHODS.values()))
    assert set(PIXEL_REMEDIES) <= set(REMEDIES)
    for name, remedy in REMEDIES.items():
        assert remedy.does and remedy.settings.keys() <= known and settings_of(name, "x") == remedy.settings


@pytest.fixture(scope="module")
def report(clip: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a small study with an external set, the same images under other names."""
    folder = tmp_path_factory.mktemp("study")
    assert run(["phantom", str(folder / "there"), "--images", "12", "--seed", "7", "--size", "64"]) == 0
    assert run(["index", str(folder / "there"), "--out", str(folder / "there.parquet")]) == 0
    text = 'audit = "none"\nresamples = 100\nremedies = ["centre", "equalise"]\nthumbnails = false\n'
    text += method("zeroshot", "zero-shot") + method("probe", "probe", l2_steps=2)
    text += method("trivial", "trees", max_iter=5)
    text += f'[external.there]\nmanifest = "{folder / "there.parquet"}"\n'
    file = write_study(folder, clip, text, manifest=images / "m.parquet")
    run_study(*read_study(file, {}), folder / "out")
    return dict(json.loads((folder / "out" / "report.json").read_text()))


def test_the_report_compares_each_remedy_with_the_method_without_it(report: dict[str, Any]) -> None:
    entry = report["remedies"]
    assert [(r["plain"], r["remedy"]) for r in entry["rows"]] == [
        (name, remedy) for name in ("zero-shot", "probe", "trees") for remedy in ("none", "centre", "equalise")
    ]
    rows = {row["method"]: row for row in entry["rows"]}
    inside = {m["name"]: m["metrics"]["macro_f1"]["value"] for m in report["methods"]}
    [there] = report["external"]
    outside = {m["name"]: m["metrics"]["macro_f1"]["value"] for m in there["methods"]}
    for name, row in rows.items():
        assert row["inside"]["value"] == inside[name]
        assert row["outside"]["there"]["value"] == outside.get(name)
        if row["remedy"] == "none":
            assert row["inside"]["gain"] is row["outside"]["there"]["gain"] is None
            continue
        assert row["inside"]["gain"]["difference"] == pytest.approx(inside[name] - inside[row["plain"]])
        if name in outside:
            gain = row["outside"]["there"]["gain"]
            assert gain["difference"] == pytest.approx(outside[name] - outside[row["plain"]])
            assert gain["low"] <= gain["difference"] <= gain["high"] and gain["p"] <= gain["p_holm"] <= 1
    assert [c["b"] for c in there["comparisons"]] == ["zero-shot", "zero-shot", "probe", "probe"], "one family"
    assert rows["trees, centre"]["outside"]["there"] == dict.fromkeys(("value", "low", "high", "gain"))
    [said] = [sentence for sentence in report["reading"] if sentence.startswith("Remedies")]
    assert "on there" in said


def test_pages_show_the_table_and_the_figure(report: dict[str, Any]) -> None:
    text, page = markdown_page(report), html_page(report, None, None)
    assert "## Remedies against shortcuts" in text and "| probe | centre |" in text
    assert "macro F1 on there" in page and page.count('id="h-remedies"') == 1


def test_a_bundle_sees_the_pixels_that_the_run_saw(
    clip: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thoraclip.tables.predictions import read_predictions

    monkeypatch.chdir(tmp_path)
    manifest = str(images / "m.parquet")
    settings = [
        "--set",
        f"model={clip}",
        "--set",
        "remedy=centre+equalise",
        "--set",
        "only_folds=[0]",
        "--set",
        "l2_steps=2",
    ]
    assert run(["probe", manifest, "--out", "run", *settings]) == 0
    assert run(["export", "run", "--out", "bundle", "--manifest", manifest, "--fold", "0"]) == 0
    assert json.loads(Path("bundle/bundle.json").read_text())["preprocess"]["remedy"] == "centre+equalise"
    assert run(["predict", "bundle", "--manifest", manifest, "--format", "jsonl", "--out", "p.jsonl"]) == 0
    from thoraclip.tables.manifest import read_manifest

    ids = dict(
        zip(
            map(str, read_manifest(Path(manifest)).paths()),
            read_manifest(Path(manifest)).column("image_id"),
            strict=True,
        )
    )
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    own = read_predictions(Path("run"))
    known = dict(zip(own.image_id, own.scores, strict=True))
    compared = 0
    for row in rows:
        image = ids[next(path for path in ids if path.endswith(row["path"]))]
        if image in known:
            scores = [row[f"score_{name}"] for name in own.labels.names]
            assert np.argmax(scores) == np.argmax(known[image])
            compared += 1
    assert compared == len(known) > 0
