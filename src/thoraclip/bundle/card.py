"""The card of a bundle: what it is, what was measured, what it promises and what it must not be used for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thoraclip.bundle.parity import FP32_TOLERANCE, INT8_ACCURACY, INT8_FLIPS
from thoraclip.cards.model_card import base_model
from thoraclip.errors import ManifestError
from thoraclip.evaluation.metrics import METRICS
from thoraclip.evaluation.reading import points, share, share_interval
from thoraclip.evaluation.report import judge
from thoraclip.evaluation.results import MethodResult
from thoraclip.models.classifiers import Original
from thoraclip.pages import environment

__all__ = ["bundle_card"]

_RESAMPLES = 1000
_SHOWN = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "auroc", "ece")


def bundle_card(original: Original, facts: Mapping[str, Any], parity: Mapping[str, Any]) -> str:
    """Markdown, from what the bundle says of itself and the run's own predictions."""
    base = base_model(original.model)
    entry, why = _judged(original)
    found = environment(
        "thoraclip.bundle", html=False, share=share, points=points, interval=share_interval, n="{:,}".format
    )
    body = found.get_template("bundle_card.md.j2").render(
        facts=facts,
        parity=parity,
        base=base,
        entry=entry,
        unjudged=why,
        metrics={n: METRICS[n].title for n in _SHOWN},
        folds=sorted({f for f in original.predictions.fold if f is not None}),
        alike=len(original.alike),
        fp32_tolerance=FP32_TOLERANCE,
        int8_flips=INT8_FLIPS,
        int8_accuracy=INT8_ACCURACY,
        train=len(original.train),
        val=len(original.val),
    )
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def _judged(original: Original) -> tuple[dict[str, Any] | None, str | None]:
    """The judge's row of the run's predictions, or why there is none."""
    try:
        original.predictions.judged()
    except ManifestError as error:
        return None, str(error).removeprefix("predictions: ").rstrip(".")
    method = MethodResult(name=original.name, kind=original.kind, predictions=(original.predictions,))
    report = judge([method], title=original.name, resamples=_RESAMPLES, seed=0)
    return next(row for row in report["methods"] if row["name"] == original.name), None
