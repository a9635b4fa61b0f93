"""Heads against slow oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from tests.conftest import examples

from thoraclip.errors import InputError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.models.heads import (
    LinearHead,
    Standardiser,
    _text_informed_loss,
    class_weights,
    fit_adamw,
    fit_lbfgs,
    fit_text_informed,
    log_loss,
    read_head,
    text_multipliers,
    write_head,
)

LABELS = LabelSet(("a", "b", "c"))


def toy(classes: int = 3, n: int = 90, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    features = rng.normal(size=(n, d)) * [1, 5, 0.1, 2] + np.eye(classes, d)[targets] * [2, 5, 0.1, 0]
    return features.astype(np.float32), targets


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("classes", [2, 3])
def test_lbfgs_reaches_the_optimum_of_the_stated_objective(classes: int, weighting: str) -> None:
    features, targets = toy(classes)
    features, targets = features[: 60 if classes == 3 else 75], targets[: 60 if classes == 3 else 75]
    keep = (targets != 1) | (np.arange(len(targets)) // classes % 2 == 0)  # unequal classes, so that weighting matters
    features, targets = features[keep], targets[keep]
    labels, l2 = LabelSet(LABELS.names[:classes]), 0.05
    (head,) = fit_lbfgs(features, targets, labels, l2=[l2], weighting=weighting)
    z = head.standardiser.apply(features).astype(np.float64)
    weights = class_weights(targets, classes, weighting)[targets]
    weights = weights * len(targets) / weights.sum()
    d = z.shape[1]

    def objective(theta: np.ndarray) -> float:
        """Softmax regression; for two classes the penalty is on the single difference vector, as scikit-learn has it."""
        w, b = theta[: classes * d].reshape(classes, d), theta[classes * d :]
        loss = -(weights * log_softmax(z @ w.T + b, axis=1)[np.arange(len(z)), targets]).mean()
        penalty = ((w[1] - w[0]) ** 2).sum() + ((w[1] + w[0]) ** 2).sum() if classes == 2 else (w**2).sum()
        return loss + l2 / 2 * penalty

    best = minimize(objective, np.zeros(classes * (d + 1)), method="BFGS", options={"gtol": 1e-7})
    w, b = best.x[: classes * d].reshape(classes, d), best.x[classes * d :]
    np.testing.assert_allclose(head.predict(features), softmax(z @ w.T + b, axis=1), atol=2e-4)


def test_the_grid_keeps_its_order_and_a_strong_penalty_gives_the_prior() -> None:
    features, targets = toy()
    weak, strong = fit_lbfgs(features, targets, LABELS, l2=[1e-3, 1e6], weighting="none")
    assert np.abs(weak.weight).max() > 100 * np.abs(strong.weight).max()
    np.testing.assert_allclose(strong.predict(features), 1 / 3, atol=1e-3)


def test_standardiser_uses_training_statistics_and_keeps_constant_features() -> None:
    features = np.array([[1, 5], [3, 5]], dtype=np.float32)
    fitted = Standardiser.fit(features)
    np.testing.assert_allclose(fitted.apply(np.array([[5, 6]], dtype=np.float32)), [[3, 1]])


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(
        class_weights(targets, 3, "balanced"), compute_class_weight("balanced", classes=np.arange(3), y=targets)
    )
    np.testing.assert_allclose(class_weights(targets, 3, "none"), 1)


def test_log_loss_is_scikit_learns() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(1)
    scores, targets = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    assert log_loss(scores, targets) == pytest.approx(metrics.log_loss(targets, scores, labels=[0, 1, 2]))


def test_adamw_learns_is_seeded_and_gives_a_head_per_epoch() -> None:
    features, targets = toy()
    options = {"epochs": 12, "batch_size": 16, "learning_rate": 0.05, "weighting": "none"}
    heads = fit_adamw(features, targets, LABELS, seed=3, **options)
    again = fit_adamw(features, targets, LABELS, seed=3, **options)
    other = fit_adamw(features, targets, LABELS, seed=4, **options)
    assert len(heads) == 12
    assert log_loss(heads[-1].predict(features), targets) < log_loss(heads[0].predict(features), targets) < 3
    np.testing.assert_array_equal(heads[-1].weight, again[-1].weight)
    assert np.abs(heads[-1].weight - other[-1].weight).max() > 0


def test_adamw_trains_on_fewer_images_than_a_batch() -> None:
    features, targets = toy(n=9)
    heads = fit_adamw(
        features, targets, LABELS, epochs=2, batch_size=80, learning_rate=0.1, weighting="balanced", seed=0
    )
    assert np.abs(heads[1].weight - heads[0].weight).max() > 0


def test_heads_come_back_as_they_were_written(tmp_path: Path) -> None:
    features, targets = toy()
    labels = LabelSet(("Ä <b>", "b", "c"))
    head = fit_lbfgs(features, targets, labels, l2=[0.1], weighting="none")[0]
    write_head(tmp_path / "head.safetensors", head)
    again = read_head(tmp_path / "head.safetensors")
    assert again.labels == labels
    np.testing.assert_array_equal(again.predict(features), head.predict(features))
    write_head(tmp_path / "again.safetensors", again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "head.safetensors").read_bytes()


def test_files_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such head"):
        read_head(tmp_path / "head.safetensors")
    (tmp_path / "head.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ManifestError, match="not a linear head"):
        read_head(tmp_path / "head.safetensors")


def test_scores_sum_to_one_for_huge_logits() -> None:
    identity = Standardiser(np.zeros(2, np.float32), np.ones(2, np.float32))
    head = LinearHead(
        LabelSet(("a", "b")), identity, np.full((2, 2), 1e6, np.float32) * [[1], [-1]], np.zeros(2, np.float32)
    )
    scores = head.predict(np.ones((3, 2), np.float32))
    np.testing.assert_allclose(scores, [[1, 0]] * 3)


def toy_texts(classes: int, n: int = 90, d: int = 6, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """(unit features, targets, unit texts): classes around their texts, all of them in one narrow cone as CLIP's are."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    texts = rng.normal(size=(classes, d)) + 2
    features = 0.3 * texts[targets] + rng.normal(size=(n, d)) * noise + 1
    return (
        (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32),
        targets,
        texts / np.linalg.norm(texts, axis=1, keepdims=True),
    )


def informed(features: np.ndarray, targets: np.ndarray, texts: np.ndarray, **changes: Any) -> list[LinearHead]:
    labels = LabelSet(tuple("abcdefgh"[: len(texts)]))
    options = {"logit_scale": 20.0, "l2": [0.05], "weighting": "none"} | changes
    return fit_text_informed(features, targets, labels, texts=texts, **options)


def slow_informed(
    features: np.ndarray, targets: np.ndarray, texts: np.ndarray, *, scale: float, l2: float, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, alpha) at the optimum of the papers' own variables W and alpha, by a solver that is given no gradient."""
    classes, d = texts.shape
    f = features.astype(np.float64)

    def logits(theta: np.ndarray) -> np.ndarray:
        w, alpha = theta[:-classes].reshape(classes, d), theta[-classes:]
        return np.stack([scale * f @ (w[c] + alpha[c] * texts[c]) for c in range(classes)], axis=1)

    def objective(theta: np.ndarray) -> float:
        loss = -(weights * log_softmax(logits(theta), axis=1)[np.arange(len(f)), targets]).mean()
        return loss + l2 / 2 * (theta[:-classes] ** 2).sum()

    best = minimize(objective, np.full(classes * (d + 1), 0.1), method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    return logits(best.x), best.x[-classes:]


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_text_informed_probe_reaches_the_optimum_of_the_papers_variables(classes: int, weighting: str) -> None:
    features, targets, texts = toy_texts(classes)
    keep = (targets != 1) | (np.arange(len(targets)) // classes % 2 == 0)  # unequal classes, so that weighting matters
    features, targets = features[keep], targets[keep]
    (head,) = informed(features, targets, texts, weighting=weighting)
    weights = class_weights(targets, classes, weighting)[targets]
    weights = weights * len(targets) / weights.sum()
    logits, alpha = slow_informed(features, targets, texts, scale=20.0, l2=0.05, weights=weights)
    np.testing.assert_allclose(head.predict(features), softmax(logits, axis=1), atol=2e-4)
    np.testing.assert_allclose(text_multipliers(head, texts, 20.0), alpha, atol=2e-3)
    assert not head.bias.any()


@examples(30)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), l2=st.floats(1e-6, 1e3), far=st.floats(0, 30))
def test_the_text_informed_gradient_is_that_of_finite_differences(
    seed: int, classes: int, l2: float, far: float
) -> None:
    features, targets, texts = toy_texts(classes, n=20, d=4, seed=seed)
    rng = np.random.default_rng(seed)
    weights, flat = rng.uniform(0.2, 2, len(targets)), texts.ravel() + far * rng.normal(size=texts.size)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        return _text_informed_loss(at, 10.0 * features.astype(np.float64), targets, weights, texts, l2)

    step = 1e-5 * np.eye(len(flat))
    slow = [(loss(flat + s)[0] - loss(flat - s)[0]) / 2e-5 for s in step]
    np.testing.assert_allclose(loss(flat)[1], slow, rtol=1e-4, atol=1e-4 * (1 + l2))


def test_without_texts_it_is_scikit_learns_logistic_regression() -> None:
    """Texts of zero have no direction that could be free of the penalty: alpha = 0."""
    features, targets, texts = toy_texts(3)
    (head,) = informed(features, targets, np.zeros_like(texts))
    oracle = LogisticRegression(C=1 / (0.05 * len(targets)), fit_intercept=False, max_iter=5000, tol=1e-10)
    oracle.fit(20.0 * features.astype(np.float64), targets)
    np.testing.assert_allclose(head.weight, 20.0 * oracle.coef_, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_strong_penalty_leaves_zero_shot_with_a_trust_for_each_class(classes: int) -> None:
    features, targets, texts = toy_texts(classes)
    (head,) = informed(features, targets, texts, l2=[1e7])
    alpha = text_multipliers(head, texts, 20.0)
    np.testing.assert_allclose(head.weight, 20.0 * alpha[:, None] * texts, atol=1e-3)
    logits = 20.0 * features @ (alpha[:, None] * texts).T
    np.testing.assert_array_equal(head.predict(features).argmax(axis=1), logits.argmax(axis=1))

    def loss(alpha: np.ndarray) -> float:
        return log_loss(softmax(20.0 * features @ (alpha[:, None] * texts).T, axis=1), targets)

    best = minimize(
        loss, np.ones(classes), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 5000}
    )
    np.testing.assert_allclose(alpha, best.x, atol=2e-3)
    assert loss(alpha) < loss(np.ones(classes)), "zero-shot itself trusts all texts alike"


@pytest.mark.parametrize("classes", [2, 5])
def test_a_weak_penalty_leaves_the_plain_linear_probe(classes: int) -> None:
    features, targets, texts = toy_texts(classes, n=400, noise=2.0)
    (head,) = informed(features, targets, texts, l2=[1e-7])
    oracle = LogisticRegression(C=1e9, fit_intercept=False, max_iter=5000, tol=1e-8)
    oracle.fit(features.astype(np.float64), targets)
    np.testing.assert_allclose(head.predict(features), oracle.predict_proba(features), atol=5e-3)


def test_the_text_informed_grid_keeps_its_order_and_the_path_does_not_matter() -> None:
    features, targets, texts = toy_texts(3)
    grid = [1e-3, 10.0, 0.1]
    along = informed(features, targets, texts, l2=grid)
    for head, l2 in zip(along, grid, strict=True):
        (alone,) = informed(features, targets, texts, l2=[l2])
        np.testing.assert_allclose(head.predict(features), alone.predict(features), atol=1e-4)
    own = [np.linalg.norm(head.weight / 20 - text_multipliers(head, texts, 20.0)[:, None] * texts) for head in along]
    assert own[0] > own[2] > own[1], "the weaker the penalty, the more of its own each class has"


def test_few_images_are_better_served_with_texts() -> None:
    """What the method is for: four images a class in 128 dimensions, and texts that point the right way."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(3, 128))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    targets = np.arange(612) % 3
    features = 0.1 * texts[targets] + rng.normal(size=(612, 128)) / np.sqrt(128)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    train, test = slice(0, 12), slice(12, None)
    with_texts = informed(features[train], targets[train], texts, l2=[100.0])[0].predict(features[test])
    without = informed(features[train], targets[train], np.zeros_like(texts), l2=[0.1])[0].predict(features[test])
    right = [(scores.argmax(axis=1) == targets[test]).mean() for scores in (with_texts, without)]
    assert right[0] > right[1] + 0.1
