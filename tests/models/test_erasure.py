"""LEACE: what is erased cannot be read, nothing else changes, and the map is folded into the head."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from thoraclip.labels import LabelSet
from thoraclip.models.erasure import fit_eraser
from thoraclip.models.heads import fit_lbfgs

LABELS = LabelSet(("a", "b", "c"))


def drawn(seed: int, n: int = 300, width: int = 8, sources: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell class and source, both linearly, by directions of their own."""
    rng = np.random.default_rng(seed)
    classes, source = rng.integers(3, size=n), rng.integers(sources, size=n)
    x = rng.normal(size=(n, width)) @ rng.normal(size=(width, width))
    x += 3 * rng.normal(size=(3, width))[classes] + 3 * rng.normal(size=(sources, width))[source]
    return x.astype(np.float32), classes, source


@given(st.integers(0, 10_000))
def test_within_a_class_no_covariance_with_the_source_is_left(seed: int) -> None:
    x, classes, source = drawn(seed)
    erased = fit_eraser(x, classes, source).apply(x).astype(float)
    z = np.eye(3)[source]
    covariance = np.zeros((x.shape[1], 3))
    for one in range(3):
        rows = classes == one
        covariance += (erased[rows] - erased[rows].mean(0)).T @ (z[rows] - z[rows].mean(0))
    assert np.abs(covariance / len(x)).max() < 1e-3 * x.std()


def test_a_linear_classifier_no_longer_knows_the_source_and_still_the_class() -> None:
    x, classes, source = drawn(1, n=600)
    erased = fit_eraser(x, classes, source).apply(x)

    def accuracy(features: np.ndarray, target: np.ndarray) -> float:
        return float(LogisticRegression(C=10, max_iter=2000).fit(features, target).score(features, target))

    balanced = np.bincount(source).max() / len(source)
    assert accuracy(x, source) > 0.8 and accuracy(erased, source) < balanced + 0.08
    assert accuracy(erased, classes) > 0.8


def test_against_the_formula_by_hand() -> None:
    x, classes, source = drawn(2)
    single = np.zeros_like(classes)  # one class: plain LEACE
    values = x.astype(float)
    centred, z = values - values.mean(0), np.eye(3)[source]
    z = z - z.mean(0)
    w, v = np.linalg.eigh(centred.T @ centred / len(x))
    root = v @ np.diag(w**-0.5) @ v.T
    cross = root @ (centred.T @ z / len(x))
    projection = cross @ np.linalg.pinv(cross, rcond=1e-6)
    by_hand = values - centred @ (np.linalg.inv(root) @ projection @ root).T
    assert fit_eraser(x, single, source).apply(x) == pytest.approx(by_hand, abs=1e-3)


def test_a_source_that_is_the_class_or_the_same_for_all_changes_nothing() -> None:
    x, classes, _ = drawn(3)
    for concept in (classes, np.zeros_like(classes)):
        assert fit_eraser(x, classes, concept).apply(x) == pytest.approx(x, abs=1e-4)


def test_features_of_which_some_are_constant_or_copies() -> None:
    x, classes, source = drawn(4)
    wide = np.concatenate([x, x[:, :2], np.ones((len(x), 1), np.float32)], axis=1)
    erased = fit_eraser(wide, classes, source).apply(wide)
    assert erased[:, :8] == pytest.approx(fit_eraser(x, classes, source).apply(x), abs=1e-2)
    assert erased[:, -1] == pytest.approx(1)


def test_the_map_is_folded_into_the_head() -> None:
    x, classes, source = drawn(5)
    eraser = fit_eraser(x, classes, source)
    [head] = fit_lbfgs(eraser.apply(x), classes, LABELS, l2=[0.01], weighting="none")
    assert eraser.folded(head).predict(x) == pytest.approx(head.predict(eraser.apply(x)), abs=1e-5)
