"""Linear heads on frozen features; fitted here, stored as safetensors, applied with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from thoraclip.array_files import Expected, read_safetensors
from thoraclip.dtypes import Floats, Ints, Singles
from thoraclip.errors import InputError, ManifestError
from thoraclip.labels import LabelSet
from thoraclip.models.weighting import class_weights, image_weights
from thoraclip.runs import atomic_open, canonical_json
from thoraclip.shapes import check, sequence, table, text

__all__ = [
    "LinearHead",
    "fit_adamw",
    "fit_lbfgs",
    "fit_text_informed",
    "log_loss",
    "read_head",
    "softmax",
    "text_multipliers",
    "write_head",
]

_ARRAYS: Expected = {
    "mean": ("f4", ("D",)),
    "scale": ("f4", ("D",)),
    "weight": ("f4", ("C", "D")),
    "bias": ("f4", ("C",)),
}
"""Of a head, in its file."""


@dataclass(frozen=True)
class LinearHead:
    """Softmax classifier on standardised features: softmax(W z + b), z = (x - mean) / scale."""

    labels: LabelSet  # C classes, in the order of the scores
    mean: Singles  # [D]
    scale: Singles  # [D]
    weight: Singles  # [C, D]
    bias: Singles  # [C]

    @classmethod
    def unscaled(cls, labels: LabelSet, weight: Singles, bias: Singles | None = None) -> LinearHead:
        """On features as they are; no bias is one of zeros."""
        zeros, ones = np.zeros(weight.shape[1], np.float32), np.ones(weight.shape[1], np.float32)
        return cls(labels, zeros, ones, weight, np.zeros(len(labels), np.float32) if bias is None else bias)

    def folded(self) -> tuple[Floats, Floats]:
        """(W' f64[C, D], b' f64[C]) of the same classifier on features as they are: softmax(W' x + b')."""
        weight = self.weight.astype(np.float64) / self.scale
        return weight, self.bias - weight @ self.mean.astype(np.float64)

    def predict(self, features: Singles) -> Floats:
        """f32[N, D], as the encoder gives them -> f64[N, C], each row sums to 1."""
        z = ((features - self.mean) / self.scale).astype(np.float64)
        return softmax(z @ self.weight.T.astype(np.float64) + self.bias)


def softmax(logits: Floats) -> Floats:
    """Row-wise softmax of f64[N, C]."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))


def log_loss(scores: Floats, targets: Ints) -> float:
    """Mean negative log score of the true class, in nats; scores below 1e-15 count as 1e-15."""
    return float(-np.log(np.maximum(scores[np.arange(len(targets)), targets], 1e-15)).mean())


def _mean_one(weights: Floats) -> Floats:
    """f64[N], of mean 1."""
    weights *= len(weights) / weights.sum()
    return weights


def fit_lbfgs(
    features: Singles,
    targets: Ints,
    labels: LabelSet,
    *,
    l2: Sequence[float],
    weighting: str,
    sources: Ints | None = None,
) -> list[LinearHead]:
    """Multinomial logistic regression by L-BFGS, one head per penalty, all in one go.

    Minimises mean log-loss + l2/2 ||W||^2 (the bias is free; with two classes, l2 ||W||^2), which is scikit-learn's
    objective with C = 1 / (l2 N). Penalties are fitted from strong to weak, each from the solution before it.

    L-BFGS is slow on correlated features, so the variables are V_k = W_k Q diag(c_k lambda + l2)^(1/2), with Q and
    lambda of the features' second moments and c_k the mean of p_k (1 - p_k): near Newton's, as the Hessian of class k
    is Z' diag(p_k (1 - p_k)) Z / N + l2 I. The minimum is the same; `gtol` bounds the Newton decrement.

    Args:
        features: f32[N, D], as the encoder gives them.
        targets: i64[N]; every class must occur.
        l2: penalties, positive.
        weighting, sources: see `image_weights`.
    """
    from threadpoolctl import threadpool_limits

    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    mean, scale = mean.astype(np.float32), np.where(deviation < 1e-6, 1, deviation).astype(np.float32)
    z = ((features - mean) / scale).astype(np.float64)
    classes, width = len(labels), features.shape[1]
    weights = _mean_one(image_weights(targets, classes, weighting, sources))
    weight, bias = np.zeros((classes, width)), np.zeros(classes)
    heads: dict[float, LinearHead] = {}
    with threadpool_limits(1):  # sums then keep one order everywhere
        variances, directions = np.linalg.eigh(z.T @ (z * (weights / len(z))[:, None]))
        for penalty in sorted(set(l2), reverse=True):
            strength = penalty * (2 if classes == 2 else 1)  # W = (-w, w) / 2 has half the square of w
            scores = softmax(z @ weight.T + bias)
            spread = np.maximum(weights @ (scores * (1 - scores)) / len(z), 1e-3)  # c; below, a step would be too long
            unit = 1 / np.sqrt(spread[:, None] * np.maximum(variances, 0) + strength)  # [C, D]
            own = 1 / np.sqrt(spread)  # of the bias

            def loss(
                flat: Floats, unit: Floats = unit, own: Floats = own, strength: float = strength
            ) -> tuple[float, Floats]:
                rotated = flat[:-classes].reshape(classes, width) * unit
                value, slope, bias_slope = _log_loss(z, targets, weights, rotated @ directions.T, flat[-classes:] * own)
                value += strength / 2 * float((rotated * rotated).sum())
                return value, np.append((slope @ directions + strength * rotated) * unit, bias_slope * own)

            best = _minimum(loss, np.append(weight @ directions / unit, bias / own), ftol=1e-15)
            weight = (best[:-classes].reshape(classes, width) * unit) @ directions.T
            bias = best[-classes:] * own
            heads[penalty] = LinearHead(labels, mean, scale, weight.astype(np.float32), bias.astype(np.float32))
    return [heads[penalty] for penalty in l2]


def _minimum(loss: Callable[[Floats], tuple[float, Floats]], start: Floats, *, ftol: float) -> Floats:
    """By L-BFGS; `loss` gives the value and its gradient."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": ftol, "gtol": 1e-7}
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x)


def _log_loss(
    z: Floats, targets: Ints, weights: Floats, weight: Floats, bias: Floats | float
) -> tuple[float, Floats, Floats]:
    """(weighted mean log-loss of softmax(W z + b), its gradient in W f64[C, D], in b f64[C])."""
    rows = np.arange(len(targets))
    logits = z @ weight.T + bias
    logits -= logits.max(axis=1, keepdims=True)
    exponential = np.exp(logits)
    total = exponential.sum(axis=1)
    value = float(weights @ (np.log(total) - logits[rows, targets]) / len(rows))
    residual = exponential / total[:, None]
    residual[rows, targets] -= 1
    residual *= weights[:, None] / len(rows)
    return value, residual.T @ z, residual.sum(axis=0)


def fit_adamw(
    features: Singles,
    targets: Ints,
    labels: LabelSet,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weighting: str,
    seed: int,
    sources: Ints | None = None,
) -> list[LinearHead]:
    """The reference study's recipe: a softmax layer on the raw features, trained with AdamW; one head per epoch.

    The last partial batch of an epoch is dropped.

    Args:
        features: f32[N, D]; targets: i64[N].
        epochs, batch_size, learning_rate: of AdamW (weight decay 0.01, PyTorch's default).
        weighting, sources: see `image_weights`.
        seed: decides the initial weights and the order of the batches.
    """
    import torch
    from torch.nn.functional import cross_entropy

    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(np.array(features)), torch.from_numpy(targets)
    bound = features.shape[1] ** -0.5
    weight = ((torch.rand(len(labels), features.shape[1], generator=generator) * 2 - 1) * bound).requires_grad_()
    bias = torch.zeros(len(labels), requires_grad=True)
    by_class = weighting != "source"
    weights = class_weights if by_class else partial(image_weights, sources=sources)
    loss_weights = torch.from_numpy(weights(targets, len(labels), weighting)).float()
    optimizer = torch.optim.AdamW([weight, bias], lr=learning_rate)
    heads = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        full = len(order) - len(order) % batch_size or len(order)
        for rows in torch.split(order[:full], batch_size):
            logits = x[rows] @ weight.T + bias
            if by_class:
                loss = cross_entropy(logits, y[rows], weight=loss_weights)
            else:
                own = loss_weights[rows]
                loss = own @ cross_entropy(logits, y[rows], reduction="none") / own.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        heads.append(LinearHead.unscaled(labels, weight.detach().numpy().copy(), bias.detach().numpy().copy()))
    return heads


def fit_text_informed(
    features: Singles,
    targets: Ints,
    labels: LabelSet,
    *,
    texts: Floats,
    logit_scale: float,
    l2: Sequence[float],
    weighting: str,
    sources: Ints | None = None,
) -> list[LinearHead]:
    """A linear probe that starts from the classes' texts, one head per penalty (LP++: Huang et al. 2024,
    arXiv:2404.02285).

    Logits are s f.(w_c + alpha_c t_c): class c has a vector w_c of its own and weighs its text t_c by alpha_c.
    Minimises mean log-loss + l2/2 ||W||^2 over W and alpha, alpha being free. A strong penalty leaves weighted
    zero-shot, a weak one the plain linear probe. (The paper, and Shakeri et al. 2024, arXiv:2409.03868, for medical
    encoders, minimise the log-loss alone, by block majorise-minimise steps.)

    In u_c = w_c + alpha_c t_c the best alpha_c is u_c.t_c, so that mean log-loss + l2/2 sum_c ||u_c - (u_c.t_c) t_c||^2
    is left, convex in U. It is fitted from strong penalties to weak, each from the solution before it; the first from
    zero-shot, U = T.

    Args:
        features: f32[N, P], unit vectors in the space shared with text.
        targets: i64[N]; every class must occur.
        texts: f64[C, P], unit vectors.
        logit_scale: s, the encoder's.
        l2: penalties, positive.
        weighting, sources: see `image_weights`.

    Returns:
        Heads with weight s U and no bias, on features as they are; their alpha: `text_multipliers`.
    """
    from threadpoolctl import threadpool_limits

    scaled = logit_scale * features.astype(np.float64)
    weights = _mean_one(image_weights(targets, len(labels), weighting, sources))
    vectors = texts.astype(np.float64)
    heads: dict[float, LinearHead] = {}
    for penalty in sorted(set(l2), reverse=True):

        def loss(flat: Floats, penalty: float = penalty) -> tuple[float, Floats]:
            u = flat.reshape(texts.shape)
            value, slope, _ = _log_loss(scaled, targets, weights, u, 0.0)
            w = u - (u * texts).sum(axis=1, keepdims=True) * texts
            return value + penalty / 2 * float((w * w).sum()), (slope + penalty * w).ravel()

        with threadpool_limits(1):  # as in `fit_lbfgs`
            vectors = _minimum(loss, vectors.ravel(), ftol=1e-13).reshape(texts.shape)
        heads[penalty] = LinearHead.unscaled(labels, (logit_scale * vectors).astype(np.float32))
    return [heads[penalty] for penalty in l2]


def text_multipliers(head: LinearHead, texts: Floats, logit_scale: float) -> Floats:
    """f64[C]: alpha of a head of `fit_text_informed`; 1 is zero-shot's trust in a class's text, 0 is none."""
    return np.asarray((head.weight.astype(np.float64) * texts).sum(axis=1) / logit_scale)


def write_head(path: Path, head: LinearHead) -> None:
    """Write one head as safetensors; the class names stand in the file's metadata."""
    arrays = {name: np.ascontiguousarray(getattr(head, name)) for name in _ARRAYS}
    about = {"schema": 1, "kind": "linear-head", "labels": list(head.labels.names)}
    metadata = {"thoraclip": canonical_json(about)}  # one key: safetensors writes several in any order
    with atomic_open(path) as stream:
        stream.write(save(arrays, metadata=metadata))


def read_head(path: Path) -> LinearHead:
    """Read a head; raises InputError when the file is missing and ManifestError when it is not a head."""
    if not path.is_file():
        raise InputError(f"{path}: no such head; name a head.safetensors of a probe run")
    told: dict[str, Any] = {"error": ManifestError, "remedy": "run the probe again"}
    arrays, about = read_safetensors(path, _ARRAYS, **told)
    check(about, table(labels=sequence(text, len(arrays["bias"]), len(arrays["bias"]))), path, **told)
    if not (arrays["scale"] > 0).all():
        raise ManifestError(f"{path}: a scale is not positive; run the probe again")
    return LinearHead(LabelSet(tuple(about["labels"])), **arrays)
