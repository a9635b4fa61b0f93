"""The judge: methods in, `report.json` out (schema 1); `write_report` draws Markdown, HTML and LaTeX from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from thoraclip.errors import InputError
from thoraclip.evaluation.align import align
from thoraclip.evaluation.compare import COMPARED, Contestant, compare
from thoraclip.evaluation.entries import method_entry, training_values
from thoraclip.evaluation.external import ExternalResult, external_entries
from thoraclip.evaluation.external_reading import external_reading
from thoraclip.evaluation.findings import coincidences, findings
from thoraclip.evaluation.learning_curve import FewShot, learning_curve, learning_reading
from thoraclip.evaluation.methods_text import statistical_methods
from thoraclip.evaluation.metrics import Scored
from thoraclip.evaluation.predictive import require_classes
from thoraclip.evaluation.reading import reading, verdict
from thoraclip.evaluation.remedies import remedies_entry, remedies_reading
from thoraclip.evaluation.resampling import replicate
from thoraclip.evaluation.results import MAJORITY, MethodResult, read_published
from thoraclip.evaluation.trust import trust_entry
from thoraclip.evaluation.usefulness import usefulness, usefulness_reading
from thoraclip.proportions import LEVEL
from thoraclip.ranges import Resamples, conform
from thoraclip.runs import write_json, write_text, writes, written_together

if TYPE_CHECKING:
    from thoraclip.evaluation.render import Load

__all__ = ["NOT_AUDITED", "RESAMPLES", "MethodResult", "judge", "method_metrics", "with_audits", "write_report"]

RESAMPLES = 2000
"""Of patients or images, for the intervals."""
_SCHEMA = 1
_AUDIT_SENTENCES = 4
"""Of an audit's own reading, in the report's."""
NOT_AUDITED = (
    "Not audited: scores alone cannot say whether a classifier reads lungs or shortcuts; "
    "ask with thoraclip audit RUN --out DIR."
)
_MAJORITY_ABOUT: dict[str, Any] = {
    "seeds": [],
    "settings": {},
    "notes": ["Added by the report: the class frequencies of these very images as the scores of every image."],
    "details": {},
}


def judge(
    methods: Sequence[MethodResult],
    *,
    title: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
    dataset: Mapping[str, object] | None = None,
    provenance: Mapping[str, object] | None = None,
    published: Sequence[Mapping[str, object]] = (),
    external: Sequence[ExternalResult] = (),
    few_shot: FewShot | None = None,
    groups: Mapping[str, Mapping[str, str | None]] | None = None,
    prevalence: Mapping[str, float] = MappingProxyType({}),
    remedies: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare methods on the same images; the result is `report.json` as a mapping.

    Every method is reduced to its labelled test rows, joined by image id. A row `majority` (class frequencies of the
    judged rows as constant scores) is always added. A method with several seeds has the mean over its seeds as its
    value, and the interval of that mean over resampled images; its confusion matrix, curves, bins and mistakes are
    those of the first seed. What is fitted on validation images (calibration, prediction sets, operating points) stands
    under `trust`, see `trust.trust_entry`.

    Args:
        methods: one or more; failed ones are listed with their error.
        resamples: of patients (where known) or images, for the intervals; at least 100.
        seed: of the resampling.
        dataset, provenance: facts to print, JSON-able; see `runs.provenance`.
        published: values of others, as in `results.Published`; printed apart, and no part of any comparison.
        external: scores of the same methods on images from elsewhere, see `external.external_entries`.
        few_shot: runs of the same methods on a few labels, see `learning_curve.learning_curve`; without them the report
            has no entry `learning_curve`.
        groups: column (sex, view, ...) -> image id -> group, see `subgroups.group_columns`; `None` without a
            manifest.
        prevalence: class -> share of the patients elsewhere who have it, for predictive values.
        remedies: method -> (the same method without a remedy, name of the remedy), see `remedies.remedies_entry`.
        notes: sentences that end the reading of what was judged.

    Raises:
        ConfigError: too few resamples, a repeated method name, or see `results.read_published` and
            `predictive.require_classes`.
        InputError: no method.
        ManifestError, MismatchError: see `align.align`, and of external sets `external.external_entries`.
        LeakError: see `trust.trust_entry`.
    """
    if not methods:
        raise InputError("no method to judge; name at least one predictions file")
    conform("resamples", resamples, Resamples)
    rows = read_published(published, [m.name for m in methods], f"report '{title}'")
    lost = [m for m in methods if m.failed]
    failed = [{"name": m.name, "kind": m.kind, "error": m.failed, "settings": dict(m.settings)} for m in lost]
    report: dict[str, Any] = {
        "schema": _SCHEMA,
        "title": title,
        "classes": [],
        "reading": [],
        "findings": [],
        **dict.fromkeys(("verdict", "sample", "bootstrap")),
        "methods": [],
        "failed": failed,
        "comparisons": [],
        "external": [],
        "audits": {},
        "published": [asdict(row) for row in rows],
        "dataset": dataset or {},
        "provenance": provenance or {},
    }
    if len(failed) < len(methods):
        report |= _judged(methods, external, few_shot, groups, prevalence, remedies, resamples, seed)
    report["statistics"] = statistical_methods(report)
    report["findings"] = findings(report)
    report["reading"] = [*reading(report), *learning_reading(report), *usefulness_reading(report)]
    report["reading"] += [*external_reading(report), *remedies_reading(report), *notes]
    if report["verdict"] is not None:
        report["reading"].insert(1, NOT_AUDITED)
    return dict(plain(report))


def method_metrics(method: MethodResult, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Metric -> value with its interval, as in the report of one method alone; see `judge`.

    Raises:
        ManifestError: the predictions have no labelled test row.
    """
    aligned = align([method])
    tables = aligned.scored[method.name]
    drawn = replicate(tables, aligned.groups, resamples=resamples, seed=seed) if aligned.group_count > 1 else []
    entry = method_entry(method.name, method.kind, tables, aligned, drawn, trained=method.is_trained)
    return dict(plain(entry["metrics"]))


def with_audits(report: Mapping[str, Any], audits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report with audits (method -> content of its `audit.json`), and what they say near the top of its reading:
    the first sentences of theirs, and what each could have shown (audits of 0.1.0 do not say it)."""
    first, *rest = report["reading"]
    said: list[str] = []
    for name, content in audits.items():
        own, shown = content["reading"][:_AUDIT_SENTENCES], content.get("power", {}).get("words")
        said += [f"Audit of {name}: {own[0][0].lower()}{own[0][1:]}", *own[1:]]
        said += [shown] if shown and shown not in own else []
    rest = [sentence for sentence in rest if sentence != NOT_AUDITED]
    audited = {**report, "audits": plain(dict(audits)), "reading": [first, *said, *rest]}
    return {**audited, "findings": findings(audited)}


@writes()
def write_report(
    report: Mapping[str, Any],
    out: Path | str,
    *,
    image_paths: Mapping[str, Path] | None = None,
    thumbnails: bool = True,
    load: Load | None = None,
) -> None:
    """Write `report.json`, `.md`, `.html` and `.tex` into `out`; the same report gives the same bytes.

    Args:
        report: what `judge` returned, or what was read back from `report.json`.
        out: a folder, made if need be.
        image_paths: image id -> file, for the pictures of misclassified images; without it none are shown.
        thumbnails: False leaves these pictures out (they may be private).
        load: file -> grey pixels u8[H, W]; `None` for `imaging.decode`.
    """
    from thoraclip.evaluation.render import html_page, latex_table, markdown_page  # with Matplotlib

    out = Path(out)
    with written_together(out, "report"):
        write_json(out / "report.json", dict(report))
        write_text(out / "report.md", markdown_page(report))
        write_text(out / "report.tex", latex_table(report))
        write_text(out / "report.html", html_page(report, image_paths if thumbnails else None, load))


def _judged(
    methods: Sequence[MethodResult],
    external: Sequence[ExternalResult],
    few_shot: FewShot | None,
    groups: Mapping[str, Mapping[str, str | None]] | None,
    prevalence: Mapping[str, float],
    remedies: Mapping[str, tuple[str, str]],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    aligned = align(methods)
    require_classes(prevalence, aligned.labels.names)
    counts = np.bincount(aligned.target, minlength=len(aligned.labels))
    constant = Scored(aligned.target, np.tile(counts / len(aligned.target), (len(aligned.target), 1)))
    scored = {**aligned.scored, MAJORITY: (constant,)}
    resampled, resampling = aligned.group_count > 1, dict[str, Any](resamples=resamples, seed=seed)
    every = [table for tables in scored.values() for table in tables]  # all over the same resamples
    replicates = iter(replicate(every, aligned.groups, **resampling) if resampled else [])
    by_name = {m.name: m for m in methods}
    entries, contestants, calls = [], [], {}
    for name, tables in scored.items():
        drawn = list(islice(replicates, len(tables)))
        kind, about, trust = MAJORITY, _MAJORITY_ABOUT, None
        if method := by_name.get(name):
            kind, about = method.kind, {key: getattr(method, key) for key in _MAJORITY_ABOUT}
            trust, calls[name] = trust_entry(method, aligned, **resampling)
        trained = method is not None and method.is_trained
        entry = method_entry(name, kind, tables, aligned, drawn, trained=trained) | about | {"trust": trust}
        entries.append(entry)
        contestants.append(
            Contestant(
                name,
                {metric: entry["metrics"][metric]["value"] for metric in COMPARED},
                {metric: np.mean([one.headline[metric] for one in drawn], axis=0) for metric in COMPARED if drawn},
                tables[0].correct if len(tables) == 1 else None,
                training_values(tables, aligned.fold_of, names=COMPARED),
                trained,
            )
        )
    useful = usefulness(calls, entries, aligned, groups=groups, prevalence=prevalence, **resampling)
    entries = [entry | useful[entry["name"]] for entry in entries]
    comparisons = compare(contestants, intervals=resampled, groups=aligned.groups)
    curve = {"learning_curve": learning_curve(few_shot, entries, aligned, **resampling)} if few_shot else {}
    pairs = [(name, plain) for name, (plain, _) in remedies.items()]
    outside = external_entries(external, aligned, pairs=pairs, **resampling)
    curve |= {"remedies": remedies_entry(remedies, entries, comparisons, outside)} if remedies else {}
    return {
        "classes": list(aligned.labels.names),
        "verdict": verdict(entries, comparisons),
        "sample": {
            "n": len(aligned.image_id),
            "unit": aligned.unit,
            "groups": aligned.group_count,
            "images_per_class": dict(zip(aligned.labels.names, counts, strict=True)),
            **{key: getattr(aligned, key) for key in ("splits", "folds", "lacking", "dropped")},
        },
        "bootstrap": {**resampling, "level": LEVEL, "unit": aligned.unit},
        "methods": entries,
        "comparisons": comparisons,
        "coincidences": coincidences(groups or {}, aligned),
        "external": outside,
        **curve,
    }


def plain(value: object) -> Any:
    """Copy of a value as JSON holds it: NumPy scalars, tuples and paths turned; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)
