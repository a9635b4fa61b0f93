"""Draw a report as one HTML page that asks for nothing from outside, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment
from markupsafe import Markup

from thoraclip import imaging
from thoraclip.judge import figures
from thoraclip.judge.metrics import METRICS
from thoraclip.judge.reading import points, probability, share, versus
from thoraclip.judge.results import MAJORITY
from thoraclip.pages import environment, picture_or_reason

__all__ = ["Load", "html_page", "load_pixels", "markdown_page"]

Load = Callable[[Path], npt.NDArray[np.uint8]]
"""File -> grey pixels u8[H, W]."""

_COLUMNS = {
    "accuracy": "Accuracy", "macro_f1": "Macro F1", "macro_precision": "Precision", "macro_recall": "Recall",
    "auroc": "AUROC", "ece": "ECE",
}  # fmt: skip
_MORE_COLUMNS = {
    "balanced_accuracy": "Balanced accuracy", "weighted_f1": "Weighted F1", "average_precision": "Average precision",
    "mcc": "Matthews correlation", "brier": "Brier (0 to 2)", "log_loss": "Log loss (nats)",
}  # fmt: skip
_CLASS_COLUMNS = {
    "recall": "Sensitivity (recall)", "specificity": "Specificity", "precision": "Precision", "f1": "F1",
    "auroc": "AUROC", "average_precision": "Average precision",
}  # fmt: skip
_PUBLISHED = ("accuracy", "macro_f1", "macro_precision", "macro_recall")
_NOT_SHARES = frozenset({"brier", "log_loss", "mcc"})
_THUMBNAIL_PX = 128


def load_pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Grey pixels u8[H, W] of any image that the package reads."""
    return imaging.decode(path).pixels


def html_page(report: Mapping[str, Any], image_paths: Mapping[str, Path] | None, load: Load) -> str:
    """The report as a self-contained page: inline style and figures, no script, no request.

    Args:
        report: see `report.judge`.
        image_paths: image id -> file for thumbnails; `None` for none.
        load: file -> grey pixels.
    """
    context = _context(report)
    context["figures"] = _figures(report, context["ordered"]) if report["methods"] else None
    context["mistakes"] = _thumbnails(context["best"], image_paths, load) if image_paths else []
    return _environment(html=True).get_template("report.html.j2").render(context)


def markdown_page(report: Mapping[str, Any]) -> str:
    """The reading and the tables as Markdown (GitHub's dialect)."""
    return _environment(html=False).get_template("report.md.j2").render(_context(report))


def _environment(*, html: bool) -> Environment:
    found = environment("thoraclip.judge", html=html)
    found.filters |= {"share": share, "points": points, "p": probability}
    return found


def _context(report: Mapping[str, Any]) -> dict[str, Any]:
    verdict = report["verdict"]
    ordered = _ordered(report["methods"])
    settings = [m for m in (*ordered, *report["failed"]) if m["name"] != MAJORITY]
    names = sorted({key for m in settings for key in m["settings"]} - {"model", "geometry"})
    pairs = {metric: [c for c in report["comparisons"] if c["metric"] == metric] for metric in ("macro_f1", "accuracy")}
    return {
        "report": report, "title": report["title"], "reading": report["reading"], "verdict": verdict, "ordered": ordered, "majority": MAJORITY,
        "best": next((m for m in ordered if verdict and m["name"] == verdict["best"]), None),
        "columns": _COLUMNS, "more_columns": _MORE_COLUMNS, "class_columns": _CLASS_COLUMNS, "metrics": METRICS,
        "not_shares": _NOT_SHARES, "published_columns": _PUBLISHED, "pairs": pairs,
        "versus_best": _versus_best(report, ordered) if verdict else [],
        "settings": settings, "setting_names": ["model", "geometry", *names],
    }  # fmt: skip


def _ordered(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Best macro F1 first, the majority row last."""
    return sorted(methods, key=lambda m: (m["name"] == MAJORITY, -m["metrics"]["macro_f1"]["value"]))


def _versus_best(report: Mapping[str, Any], ordered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    best = report["verdict"]["best"]
    others = [m["name"] for m in ordered if m["name"] != best]
    return [
        {"name": name, **{m: versus(report["comparisons"], best, name, m) for m in ("macro_f1", "accuracy")}}
        for name in others
    ]


def _figures(report: Mapping[str, Any], ordered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    real = [m for m in ordered if m["name"] != MAJORITY]
    verdict, classes = report["verdict"], report["classes"]
    return {
        "forest": Markup(figures.forest_figure(ordered, best=verdict["best"], tied=verdict["tied"])),
        "confusion": [(m, Markup(figures.confusion_figure(m, classes))) for m in real],
        "reliability": [(m, Markup(figures.reliability_figure(m))) for m in real],
        "roc": [(label, Markup(figures.roc_figure(ordered, label))) for label in classes],
    }


def _thumbnails(entry: Mapping[str, Any] | None, paths: Mapping[str, Path], load: Load) -> list[dict[str, Any]]:
    """The method's mistakes whose file is known, each with a picture or the reason why there is none."""
    known = [row for row in (entry["mistakes"] if entry else []) if row["image_id"] in paths]
    return [{**row, **picture_or_reason(partial(load, paths[row["image_id"]]), _THUMBNAIL_PX)} for row in known]
