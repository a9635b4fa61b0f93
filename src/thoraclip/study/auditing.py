"""The audits of a study: of its best method, or of all that keep a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.errors import ThoraclipError
from thoraclip.evaluation.render import write_audit
from thoraclip.methods import find_method
from thoraclip.methods.audit import AuditConfig, audit
from thoraclip.methods.predictors import read_run
from thoraclip.runs import unforeseen_errors
from thoraclip.study.settings import Study

__all__ = ["audit_methods"]


def audit_methods(study: Study, report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Method -> content of its `audit.json`, which is written to `audits/` in the study folder; the first seed's run.

    Of the methods that keep a classifier and did not fail: all, the one of the highest macro F1, or none. An audit that
    cannot be made is said and left out: it must not lose the report.
    """
    config, out = study.config, study.out
    values = {m["name"]: m["metrics"]["macro_f1"]["value"] for m in report["methods"]}
    chosen = [m for m in study.methods if find_method(m.kind).keeps_classifier and m.name in values]
    if config.audit != "all":
        chosen = sorted(chosen, key=lambda m: values[m.name], reverse=True)[: config.audit == "best"]
    asked = AuditConfig(
        images=config.audit_images,
        masks=config.audit_masks,
        seed=config.seeds[0],
        batch_size=config.batch_size or AuditConfig.batch_size,
        duplicates=config.group_duplicates,
    )
    given: dict[str, Any] = {"pixels": study.pixels, "inspection": out / "inspection", "progress": study.progress}
    audits = {}
    for method in chosen:
        study.log(f"audit of {method.name}")
        folder = out / "audits" / method.folder
        try:
            with unforeseen_errors(folder / "error.txt", out):
                run = read_run(method.runs(out)[0][2])
                content = audit(run, study.manifest, asked, folder, **given)
        except (ThoraclipError, ModuleNotFoundError) as error:
            study.log(f"audit of {method.name} failed: {error}")
            continue
        write_audit(content, folder)
        audits[method.name] = content
    return audits
