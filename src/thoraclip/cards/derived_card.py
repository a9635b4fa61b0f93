"""The cards of what is made from a run: a bundle, and a plain Transformers folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.cards.front_matter import HUB_METRICS, HubFacts, card_text, data_set, shared_licence
from thoraclip.cards.model_card import base_model, card_environment, judge_run
from thoraclip.evaluation.metrics import METRICS
from thoraclip.tables.predictions import Predictions

__all__ = ["JudgedRun", "bundle_card", "folder_card"]


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """The run that something is made from."""

    name: str
    kind: str  # of its method
    model: str  # the pretrained model under it
    fold: int | None  # whose classifier was taken
    has_learned: bool  # from images of its manifest
    predictions: Predictions
    images: Path  # folder of the images of its manifest
    count: int  # images in the manifest
    fingerprint: str  # of the manifest


def bundle_card(
    facts: Mapping[str, Any],
    parity: Mapping[str, Any],
    run: JudgedRun,
    *,
    limits: Mapping[str, float],
    counts: Mapping[str, int],
) -> str:
    """The card of a bundle.

    Args:
        facts: the content of `bundle.json`.
        parity: the content of `parity.json`.
        run: what it was exported from.
        limits: what parity was held to: `fp32_tolerance`, `int8_flips`, `int8_accuracy`.
        counts: images that were trained on (`train`) and chosen by (`val`), heads of other folds (`alike`).
    """
    given = {"facts": facts, "parity": parity, **limits, **counts}
    small = "quantized" if parity["int8"] else None
    return _card("bundle_card.md.j2", run, given, tags=("onnx", run.kind), relation=small)


def folder_card(run: JudgedRun, given: Mapping[str, Any]) -> str:
    """The card of a plain Transformers folder.

    Args:
        run: what it was merged from.
        given: `parity`, see `methods.merge`; `spec`, its preprocessing; `architecture`, the name of its class;
            `prompts` by class, or `None` of an image classifier; `padding` and `length` of a text's tokens.
    """
    task = "zero-shot-image-classification" if given["prompts"] else "image-classification"
    tuned = ("lora",) if given["adapter"] else ()
    return _card("folder_card.md.j2", run, given, tags=(run.kind, *tuned), library="transformers", task=task)


def _card(template: str, run: JudgedRun, given: Mapping[str, Any], **hub: Any) -> str:
    report, why = judge_run(run.name, run.kind, run.predictions, is_trained=run.has_learned)
    base, about = base_model(run.model), data_set(run.images)
    facts = HubFacts(
        hub_id=base.hub_id,
        licence=shared_licence(base.licence, about.get("license")),
        about=about,
        images=run.count,
        fingerprint=run.fingerprint,
        **{"relation": "finetune" if run.has_learned else None, **{key: v for key, v in hub.items() if v}},
    )
    page = card_environment().get_template(template)
    body = page.render(
        run=run,
        base=base,
        about=about,
        licence=facts.licence,
        entry=next((row for row in report.get("methods", ()) if row["name"] == run.name), None),
        unjudged=why,
        metrics={name: METRICS[name].title for name in HUB_METRICS},
        folds=sorted({fold for fold in run.predictions.fold if fold is not None}),
        **given,
    )
    return card_text(facts, report, body)
