"""The YAML front matter of every card, as the Hugging Face Hub and `huggingface_hub.ModelCard` read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from thoraclip.cards.croissant import NOT_STATED
from thoraclip.documents import kept_json
from thoraclip.evaluation.metrics import METRICS
from thoraclip.pages import counted, without_gaps

__all__ = ["HUB_METRICS", "HubFacts", "card_text", "data_set", "shared_licence"]

HUB_METRICS: Mapping[str, tuple[str, Mapping[str, str] | None]] = {
    "accuracy": ("accuracy", None),
    "macro_f1": ("f1", {"average": "macro"}),
    "macro_precision": ("precision", {"average": "macro"}),
    "macro_recall": ("recall", {"average": "macro"}),
    "auroc": ("roc_auc", {"average": "macro", "multi_class": "ovr"}),
    "ece": ("ece", None),
}
"""Our name -> the Hub's name of a metric, and the arguments that it is computed with there."""


@dataclass(frozen=True, kw_only=True)
class HubFacts:
    """What the Hub asks of a model, in the Hub's names."""

    hub_id: str | None  # of the base model; `None` where it is not on the Hub
    licence: str  # see `shared_licence`
    about: Mapping[str, str]  # what is known of the data set, see `data_set`
    images: int  # of the manifest
    fingerprint: str  # of the manifest
    tags: tuple[str, ...] = ()  # beside those that every card has
    relation: str | None = None  # to the base: `adapter`, `finetune` or `quantized`; `None` where nothing was trained
    library: str = "thoraclip"
    task: str = "image-classification"


def card_text(hub: HubFacts, report: Mapping[str, Any], body: str) -> str:
    """The whole card: front matter, then Markdown (GitHub's dialect). `report` is empty where nothing was judged."""
    return f"---\n{_front_matter(hub, report)}\n---\n\n{without_gaps(body).strip()}\n"


def _front_matter(hub: HubFacts, report: Mapping[str, Any]) -> str:
    """Its `model-index` has the headline metrics that exist, their intervals in their names."""
    from huggingface_hub import EvalResult, ModelCardData  # takes a while, and only a card needs it

    on_hub = re.match(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)", hub.about.get("url", ""))
    name, results = on_hub and on_hub[1], []
    if report:
        folds = report["sample"]["folds"]
        counts = f"{counted(hub.images, 'chest X-ray image')}, manifest {hub.fingerprint[:12]}"
        result = partial(
            EvalResult,
            task_type="image-classification",
            dataset_type=name or "chest-x-ray-images",
            dataset_name=hub.about.get("name", counts),
            dataset_revision=hub.fingerprint,
            dataset_split=f"{counted(len(folds), 'fold')}, pooled" if folds else "test",
        )
        metrics = next(row for row in report["methods"] if row["name"] == report["title"])["metrics"]
        for ours, (theirs, arguments) in HUB_METRICS.items():
            value, low, high = (metrics[ours][key] for key in ("value", "low", "high"))
            title = METRICS[ours].title + ("" if low is None else f", 95 % interval {low:.4f} to {high:.4f}")
            if value is not None:
                about_it = {"metric_type": theirs, "metric_name": title, "metric_args": arguments}
                results.append(result(metric_value=round(value, 4), **about_it))
    data = ModelCardData(
        license=hub.licence,
        license_name="base-model-and-data" if hub.licence == "other" else None,
        base_model=hub.hub_id,
        base_model_relation=hub.relation if hub.hub_id else None,
        datasets=[name] if name else None,
        library_name=hub.library,
        pipeline_tag=hub.task,
        tags=["thoraclip", "chest-x-ray", "research-only", *hub.tags],
        metrics=[one.metric_type for one in results] or None,
        model_name=report["title"] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def shared_licence(base: str | None, data: str | None) -> str:
    """The Hub's identifier for weights, which stand under the base's terms and the data's at once.

    Args:
        base: licence of the base model; `None` where it is unknown, "" where there is no base.
        data: licence of the images; `None` where it is unknown.
    """
    if data is None or base is None:
        return "unknown"
    identifier = data.lower().replace(" ", "-")
    return identifier if base == identifier else "other"


def data_set(images: Path) -> dict[str, str]:
    """Any of `name`, `license`, `url`, `citeAs` that the Croissant record beside the images says, ours or anyone's."""
    record, found = kept_json(images / "croissant.json"), {}
    for key in ("name", "license", "url", "citeAs"):
        value = record.get(key)
        text = ", ".join(str(one) for one in value) if isinstance(value, list) else value
        if isinstance(text, str) and text.strip() and NOT_STATED not in text:
            found[key] = " ".join(text.split())
    return found
