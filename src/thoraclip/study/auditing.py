"""Which of a study's methods are audited, and the audits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thoraclip.errors import ThoraclipError
from thoraclip.evaluation.render import write_audit
from thoraclip.methods import find_method
from thoraclip.methods.audit import AuditConfig, audit
from thoraclip.methods.predictors import read_run
from thoraclip.runs import Progress, unforeseen_errors
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.tables.manifest import Manifest

__all__ = ["audit_methods", "audited_methods"]


def audited_methods(
    config: StudyConfig, methods: Sequence[MethodEntry], report: Mapping[str, Any]
) -> list[MethodEntry]:
    """The methods that keep a classifier: all that did not fail, or the one of the highest macro F1."""
    values = {m["name"]: m["metrics"]["macro_f1"]["value"] for m in report["methods"]}
    able = [m for m in methods if find_method(m.kind).keeps_classifier and m.name in values]
    if config.audit == "none" or not able:
        return []
    return able if config.audit == "all" else [max(able, key=lambda m: values[m.name])]


def audit_methods(
    config: StudyConfig,
    methods: Sequence[MethodEntry],
    manifest: Manifest,
    out: Path,
    *,
    pixels: Path | None,
    progress: Progress | None,
    announce: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Method -> content of its `audit.json`, which is written to `audits/` in the study folder; the first seed's run.

    An audit that cannot be made is said and left out: it must not lose the report.
    """
    asked = AuditConfig(
        images=config.audit_images,
        masks=config.audit_masks,
        seed=config.seeds[0],
        batch_size=config.batch_size or AuditConfig.batch_size,
        duplicates=config.group_duplicates,
    )
    found = {}
    for method in methods:
        announce(f"audit of {method.name}")
        folder = out / "audits" / method.folder
        try:
            with unforeseen_errors(folder / "error.txt", out):
                content = audit(
                    read_run(method.runs(out / "runs")[0][2]),
                    manifest,
                    asked,
                    folder,
                    pixels=pixels,
                    inspection=out / "inspection",
                    progress=progress,
                    announce=lambda _: None,
                )
        except (ThoraclipError, ModuleNotFoundError) as error:  # an audit must not lose the report
            announce(f"audit of {method.name} failed: {error}")
            continue
        write_audit(content, folder)
        found[method.name] = content
    return found
