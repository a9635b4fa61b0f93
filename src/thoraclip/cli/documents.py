"""What `--json` prints of a result: one document for each command, as docs/json.md describes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thoraclip.bundle.scoring import ScoringSummary
    from thoraclip.data.index import IndexResult

__all__ = ["content", "index", "predict"]

_PREDICT_SCHEMA = 1


def content(result: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of the file that the command writes: report.json, check.json, audit.json, parity.json."""
    return result


def index(result: IndexResult, given: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `<manifest>.index.json`, where the manifest is, and how many files were read for it."""
    from thoraclip.data.index import index_report

    return {**index_report(result), "manifest": os.fspath(given["out"]), "files_read": result.read}


def predict(summary: ScoringSummary, given: Mapping[str, Any]) -> dict[str, Any]:
    """What became of the images, and the rows, or the file that they are in."""
    counts = ("images", "failed", "flagged", "resumed", "repeated", "left_out", "not_utf8", "remarked")
    return {
        "schema": _PREDICT_SCHEMA,
        "out": None if given["out"] is None else os.fspath(given["out"]),
        **{name: getattr(summary, name) for name in counts},
        "first_failed": [{"path": path, "reason": reason} for path, reason in summary.first_failed],
        "first_remark": summary.first_remark and dict(zip(("path", "remark"), summary.first_remark, strict=True)),
        "rows": summary.rows,
    }
