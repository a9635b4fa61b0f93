"""Heads against slow oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from thoraclip.errors import InputError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.models.heads import (
    LinearHead,
    fit_adamw,
    fit_lbfgs,
    fit_text_informed,
    log_loss,
    read_head,
    text_multipliers,
    write_head,
)
from thoraclip.models.weighting import class_weights

LABELS = LabelSet(("a", "b", "c"))


def toy(classes: int = 3, n: int = 90, d: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    features = rng.normal(size=(n, d)) * [1, 5, 0.1, 2] + np.eye(classes, d)[targets] * [2, 5, 0.1, 0]
    return features.astype(np.float32), targets


def unequal(targets: np.ndarray) -> np.ndarray:
    """bool[N]: half of class 1 left out, so that weighting matters."""
    return (targets != 1) | (np.arange(len(targets)) // (targets.max() + 1) % 2 == 0)


def image_weights(targets: np.ndarray, weighting: str) -> np.ndarray:
    weights = class_weights(targets, targets.max() + 1, weighting)[targets]
    return weights * len(targets) / weights.sum()


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("classes", [2, 3])
def test_lbfgs_reaches_the_optimum_of_the_stated_objective(classes: int, weighting: str) -> None:
    features, targets = (each[unequal(toy(classes, n=66)[1])] for each in toy(classes, n=66))
    labels, l2 = LabelSet(LABELS.names[:classes]), 0.05
    (head,) = fit_lbfgs(features, targets, labels, l2=[l2], weighting=weighting)
    z, weights = ((features - head.mean) / head.scale).astype(np.float64), image_weights(targets, weighting)
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
    (head,) = fit_lbfgs(features, np.array([0, 1]), LabelSet(("a", "b")), l2=[1.0], weighting="none")
    np.testing.assert_allclose((head.mean, head.scale), [[2, 5], [1, 1]])


def test_class_weights_and_log_loss_are_scikit_learns() -> None:
    targets, rng = np.array([0, 0, 0, 1, 2, 2]), np.random.default_rng(1)
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(class_weights(targets, 3, "balanced"), balanced)
    np.testing.assert_allclose(class_weights(targets, 3, "none"), 1)
    scores, targets = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    assert log_loss(scores, targets) == pytest.approx(metrics.log_loss(targets, scores, labels=[0, 1, 2]))


def adamw(n: int = 90, **changes: Any) -> list[LinearHead]:
    options = {"epochs": 12, "batch_size": 16, "learning_rate": 0.05, "weighting": "none", "seed": 3} | changes
    features, targets = toy(n=n)
    keep = unequal(targets)
    return fit_adamw(features[keep], targets[keep], LABELS, **options)


def test_adamw_learns_is_seeded_and_gives_a_head_per_epoch() -> None:
    (features, targets), heads = toy(), adamw()
    assert len(heads) == 12
    assert log_loss(heads[-1].predict(features), targets) < log_loss(heads[0].predict(features), targets) < 3
    np.testing.assert_array_equal(heads[-1].weight, adamw()[-1].weight)
    for other in ({"seed": 4}, {"weighting": "balanced"}, {"learning_rate": 0.04}):
        assert np.abs(heads[-1].weight - adamw(**other)[-1].weight).max() > 0, other


def test_adamw_leaves_out_a_last_batch_that_is_not_full_unless_it_is_the_only_one() -> None:
    (one,) = adamw(batch_size=40, epochs=1)  # of 75 images
    np.testing.assert_allclose(np.abs(one.bias), 0.05, rtol=1e-3, err_msg="one step of Adam moves by the learning rate")
    few, all_of_them = (adamw(n=9, batch_size=size)[-1].weight for size in (80, 8))
    np.testing.assert_allclose(few, all_of_them, atol=1e-6)


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
    path = tmp_path / "head.safetensors"
    with pytest.raises(InputError, match="no such head"):
        read_head(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ManifestError, match="run the probe again"):
        read_head(path)


def test_scores_sum_to_one_for_huge_logits() -> None:
    weight = np.full((2, 2), 1e6, np.float32) * [[1], [-1]]
    head = LinearHead.unscaled(LabelSet(("a", "b")), weight)
    np.testing.assert_allclose(head.predict(np.ones((3, 2), np.float32)), [[1, 0]] * 3)


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
    keep = unequal(targets)
    features, targets = features[keep], targets[keep]
    (head,) = informed(features, targets, texts, weighting=weighting)
    weights = image_weights(targets, weighting)
    logits, alpha = slow_informed(features, targets, texts, scale=20.0, l2=0.05, weights=weights)
    np.testing.assert_allclose(head.predict(features), softmax(logits, axis=1), atol=2e-4)
    np.testing.assert_allclose(text_multipliers(head, texts, 20.0), alpha, atol=2e-3)
    assert not head.bias.any()


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
