"""Digits burnt in at one place: found where they differ by class, and not where they do not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from thoraclip.data.background import edge_strokes, file_features
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.views import BORDER, CORNER
from thoraclip.evaluation.shortcuts import Answers, measure_tests, with_verdicts
from thoraclip.methods.audit import probes

IMAGES = 60
TARGET, FOLD = np.arange(IMAGES) % 3, np.arange(IMAGES) // 3 % 3


def drawn(strength: float, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Phantoms that all bear a date, by class or blindly."""
    return [
        draw_phantom(
            CLASSES[number % 3], rng=np.random.default_rng([seed, number]), size=64, shortcut="date",
            shortcut_strength=strength, difficulty=1.0,
        ).pixels
        for number in range(IMAGES)
    ]  # fmt: skip


def verdicts(images: list[npt.NDArray[np.uint8]]) -> dict[str, str]:
    """Of trees on the strokes, and on the marks of the same images."""
    marks = np.array([file_features(pixels, 1.0)["marks"] for pixels in images])
    strokes = np.stack([edge_strokes(pixels) for pixels in images])
    named = {
        "background strokes": probes.stroke_answers(strokes, TARGET, FOLD, seed=0),
        "background marks": probes.tree_answers(marks, TARGET, FOLD, seed=0),
    }
    tests = [probes.ShortcutTest(name, name, "data", "trees", name) for name in named]
    rows = with_verdicts(measure_tests(tests, Answers(TARGET, np.arange(IMAGES), named, 3), resamples=200, seed=0))
    return {row["name"]: row["verdict"] for row in rows}


def test_a_digit_that_differs_by_class_is_found_and_the_same_digits_dealt_blindly_are_not() -> None:
    planted = verdicts(drawn(1.0, seed=0))
    assert planted == {"background strokes": "strong", "background marks": planted["background marks"]}
    assert planted["background marks"] not in {"some", "strong"}, "number, size and place of the marks are the same"
    assert verdicts(drawn(0.0, seed=1))["background strokes"] not in {"some", "strong"}


@pytest.mark.parametrize("shape", [(320, 320), (640, 480), (96, 96)])
def test_the_places_are_the_border_and_the_corners_of_every_image(shape: tuple[int, int]) -> None:
    """A dot is seen where it is in them, and an even image shows nothing."""
    even = np.full(shape, 100, dtype=np.uint8)
    flat = edge_strokes(even)
    edge, (height, width) = round(320 * BORDER), (round(320 * share) for share in CORNER)
    corner = (height - edge) * (width - edge)
    assert flat.dtype == np.int8 and flat.shape == (320**2 - (320 - 2 * edge) ** 2 + 4 * corner,) and not flat.any()
    for (down, across), is_seen in {
        (0.05, 0.5): True,
        (0.15, 0.25): True,
        (0.15, 0.5): False,
        (0.5, 0.5): False,
    }.items():
        dotted = even.copy()
        row, column = round(down * shape[0]), round(across * shape[1])
        dotted[row : row + 3, column : column + 3] = 255
        assert bool(edge_strokes(dotted).max() > 20) is is_seen


def test_the_pixels_are_chosen_by_an_analysis_of_variance_on_the_training_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.feature_selection import f_classif

    rng = np.random.default_rng(0)
    strokes = rng.integers(-127, 128, (60, 300)).astype(np.int8)
    target, fold = rng.integers(0, 3, 60), np.arange(60) % 2
    shown: list[npt.NDArray[np.int8]] = []
    monkeypatch.setattr(probes, "_trees", lambda train, known, test, seed: shown.append(train) or np.zeros(len(test)))
    monkeypatch.setattr(probes, "_STROKES", 7)
    monkeypatch.setattr(probes, "_COLUMNS", 90)
    probes.stroke_answers(strokes, target, fold, seed=0)
    for number, train in enumerate(shown):
        rows = fold != number
        best = np.argsort(-f_classif(strokes[rows].astype(float), target[rows])[0])[:7]
        assert train.tolist() == strokes[np.ix_(rows, best)].tolist()
