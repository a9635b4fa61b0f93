"""Training pictures within a bundle: who is drawn, who is nearest, and that nobody has them unasked."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bundle.conftest import Workshop

from thoraclip.bundle.export import export_bundle
from thoraclip.bundle.format import Thumbnails
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.parity import SIDE, draw_rows
from thoraclip.cli.app import run
from thoraclip.errors import ConfigError
from thoraclip.imaging import decode

pictures = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, "a", "b", "c", "d"])), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def carrying(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with nine thumbnails."""
    folder = tmp_path_factory.mktemp("thumbnails") / "bundle"
    export_bundle(workshop.original("probe"), folder, thumbnails=9)
    return folder


@given(pictures, st.integers(1, 50), st.integers(0, 3))
def test_classes_and_patients_are_drawn_evenly(found: list[tuple[int, str | None]], count: int, seed: int) -> None:
    targets, patients = np.array([one for one, _ in found]), [one for _, one in found]
    rows = draw_rows(targets, patients, count=count, seed=seed)
    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == min(count, len(found))
    assert np.array_equal(rows, draw_rows(targets, patients, count=count, seed=seed))
    others = {tuple(draw_rows(np.zeros(100, np.int64), [None] * 100, count=5, seed=seed + more)) for more in range(5)}
    assert len(others) == 5, "another seed draws others"
    there, drawn = Counter(targets.tolist()), Counter(targets[rows].tolist())
    for one in there:
        for other in there:
            assert drawn[one] >= min(there[one], drawn[other] - 1), "one class has more while another has some left"
    for label in there:
        named = [patients[row] for row in rows if targets[row] == label and patients[row] is not None]
        known = {patient for target, patient in found if target == label and patient is not None}
        if len(set(named)) < len(named):
            assert set(named) == known, "a patient comes twice while another has not come"


@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 99))
def test_the_nearest_are_those_of_the_largest_cosine(images: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(images, 5))
    unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    own = rng.normal(size=5).astype(np.float32)
    kept = Thumbnails(np.arange(images, dtype=np.uint8)[:, None, None], [str(i) for i in range(images)], unit)
    slow = []
    for i, row in enumerate(unit.astype(np.float64)):
        dot = sum(a * float(b) for a, b in zip(row, own, strict=True))
        slow.append((-dot / (math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(float(b) ** 2 for b in own))), i))
    slow = sorted(slow)[:count]
    found = kept.nearest(own, count=count)
    assert [(one.label, one.grey.tolist()) for one in found] == [(str(i), [[i]]) for _, i in slow]
    assert [one.similarity for one in found] == pytest.approx([-value for value, _ in slow], abs=1e-9)


def test_equal_pictures_tie_and_no_cosine_exceeds_1() -> None:
    """Of any length D; the server refuses to tell more than 1."""
    for images, width in itertools.product((2, 7, 33), range(3, 200, 14)):
        own = np.random.default_rng(width).normal(size=width)
        unit = np.tile(own / np.linalg.norm(own), (images, 1)).astype(np.float16)
        kept = Thumbnails(np.zeros((images, 1, 1), np.uint8), [str(i) for i in range(images)], unit)
        found = kept.nearest(own.astype(np.float32), count=images)
        assert [one.label for one in found] == [str(i) for i in range(images)]
        assert all(1 - 1e-6 < one.similarity <= 1 for one in found)


def test_a_training_picture_is_nearest_to_itself(carrying: Path, workshop: Workshop) -> None:
    opened = open_bundle(carrying)
    kept = opened.bundle.thumbnails
    assert kept is not None and kept.greys.shape == (9, SIDE, SIDE)
    assert Counter(kept.labels) == dict.fromkeys(opened.labels.names, 3)
    manifest, found = workshop.manifest, []
    for file, split, label in zip(manifest.paths(), manifest.column("split"), manifest.column("label"), strict=True):
        if split != "train":
            continue
        nearest = kept.nearest(opened.classify(file).features, count=1)[0]
        if nearest.similarity > 0.99999 and nearest.label == label:
            height, width = decode(file).pixels.shape
            shown = nearest.grey.any(axis=0).sum() / nearest.grey.any(axis=1).sum()
            assert shown == pytest.approx(width / height, abs=0.05)
            found.append(file)
    assert len(found) >= 9


def test_the_card_says_that_they_are_inside(carrying: Path, workshop: Workshop) -> None:
    plain = workshop.bundle("probe")
    assert "**9 training images inside**" in (carrying / "README.md").read_text()
    assert "inside**" not in (plain / "README.md").read_text()
    assert not (plain / "thumbnails.npz").exists() and open_bundle(plain).bundle.thumbnails is None


def test_what_cannot_be(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "thumbnails = 3: the run 'zeroshot' has learned from no picture; leave it out"
    with pytest.raises(ConfigError, match=message):
        export_bundle(workshop.original("zeroshot"), tmp_path / "bundle", thumbnails=3)
    manifest = str(workshop.root / "manifest.parquet")
    arguments = ["export", str(workshop.run("probe")), "--manifest", manifest, "--out", str(tmp_path / "bundle")]
    assert run([*arguments, "--thumbnails", "-1"]) == 2
    assert "error: thumbnails = -1: a whole number from 0 to 2,000 is needed" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
