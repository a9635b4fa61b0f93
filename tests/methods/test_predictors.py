"""Which classifier of a finished run may score which image, or explain it: none that was trained on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples

from thoraclip.config import config_toml
from thoraclip.errors import InputError, LeakError, ManifestError, MismatchError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods import METHODS, baseline, predictors, probe, zeroshot
from thoraclip.methods.predictors import FinishedRun, find_manifest, read_run
from thoraclip.methods.running import pooled_predictions
from thoraclip.models.heads import LinearHead, write_head
from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint, embeddings_folder
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import write_predictions

LABELS = LabelSet(("a", "b"))


def drawn(seed: int, *, has_folds: bool, names_split: bool = True, taken: int = 12) -> Manifest:
    """12 images or some of them, of which two have the same content; the folds, splits and labels hang on the seed."""
    rng, rows = np.random.default_rng(seed), []
    for number in rng.permutation(12)[:taken].tolist():
        part = int(rng.integers(-1, 3))
        row = {"image_id": f"i{number}", "path": f"{number}.png", "sha256": f"s{max(number, 1)}"}
        row |= {
            "label": ["a", "b", "a", None][rng.integers(4)],
            "lung_mask": f"masks/{number}.png" if number % 2 else None,
        }
        if has_folds:
            row["fold"] = None if part < 0 else part
        elif names_split:
            row["split"] = [None, "train", "val", "test"][part + 1]
        rows.append(row)
    rows[0]["label"], rows[1]["label"] = "a", "b"
    return Manifest.from_rows(rows, Path("/images"), may_leak=True)


def write_run(folder: Path, manifest: Manifest, kind: str = "probe", file: str = "", **settings: Any) -> Path:
    """The run folder of a method that scored all rows with a fold or of split `test`; `file` is where it read them."""
    config = METHODS[kind].config_type(**settings)
    inputs = {"manifest": manifest.fingerprint, **config.inputs()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(f'kind = "{kind}"\n' + config_toml(config))
    (folder / "provenance.json").write_text(json.dumps({"inputs": inputs, **({"manifest_file": file} if file else {})}))
    (folder / "done.json").write_text(json.dumps({"fingerprint": "of the run"}))
    rows = np.flatnonzero([f is not None or s == "test" for f, s in zip(manifest.column("fold"), manifest.column("split"), strict=True)])  # fmt: skip
    scores = np.full((len(rows), 2), 0.5)
    write_predictions(folder / "predictions.parquet", pooled_predictions(manifest, LABELS, [rows], [scores]))
    return folder


FOLDS = Manifest.from_rows(
    [
        {"image_id": f"i{n}", "path": f"{n}.png", "sha256": f"s{n}", "label": "ab"[n % 2], "fold": n % 3}
        for n in range(9)
    ],
    Path("/images"),
)
SPLIT = FOLDS.with_columns(fold=[None] * 9, split=["train", "val", "test"] * 3)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder: the manifest, and a probe's run."""
    write_manifest(tmp_path / "study" / "manifest.parquet", FOLDS)
    (tmp_path / "study" / "0.png").write_bytes(b"a picture")  # looked for beside the manifest
    write_run(tmp_path / "study" / "runs" / "probe", FOLDS)
    return tmp_path / "study"


def slow_parts(run: FinishedRun, own: Manifest, other: Manifest) -> Iterator[tuple[int | None, list[int]]]:
    """Image by image."""
    label, split, sha = (other.column(name) for name in ("label", "split", "sha256"))
    known = [row for row in range(len(other)) if label[row] is not None]
    if own.fingerprint == other.fingerprint and run.folds != (None,):
        for fold in run.folds:
            yield fold, [row for row in known if other.column("fold")[row] == fold]
        return
    if any(split):
        known = [row for row in known if split[row] == "test"]
    states: dict[str, set[Any]] = {}
    for content, fold, part in zip(*(own.column(n) for n in ("sha256", "fold", "split")), strict=True):
        in_test = part == "test" and run.folds == (None,)
        states.setdefault(content, set()).add(
            fold if fold in run.folds and fold is not None else None if in_test else "no"
        )
    found = {}
    for row in known:
        states_of = states.get(sha[row], {"new"}) if own.fingerprint != other.fingerprint else {None}
        (state,) = states_of if len(states_of) == 1 else {"no"}
        found[row] = run.folds[0] if state == "new" else state
    for fold in run.folds:
        if rows := [row for row, state in found.items() if state == fold]:
            yield fold, rows


@examples(120)
@given(
    seed=st.integers(0, 10_000), has_folds=st.booleans(), folds=st.sampled_from([(0, 1, 2), (1,), (2, 0)]),
    kind=st.sampled_from(["same", "split", "folds", "bare"]), taken=st.integers(2, 12), new=st.integers(0, 4),
)  # fmt: skip
def test_every_image_is_scored_by_whom_a_slow_oracle_says(
    seed: int, has_folds: bool, folds: tuple[int, ...], kind: str, taken: int, new: int
) -> None:
    own = drawn(seed, has_folds=has_folds)
    other = (
        own if kind == "same" else drawn(seed + 1, has_folds=kind == "folds", names_split=kind == "split", taken=taken)
    )
    if kind != "same":
        changed = [f"new{i}" if i < new else sha for i, sha in enumerate(other.column("sha256"))]
        other = other.with_columns(sha256=changed)
    run = FinishedRun(Path("/run"), "probe", None, own.fingerprint, "", folds if has_folds else (None,))
    with patch.object(predictors, "find_manifest", lambda _: own):
        found, expected = run.parts(other), list(slow_parts(run, own, other))
        if not any(rows for _, rows in expected) and kind != "same":
            with pytest.raises(ManifestError, match="that the run has not seen"):
                list(found)
        else:
            assert [(fold, rows.tolist()) for fold, rows in found] == expected


def test_without_its_own_manifest_nobody_knows_what_it_was_trained_on(tmp_path: Path) -> None:
    alone = read_run(write_run(tmp_path / "alone", FOLDS))
    other = FOLDS.with_columns(patient=[f"p{i}" for i in range(9)], split=["test"] * 9)
    with pytest.raises(LeakError, match="which has 9 of the same images.*name the manifest that the run ran on"):
        list(alone.parts(other))
    elsewhere = other.with_columns(image_id=[f"x{i}" for i in range(9)])
    ((fold, rows),) = alone.parts(elsewhere)
    assert fold == 0 and rows.tolist() == list(range(9))
    assert [fold for fold, _ in alone.parts(FOLDS)] == [0, 1, 2]


def test_a_run_folder_is_read_as_it_was_written(study: Path, tmp_path: Path) -> None:
    run = read_run(study / "runs" / "probe")
    assert (run.folder, run.name, run.kind) == (study / "runs" / "probe", "probe", "probe")
    assert (run.manifest, run.fingerprint, run.folds) == (FOLDS.fingerprint, "of the run", (0, 1, 2))
    assert run.config == METHODS["probe"].config_type()
    split = read_run(write_run(tmp_path / "split", SPLIT, "zeroshot", classes=("b", "a")))
    assert split.folds == (None,) and split.label_set(SPLIT).names == ("b", "a")
    assert run.own_predictions(SPLIT) is None
    own = split.own_predictions(SPLIT)
    assert own is not None and own.image_id == ("i2", "i5", "i8")
    kinds = {kind: replace(run, kind=kind).method.keeps_classifier for kind in METHODS}
    assert kinds == {kind: kind != "trivial" for kind in METHODS}
    with pytest.raises(InputError, match="a run of 'trivial' keeps no classifier of pictures; name a run of zeroshot"):
        replace(run, kind="trivial").classifier(0, LABELS)


def test_what_is_no_finished_run_is_refused(study: Path, tmp_path: Path) -> None:
    place = study / "runs" / "probe"
    with pytest.raises(InputError, match=r"is a study; name one of its runs, as in .*runs/probe"):
        read_run(study)
    with pytest.raises(InputError, match="no run there"):
        read_run(tmp_path)
    for name, reason in (("done", "the run is not finished"), ("provenance", "no run there")):
        (place / f"{name}.json").rename(place / "aside")
        with pytest.raises(InputError, match=reason):
            read_run(place)
        (place / "aside").rename(place / f"{name}.json")
    config = (place / "config.toml").read_text()
    (place / "config.toml").write_text("")
    with pytest.raises(InputError, match=r"config.toml: names no method; remove done.json and run the same command"):
        read_run(place)
    (place / "config.toml").write_text(config)
    (place / "provenance.json").write_text(json.dumps({"inputs": {"manifest": "x", "model": "another"}}))
    with pytest.raises(
        MismatchError, match="its model .'tiny-clip'. is not the one that it ran with; put that one back"
    ):
        read_run(place)


def test_a_manifest_is_looked_for_three_folders_up(study: Path) -> None:
    place = study / "runs" / "probe"
    run = read_run(place)
    assert find_manifest(run).fingerprint == FOLDS.fingerprint
    deep = study / "a" / "b" / "c"
    shutil.copytree(place, deep)
    assert find_manifest(read_run(deep)).fingerprint == FOLDS.fingerprint
    shutil.copytree(place, deep / "d")
    with pytest.raises(InputError, match="its manifest is not beside it; name it with --manifest"):
        find_manifest(read_run(deep / "d"))
    write_manifest(study / "manifest.parquet", SPLIT)
    write_manifest(study / "a.parquet", FOLDS.with_columns(patient=list("abcabcabc")))
    with pytest.raises(MismatchError, match=r"/a.parquet, .*/manifest.parquet: not the manifest that .*runs/probe ran"):
        find_manifest(run)


def test_the_manifest_is_known_by_what_it_says_not_by_its_name(study: Path) -> None:
    """Beside it: the one without folds, a table of another kind, a damaged file, and the same in the study's folder."""
    for place in (study, study / "runs"):
        write_manifest(place / "manifest.parquet", FOLDS.with_columns(fold=[None] * 9))
        shutil.copy(study / "runs" / "probe" / "predictions.parquet", place / "another.parquet")
        (place / "damaged.parquet").write_bytes(b"PAR1 and no more")
        (place / "folder.parquet").mkdir()
    write_manifest(study / "z-folds.parquet", FOLDS.with_columns(path=["0.png"] * 9))
    assert find_manifest(read_run(study / "runs" / "probe")).column("path") == ["0.png"] * 9
    (study / "0.png").unlink()
    with pytest.raises(InputError, match=r"z-folds.parquet: its pictures are neither under /images nor beside"):
        find_manifest(read_run(study / "runs" / "probe"))


@pytest.mark.parametrize("moved", [False, True])
def test_the_file_that_a_run_recorded_comes_first(moved: bool, study: Path, tmp_path: Path) -> None:
    write_manifest(study / "data" / "folds.parquet", FOLDS.with_columns(view=["PA"] * 9))
    (study / "data" / "0.png").write_bytes(b"a picture")
    write_run(study / "runs" / "probe", FOLDS, file="../../data/folds.parquet")
    write_run(study / "runs" / "absolute", FOLDS, file=str(study / "data" / "folds.parquet"))
    place = study.rename(tmp_path / "elsewhere") if moved else study
    assert find_manifest(read_run(place / "runs" / "probe")).column("view") == ["PA"] * 9
    found = find_manifest(read_run(place / "runs" / "absolute"))
    assert found.column("view") == ([None] if moved else ["PA"]) * 9, "gone: the one above the run's folder serves"
    write_manifest(place / "data" / "folds.parquet", SPLIT)
    assert find_manifest(read_run(place / "runs" / "probe")).column("view") == [None] * 9, "changed since"


def adapter(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_the_adapter_of_a_study_that_was_moved_is_found_beside_the_run(tmp_path: Path) -> None:
    tuned = adapter(tmp_path / "old" / "runs" / "tuned" / "adapter", "{}").parent
    for name, place in (("whole", tuned), ("part", tuned / "adapter")):
        write_run(tuned.parent / name, SPLIT, "zeroshot", adapter=str(place))
        assert read_run(tuned.parent / name).config.adapter == str(place)
    (tmp_path / "old").rename(tmp_path / "new")
    runs = tmp_path / "new" / "runs"
    assert read_run(runs / "whole").config.adapter == str(runs / "tuned")
    write_run(runs / "seeds" / "part", SPLIT, "zeroshot", adapter=str(runs / "tuned" / "adapter"))
    (tmp_path / "new").rename(tmp_path / "newer")
    runs = tmp_path / "newer" / "runs"
    assert read_run(runs / "seeds" / "part").config.adapter == str(runs / "tuned" / "adapter")


@pytest.mark.parametrize(("then", "now"), [("true", "standard"), ("false", "none")])
def test_settings_of_an_older_run_are_read(then: str, now: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", SPLIT, "baseline", augmentation=now)
    file = run / "config.toml"
    older = file.read_text().replace(f'augmentation = "{now}"', f"augmentation = {then}")
    file.write_text(f"{older}rotate_degrees = 7.0\nmirror = 0.5\nmixup = 0.4\n")
    assert read_run(run).config == baseline.Config(augmentation=now)


def test_one_frozen_classifier_is_no_set_of_folds(study: Path, tmp_path: Path) -> None:
    run = read_run(study / "runs" / "probe")
    adapter(tmp_path / "one" / "adapter", "")
    for fold in (0, 1, 2):
        adapter(tmp_path / "each" / f"fold-{fold}" / "adapter", "")
    for kind, place, folds in (
        ("probe", "", (0, 1, 2)), ("zeroshot", "", (None,)), ("zeroshot", "one", (None,)), ("zeroshot", "each", (0, 1, 2)),
        ("probe", "one", (0, 1, 2)),
    ):  # fmt: skip
        config = SimpleNamespace(adapter=str(tmp_path / place) if place else "")
        assert replace(run, kind=kind, config=config).distinct_folds == folds


class Encoder:
    """Texts are known by their length."""

    logit_scale = 10.0

    def encode_texts(self, texts: Any) -> Any:
        return np.array([[len(text), 1.0] for text in texts], np.float32)


@pytest.mark.parametrize("place", ["runs/probe", "."])
def test_features_that_a_run_or_its_study_has_kept_are_answers(place: str, study: Path) -> None:
    """Of these very images, this encoder and this preprocessing alone."""
    rng, run = np.random.default_rng(0), read_run(study / "runs" / "probe")
    features = {name: rng.normal(size=(9, size)).astype(np.float32) for name, size in (("pooled", 3), ("projected", 2))}
    head = LinearHead.unscaled(LABELS, rng.normal(size=(2, 3)).astype(np.float32))
    encoder = SimpleNamespace(description={"weights": "w", "precision": "fp32"}, preprocess=Preprocess())
    classifier = SimpleNamespace(encoder=encoder, features="pooled", head=head)
    assert run.kept_answers(classifier, FOLDS, FOLDS) is None
    made = encoder.description, encoder.preprocess.as_dict()
    fingerprint = embeddings_fingerprint(FOLDS, *made)
    writer = ArrayWriter(embeddings_folder(study / place / "embeddings", *made), EMBEDDINGS, total=9, token="t")
    writer.append(features)
    writer.finish(FOLDS, facts=dict(zip(("encoder", "preprocess"), made, strict=True)), fingerprint=fingerprint)
    rows = np.array([7, 2, 3])
    found, scores = run.kept_answers(classifier, FOLDS, FOLDS.take(rows)) or (None, None)
    np.testing.assert_array_equal(found, features["pooled"][rows])
    np.testing.assert_array_equal(scores, head.predict(features["pooled"][rows]))
    changed = FOLDS.with_columns(sha256=[f"t{n}" for n in range(9)])
    assert run.kept_answers(classifier, changed, changed.take(rows)) is None
    encoder.preprocess = Preprocess(size=99)
    assert run.kept_answers(classifier, FOLDS, FOLDS) is run.kept_answers(SimpleNamespace(), FOLDS, FOLDS) is None


@pytest.mark.parametrize("fold", [None, 1])
def test_each_kind_loads_the_classifier_of_the_fold(
    fold: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    for module, name in ((probe, "load_encoder"), (zeroshot, "load_text_encoder")):
        monkeypatch.setattr(module, name, lambda config, *_: asked.append(config) or Encoder())
    monkeypatch.setattr(
        baseline, "load_trained", lambda *place, **given: asked.append((*place, given)) or SimpleNamespace(labels=LABELS)
    )  # fmt: skip
    for number, name in ((1, "fold-1/adapter"), (None, "adapter")):
        if number == fold:
            adapter(tmp_path / "tuned" / name, "{}")
    tuned = tmp_path / "tuned" / ("adapter" if fold is None else "fold-1/adapter")
    prompts = tmp_path / "p.toml"
    prompts.write_text('templates = ["{}", "an {} here"]')
    settings: dict[str, dict[str, Any]] = {
        "zeroshot": {"adapter": str(tmp_path / "tuned"), "prompts": str(prompts), "precision": "fp32"},
        "finetune": {"geometry": "pad", "precision": "fp32", "prompts": str(prompts)},
        "probe": {"adapter": str(tmp_path / "tuned"), "features": "projected"},
        "baseline": {"precision": "bf16"},
    }
    assert set(settings) == {kind for kind, method in METHODS.items() if method.keeps_classifier}
    manifest = SPLIT if fold is None else FOLDS
    for kind, chosen in settings.items():
        run = read_run(write_run(tmp_path / kind, manifest, kind, **chosen))
        if kind == "probe":
            weight = np.array([[1, 2], [3, 4]], np.float32)
            file = run.folder / ("head.safetensors" if fold is None else "head-fold-1.safetensors")
            write_head(file, LinearHead.unscaled(LABELS, weight))
        found, used = run.classifier(fold, LABELS), asked.pop()
        assert not asked and found.labels == LABELS
        place = run.folder if fold is None else run.folder / "fold-1"
        if kind == "baseline":
            assert used == (place / "model", {"precision": "bf16"})
        elif kind == "finetune":
            assert (used.adapter, used.geometry, used.precision) == (str(place / "adapter"), "pad", "fp32")
            assert used.model == run.config.model
        else:
            assert used == replace(run.config, adapter=str(tuned))
        if kind in {"zeroshot", "finetune"}:
            mean = (np.array([1, 1]) + np.array([9, 1])) / 2
            np.testing.assert_allclose(found.head.weight, np.tile(10 * mean / np.linalg.norm(mean), (2, 1)), rtol=1e-6)
        assert getattr(found, "features", "") == {"probe": "projected", "baseline": ""}.get(kind, "projected")
        if kind in {"probe", "baseline"}:
            with pytest.raises(
                MismatchError, match=r"was trained on the classes \['a', 'b'\], and these are \['a', 'c'\]"
            ):
                run.classifier(fold, LabelSet(("a", "c")))
            asked.clear()
