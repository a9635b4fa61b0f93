"""Draw an audit as one HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from thoraclip.evaluation.figures import audit_figure
from thoraclip.evaluation.reading import points, share
from thoraclip.evaluation.shortcuts import VERDICTS
from thoraclip.pages import environment
from thoraclip.runs import write_json, write_text

__all__ = ["audit_context", "write_audit"]

_LEVELS = {
    "classifier": "The classifier as it is, shown altered pictures",
    "features": "Probes fitted anew on the classifier's features of altered pictures",
    "data": "Trees on what can be measured without lungs: what the pictures offer to any classifier",
}


def audit_context(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates need besides the content itself."""
    tests = {
        level: [t for t in content["tests"] if t["level"] == level]
        for level in _LEVELS
        if any(t["level"] == level for t in content["tests"])
    }
    return {"audit": content, "levels": _LEVELS, "tests": tests, "verdicts": VERDICTS}


def write_audit(content: Mapping[str, Any], out: Path) -> None:
    """Write `audit.json`, and `audit.md` and `audit.html` drawn from it; the same content gives the same bytes."""
    write_json(out / "audit.json", dict(content))
    context = audit_context(content) | {"title": "Audit: lungs or shortcuts?", "reading": content["reading"]}
    for name, html in (("audit.md", False), ("audit.html", True)):
        figure = {"figure": Markup(audit_figure(content["tests"]))} if html else {}
        found = environment("thoraclip.evaluation", html=html, share=share, points=points)
        write_text(out / name, found.get_template(f"{name}.j2").render(context | figure))
