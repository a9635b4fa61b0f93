"""Every snippet of docs/recipes.md is run, on the files that its first commands make."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.evaluation.cards import load_card
from tests.recipes import ANY_IMAGE, PAGE, commands, make_study, snippet

import thoraclip
from thoraclip.methods.predictors import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.getbasetemp())


@pytest.fixture
def values(study: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`values(title)`: what the snippet under a headline leaves in its names."""
    monkeypatch.chdir(study)

    def run(title: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        exec(compile(snippet(title), title, "exec"), found)
        return found

    return run


def test_there_is_a_test_for_every_section() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, flags=re.M)
    assert titles == ["Transformers", "The Hugging Face Hub", "A web page, without a server", "DuckDB", "datasets", "cleanlab", "FiftyOne"]  # fmt: skip


def test_the_pipeline_gives_the_scores_of_the_run(values: Any, study: Path) -> None:
    classifier = read_run(study / "runs" / "zeroshot").classifier(None, thoraclip.LabelSet(("COVID-19", "Non-COVID", "Normal")))  # fmt: skip
    pixels = thoraclip.preprocess(thoraclip.decode(study / ANY_IMAGE), classifier.preprocess)
    expected = dict(zip(classifier.labels.names, classifier.predict(pixels[None])[0].tolist(), strict=True))
    assert values("Transformers")["scores"] == pytest.approx(expected, abs=1e-2 if classifier.encoder.precision == "bf16" else 1e-5)  # fmt: skip


@pytest.mark.parametrize("words", commands("The Hugging Face Hub"), ids=lambda words: words[3])
def test_hf_upload_takes_the_arguments(words: list[str], study: Path) -> None:
    load_card(study / words[3])
    assert words[:2] == ["hf", "upload"]
    for more, code in (([], 0), (["--nonsense"], 2)):  # with --help it looks at its options and sends nothing
        done = subprocess.run(
            [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *words[1:], *more, "--help"],
            capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr


def test_duckdb_counts_what_the_predictions_say(values: Any, study: Path) -> None:
    rows = values("DuckDB")["table"].fetchall()
    predictions = thoraclip.read_predictions(study / "runs" / "zeroshot" / "predictions.parquet")
    views = thoraclip.read_manifest(study / "manifest.parquet").by_id("view")
    expected: dict[tuple[Any, str], list[bool]] = {}
    for image, split, target, scores in zip(predictions.image_id, predictions.split, predictions.target, predictions.scores, strict=True):  # fmt: skip
        if split == "test":
            key = views[image], predictions.labels.names[target]
            expected.setdefault(key, []).append(bool(scores.argmax() == target))
    assert {(view, label): (images, recall) for view, label, images, recall in rows} == {
        key: (len(hits), pytest.approx(np.mean(hits))) for key, hits in expected.items()
    }


def test_datasets_reads_the_manifest_and_its_images(
    values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    found = values("datasets")
    manifest = thoraclip.read_manifest("manifest.parquet")
    rows = [row for row, split in enumerate(manifest.column("split")) if split == "test"]
    assert found["test"]["image_id"][:] == [manifest.column("image_id")[row] for row in rows]
    np.testing.assert_array_equal(
        np.asarray(found["test"][0]["image"]), thoraclip.decode(manifest.paths()[rows[0]]).pixels
    )


def test_cleanlab_judges_the_test_images(values: Any) -> None:
    found = values("cleanlab")
    predictions = thoraclip.read_predictions("runs/zeroshot/predictions.parquet")
    judged = [row for row, split in enumerate(predictions.split) if split == "test"]
    assert tuple(found["classes"]) == predictions.labels.names
    np.testing.assert_array_equal(found["scores"], predictions.scores[judged])
    np.testing.assert_array_equal(found["labels"], predictions.target[judged])
    assert len(found["suspects"]) < len(judged)


def test_fiftyone_is_given_every_image_with_its_answer(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in takes what the snippet gives."""
    given: list[Any] = []
    stand_in: Any = SimpleNamespace(
        Sample=lambda **named: dict(named), Classification=SimpleNamespace, launch_app=given.append,
        Dataset=lambda name: SimpleNamespace(name=name, add_samples=given.extend),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    values("FiftyOne")
    *samples, shown = given
    manifest, predictions = thoraclip.read_manifest("manifest.parquet"), thoraclip.read_predictions("runs/zeroshot/predictions.parquet")  # fmt: skip
    assert [Path(sample["filepath"]).resolve() for sample in samples] == [p.resolve() for p in manifest.paths()]
    assert [sample["ground_truth"].label for sample in samples] == manifest.column("label") and shown.name
    answers = dict(zip(predictions.image_id, predictions.scores, strict=True))
    for image, sample in zip(manifest.column("image_id"), samples, strict=True):
        scores = answers[image]
        assert sample["prediction"].label == predictions.labels.names[scores.argmax()]
        assert sample["prediction"].confidence == scores.max()
