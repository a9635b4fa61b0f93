"""Run a study: manifest -> one run folder per method and seed -> judge -> report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thoraclip.config import toml_value
from thoraclip.data.batches import picture_loader
from thoraclip.data.check import duplicate_clusters
from thoraclip.data.splits import split_folds
from thoraclip.errors import InputError, ThoraclipError
from thoraclip.evaluation.encoders import with_encoders
from thoraclip.evaluation.report import MethodResult, judge, with_audits, write_report
from thoraclip.evaluation.results import MAJORITY, empty_adapters
from thoraclip.evaluation.subgroups import group_columns
from thoraclip.methods import require_shared_work
from thoraclip.methods.caption import CAPTIONERS, CaptionConfig, caption
from thoraclip.methods.running import run_method
from thoraclip.methods.tokens import remove_tokens
from thoraclip.methods.tracking import TrackedRun, results_of
from thoraclip.runs import (
    Progress,
    canonical_json,
    digest,
    file_sha256,
    provenance,
    unforeseen_errors,
    write_json,
    write_text,
    written_together,
)
from thoraclip.study.adaptation import adapt_set
from thoraclip.study.auditing import audit_methods
from thoraclip.study.checking import check_study
from thoraclip.study.crossing import encoder_costs, short_names
from thoraclip.study.external import prepare_sets, score_set
from thoraclip.study.few_shot import few_shot_entries, few_shot_results, require_shots
from thoraclip.study.reading import study_toml
from thoraclip.study.settings import CAPTIONS, MethodEntry, Study, StudyConfig, study_notes
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import Predictions, read_validation, write_predictions

__all__ = ["run_study"]


def run_study(
    config: StudyConfig,
    methods: Sequence[MethodEntry],
    out: Path,
    *,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every method that is not done yet, and write the report.

    A method that fails is shown as failed, with its error, and does not lose the others.

    Args:
        config, methods: from `read_study`.
        out: the study folder.
        announce: gets a line at every stage.
        progress: gets (done, total) within a stage.

    Returns:
        The content of `report.json`.

    Raises:
        ThoraclipError: see `checking.check_study`; or every method failed (then the first one's error).
    """
    require_shared_work("a study")
    check_study(config, methods, out)
    manifest, omitted = _prepare_manifest(config, out, announce, progress)
    require_shots(config, manifest)
    study = Study(config, methods, manifest, out, announce, progress)
    if torn := _torn_pictures(manifest):
        announce(f"warning: pictures in two parts of the split: {torn} (identical files); see thoraclip check")
    for note in study_notes(config, methods, manifest):
        announce(f"note: {note}")
    outside = prepare_sets(study) if config.external else []
    hashes = {f"external {result.name}": images.fingerprint for images, result in outside}
    facts = provenance(seed=config.seeds[0], inputs={"manifest": manifest.fingerprint, **hashes})
    with written_together(out, "study"):
        write_text(out / "config.toml", study_toml(config, methods))
        write_json(out / "provenance.json", facts)
    if any(method.has_own_captions for method in methods):
        announce(f"captions by {config.captioner}")
        _write_captions(study)
    results, errors = _run_entries(study, methods, "row")
    if len(errors) == len(methods):
        raise next(iter(errors.values()))
    few = few_shot_entries(config, methods)
    curves = {(one.of, one.shots): run for one, run in zip(few, _run_entries(study, few, "few-shot")[0], strict=True)}
    scored = [score_set(study, *each, errors) for each in outside]
    sets = zip(config.external, outside, scored, strict=True)
    external = [adapt_set(study, one, images, result) for one, (images, _), result in sets]
    announce("judging")
    report = judge(
        results,
        title=config.title,
        resamples=config.resamples,
        seed=config.seeds[0],
        dataset=_describe(manifest, omitted, torn),
        provenance=facts,
        published=[dataclasses.asdict(row) for row in config.published],
        external=external,
        few_shot=few_shot_results(config, manifest, curves),
        groups=group_columns(manifest),
        prevalence=config.stated_prevalence(manifest),
        remedies={method.name: (method.plain, method.with_remedy) for method in methods if method.plain},
        notes=[note for m in methods for note in empty_adapters(m.name, [folder for *_, folder in m.runs(out)])],
    )
    remove_tokens(out / "pixels")
    if crossed := [method for method in methods if method.head]:
        report = _with_encoders(study, crossed, report)
    shown: dict[str, Any] = {"image_paths": manifest.paths_by_id(), "load": picture_loader(manifest)}
    with written_together(out, "report"):
        _write_best(out, results, report)
        write_report(report, out, **shown, thumbnails=config.thumbnails)
    if audits := audit_methods(study, report):
        report = with_audits(report, audits)
        write_report(report, out, **shown)
    _send_report(study, report)
    return report


def _prepare_manifest(
    config: StudyConfig, out: Path, announce: Callable[[str], None], progress: Progress | None
) -> tuple[Manifest, dict[str, int]]:
    """The images, by their own split or folds, or in folds of whole patients (and whole groups of copies), written to
    the study folder; and how many were left out, by reason."""
    unreadable: Sequence[object] = ()
    if config.manifest:
        manifest = read_manifest(Path(config.manifest))
        for note in manifest.notes:
            announce(f"note: {note}")
    else:
        announce(f"indexing {config.folder} (layout {config.folder_layout()})")
        manifest, unreadable = config.read(out, progress)
        if unreadable:
            announce(f"unreadable pictures set aside: {len(unreadable)}, see {out / 'manifest.index.json'}")
    if any(manifest.parts()):
        manifest = manifest.strict()
    else:
        if config.group_duplicates:
            announce("looking for near duplicates, so that none stands in two folds")
            manifest = duplicate_clusters(manifest, out / "inspection", progress=progress)
            copies = Counter(name for name in manifest.column("duplicate_cluster") if name is not None)
            if copies:
                counts = f"{len(copies)}, in {copies.total()} images"
                announce(f"pictures that stand there more than once: {counts}; kept together")
        manifest = split_folds(manifest, folds=config.folds, seed=config.seeds[0])
    write_manifest(out / "manifest.parquet", manifest)
    manifest = dataclasses.replace(manifest, file=out / "manifest.parquet")
    unlabelled = manifest.column("label").count(None)
    unassigned = max(manifest.parts().count(None) - unlabelled, 0)
    return manifest, {"unreadable": len(unreadable), "unlabelled": unlabelled, "without split": unassigned}


def _write_captions(study: Study) -> None:
    """The captions that the study's methods train on; finished ones are used again."""
    config = study.config
    given: dict[str, Any] = {"captioner": config.captioner, "column": config.caption_column}
    if CAPTIONERS[config.captioner].reads_images:
        given |= {"model": config.caption_model, "geometry": config.geometry, "precision": config.precision}
        given |= {"batch_size": config.batch_size} if config.batch_size else {}
    file = study.out / CAPTIONS
    caption(study.manifest, CaptionConfig(**given), file, pixels=study.pixels, progress=study.progress)


def _torn_pictures(manifest: Manifest) -> int:
    """How many pictures stand, byte for byte, in two parts of the split: what is measured on them is too good."""
    places = set(zip(manifest.column("sha256"), manifest.parts(), strict=True))
    parts = Counter(sha256 for sha256, part in places if sha256 is not None and part is not None)
    return sum(count > 1 for count in parts.values())


def _run_entries(
    study: Study, methods: Sequence[MethodEntry], what: str
) -> tuple[list[MethodResult], dict[str, ThoraclipError]]:
    """What came of every method, and the errors of those that failed; `what` begins the lines of the log."""
    results, errors = list[MethodResult](), dict[str, ThoraclipError]()
    for number, method in enumerate(methods, start=1):
        row = f"{what} {number} of {len(methods)}: {method.name}"
        study.log(row)
        try:
            if method.after and method.after.name in errors:
                raise InputError(f"its adapters are those of '{method.after.name}', which failed")
            is_followed = any(other.after and other.after.name == method.name for other in methods)
            results.append(_run_entry(study, method, is_followed=is_followed))
        except ThoraclipError as error:
            study.log(f"{row} failed: {error}")
            errors[method.name] = error
            results.append(_result(method, failed=str(error)))
    return results, errors


def _result(method: MethodEntry, **given: Any) -> MethodResult:
    return MethodResult(name=method.name, kind=method.kind, settings=_settings(method), **given)


def _run_entry(study: Study, method: MethodEntry, *, is_followed: bool) -> MethodResult:
    given: dict[str, Any] = {"cache": study.out / "embeddings", "pixels": study.pixels, "progress": study.progress}
    done, validation = list[tuple[Predictions, Mapping[str, Any]]](), list[tuple[Predictions, ...]]()
    for _, config, folder in method.runs(study.out):
        with unforeseen_errors(folder / "error.txt", study.out):
            result = run_method(
                method.kind, config, study.manifest, folder, is_followed=is_followed, announce=study.log, **given
            )
        assert result is not None, "a study runs in one process"
        done.append(result)
        validation.append(read_validation(folder))
    demonstration = "tiny-clip is a demonstration model that has only seen phantoms; name a real one with model = ..."
    return _result(
        method,
        predictions=tuple(predictions for predictions, _ in done),
        validation=tuple(validation),
        seeds=method.seeds,
        notes=(demonstration,) if getattr(method.config, "model", "") == "tiny-clip" else (),
        details=next((details for _, details in done if details), {}),
        is_trained=method.is_trained,
    )


def _with_encoders(study: Study, crossed: Sequence[MethodEntry], report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its table of encoders and heads, of the methods that did not fail."""
    judged, short = {row["name"] for row in report["methods"]}, short_names(study.config.models)
    cells = {m.name: (m.head, short[m.config.model]) for m in crossed if m.name in judged}
    study.log("costs of the encoders")
    configs = {short[method.config.model]: method.config for method in crossed if method.name in cells}
    return with_encoders(report, cells, encoder_costs(configs, study.out))


def _settings(method: MethodEntry) -> dict[str, str]:
    """Every setting of a method that is not at its default, and always model and geometry."""
    shown, unseen = {}, ("seed", *getattr(method.config, "NOT_IN_THE_RESULT", ()))
    for item in dataclasses.fields(method.config):
        value = getattr(method.config, item.name)
        if item.name in {"model", "geometry"} or (value != item.default and item.name not in unseen):
            shown[item.name] = value if isinstance(value, str) else toml_value(value)
    return shown | ({"adapter": f"of '{method.after.name}'"} if method.after else {})


def _send_report(study: Study, report: Mapping[str, Any]) -> None:
    """The report to the trackers of the study, once: the metrics of every method, the table and the files."""
    if not (trackers := study.config.trackers):
        return
    out = study.out
    settings = {"title": study.config.title, "images": len(study.manifest), "methods": [m.name for m in study.methods]}
    tracked = TrackedRun(trackers, out, fingerprint=digest([study.manifest.fingerprint, settings]), settings=settings)
    prefixes = {method.name: method.folder for method in study.methods} | {MAJORITY: MAJORITY}
    files = [out / "report.json", out / "report.html"]
    tracked.send(file_sha256(files[0]), lambda: results_of(report, prefixes, out / "report.md", files), study.log)


def _write_best(out: Path, results: Sequence[MethodResult], report: Mapping[str, Any]) -> None:
    """The study's own `metrics.jsonl` (a row per method) and `predictions.parquet` (of the best method's first
    seed)."""
    metrics = {row["name"]: row["metrics"] for row in report["methods"] if row.get("metrics")}
    values = [{"name": name, **{k: m and m["value"] for k, m in own.items()}} for name, own in metrics.items()]
    write_text(out / "metrics.jsonl", "".join(canonical_json(value) + "\n" for value in values))
    best = max((r for r in results if r.predictions), key=lambda r: metrics[r.name]["macro_f1"]["value"])
    write_predictions(out / "predictions.parquet", best.predictions[0])


def _describe(manifest: Manifest, omitted: Mapping[str, int], torn: int) -> dict[str, Any]:
    """Facts of the data set for the report; `torn` as in `_torn_pictures`."""
    folds = {f for f in manifest.column("fold") if f is not None}
    splits = Counter(s for s in manifest.column("split") if s is not None)
    facts: dict[str, Any] = {
        "images_in_the_manifest": len(manifest),
        "images_of_known_patients": len(manifest) - manifest.column("patient").count(None),
        "parts": f"{len(folds)} folds, pooled" if folds else ", ".join(f"{n} {c}" for n, c in sorted(splits.items())),
    }
    if torn:
        facts["pictures_in_two_parts"] = f"{torn} (identical files): a leak, scores are too good; see thoraclip check"
    if "duplicate_cluster" not in manifest.table.column_names:
        facts["near_duplicates"] = "not looked for; see thoraclip check"
    if left_out := {reason: count for reason, count in omitted.items() if count}:
        facts["left_out"] = left_out
    return facts
