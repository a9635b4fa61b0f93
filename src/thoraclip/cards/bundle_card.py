"""The card of a bundle: what it is, what was measured, what it promises and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.cards.model_card import HUB_METRICS, base_model, card_environment, judge_run
from thoraclip.evaluation.metrics import METRICS
from thoraclip.pages import without_gaps
from thoraclip.tables.predictions import Predictions

__all__ = ["bundle_card"]


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
        kind, predictions: the method of the run, and what it predicted.
        model: the pretrained model under it.
        counts: images that were trained on (`train`) and chosen by (`val`), heads of other folds (`alike`).
    """
    name = facts["run"]["name"]
    report, why = judge_run(name, kind, predictions, is_trained=facts["run"]["has_learned"])
    template = card_environment().get_template("bundle_card.md.j2")
    body = template.render(
        facts=facts,
        parity=parity,
        base=base_model(model),
        entry=next((row for row in report.get("methods", ()) if row["name"] == name), None),
        unjudged=why,
        metrics={n: METRICS[n].title for n in HUB_METRICS},
        folds=sorted({f for f in predictions.fold if f is not None}),
        **limits,
        **counts,
    )
    return without_gaps(body).strip() + "\n"
