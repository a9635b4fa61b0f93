"""The audit end to end on phantoms with a planted border, and each of its steps against a slow oracle."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples, files

from thoraclip.cli.app import run as command
from thoraclip.data import check
from thoraclip.data.background import (
    BACKGROUND,
    STROKES,
    background_features,
    edge_strokes,
    file_features,
    shown_features,
)
from thoraclip.data.batches import grey_batches
from thoraclip.data.index import index
from thoraclip.data.lungs import lung_masks
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.data.splits import assign_groups, independent_groups, split_folds
from thoraclip.errors import ManifestError
from thoraclip.evaluation.shortcuts import shuffled_control
from thoraclip.imaging import Preprocess, decode
from thoraclip.labels import LabelSet
from thoraclip.methods import audit as module
from thoraclip.methods.audit import AuditConfig, audit, probes, refits, scoring
from thoraclip.methods.audit.probes import probe_tests, view_tests
from thoraclip.methods.audit.sample import AuditSample, choose_images, draw_sample
from thoraclip.methods.audit.scoring import ViewScores, choose_partners, fills_in_turn
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config as ProbeConfig
from thoraclip.methods.running import run_method
from thoraclip.models import segmenter
from thoraclip.proportions import patient_share
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import Predictions

IMAGES, FEW = 36, 18
SETTINGS = AuditConfig(resamples=100, folds=2, saliency=0, duplicates=False, batch_size=7)


class Reader:
    """A classifier that sees the mean grey of the border and of the middle; nothing is loaded."""

    def __init__(self, key: str = "same") -> None:
        self.preprocess, self.features_key = Preprocess(size=64), ("pooled", key)

    def look(self, greys: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        x = greys.astype(np.float64) / 255
        seen = np.stack([x[:, :5].mean(axis=(1, 2)), x[:, 20:40, 20:40].mean(axis=(1, 2)), x.std(axis=(1, 2))], axis=1)
        odds = np.exp(9 * seen)
        return seen.astype(np.float32), odds / odds.sum(axis=1, keepdims=True)


@dataclasses.dataclass
class Run:
    """What is audited, see `AuditTarget`; each fold has a classifier of its own."""

    manifest: Manifest
    name: str = "a run"
    kind: str = "probe"
    fingerprint: str = "f"
    own: Predictions | None = None
    keys: tuple[str, ...] = ("same", "same", "same")
    loaded: list[int | None] = dataclasses.field(default_factory=list)

    def label_set(self, manifest: Manifest) -> LabelSet:
        return manifest.label_set()

    def parts(self, manifest: Manifest) -> Iterator[tuple[int | None, npt.NDArray[np.int64]]]:
        for fold in range(3):
            yield fold, np.flatnonzero([f == fold and l is not None for f, l in zip(manifest.column("fold"), manifest.column("label"), strict=True)])  # noqa: E741  # fmt: skip

    def classifier(self, fold: int | None, labels: LabelSet) -> Any:
        assert labels == self.manifest.label_set()
        self.loaded.append(fold)
        return Reader(self.keys[fold or 0])

    def own_predictions(self, manifest: Manifest) -> Predictions | None:
        return self.own

    def kept_answers(self, classifier: Any, manifest: Manifest, images: Manifest) -> None:
        assert manifest is self.manifest or len(images) < len(manifest)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """In two folds; one class has a border."""
    root = tmp_path_factory.mktemp("study")
    drawn = PhantomConfig(images=IMAGES, size=128, seed=5, difficulty=0.0, shortcut="border", shortcut_strength=1.0)
    write_phantoms(root / "phantoms", drawn, workers=1)
    found = index(root / "phantoms", layout="csv", csv_file=root / "phantoms" / "phantoms.csv").manifest
    return split_folds(found, folds=2, seed=0)


@pytest.fixture
def run(phantoms: Manifest) -> Run:
    """Of every second image."""
    return Run(phantoms.take(np.arange(0, IMAGES, 2)))


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that ask for no verdict of them."""
    monkeypatch.setattr(probes, "_TREES", 2)


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {t["name"]: t["verdict"] for t in content["tests"]}


@pytest.mark.slow
def test_the_planted_border_is_found_through_the_command(
    phantoms: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the shipped encoder."""
    place, pixels = tmp_path / "study" / "runs" / "shipped", tmp_path / "pixels"
    write_manifest(tmp_path / "study" / "manifest.parquet", phantoms)
    config = ProbeConfig(l2_min=0.1, l2_max=0.1, l2_steps=1)
    run_method("probe", config, phantoms, place, pixels=pixels)
    arguments = ["audit", str(place), "--out", str(tmp_path / "audit"), "--pixels", str(pixels)]
    given = ["--set", "resamples=200", "--set", "folds=3", "--set", "saliency=4", "--set", "duplicates=true"]
    assert command([*arguments, *given]) == 0
    printed = capsys.readouterr().out
    assert "Strong reliance on non-lung content." in printed and "Research use only, not for diagnosis." in printed
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    found = verdicts(content)
    assert content["overall"] == "strong" and content["images"] == IMAGES
    assert found["background frame"] == "strong" and found["refitted border-only"] == "strong"
    assert found["background-swapped"] == "strong"
    assert content["classifier"] == content["data"] == "strong"
    assert found["shuffled probe"] in {"none", "cannot_tell"} and found["random-removed"] == "cannot_tell"
    assert content["sham"]["other_answers"] == 0 and content["sham"]["largest_change"] < 0.02
    assert content["lungs"]["origin"] == "given" and content["lungs"]["usable"] == IMAGES
    assert content["saliency"]["images"] == 4 and 0 <= content["saliency"]["inside"] <= 1
    assert content["without_duplicates"]["images"] == IMAGES
    assert {row["column"] for row in content["subgroups"]} >= {"view", "sex", "age"}
    shuffled = next(t for t in content["tests"] if t["name"] == "shuffled probe")
    assert abs(shuffled["effect"]) < 0.2
    run, few = read_run(place), phantoms.take(np.arange(5))
    for fold in run.folds:
        classifier = run.classifier(fold, run.label_set(phantoms))
        looked = classifier.look(next(grey_batches(few, classifier.preprocess, batch_size=5))[1])
        for kept, new in zip(run.kept_answers(classifier, phantoms, few) or (), looked, strict=True):
            np.testing.assert_allclose(
                kept, new, atol=2e-2 if classifier.encoder.description["precision"] == "bf16" else 1e-4
            )


@pytest.mark.parametrize("images", ["some", "-1", "2.5", "true", '""'])
def test_another_word_for_the_images_is_refused_in_one_line(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["audit", "nowhere", "--out", str(tmp_path / "out"), "--set", f"images={images}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "auto, all, or a whole number from 1 to 10,000,000 is needed" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_trees")
def test_a_killed_audit_goes_on_and_ends_with_the_same_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run.manifest
    whole = audit(run, manifest, SETTINGS, tmp_path / "whole")
    made, real = [], scoring.make_view

    def dies(view: Any, *rest: Any) -> Any:
        if len(made) > 7:
            raise KeyboardInterrupt
        made.append(view)
        return real(view, *rest)

    monkeypatch.setattr(scoring, "make_view", dies)
    with pytest.raises(KeyboardInterrupt):
        audit(run, manifest, SETTINGS, tmp_path / "killed")
    made.clear()
    monkeypatch.setattr(scoring, "make_view", lambda view, *rest: made.append(view) or real(view, *rest))
    again = audit(run, manifest, SETTINGS, tmp_path / "killed")
    assert again == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    shown = {view.title for view in made}
    assert 0 < len(shown) < len(scoring.VIEWS)  # the views before the kill were not made again
    made.clear()
    assert audit(run, manifest, SETTINGS, tmp_path / "killed") == whole and not made


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
def test_masks_that_are_no_lungs_are_set_aside_and_listed(run: Run, tmp_path: Path) -> None:
    manifest = run.manifest

    def change(number: int, mask: np.ndarray) -> np.ndarray:
        wrong = {0: np.zeros_like(mask), 1: np.full_like(mask, 255), 2: np.full((40, 128), 255, dtype=np.uint8)}
        return wrong.get(
            number, mask[::2, ::2] if number == 3 else mask
        )  # another size of the same shape is no mistake

    changed = with_masks(manifest, tmp_path / "masks", change)
    content = audit(run, changed, SETTINGS, tmp_path / "audit")
    aside = {row["image_id"]: row["reason"] for row in content["lungs"]["set_aside"]}
    ids = manifest.column("image_id")
    assert set(aside) == set(ids[:3]) and content["lungs"]["usable"] == FEW - 3
    assert "no pixel" in aside[ids[0]] or "empty" in aside[ids[0]]
    assert "aspect" in aside[ids[2]] or "40" in aside[ids[2]]
    images = {t["name"]: t["images"] for t in content["tests"]}
    assert images["lungs-removed"] == FEW - 3 and images["border-only"] == FEW
    assert "set aside" in content["lungs"]["words"]


@pytest.mark.usefixtures("few_trees")
def test_given_and_estimated_masks_are_never_mixed(run: Run, tmp_path: Path) -> None:
    manifest = run.manifest
    labels = manifest.column("label")
    changed = with_masks(manifest, tmp_path / "masks", lambda n, mask: mask if labels[n] == "COVID-19" else None)
    content = audit(run, changed, SETTINGS, tmp_path / "audit")
    assert content["lungs"]["origin"] == "estimated" and "estimated" in " ".join(content["reading"])
    assert "never mixed" in content["lungs"]["words"]
    given = dataclasses.replace(SETTINGS, masks="given")
    with pytest.raises(ManifestError, match="have no lung mask"):
        audit(run, changed, given, tmp_path / "given")


@pytest.mark.usefixtures("few_trees")
def test_what_needs_no_mask_always_runs(run: Run, tmp_path: Path) -> None:
    content = audit(run, run.manifest, dataclasses.replace(SETTINGS, masks="none", saliency=3), tmp_path / "audit")
    found = verdicts(content)
    assert not [name for name in found if "lungs" in name or "box" in name]
    assert (
        next(t["asks"] == "classifier" for t in content["tests"] if t["name"] == "border-only")
        and content["saliency"] is None
    )


@pytest.mark.usefixtures("few_trees")
def test_what_is_fitted_anew_asks_of_the_data(run: Run, tmp_path: Path) -> None:
    content = audit(run, run.manifest, SETTINGS, tmp_path / "audit")
    asked = {(t["by"], t["asks"]) for t in content["tests"]}
    fitted = {(by, asks) for by in ("probe", "trees") for asks in ("data", "control")}
    assert asked == {("classifier", "classifier"), ("classifier", "control"), *fitted}


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize(("keys", "has_pixels"), [(("same",) * 3, True), (("one", "two", "three"), False)])
def test_what_is_gathered_is_what_its_parts_give(
    keys: tuple[str, ...], has_pixels: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is asked of its own classifier, and probes are fitted on the features of one classifier alone."""
    run, config = (
        dataclasses.replace(run, keys=keys),
        dataclasses.replace(SETTINGS, seed=3, folds=3, saliency=2, l2=0.3),
    )
    unlabelled = [None if n in (3, 8) else label for n, label in enumerate(run.manifest.column("label"))]
    patient = [f"p{n // 4}-{fold}" for n, fold in enumerate(run.manifest.column("fold"))]
    run.manifest = run.manifest.with_columns(label=unlabelled, patient=patient)
    looks: list[Any] = []
    said: list[str] = []
    steps: dict[str, Any] = {"progress": lambda *_: None, "inspection": tmp_path / "seen"}
    real = module.score_views
    monkeypatch.setattr(
        module, "score_views", lambda *a, **given: looks.append((a, given, real(*a, **given))) or looks[-1][2]
    )
    monkeypatch.setattr(module, "audit_report", lambda facts, **given: (facts, given))
    monkeypatch.setattr(module, "_without_duplicates", lambda *given: given)
    monkeypatch.setattr(module, "_saliency", lambda *given: given)
    pixels = tmp_path / "pixels" if has_pixels else None
    facts, given = audit(run, run.manifest, config, tmp_path, pixels=pixels, announce=said.append, **steps)
    assert given == {"resamples": 100, "seed": 3}
    rows = [n for n in range(FEW) if n not in (3, 8)]
    manifest, target = run.manifest.take(np.array(rows)), run.manifest.targets(facts.labels)[rows]
    assert facts.manifest.column("image_id") == manifest.column("image_id")
    assert (facts.run, facts.kind, facts.has_masks) == ("a run", "probe", True)
    ((scene, classifiers), how, seen) = looks[0]
    assert len(how.pop("token")) == 64
    assert how.pop("manifest").column("image_id") == manifest.column("image_id")
    assert how.pop("kept")(None, np.array([0])) is None
    assert how == {"batch_size": 7, "cache": tmp_path / "cache" / "views", "progress": steps["progress"]}
    folds = np.array(manifest.column("fold"))
    assert [own.tolist() for _, own in classifiers] == [np.flatnonzero(folds == f).tolist() for f in (0, 1)]
    groups = np.unique(independent_groups(manifest), return_inverse=True)[1]
    assert facts.answers.groups.tolist() == groups.tolist() and facts.answers.classes == 3
    partners = choose_partners(target, groups, folds, np.ones(16, bool), seed=3)
    for found, wanted in zip((scene.same, scene.other, scene.any), partners, strict=True):
        assert found.tolist() == wanted.tolist()
    assert (scene.level, scene.seed) == (round(float(scene.greys.mean())), 3)
    assert scene.turn.tolist() == fills_in_turn(target, seed=3).tolist() and facts.available == 16
    greys = [greys for _, greys in grey_batches(manifest, Preprocess(size=64), batch_size=5)]
    np.testing.assert_array_equal(scene.greys, np.concatenate(greys))
    np.testing.assert_array_equal(scene.lungs, lung_masks(manifest, Preprocess(size=64)).masks)
    fold = assign_groups(target, [str(g) for g in groups], [1 / 3] * 3, seed=3)
    parts = [np.arange(16)] if keys[0] == "same" else [np.flatnonzero(folds == f) for f in (0, 1)]

    def refitted(features: Any, labels: npt.NDArray[np.int64], fold: npt.NDArray[np.int64]) -> list[int]:
        told = np.full(16, -1)
        for part in parts:
            told[part] = probes.probe_answers(features[part], labels[part], fold[part], l2=0.3)
        return told.tolist()

    named = facts.answers.named
    for name, one in seen.items():
        assert named[name].tolist() == one.named.tolist()
        is_fitted = name not in {"sham", "lungs-only", "lungs-only-same"}
        assert (f"refitted {name}" in named) == is_fitted
        if is_fitted:
            assert named[f"refitted {name}"].tolist() == refitted(one.features, target, fold)
    assert len(facts.shuffled) == 10 and len({tuple(one.target) for one in facts.shuffled}) > 5
    for number, one in enumerate(facts.shuffled):
        shuffled = refits.shuffled_labels(target, groups, [3, 2, number])
        dealt = assign_groups(shuffled, [str(g) for g in groups], [1 / 3] * 3, seed=3)
        assert (one.target.tolist(), one.groups.tolist()) == (shuffled.tolist(), groups.tolist())
        assert one.named["shuffled probe"].tolist() == refitted(seen["original"].features, shuffled, dealt)
    measured = []
    for row, path in enumerate(manifest.paths()):
        own = file_features(decode(path).pixels, path.stat().st_size / 1000)
        measured.append(own | shown_features(scene.greys[row], scene.lungs[row]))
    background = background_features(measured)
    together = np.concatenate([background[name] for name in BACKGROUND], axis=1)
    strokes = np.stack([edge_strokes(decode(path).pixels) for path in manifest.paths()])
    assert named["background strokes"].tolist() == probes.stroke_answers(strokes, target, fold, seed=3).tolist()
    trees = probes.tree_answers(together, shuffled, dealt, seed=3)
    assert facts.shuffled[-1].named["shuffled trees"].tolist() == trees.tolist()
    for name, values in {**background, "all": together}.items():
        assert named[f"background {name}"].tolist() == probes.tree_answers(values, target, fold, seed=3).tolist(), name
    trials = [*view_tests(named), *probe_tests(named)]
    assert list(facts.tests[: len(trials)]) == trials
    behind = {t.name: (t.title, t.asks, t.by, t.after, t.before, t.finds) for t in facts.tests[len(trials) :]}
    words = dict(BACKGROUND) | {"all": "frame, marks, exposure, grain and file together", "strokes": STROKES}
    assert behind == {f"background {n}": (words[n], "data", "trees", f"background {n}", "", words[n]) for n in words}
    assert [one["column"] for one in facts.attributes] == ["source", "view", "sex", "format"]
    assert said == [
        f"16 images of {groups.max() + 1} independent groups, of 16 that the classifier has not seen",
        facts.lungs["words"],
        "what can be told without lungs",
    ]
    assert facts.without_duplicates == (run, run.manifest, config, tmp_path / "seen", steps["progress"])
    assert facts.saliency[3].tolist() == named["original"].tolist() and facts.saliency[1] is scene.greys
    np.testing.assert_array_equal(facts.saliency[2], scene.lungs)


def made(target: npt.NDArray[np.int64], **columns: Any) -> AuditSample:
    """Images without pictures, which one classifier judges."""
    rows = [
        {"image_id": f"i{i}", "path": f"{i}.png", "label": "xyz"[t]}
        | {name: values[i] for name, values in columns.items()}
        for i, t in enumerate(target)
    ]
    everyone = np.arange(len(rows))
    manifest = Manifest.from_rows(rows, Path("/nowhere"))
    reader: Any = Reader()
    return AuditSample(manifest, [(reader, everyone)], LabelSet(("x", "y", "z")), target, everyone, len(rows))


def test_the_sample_is_what_was_chosen_of_the_images_that_may_be_judged() -> None:
    target = np.array([0] * 24 + [1] * 9 + [2] * 1 + [0] * 3)
    folds = [n % 2 for n in range(34)] + [None] * 3
    manifest = made(target, fold=folds, patient=[f"p{n // 3}-{n % 2}" for n in range(37)]).manifest
    for images in ("all", 12):
        run = Run(manifest)
        sample = draw_sample(run, manifest, images=images, seed=5)
        rows = np.arange(34)
        if images == 12:
            people = independent_groups(manifest.take(rows))
            rows = choose_images(target[:34], people, 12, seed=5, tests=1)
        assert sample.manifest.column("image_id") == [f"i{row}" for row in rows]
        assert sample.target.tolist() == target[rows].tolist() and sample.available == 34
        judged = [np.flatnonzero(rows % 2 == f).tolist() for f in (0, 1)]
        assert [own.tolist() for _, own in sample.classifiers] == judged
        assert run.loaded == [0, 1], "no classifier of a fold without images is loaded"
        assert sample.parts.tolist() == (rows % 2).tolist()
        people = np.array(independent_groups(sample.manifest))
        assert ((sample.groups[:, None] == sample.groups) == (people[:, None] == people)).all()


@examples(60)
@given(seed=st.integers(0, 10_000), images=st.one_of(st.just("auto"), st.integers(1, 400)), big=st.booleans())
def test_images_are_drawn_by_patient_and_in_the_shares_of_their_classes(
    seed: int, images: int | str, big: bool
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 1500 if big else 60)
    patient = [f"p{n}" for n, size in enumerate(sizes) for _ in range(size)]
    target = rng.choice([0, 2], len(sizes), p=[0.7, 0.3]).repeat(sizes)  # class 1 has no image
    order = rng.permutation(len(target))
    patient, target = [patient[n] for n in order], target[order]
    rows = choose_images(target, patient, images, seed=seed, tests=7)
    assert rows.tolist() == sorted(set(rows.tolist())) and set(target[rows]) == {0, 2}
    people = Counter(patient[row] for row in rows)
    for label in (0, 2):
        own, every = (Counter(patient[r] for r in some if target[r] == label) for some in (rows, range(len(target))))
        most = max(own.values())
        assert all(own[name] >= min(most - 1, images) for name, images in every.items()), (
            "no second image before a first"
        )
    if images == "auto":
        counts = [[n for name, n in people.items() if target[patient.index(name)] == label] for label in (0, 2)]
        error = math.sqrt(sum(0.25 * sum(n * n for n in own) / sum(own) ** 2 for own in counts)) / 2
        beyond = (NormalDist().inv_cdf(1 - 0.05 / 7) + NormalDist().inv_cdf(0.8)) * error
        assert beyond <= 0.10 or len(rows) == len(target)
        assert beyond > 0.099, "no more patients than it takes"
        assert (len(rows) < len(target)) == big, "all where they are too few"
    else:
        assert len(rows) == min(max(images, 4), len(target)) or images < 10
    if len(people) > 40:
        assert abs((target[rows] == 2).mean() - (target == 2).mean()) < 0.02
        again = choose_images(target, patient, images, seed=seed + 1, tests=7)
        assert len(rows) == len(target) or again.tolist() != rows.tolist()


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ([None] * 6, "no labelled image that the run may be judged on"),
        ([0, None] * 3, "only images of 'x' to judge; two"),
    ],
)
def test_without_two_classes_there_is_no_audit(fold: list[Any], message: str, tmp_path: Path) -> None:
    manifest = made(np.array([0, 1] * 3), fold=fold).manifest
    with pytest.raises(ManifestError, match=message):
        audit(Run(manifest), manifest, SETTINGS, tmp_path)


@pytest.mark.parametrize("masks", ["auto", "given", "estimate", "none", "a/b"])
def test_lungs_are_found_as_the_settings_ask(masks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(segmenter, "load_segmenter", lambda name: SimpleNamespace(estimate=f"by {name}"))
    monkeypatch.setattr(module, "lung_masks", lambda *place, **given: asked.append((place, given)))
    sample, spec = made(np.array([0, 1])), Preprocess()
    module._find_lungs(sample, spec, AuditConfig(masks=masks), print)  # type: ignore[arg-type]
    estimate = "by a/b" if masks == "a/b" else None
    assert asked == [((sample.manifest, spec), {"source": masks, "estimate": estimate, "progress": print})]


@pytest.mark.parametrize("unknown", [0, 1])
def test_where_one_image_has_no_lungs_all_leave_out_the_middle(
    unknown: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, told = draw_sample(run, run.manifest, images="all", seed=0), []
    monkeypatch.setattr(probes, "shown_features", lambda grey, mask: told.append(mask) or shown_features(grey, mask))
    lungs = np.ones((FEW, 64, 64), bool)
    lungs[:unknown] = False
    probes.background_values(sample, np.zeros((FEW, 64, 64), np.uint8), lungs)
    assert len(told) == FEW and all((mask is None) == bool(unknown) for mask in told)


def test_a_class_that_no_other_source_has_is_not_askedacross_sources() -> None:
    """Source a holds classes 0 and 1, source b 1 and 2: only class 1 can be carried over."""
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 1, 2], 30).astype(np.int64)
    features = rng.normal(size=(120, 6)).astype(np.float32)
    features[:, 0] += 4.0 * target
    source, fold = ["a"] * 60 + ["b"] * 60, np.arange(120) % 5
    sample, seen = made(target, source=source), ViewScores(features, np.full((120, 3), 1 / 3))
    answers, (trial,) = probes.across_sources(sample, seen, fold, l2=SETTINGS.l2)
    asked = answers["across sources"] >= 0
    assert set(target[asked]) == {1} and np.array_equal(asked, answers["within sources"] >= 0)
    for name, part in (("within sources", fold), ("across sources", np.repeat([0, 1], 60))):
        named = probes.probe_answers(features, target, part, l2=SETTINGS.l2)
        assert answers[name].tolist() == np.where(target == 1, named, -1).tolist()
    assert (trial.name, trial.asks, trial.by, trial.after, trial.before, trial.finds) == (
        "across-sources", "data", "probe", "across sources", "within sources", "the source"
    )  # fmt: skip
    assert "of a source (a, b) answered" in trial.title
    for other in (
        dataclasses.replace(sample, target=np.repeat([0, 0, 1, 1], 30)),  # each source has a class of its own
        dataclasses.replace(sample, classifiers=[(Reader("one"), fold[:60]), (Reader("two"), fold[60:])]),
        made(target, source=["a"] * 60 + [None] * 60),
    ):
        assert probes.across_sources(other, seen, fold, l2=SETTINGS.l2) == ({}, [])


@pytest.mark.parametrize(("few", "is_asked"), [(9, False), (10, True)])
def test_a_source_takes_part_with_ten_images_of_two_classes(few: int, is_asked: bool) -> None:
    target = np.array([0] * 30 + [1] * 30 + [0] * few + [1] * 30)
    seen = ViewScores(
        np.random.default_rng(0).normal(size=(len(target), 3)).astype(np.float32), np.zeros((len(target), 3))
    )
    sample = made(target, source=["a"] * 60 + ["b"] * (few + 30))
    answers, _ = probes.across_sources(sample, seen, np.arange(len(target)) % 5, l2=0.1)
    assert bool(answers) == is_asked


def test_a_column_is_asked_for_where_two_of_its_values_are_frequent() -> None:
    count = 45
    features = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    sex, view = ["M"] * 20 + ["F"] * 20 + ["U"] * 5, ["PA"] * 20 + ["AP"] * 19 + [None] * 6
    sample, seen, fold = (
        made(np.arange(count) % 3, sex=sex, view=view),
        ViewScores(features, np.zeros((count, 3))),
        np.arange(45) % 4,
    )
    source, by_view, by_sex, form = probes.attribute_answers(sample, seen, fold, l2=0.1)
    codes = np.array([1] * 20 + [0] * 20 + [-1] * 5)
    assert (by_sex["column"], by_sex["values"], by_sex["asked"]) == ("sex", ["F", "M", "U"], ["F", "M"])
    assert by_sex["codes"].tolist() == codes.tolist()
    assert by_sex["named"].tolist() == probes.probe_answers(features, codes, fold, l2=0.1).tolist()
    assert (by_view["values"], by_view["asked"], by_view["named"]) == (["AP", "PA"], ["PA"], None)
    assert (source["values"], form["named"]) == ([], None)
    apart = dataclasses.replace(
        sample, classifiers=[(Reader("one"), np.arange(20)), (Reader("two"), np.arange(20, 45))]
    )
    assert probes.attribute_answers(apart, seen, fold, l2=0.1)[2]["named"] is None


def test_the_sham_tells_what_changes_where_nothing_is_replaced() -> None:
    before = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.5, 0.5]])
    after = np.array([[0.9, 0.1], [0.7, 0.3], [0.3, 0.7], [np.nan, np.nan]])
    features = np.zeros((4, 1), np.float32)
    told = module._sham({"original": ViewScores(features, before), "sham": ViewScores(features, after)})
    assert told == {"images": 3, "largest_change": pytest.approx(0.3), "other_answers": 1}


@pytest.mark.parametrize("most", [0, 3, 50])
def test_heat_inside_the_lungs_is_measured_on_images_with_lungs(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from thoraclip import heatmaps

    asked: list[Any] = []

    def heat_map(classifier: Any, grey: Any, named: int, *, method: str, seed: int) -> Any:
        asked.append((classifier.features_key[1], int(grey[0, 0]), named, method, seed))
        return np.full((2, 2), 0.0) if grey[0, 0] == 4 else np.array([[3.0, 1.0], [0.0, 0.0]])

    monkeypatch.setattr(heatmaps, "default_map", lambda classifier: f"by {classifier.features_key[1]}")
    monkeypatch.setattr(heatmaps, "heat_map", heat_map)
    sample = made(np.arange(9) % 3)
    sample = dataclasses.replace(
        sample, classifiers=[(Reader("one"), np.arange(0, 9, 2)), (Reader("two"), np.arange(1, 9, 2))]
    )
    greys = np.repeat(np.arange(9, dtype=np.uint8), 4).reshape(9, 2, 2)
    lungs = np.tile(np.array([[True, False], [False, False]]), (9, 1, 1))
    lungs[2] = False
    named, said = np.arange(9) * 10, list[str]()
    config = dataclasses.replace(SETTINGS, saliency=most, seed=6)
    told = module._saliency(sample, greys, lungs, named, config, said.append)
    if not most:
        assert told is None and not said
        return
    chosen = [0, 4, 8] if most == 3 else [0, 1, 3, 4, 5, 6, 7, 8]
    own = [("one", row) for row in chosen if row % 2 == 0] + [("two", row) for row in chosen if row % 2]
    assert asked == [(key, row, row * 10, "by one", 6) for key, row in own]
    assert told == {"method": "by one", "inside": [0.75] * (len(chosen) - 1), "area": [0.25] * (len(chosen) - 1)}
    assert said == ["heat maps by by one"]
    assert module._saliency(sample, greys, np.zeros_like(lungs), named, config, said.append) is None


def test_of_copies_one_counts_and_none_that_two_parts_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a: alone; b, c: one part; d, e: in two parts; f: of a split that is not scored; the first of b and c counts."""
    cluster = {"a": None, "b": "1", "c": "1", "d": "2", "e": "2", "f": None, "g": None}
    part = {"a": "test", "b": "test", "c": "test", "d": "test", "e": "train", "f": "train", "g": "test"}
    rows = [{"image_id": name, "path": name, "split": part[name], "label": "x"} for name in cluster]
    manifest = Manifest.from_rows(rows, tmp_path)
    asked: list[Any] = []

    def clusters(*place: Any, **given: Any) -> Manifest:
        asked.append((*place, given))
        return manifest.with_columns(duplicate_cluster=list(cluster.values()))

    monkeypatch.setattr(check, "duplicate_clusters", clusters)
    scores = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], dtype=np.float64)
    own = Predictions(LabelSet(("x", "y")), tuple(cluster), np.zeros(7, np.int64), scores, tuple(part.values()), (None,) * 7, ("p", "q", "r", "p", "s", "t", "p"))  # fmt: skip
    config = AuditConfig(duplicates=True)
    told = module._without_duplicates(Run(manifest, own=own), manifest, config, tmp_path, print)
    low, high = patient_share(np.array([True, False, True]), np.array([0, 1, 0]))
    assert told == {
        "images": 5, "accuracy": 0.8, "left_out": 2, "across_parts": 1, "accuracy_without": pytest.approx(2 / 3),
        "low": low, "high": high,
    }  # fmt: skip
    assert asked == [(manifest, tmp_path, {"progress": print})]
    assert module._without_duplicates(Run(manifest), manifest, config, tmp_path, None) is None
    off = dataclasses.replace(config, duplicates=False)
    assert module._without_duplicates(Run(manifest, own=own), manifest, off, tmp_path, None) is None
    cluster.update(dict.fromkeys("abcdg", "2"))
    none = module._without_duplicates(Run(manifest, own=own), manifest, config, tmp_path, None)
    assert none is not None and (none["accuracy_without"], none["low"], none["high"]) == (None,) * 3
    cluster.update(dict.fromkeys("abcdefg"))
    all_stay = module._without_duplicates(Run(manifest, own=own), manifest, config, tmp_path, None)
    assert all_stay == {"images": 5, "accuracy": 0.8, "left_out": 0, "across_parts": 0} | dict.fromkeys(
        ("accuracy_without", "low", "high")
    ), "the same share has one interval, the report's"


def test_shuffled_labels_of_patients_with_several_images_are_named_at_chance() -> None:
    """In folds of the true labels, a shuffled class that is rare in one fold is frequent in the others, and the control
    falls far below chance."""
    rng, groups = np.random.default_rng(0), np.arange(60) // 5
    features = (3 * rng.normal(size=(12, 64))[groups] + rng.normal(size=(60, 64))).astype(np.float32)
    target = np.arange(60) % 3
    sample = dataclasses.replace(made(target), groups=groups)
    seen = ViewScores(features, np.zeros((60, 3)))
    answers = list(refits.shuffled_answers(sample, seen, features.astype(float), folds=5, l2=0.1, seed=0))
    row = shuffled_control("shuffled probe", "shuffled", "probe", answers)
    fold, stale = refits.held_out_folds(target, groups, 5, 0), []
    for one in answers:
        named = {"shuffled probe": probes.probe_answers(features, one.target, fold, l2=0.1)}
        stale.append(dataclasses.replace(one, named=named))
    before = shuffled_control("shuffled probe", "shuffled", "probe", stale)
    assert before["effect"] < -0.07 and abs(row["effect"]) < 0.05, (before["effect"], row["effect"])
