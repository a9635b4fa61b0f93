"""The card of a bundle: what it is, what was measured, what it promises and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.cards.model_card import base_model, card_environment, judge_run
from thoraclip.evaluation.metrics import METRICS
from thoraclip.pages import without_gaps
from thoraclip.tables.predictions import Predictions

__all__ = ["bundle_card"]

_SHOWN = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "auroc", "ece")


def bundle_card(
    facts: Mapping[str, Any],
    parity: Mapping[str, Any],
    *,
    limits: Mapping[str, float],
    kind: str,
    model: str,
    predictions: Predictions,
    counts: Mapping[str, int],
) -> str:
    """Markdown (GitHub's dialect).

    Args:
        facts: the content of `bundle.json`.
        parity: the content of `parity.json`.
        limits: what parity was held to: `fp32_tolerance`, `int8_flips`, `int8_accuracy`.
        kind: of the run's method.
        model: the pretrained model under it.
        predictions: of the run.
        counts: images that were trained on (`train`) and chosen by (`val`), heads of other folds (`alike`).
    """
    name = facts["run"]["name"]
    report, why = judge_run(name, kind, predictions)
    body = (
        card_environment()
        .get_template("bundle_card.md.j2")
        .render(
            facts=facts,
            parity=parity,
            base=base_model(model),
            entry=next((row for row in report.get("methods", ()) if row["name"] == name), None),
            unjudged=why,
            metrics={n: METRICS[n].title for n in _SHOWN},
            folds=sorted({f for f in predictions.fold if f is not None}),
            **limits,
            **counts,
        )
    )
    return without_gaps(body).strip() + "\n"
