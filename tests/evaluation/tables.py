"""Predictions and audits that are drawn: what the tests of reports, of external sets and of audits judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.evaluation.audit import Facts, audit_report
from thoraclip.evaluation.metrics import METRICS, Scored
from thoraclip.evaluation.report import MethodResult
from thoraclip.evaluation.shortcuts import Answers, ShortcutTest
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest
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


def answers(right: float, target: Any, seed: int, classes: int = 3) -> Any:
    """Class numbers, of which a share is right."""
    rng = np.random.default_rng(seed)
    wrong = (target + rng.integers(1, classes, len(target))) % classes
    return np.where(rng.random(len(target)) < right, target, wrong).astype(np.int64)


AGES = (0.0, 17.9, 18.0, 39.9, 40.0, 59.9, 60.0, 79.9, 80.0, None, 130.0, -1.0)


def audit(
    behind: float, *, n: int = 150, right: float = 0.8, columns: Mapping[str, Any] | None = None, **changed: Any
) -> dict[str, Any]:
    """Of a classifier that is right for a share of the images, and for `behind` of them without lungs."""
    target = (np.arange(n) % 3).astype(np.int64)
    known: dict[str, Any] = {
        "source": [("clinic", "archive", "store")[t] for t in target],
        "view": [("PA", "AP", "PA", None)[i % 4] for i in range(n)], "sex": ["F"] * 9 + ["M"] * (n - 9),
        "age_years": [AGES[i % len(AGES)] for i in range(n)], **(columns or {}),
    }  # fmt: skip
    base = [{"image_id": f"i{i}", "path": f"{i}.png", "sha256": f"{i}", "label": CLASSES[target[i]]} for i in range(n)]
    rows = [row | {name: values[i] for name, values in known.items()} for i, row in enumerate(base)]
    manifest = Manifest.from_rows(rows, Path("/nowhere"))
    shares = {
        "original": right, "lungs alone": right + 0.3 - behind, "no lungs": behind, "refitted": right + 0.3 - behind,
        "background all": behind, "background frame": 0.9 * behind, "background file": 0.8 * behind,
    }  # fmt: skip
    named = {name: answers(share, target, seed) for seed, (name, share) in enumerate(shares.items())}
    named["grey"], named["refitted"][::5] = np.zeros(n, dtype=np.int64), -1
    tests = [
        ShortcutTest("drop", "all but the lungs replaced", "classifier", "classifier", "lungs alone", "original", "the rest"),
        ShortcutTest("no-lungs", "the lungs replaced", "classifier", "classifier", "no lungs", finds="what lies outside the lungs"),
        ShortcutTest("grey", "all replaced", "classifier", "classifier", "grey"),
        ShortcutTest("refitted", "fitted again without lungs", "data", "probe", "refitted", "original", "the rest"),
        ShortcutTest("turned", "lungs alone, before and after", "control", "classifier", "original", "no lungs"),
        *(ShortcutTest(f"background {k}", k, "data", "trees", f"background {k}", finds=k) for k in ("all", "frame", "file")),
    ]  # fmt: skip
    attributes: list[dict[str, Any]] = []
    for seed, column in enumerate(("source", "view", "sex", "format")):
        values = manifest.column(column)
        found = sorted({v for v in values if v is not None})
        codes = np.array([found.index(v) if v in found else -1 for v in values], dtype=np.int64)
        names = answers(0.7, codes, seed, 2) if column == "view" else None
        attributes.append({"column": column, "values": found, "asked": found, "codes": codes, "named": names})
    facts = Facts(
        run="runs/probe", kind="probe", labels=LabelSet(CLASSES), manifest=manifest, tests=tests,
        answers=Answers(target, np.arange(n) // 2, named, 3), lungs={"words": "The lung regions are the given masks."},
        attributes=attributes, sham={"images": 64, "largest_change": 0.0, "other_answers": 0}, saliency=None,
        without_duplicates=None, has_masks=True,
    )  # fmt: skip
    return audit_report(replace(facts, **changed), resamples=100, seed=3)


def headline(scored: Scored) -> dict[str, float | None]:
    """Every headline metric of one table."""
    return {name: metric.point(scored) for name, metric in METRICS.items()}
