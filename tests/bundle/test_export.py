"""An export proves itself or does not exist: every kind of head against its original in torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.bundle.conftest import Workshop
from tests.conftest import files
from tests.evaluation.cards import load_card

from thoraclip.bundle import export, parity
from thoraclip.bundle.export import export_bundle, require_place
from thoraclip.bundle.format import read_bundle
from thoraclip.bundle.onnx import grey_classifier, quantise, write_onnx
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.errors import ConfigError, InputError, MismatchError, ParityError
from thoraclip.imaging import decode, fit, preprocess
from thoraclip.methods import METHODS
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import read_run
from thoraclip.models import onnx_files
from thoraclip.models.heads import softmax

HEADS = ("zeroshot", "probe", "baseline-resnet", *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("finetune", "probe-projected", "probe-tuned", "baseline-vit", "baseline-tower")
))  # fmt: skip


def test_every_kind_that_keeps_a_classifier_has_a_parity_test() -> None:
    names = [name if isinstance(name, str) else name.values[0] for name in HEADS]
    assert {str(name).split("-")[0] for name in names} == {
        kind for kind, method in METHODS.items() if method.keeps_classifier
    }


@pytest.mark.parametrize("name", HEADS)
def test_the_bundle_gives_the_probabilities_of_the_original_and_of_the_run(workshop: Workshop, name: str) -> None:
    """From the file on the disk, by the bundle's own eyes, against the torch classifier and against the run's own table."""
    original, opened = workshop.original(name), open_bundle(workshop.bundle(name))
    rows = original.test[::3]
    paths = [workshop.manifest.paths()[row] for row in rows]
    pixels = np.stack([preprocess(decode(path), original.classifier.preprocess) for path in paths])
    expected = original.classifier.predict(pixels).astype(np.float64)
    greys = np.stack([fit(decode(path).pixels, opened.preprocess) for path in paths])
    features, raw = opened.look(greys)
    assert np.abs(raw - expected).max() < 1e-4
    assert np.abs(opened.predict(pixels) - expected).max() < 1e-4
    assert np.abs(features - original.classifier.look(greys)[0]).max() < 1e-4
    assert np.ptp(expected, axis=0).max() > 1e-3, "different answers, so that the comparison says something"
    table = {image: number for number, image in enumerate(original.predictions.image_id)}
    kept = original.predictions.scores[[table[workshop.manifest.column("image_id")[row]] for row in rows]]
    assert np.abs(raw - kept).max() < 1e-4
    told = parity_of(opened)["run"]
    assert (told["images"], told["other_answers"]) == (len(original.test), 0)
    assert told["largest_difference"] == pytest.approx(0, abs=1e-4)
    temperature = opened.bundle.facts["temperature"] or 1.0
    calibrated = softmax(np.log(np.maximum(expected, 1e-12)) / temperature)
    told = [opened.classify(path).scores for path in paths]
    assert np.abs(np.array([list(one.values()) for one in told]) - calibrated).max() < 1e-3
    assert list(told[0]) == list(opened.labels.names) == list(original.predictions.labels.names)


def parity_of(opened: BundleClassifier) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((opened.bundle.folder / "parity.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(("name", "way"), [("probe", "row-wise"), ("baseline-resnet", "static")])
def test_int8_is_another_model_and_a_like_one(workshop: Workshop, name: str, way: str) -> None:
    opened = open_bundle(workshop.bundle(name, int8=True))
    found = parity_of(opened)["int8"]
    assert (opened.bundle.precision, opened.together, found["quantisation"]) == ("int8", 4, way)
    assert found["share"] <= 0.02 and -0.005 <= found["accuracy"]["low"] <= found["accuracy"]["high"] <= 0.005
    greys = np.random.default_rng(0).integers(0, 256, (9, 32, 32), dtype=np.uint8)
    assert 1e-6 < np.abs(opened.look(greys)[1] - open_bundle(workshop.bundle(name)).look(greys)[1]).max() < 0.2
    sizes = [(workshop.bundle(name, int8=small) / "model.onnx").stat().st_size for small in (True, False)]
    assert sizes[0] < sizes[1]


@pytest.mark.slow
def test_large_weights_shrink_to_a_quarter(workshop: Workshop, tmp_path: Path) -> None:
    """Of tiny-clip, whose weights outweigh what ONNX says beside them."""
    write_onnx(grey_classifier(workshop.original("probe-first-fit").classifier), tmp_path / "model.onnx")
    greys = np.random.default_rng(0).integers(0, 256, (4, 128, 128), dtype=np.uint8)
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    way, share = quantise(tmp_path / "model.onnx", greys)
    assert way == "row-wise"
    assert share < 0.27 and sum(file.stat().st_size for file in tmp_path.iterdir()) < 0.27 * before


@pytest.mark.parametrize("int8", [False, True])
def test_matrices_beside_the_model_change_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, int8: bool
) -> None:
    """Those of small networks lie in the model itself, unless one looks for smaller ones."""
    usual, place = workshop.bundle("probe", int8=int8), tmp_path / "bundle"
    assert "model.onnx.data" not in files(usual)
    monkeypatch.setattr(onnx_files, "_LARGE", 128)
    found = export_bundle(workshop.original("probe"), place, int8=int8)
    assert sorted(files(place)) == sorted([*files(usual), "model.onnx.data"])
    assert len({(place / name).stat().st_mode for name in ("model.onnx", "model.onnx.data")}) == 1, "who may read it"
    beside, whole = open_bundle(place), open_bundle(usual)
    greys = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    for one, other in zip(beside.look(greys), whole.look(greys), strict=True):
        np.testing.assert_array_equal(one, other)
    told = json.loads(json.dumps(found)), parity_of(whole)
    for parity_ in told if int8 else ():
        parity_["int8"].pop("size")  # of one file, in which some bytes say that nothing lies beside it
    assert told[0] == told[1]


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(workshop: Workshop, tmp_path: Path, exported: dict[str, bytes]) -> None:
    before = files(workshop.bundle("probe"))
    exported.clear()
    export_bundle(workshop.original("probe"), tmp_path / "again")
    assert exported and files(tmp_path / "again") == before


def test_a_bundle_tells_nothing_of_the_machine(workshop: Workshop) -> None:
    for name in ("probe", "baseline-resnet"):
        for content in files(workshop.bundle(name, int8=True)).values():
            for told in (str(workshop.root), str(Path(torch.__file__).parent), str(Path(export.__file__).parent)):
                assert told.encode() not in content


def test_a_probe_that_was_fitted_again_is_calibrated_on_scores_of_before(workshop: Workshop) -> None:
    again, first = (read_bundle(workshop.bundle(name)).facts["calibrated_on"] for name in ("probe", "probe-first-fit"))
    assert again["scores"] == "kept by the run" and first["scores"] == "the bundle's own"
    assert again["images"] == first["images"] == len(workshop.original("probe").val)


def test_the_patients_of_kept_scores_are_counted(workshop: Workshop, tmp_path: Path) -> None:
    original = workshop.original("probe")
    kept = original.validation
    assert kept is not None
    owners = tuple(f"p{i // 3}" for i in range(len(kept)))
    patched = dataclasses.replace(original, validation=dataclasses.replace(kept, patient=owners))
    export_bundle(patched, tmp_path / "bundle")
    facts = read_bundle(tmp_path / "bundle").facts
    assert facts["calibrated_on"]["patients"] == len(set(owners)) < facts["calibrated_on"]["images"]
    of_class = {p for p, c in zip(owners, kept.target, strict=True) if c == 0}
    assert facts["sets"]["patients"][kept.labels.names[0]] == len(of_class)


def test_pictures_that_were_learned_from_are_known_and_noise_is_flagged(workshop: Workshop) -> None:
    """The test images, which are like the training images, mostly are not."""
    original, bundle = workshop.original("probe"), read_bundle(workshop.bundle("probe"))
    known = bundle.is_trained_on(workshop.manifest.column("sha256"))
    assert set(np.flatnonzero(known)) == set(original.train) | set(original.val)
    assert not read_bundle(workshop.bundle("zeroshot")).is_trained_on(workshop.manifest.column("sha256")).any()
    assert not bundle.is_trained_on([hashlib.sha256(b"another picture").hexdigest()]).any()
    opened = open_bundle(workshop.bundle("probe-first-fit"))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    assert opened.classify_grey(noise).ood is True
    assert parity_of(opened)["test"]["flagged"]["value"] < 0.2


def test_a_large_difference_leaves_no_file(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(self: BundleClassifier, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, scores = right(self, grey)
        return features, scores * 0.999 + 0.001 / len(scores)

    right = BundleClassifier._run
    monkeypatch.setattr(BundleClassifier, "_run", worse)
    message = r"probe: the exported model's probabilities differ by .* and 0.0001 is allowed"
    with pytest.raises(ParityError, match=message):
        export_bundle(workshop.original("probe"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_int8_that_answers_otherwise_leaves_no_file_and_the_old_bundle_in_place(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(Path(shutil.copytree(workshop.bundle("probe"), tmp_path / "out")))
    monkeypatch.setattr(parity, "INT8_FLIPS", -1.0)
    with pytest.raises(ParityError, match="test images get another answer"):
        export_bundle(workshop.original("probe"), tmp_path / "out", int8=True)
    assert files(tmp_path / "out") == before and [f.name for f in tmp_path.iterdir()] == ["out"]


def test_an_old_bundle_is_replaced_and_other_things_are_not(workshop: Workshop, tmp_path: Path) -> None:
    original = workshop.original("probe")
    (tmp_path / "mine").mkdir()
    for name in ("mine/thesis.txt", "file"):
        (tmp_path / name).write_text("x")
    for name, message in {
        "mine": "holds other things than what is to be written",
        "file": "is a file, and a folder is to be written",
        "file/below": "is a file, not a folder",
    }.items():
        with pytest.raises(InputError, match=message):
            export_bundle(original, tmp_path / name)
    with pytest.raises(ConfigError, match="images = 0: a whole number from 1"):
        export_bundle(original, tmp_path / "out", images=0)
    shutil.copytree(workshop.bundle("probe"), tmp_path / "out")
    sums, theirs = tmp_path / "out" / "SHA256SUMS", tmp_path / "out" / "mine.txt"
    theirs.write_text("x")
    line, sealed = f"{'0' * 64}  mine.txt\n", sums.read_text()
    for text in (sealed, line, line + sealed, None):  # as of a download; nor is one with a line more ours
        sums.unlink()
        sums.write_text(text) if text else os.mkfifo(sums)
        with pytest.raises(InputError, match="is not of a bundle; move it"):
            require_place(tmp_path / "out")
    theirs.unlink()
    sums.unlink()
    sums.write_text(sealed)
    (tmp_path / "out" / "model.onnx").write_bytes(b"broken")
    export_bundle(original, tmp_path / "out", images=30)
    assert parity_of(open_bundle(tmp_path / "out"))["test"]["images"] == 30
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["file", "mine", "out"]


def test_another_manifest_is_refused_and_a_run_without_validation_scores(workshop: Workshop, tmp_path: Path) -> None:
    run = read_run(workshop.run("probe"))
    with pytest.raises(MismatchError, match="ran on another manifest than this one"):
        load_original(run, workshop.manifest.take(np.arange(100)))
    with pytest.raises(ConfigError, match="--fold 3: .* has no such fold; its folds: none"):
        load_original(run, workshop.manifest, fold=3)
    part = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("validation.parquet"))
    with pytest.raises(InputError, match="kept no scores of validation images"):
        load_original(dataclasses.replace(run, folder=part), workshop.manifest)


def test_the_card_says_what_was_measured(workshop: Workshop) -> None:
    def read(name: str, **options: bool) -> tuple[str, dict[str, Any]]:
        folder = workshop.bundle(name, **options)
        return (folder / "README.md").read_text(encoding="utf-8"), json.loads((folder / "parity.json").read_text())

    for name in ("probe", "baseline-resnet", "zeroshot"):
        card, told = read(name)
        assert "Research use only, not for diagnosis" in card
        assert f"{100 * told['test']['accuracy']['value']:.1f} [" in card
        assert f"{told['fp32']['images']} test images" in card
        tags = load_card(workshop.bundle(name)).data.tags
        assert "onnx" in tags and name.partition("-")[0] in tags
    card, told = read("probe", int8=True)
    assert f"{told['int8']['other_answers']} of {told['int8']['images']} test images get another answer" in card
    assert "95 % interval" in card and "None" not in card and "undefined" not in card.lower()
