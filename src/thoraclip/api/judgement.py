"""Panel Judgement: report, audit and explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thoraclip.api.hooks import Announce, File, hooks, read_images, settings_of, to_path
from thoraclip.config import read_toml
from thoraclip.errors import ConfigError, InputError
from thoraclip.runs import Progress

if TYPE_CHECKING:
    from thoraclip.api.hooks import Images
    from thoraclip.methods.audit.sample import AuditTarget
    from thoraclip.tables.manifest import Manifest

    Files = str | Path | Sequence[str | Path]
    Shares = Mapping[str, float] | Sequence[str] | str

__all__ = ["audit", "explain", "report"]


def report(
    predictions: Files,
    *,
    out: File,
    manifest: Images | None = None,
    thumbnails: bool = True,
    title: str = "Chest X-ray classification report",
    prevalence: Shares | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge predictions: metrics with 95 % intervals, paired comparisons, one page to look at.

    Args:
        predictions: files (.parquet, .csv) or run folders, anyone's.
        out: folder for report.json, .md and .html.
        manifest: where images (for thumbnails), patients and their groups (sex, age, view, source) are looked up.
        thumbnails: show misclassified images in the page.
        title: headline.
        prevalence: CLASS=SHARE, such as COVID-19=0.05: how common a class is elsewhere, for predictive values there;
            may be repeated. In Python also a mapping.
        resamples: bootstrap resamples, 100 or more.
        seed: seed of the bootstrap.

    Returns:
        The content of `report.json`.
    """
    from thoraclip.evaluation.predictive import read_prevalence
    from thoraclip.evaluation.report import MethodResult, judge, write_report
    from thoraclip.evaluation.subgroups import group_columns
    from thoraclip.runs import file_sha256, provenance
    from thoraclip.tables.predictions import read_predictions, read_validation

    given = [predictions] if isinstance(predictions, str | Path) else predictions
    stated = read_prevalence(prevalence or {})
    names = _row_names([Path(file) for file in given])
    images = None if manifest is None else read_images(manifest)
    patients, paths = (images.by_id("patient"), images.paths_by_id()) if images else ({}, None)
    methods = [
        MethodResult(
            name=name,
            kind="predictions",
            predictions=(read_predictions(file).with_patients(patients),),
            validation=(read_validation(file.parent),) if file.name == "predictions.parquet" else (),
            is_trained=_is_trained(file.parent / "config.toml"),
        )
        for name, file in names.items()
    ]
    facts = provenance(seed=seed, inputs={name: file_sha256(file) for name, file in names.items()})
    content = judge(
        methods,
        title=title,
        resamples=resamples,
        seed=seed,
        provenance=facts,
        groups=group_columns(images) if images else {},
        prevalence=stated,
    )
    write_report(content, Path(out), image_paths=paths, thumbnails=thumbnails)
    return content


def _is_trained(config: Path) -> bool:
    """False for the predictions of a run that fitted nothing: it has neither a seed nor an adapter."""
    values = read_toml(config) if config.is_file() else {"seed": None}
    return "seed" in values or bool(values.get("adapter"))


def _row_names(given: Sequence[Path]) -> dict[str, Path]:
    """A unique name for each file: its stem, or its folder's name where the stem is `predictions`."""
    names: dict[str, Path] = {}
    for path in given:
        file = path / "predictions.parquet" if path.is_dir() else path
        stem = file.resolve().parent.name if file.stem == "predictions" else file.stem
        candidates = (stem, *(f"{stem} ({i})" for i in range(2, len(given) + 2)))
        names[next(name for name in candidates if name not in names and name != "majority")] = file
    return names


def audit(
    run: File,
    *,
    out: File,
    manifest: Images | None = None,
    config: File | None = None,
    pixels: File | None = None,
    progress: bool | Progress = False,
    announce: Announce | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Ask whether a classifier reads lungs or shortcuts; a verdict per test, and one overall.

    Args:
        run: folder of a finished run that keeps its classifier, or of a bundle, which is audited without torch.
        out: folder for audit.json, .md and .html; what is done is kept there, so that a killed audit goes on.
        manifest: the images; default: the manifest of the run's study. A bundle needs one.
        config: TOML file with settings.
        pixels: folder that keeps decoded images, so that each is decoded once for all methods.
        progress, announce: see `thoraclip.api`.
        settings: images, masks, folds, ...: the fields of `thoraclip.methods.audit.AuditConfig`; they win over the
            file.

    Returns:
        The content of `audit.json`.
    """
    from thoraclip.evaluation.render import write_audit
    from thoraclip.methods.audit import AuditConfig
    from thoraclip.methods.audit import audit as run_tests

    chosen = settings_of(AuditConfig, config, settings, where="audit")
    subject, images = _subject(Path(run), manifest)
    draw, log = hooks(progress, announce)
    content = run_tests(subject, images, chosen, Path(out), pixels=to_path(pixels), progress=draw, announce=log)
    write_audit(content, Path(out))
    return content


def _subject(folder: Path, manifest: Images | None) -> tuple[AuditTarget, Manifest]:
    """(a run or a bundle, the images that it is audited on)."""
    from thoraclip.bundle.seal import is_bundle

    if is_bundle(folder):
        from thoraclip.bundle.opening import open_bundle
        from thoraclip.bundle.runtime import BundleAuditTarget

        if manifest is None:
            raise InputError(f"{folder}: a bundle does not know where its images are; name a manifest with --manifest")
        return BundleAuditTarget(open_bundle(folder)), read_images(manifest)
    from thoraclip.methods.predictors import find_manifest, read_run

    finished = read_run(folder)
    return finished, find_manifest(finished) if manifest is None else read_images(manifest)


def explain(
    run: File,
    image: File,
    *,
    out: File,
    class_name: str = "",
    method: str = "",
    fold: int | None = None,
    mask: File | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw where an image holds evidence for a class: a heat map over the radiograph, and its share inside the lungs.

    Args:
        run: folder of a finished run that keeps its classifier, or of a bundle, which is asked without torch.
        image: PNG, JPEG or DICOM.
        out: sheet to write (.png): the image, the map over it, the lungs' outline and the numbers.
        class_name: class that is explained; default: the predicted one.
        method: heat map: smoothgrad, integrated or occlusion (any classifier); default: the best one that it offers.
        fold: fold whose classifier is asked; default: the one that held the image out, or the first.
        mask: lung mask of the image's size; default: the manifest's, or an estimate.
        seed: seed of methods that draw noise.

    Returns:
        Its numbers: `class`, `probability`, `predicted`, `scores`, `method`, `evidence_in_lungs`, `lung_area`,
        `lungs_from`, `note`.

    Raises:
        ThoraclipError: no classifier in the run, no such class, method or fold, or a file that cannot be read or
            written.
    """
    from thoraclip.bundle.seal import is_bundle
    from thoraclip.heatmaps.picture import explain_picture, require_png, why_no_mask, write_overlay

    require_png(Path(out))
    options: dict[str, Any] = {"class_name": class_name, "method": method, "seed": seed}
    if is_bundle(Path(run)):
        from thoraclip.bundle.opening import open_bundle

        if fold is not None:
            raise ConfigError(f"--fold {fold}: a bundle holds one classifier; leave --fold out")
        opened = open_bundle(run)
        explained = explain_picture(opened, Path(image), mask=to_path(mask), note=opened.bundle.title, **options)
        scores = opened.classify(Path(image)).scores  # calibrated, as `predict`
        explained = dataclasses.replace(explained, scores=scores)
    else:
        from thoraclip.methods.predictors import load_chosen, read_run

        classifier, chosen = load_chosen(read_run(Path(run)), Path(image), fold=fold)
        own, note = chosen.lung_mask if mask is None else to_path(mask), chosen.note
        if mask is None and own is not None and (problem := why_no_mask(own, Path(image))):
            own, note = None, f"{note}; the manifest's lung mask does not serve ({problem})"
        explained = explain_picture(classifier, Path(image), mask=own, note=note, **options)
    write_overlay(Path(out), explained)
    return explained.as_dict()
