"""Runs that are made up, and their model cards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard

from thoraclip.cards import data_facts
from thoraclip.cards.model_card import TrainedRun, base_model, model_card
from thoraclip.labels import LabelSet
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

PROVENANCE = {"python": "3.11", "seed": 0, "inputs": {"manifest": "abc"}}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method that the card has no words for."""

    model: str = "tiny-clip"
    """Which model."""
    geometry: str = "squash"
    """How a picture becomes square."""
    adapter: str = ""
    """Where the adapter is."""
    rate: float = 0.1
    """How fast | how far."""
    workers: int = 1
    """Of no consequence."""

    NOT_IN_THE_RESULT = ("workers",)


def trained(
    classes: Sequence[str] = ("a", "b", "c"), n: int = 90, *, folds: int = 0, patients: bool = True, skill: float = 1.0,
    present: int | None = None, config: Any = None, **details: Any,
) -> TrainedRun:  # fmt: skip
    """A run over n images, all of them test images; only the first `present` classes have any."""
    rng, labels = np.random.default_rng(0), LabelSet(tuple(classes))
    target = np.arange(n) % (present or len(classes))
    scores = rng.dirichlet(np.ones(len(classes)), n)
    scores[np.arange(n), target] += skill
    patient = tuple(f"p{row // 2}" if patients else None for row in range(n))
    fold = tuple((row // 2) % folds if folds else None for row in range(n))
    predictions = Predictions(
        labels, tuple(f"i{row}" for row in range(n)), target, scores / scores.sum(axis=1, keepdims=True),
        ("test",) * n, fold, patient,
    )  # fmt: skip
    rows = [
        {
            "image_id": f"i{row}", "path": f"{row}.png", "sha256": f"{row:064x}", "label": classes[target[row]],
            "fold": fold[row], "split": None if folds else "test", "patient": patient[row],
        }
        for row in range(n)
    ]  # fmt: skip
    return TrainedRun(
        kind="other", config=config or Config(), predictions=predictions, details=details,
        data=data_facts(Manifest.from_rows(rows, Path("nowhere"))), images=Path("nowhere"), provenance=PROVENANCE,
    )  # fmt: skip


def load_card(folder: Path) -> ModelCard:
    """The card in a folder, as the Hub's own library reads it; its front matter is valid."""
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] in {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "other", "unknown"}
    assert ("license_name" in data) is (data["license"] == "other")
    assert data["library_name"] in {"thoraclip", "transformers"}
    assert data["pipeline_tag"] in {"image-classification", "zero-shot-image-classification"}
    assert {"chest-x-ray", "research-only"} <= set(data["tags"]) and len(set(data["tags"])) == len(data["tags"])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", data.get("base_model", "owner/name")), "a Hub id, or none"
    assert ("base_model_relation" not in data) or "base_model" in data
    results = card.data.eval_results or []
    assert all(isinstance(one.metric_value, float) and 0 <= one.metric_value <= 1 for one in results)
    assert len({one.metric_type for one in results}) == len(results) == len(data.get("metrics", []))
    assert "Research use only, not for diagnosis" in card.text and not card.text.lstrip().startswith("---")
    return card


def card_of(run: TrainedRun, **facts: Any) -> str:
    return model_card(run, **{"base": base_model(run.config.model), "files": {}, "about": {}} | facts)
