"""Predictions that are drawn: what the tests of reports and of external sets judge."""

from __future__ import annotations

from typing import Any

import numpy as np

from thoraclip.judge.report import MethodResult
from thoraclip.labels import LabelSet
from thoraclip.tables.predictions import Predictions

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def predictions(
    n: int = 120, *, signal: float = 2.0, seed: int = 0, classes: tuple[str, ...] = CLASSES, prefix: str = "img",
    patients: int | None = None, targets: Any = None,
) -> Predictions:  # fmt: skip
    """Softmax of Gaussian logits, the true one higher by `signal`; the images of each patient lie far apart."""
    truth = np.arange(n) % len(classes) if targets is None else np.asarray(targets)
    n = len(truth)
    logits = np.random.default_rng(seed).normal(size=(n, len(classes)))
    logits[np.arange(n), truth] += signal
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    owner = tuple(None if patients is None else f"p{i % patients}" for i in range(n))
    ids = tuple(f"{prefix}{i:04d}" for i in range(n))
    return Predictions(LabelSet(classes), ids, truth.astype(np.int64), scores, (None,) * n, (None,) * n, owner)


def method(name: str, *tables: Predictions, kind: str = "probe", **more: Any) -> MethodResult:
    """A method with a table for each seed or classifier."""
    return MethodResult(name=name, kind=kind, predictions=tables, **more)
