"""Suspected label errors: planted ones, and through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import Capture, draw_picture, examples

from thoraclip.cli.app import run
from thoraclip.data.check.label_errors import label_errors
from thoraclip.data.check.page import _of_labels
from thoraclip.errors import ManifestError, MismatchError
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import Predictions, write_predictions


def judged(wrong: int, seed: int = 0) -> tuple[Manifest, Predictions, set[str]]:
    """1,000 images whose classifier is right in 95 %, of which so many have a wrong label, and the ids of those."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, 1000)
    logits = rng.normal(0, 1, (1000, 3)) + 3.5 * np.eye(3)[true]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = rng.choice(1000, wrong, replace=False)
    labels = true.copy()
    labels[rows] = (labels[rows] + rng.integers(1, 3, wrong)) % 3
    images = [{"image_id": f"i{k}", "path": f"{k}.png", "label": "abc"[label]} for k, label in enumerate(labels)]
    ids = [row["image_id"] for row in images]
    return Manifest.from_rows(images, Path("/x")), table(ids, scores.tolist(), "abc"), {f"i{k}" for k in rows}


@pytest.mark.parametrize("wrong", [0, 10, 50, 200])
def test_planted_errors_are_found_and_little_else(wrong: int) -> None:
    manifest, predictions, planted = judged(wrong)
    found = label_errors(manifest, [predictions], "planted")["suspected"]
    hits = sum(row["image_id"] in planted for row in found)
    assert hits >= 0.7 * wrong and len(found) - hits <= 0.15 * wrong + 3
    own = [row["score_of_label"] for row in found]
    assert own == sorted(own)
    assert all(row["suggested"] != row["label"] for row in found)


@pytest.mark.parametrize("labels", [["a"], ["a", "a", "a"], ["a", "b"], ["a", "b", "a"]])
def test_few_images_and_classes_without_one_are_no_error(labels: list[str]) -> None:
    images = [{"image_id": f"i{k}", "path": f"{k}.png", "label": label} for k, label in enumerate(labels)]
    predictions = table([row["image_id"] for row in images], [[0.1, 0.2, 0.7]] * len(images), "abc")
    label_errors(Manifest.from_rows(images, Path("/x")), [predictions], "few")


def table(ids: list[str], scores: list[list[float]], classes: str = "ab", split: str | None = None) -> Predictions:
    return Predictions(
        labels=LabelSet(tuple(classes)),
        image_id=tuple(ids),
        target=np.zeros(len(ids), dtype=np.int64),
        scores=np.array(scores),
        split=(split,) * len(ids),
        fold=(None,) * len(ids),
        patient=(None,) * len(ids),
    )


def manifest(root: Path = Path("/x")) -> Manifest:
    labels = ["a", "a", "a", "b", "b", "b", None]
    return Manifest.from_rows(
        [{"image_id": f"i{k}", "path": f"{k}.png", "label": label} for k, label in enumerate(labels)], root
    )


GOOD = [[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]]


def test_training_images_are_left_out_and_seeds_averaged() -> None:
    ids = [f"i{k}" for k in range(7)]
    both = [table(ids, GOOD), table(ids, [*GOOD[:2], [0.15, 0.85], *GOOD[3:]])]
    found = label_errors(manifest(), both, "two")
    assert (found["images"], found["without_prediction"]) == (6, 1)
    (row,) = found["suspected"]
    assert (row["image_id"], row["label"], row["suggested"]) == ("i2", "a", "b")
    assert (row["score_of_label"], row["score_of_suggested"]) == (0.1, 0.9)
    assert found["between"] == [{"label": "a", "suggested": "b", "images": 1}]
    learned = [table(ids[:2], GOOD[:2]), table(ids[3:], GOOD[3:]), table([ids[2]], [GOOD[2]], split="train")]
    assert label_errors(manifest(), learned, "one")["suspected"] == []
    with pytest.raises(ManifestError, match="other: no prediction of a labelled image of this manifest"):
        label_errors(manifest(), [table(["x"], [[0.5, 0.5]])], "other")
    with pytest.raises(ManifestError, match="one: predictions of training images alone"):
        label_errors(manifest(), [table(ids, GOOD, split="train")], "one")
    others = Predictions(**{**both[0].__dict__, "labels": LabelSet(("a", "c"))})
    with pytest.raises(MismatchError, match="their classes differ"):
        label_errors(manifest(), [both[0], others], "two")


@examples(50)
@given(st.sets(st.integers(0, 6)), st.sets(st.integers(0, 5), max_size=5))
def test_labels_that_the_predictions_contradict_and_images_without_are_said(other: set[int], left: set[int]) -> None:
    """Predictions of another data set whose images have the same ids are no word of this one's labels."""
    images = manifest()
    kept = [k for k in range(7) if k not in left]
    labels = images.column("label")
    turned = [("b" if labels[k] == "a" else "a") if k in other else labels[k] for k in kept]
    made = table([f"i{k}" for k in kept], [GOOD[k] for k in kept])
    target = np.array(["ab".index(label or "a") for label in turned])
    found = label_errors(images, [replace(made, target=target)], "run")
    judged = [k for k in kept if labels[k] is not None]
    assert [row["image_id"] for row in found["other_labels"]] == [f"i{k}" for k in judged if k in other]
    said = list(_of_labels(found))
    assert any("another label" in text for text in said) == bool(found["other_labels"])
    assert any("not judged" in text for text in said) == (len(judged) < 7)


def test_the_page_shows_the_suspected_images(tmp_path: Path, capsys: Capture) -> None:
    for k in range(7):
        Image.fromarray(draw_picture(seed=k)).save(tmp_path / f"{k}.png")
    write_manifest(tmp_path / "m.parquet", manifest(tmp_path))
    write_predictions(tmp_path / "p.csv", table([f"i{k}" for k in range(7)], GOOD))
    arguments = ["check", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--predictions", str(tmp_path / "p.csv")]) == 0
    assert (
        "1 suspected label error in 6 images with a prediction (a -> b 1), by predictions that agree with 83 % of the labels"
        in capsys.readouterr().out
    )
    page = (tmp_path / "out" / "label-errors.html").read_text(encoding="utf-8")
    assert page.count("<img") == 1 and "labelled a, suggested b" in page and "A suspicion is no proof" in page
    content = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert [row["image_id"] for row in content["label_errors"]["suspected"]] == ["i2"]
    assert run(["check", str(tmp_path / "m.parquet"), "--predictions", str(tmp_path / "none.csv")]) == 2
