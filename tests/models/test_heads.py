"""Heads against slow oracles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from thoraclip.errors import InputError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.models.heads import (
    LinearHead,
    Standardiser,
    class_weights,
    fit_adamw,
    fit_lbfgs,
    log_loss,
    read_head,
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
