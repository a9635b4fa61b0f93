"""The audit end to end on phantoms with a planted border, and on whatever masks and columns there are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.checkpoints import save_checkpoint
from tests.conftest import files

from thoraclip.cli.app import run as command
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.data.splits import split_folds
from thoraclip.errors import ConfigError, InputError, ManifestError, MismatchError
from thoraclip.labels import LabelSet
from thoraclip.methods import altered
from thoraclip.methods import retrained as module_of_trees
from thoraclip.methods.audit import AuditConfig, _across_sources, _Sample, audit
from thoraclip.methods.predictors import FinishedRun, find_manifest, read_run
from thoraclip.methods.probe import Config as ProbeConfig
from thoraclip.methods.running import run_method
from thoraclip.methods.trivial import Config as TrivialConfig
from thoraclip.methods.zeroshot import Config as ZeroshotConfig
from thoraclip.tables.manifest import Manifest, write_manifest

IMAGES = 36
SETTINGS = AuditConfig(resamples=100, folds=2, saliency=0, duplicates=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A folder with a manifest and the runs of a probe, of zero-shot and of trivial features.

    `probe` and `zeroshot` have an encoder of random weights: what is asked of them costs next to nothing.
    """
    root = tmp_path_factory.mktemp("study")
    phantoms = PhantomConfig(images=IMAGES, size=128, seed=5, difficulty=0.0, shortcut="border", shortcut_strength=1.0)
    write_phantoms(root / "phantoms", phantoms, workers=1)
    found = index(root / "phantoms", layout="csv", csv_file=root / "phantoms" / "phantoms.csv").manifest
    manifest = split_folds(found, folds=2, seed=0)
    write_manifest(root / "manifest.parquet", manifest)
    model = str(save_checkpoint("clip", root / "model"))
    for name, config in (
        ("probe", ProbeConfig(model=model, l2_min=0.1, l2_max=0.1, l2_steps=1)),
        ("zeroshot", ZeroshotConfig(model=model)),
        ("trivial", TrivialConfig(max_iter=2, features=("file",))),
    ):
        run_method(name, config, manifest, root / "runs" / name, cache=root / "embeddings", pixels=root / "pixels")
    return root, manifest


@pytest.fixture(scope="module")
def probe(study: tuple[Path, Manifest]) -> FinishedRun:
    return read_run(study[0] / "runs" / "probe")


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask for no verdict of them."""
    monkeypatch.setattr(module_of_trees, "_TREES", 2)


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {t["name"]: t["verdict"] for t in content["tests"]}


@pytest.mark.slow
def test_the_planted_border_is_found_through_the_command(
    study: tuple[Path, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the shipped encoder."""
    root, manifest = study
    place, pixels = root / "runs" / "shipped", root / "pixels"
    config = ProbeConfig(l2_min=0.1, l2_max=0.1, l2_steps=1)
    run_method("probe", config, manifest, place, cache=root / "embeddings", pixels=pixels)
    arguments = ["audit", str(place), "--out", str(tmp_path / "audit"), "--pixels", str(pixels)]
    given = ["--set", "resamples=200", "--set", "folds=3", "--set", "saliency=4"]
    assert command([*arguments, *given]) == 0
    printed = capsys.readouterr().out
    assert "Strong reliance on non-lung content." in printed and "Research use only, not for diagnosis." in printed
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    found = verdicts(content)
    assert content["overall"] == "strong" and content["images"] == IMAGES
    assert found["background frame"] == "strong" and found["refitted border-only"] == "strong"
    assert found["background-swapped"] == "strong"
    assert found["refitted shuffled"] == found["random-removed"] == "control"
    assert content["sham"]["other_answers"] == 0 and content["sham"]["largest_change"] < 0.02
    assert content["lungs"]["origin"] == "given" and content["lungs"]["usable"] == IMAGES
    assert content["saliency"]["images"] == 4 and 0 <= content["saliency"]["inside"] <= 1
    assert content["without_duplicates"]["images"] == IMAGES
    assert {row["column"] for row in content["subgroups"]} >= {"view", "sex", "age"}
    shuffled = next(t for t in content["tests"] if t["name"] == "refitted shuffled")
    assert abs(shuffled["effect"]) < 0.2


@pytest.mark.usefixtures("few_trees")
def test_a_killed_audit_goes_on_and_ends_with_the_same_bytes(
    study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, manifest = study
    whole = audit(probe, manifest, SETTINGS, tmp_path / "whole", pixels=root / "pixels")
    made, real = [], altered.make_view

    def dies(view: Any, *rest: Any) -> Any:
        if len(made) > 7:
            raise KeyboardInterrupt
        made.append(view)
        return real(view, *rest)

    monkeypatch.setattr(altered, "make_view", dies)
    with pytest.raises(KeyboardInterrupt):
        audit(probe, manifest, SETTINGS, tmp_path / "killed", pixels=root / "pixels")
    made.clear()
    monkeypatch.setattr(altered, "make_view", lambda view, *rest: made.append(view) or real(view, *rest))
    again = audit(probe, manifest, SETTINGS, tmp_path / "killed", pixels=root / "pixels")
    assert again == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    shown = {view.title for view in made}
    assert 0 < len(shown) < len(altered.VIEWS)  # the views before the kill were not made again
    made.clear()
    assert audit(probe, manifest, SETTINGS, tmp_path / "killed", pixels=root / "pixels") == whole and not made


def with_masks(manifest: Manifest, root: Path, change: Any) -> Manifest:
    """The manifest with masks of its own, changed by (number, mask) -> mask or None."""
    names = []
    for number, mask in enumerate(manifest.column("lung_mask")):
        new = change(number, np.asarray(Image.open(manifest.root / mask)))
        names.append(None)
        if new is not None:
            path = root / f"{number}.png"
            root.mkdir(exist_ok=True)
            Image.fromarray(new).save(path)
            names[-1] = str(path)
    return manifest.with_columns(lung_mask=names)


@pytest.mark.usefixtures("few_trees")
def test_masks_that_are_no_lungs_are_set_aside_and_listed(
    study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path
) -> None:
    root, manifest = study

    def change(number: int, mask: np.ndarray) -> np.ndarray:
        wrong = {0: np.zeros_like(mask), 1: np.full_like(mask, 255), 2: np.full((40, 128), 255, dtype=np.uint8)}
        return wrong.get(
            number, mask[::2, ::2] if number == 3 else mask
        )  # another size of the same shape is no mistake

    changed = with_masks(manifest, tmp_path / "masks", change)
    content = audit(probe, changed, SETTINGS, tmp_path / "audit", pixels=root / "pixels")
    aside = {row["image_id"]: row["reason"] for row in content["lungs"]["set_aside"]}
    ids = manifest.column("image_id")
    assert set(aside) == set(ids[:3]) and content["lungs"]["usable"] == IMAGES - 3
    assert "no pixel" in aside[ids[0]] or "empty" in aside[ids[0]]
    assert "aspect" in aside[ids[2]] or "40" in aside[ids[2]]
    images = {t["name"]: t["images"] for t in content["tests"]}
    assert images["lungs-removed-mean"] == IMAGES - 3 and images["border-only"] == IMAGES
    assert "set aside" in content["lungs"]["words"]


@pytest.mark.usefixtures("few_trees")
def test_given_and_estimated_masks_are_never_mixed(
    study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path
) -> None:
    root, manifest = study
    labels = manifest.column("label")
    changed = with_masks(manifest, tmp_path / "masks", lambda n, mask: mask if labels[n] == "COVID-19" else None)
    content = audit(probe, changed, SETTINGS, tmp_path / "audit", pixels=root / "pixels")
    assert content["lungs"]["origin"] == "estimated" and "estimated" in " ".join(content["reading"])
    assert "never mixed" in content["lungs"]["words"]
    given = dataclasses.replace(SETTINGS, masks="given")
    with pytest.raises(ManifestError, match="have no lung mask"):
        audit(probe, changed, given, tmp_path / "given", pixels=root / "pixels")


@pytest.mark.usefixtures("few_trees")
def test_what_needs_no_mask_always_runs(study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path) -> None:
    root, manifest = study
    content = audit(
        probe, manifest, dataclasses.replace(SETTINGS, masks="none"), tmp_path / "audit", pixels=root / "pixels"
    )
    found = verdicts(content)
    assert not [name for name in found if "lungs" in name or "box" in name]
    assert found["border-only"] != "control" and content["saliency"] is None


@pytest.mark.usefixtures("few_trees")
def test_a_classifier_that_is_no_probe_is_judged_by_its_own_answers(
    study: tuple[Path, Manifest], tmp_path: Path
) -> None:
    root, manifest = study
    finished = read_run(root / "runs" / "zeroshot")
    content = audit(finished, manifest, SETTINGS, tmp_path / "audit", pixels=root / "pixels")
    assert {t["verdict"] for t in content["tests"] if t["level"] == "features"} == {"control"}
    assert any(t["counts"] for t in content["tests"] if t["level"] == "classifier")


@pytest.mark.usefixtures("few_trees")
def test_fewer_images_are_drawn_by_class(study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path) -> None:
    root, manifest = study
    few = dataclasses.replace(SETTINGS, images=18, masks="none")
    content = audit(probe, manifest, few, tmp_path / "audit", pixels=root / "pixels")
    assert content["images_per_class"] == dict.fromkeys(("COVID-19", "Non-COVID", "Normal"), 6)


def test_a_run_finds_its_manifest_and_refuses_another(
    study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path
) -> None:
    root, manifest = study
    assert find_manifest(probe).fingerprint == manifest.fingerprint
    moved = tmp_path / "runs" / "probe"
    shutil.copytree(probe.folder, moved)
    with pytest.raises(InputError, match="its manifest is not beside it; name it with --manifest"):
        find_manifest(read_run(moved))
    write_manifest(tmp_path / "manifest.parquet", manifest.take(np.arange(30)))
    with pytest.raises(MismatchError, match="is not the manifest that"):
        find_manifest(read_run(moved))
    with pytest.raises(MismatchError, match="was trained on the classes"):
        renamed = manifest.with_columns(label=["Other" if x == "Normal" else x for x in manifest.column("label")])
        audit(probe, renamed, SETTINGS, tmp_path / "a", pixels=root / "pixels")


def test_a_class_that_no_other_source_has_is_not_asked_across_sources() -> None:
    """Source a holds classes 0 and 1, source b 1 and 2: only class 1 can be carried over."""
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 1, 2], 30).astype(np.int64)
    source = ["a"] * 60 + ["b"] * 60
    rows = [
        {"image_id": f"i{i}", "path": f"{i}.png", "label": "xyz"[target[i]], "source": source[i]} for i in range(120)
    ]
    features = rng.normal(size=(120, 6)).astype(np.float32)
    features[:, 0] += 4.0 * target

    class Probe:
        features_key = ("same",)

    sample = _Sample(
        Manifest.from_rows(rows, Path("/nowhere")),
        [(Probe(), np.arange(120))],
        LabelSet(("x", "y", "z")),
        target,
        np.arange(120),
    )  # type: ignore[arg-type]
    seen = altered.Seen(features, np.full((120, 3), 1 / 3))
    answers, (trial,) = _across_sources(sample, seen, np.arange(120) % 5, SETTINGS, counts=True)
    asked = answers["across sources"] >= 0
    assert set(target[asked]) == {1} and np.array_equal(asked, answers["within sources"] >= 0)
    assert trial.counts and trial.before == "within sources"
    assert not _across_sources(sample, seen, np.arange(120) % 5, SETTINGS, counts=False)[1][0].counts
    apart = dataclasses.replace(sample, target=np.repeat([0, 0, 1, 1], 30))
    assert _across_sources(apart, seen, np.arange(120) % 5, SETTINGS, counts=True) == ({}, [])


def test_what_is_no_run_or_keeps_no_classifier_is_refused(study: tuple[Path, Manifest], tmp_path: Path) -> None:
    root, manifest = study
    with pytest.raises(InputError, match="is a study; name one of its runs"):
        read_run(root)
    with pytest.raises(InputError, match="no run there"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="a run of 'trivial' keeps no classifier"):
        audit(read_run(root / "runs" / "trivial"), manifest, SETTINGS, tmp_path / "audit")
    unfinished = tmp_path / "run"
    shutil.copytree(root / "runs" / "probe", unfinished)
    (unfinished / "done.json").unlink()
    with pytest.raises(InputError, match="the run is not finished"):
        read_run(unfinished)


def test_one_class_cannot_be_audited_and_settings_have_rules(
    study: tuple[Path, Manifest], probe: FinishedRun, tmp_path: Path
) -> None:
    _, manifest = study
    lonely = manifest.with_columns(
        label=[x if x == "Normal" or i < 6 else None for i, x in enumerate(manifest.column("label"))],
        split=["train" if i < 6 else "test" for i in range(len(manifest))], fold=[None] * len(manifest),
    )  # fmt: skip
    assert len({x for x in lonely.column("label") if x}) == 3
    with pytest.raises(ManifestError, match="two classes are needed"):
        audit(probe, lonely, SETTINGS, tmp_path / "audit")
    with pytest.raises(ConfigError, match="masks = 'estimte'.*did you mean 'estimate'"):
        AuditConfig(masks="estimte")
    for wrong in ({"folds": 1}, {"resamples": 10}, {"l2": 0.0}, {"images": -1}):
        with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
            AuditConfig(**wrong)  # type: ignore[arg-type]
