"""Panel Judgement: report, audit and explain."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thoraclip.api.hooks import REPORT_FILES, Announce, File, hooks, read_images, settings_of, to_path, writes
from thoraclip.api.results import Report, is_trained
from thoraclip.errors import ConfigError, InputError, LeakError, MismatchError
from thoraclip.ranges import FoldNumber, Resamples, Seed, checked
from thoraclip.runs import Progress

if TYPE_CHECKING:
    from thoraclip.api.hooks import Files, Images
    from thoraclip.bundle.format import Bundle
    from thoraclip.methods.audit.sample import AuditTarget
    from thoraclip.predictor import Predictor
    from thoraclip.tables.manifest import Manifest

    Shares = Mapping[str, float] | Sequence[str] | str

__all__ = ["audit", "explain", "report"]


@checked
@writes(own=REPORT_FILES)
def report(
    predictions: Files,
    *,
    out: File,
    manifest: Images | None = None,
    thumbnails: bool = True,
    title: str = "Chest X-ray classification report",
    prevalence: Shares | None = None,
    resamples: Resamples = 2000,
    seed: Seed = 0,
) -> Report:
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
        The content of `report.json`, which prints as a table, with `table`, `figures` and `folder`.
    """
    from thoraclip.data.batches import picture_loader
    from thoraclip.evaluation.predictive import read_prevalence
    from thoraclip.evaluation.report import MethodResult, judge, write_report
    from thoraclip.evaluation.results import empty_adapters
    from thoraclip.evaluation.subgroups import group_columns
    from thoraclip.runs import file_sha256, provenance
    from thoraclip.tables.predictions import read_predictions, read_validation

    given = [predictions] if isinstance(predictions, str | Path) else predictions
    stated = read_prevalence(prevalence or {})
    names = _row_names([Path(file) for file in given])
    images = None if manifest is None else read_images(manifest)
    patients, paths = (images.by_id("patient"), images.paths_by_id()) if images else ({}, None)
    methods, notes = [], list[str]()
    for name, file in names.items():
        table, run = read_predictions(file).with_patients(patients), file.parent
        facts: dict[str, Any] = {"predictions": (table,), "is_trained": is_trained(run / "config.toml")}
        if file.name == "predictions.parquet":
            facts["validation"] = (tuple(scored.with_patients(patients) for scored in read_validation(run)),)
        methods.append(MethodResult(name=name, kind="predictions", **facts))
        notes += empty_adapters(name, [run])
    if methods and paths is not None:
        notes += _on_lost(methods[0].predictions[0].image_id, paths)
    content = judge(
        methods,
        title=title,
        resamples=resamples,
        seed=seed,
        provenance=provenance(seed=seed, inputs={name: file_sha256(file) for name, file in names.items()}),
        groups=group_columns(images) if images else None,
        prevalence=stated,
        notes=notes,
    )
    load = None if images is None else picture_loader(images)
    write_report(content, Path(out), image_paths=paths, thumbnails=thumbnails, load=load)
    return Report(content, Path(out))


def _on_lost(scored: Sequence[str], known: Mapping[str, Path]) -> list[str]:
    """The report's sentence on scored images that the manifest does not have; InputError where it has none of them."""
    from thoraclip.pages import counted

    lost, of = [image for image in scored if image not in known], counted(len(scored), "image")
    if lost and len(lost) == len(scored):
        raise InputError(
            f"manifest: it has none of the {of} of the predictions, such as '{lost[0]}'; name the manifest that they "
            "were made from"
        )
    said = f"The manifest does not have {len(lost)} of the {of} of the predictions: their group is unknown."
    return [said] if lost else []


def _row_names(given: Sequence[Path]) -> dict[str, Path]:
    """A unique name for each file: its stem, or its folder's name where the stem is `predictions`."""
    names: dict[str, Path] = {}
    for path in given:
        file = path / "predictions.parquet" if path.is_dir() else path
        stem = file.resolve().parent.name if file.stem == "predictions" else file.stem
        candidates = (stem, *(f"{stem} ({i})" for i in range(2, len(given) + 2)))
        names[next(name for name in candidates if name not in names and name != "majority")] = file
    return names


@checked
@writes(own={"audit.json": ("audit.md", "audit.html")})
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
    """Ask whether a classifier reads lungs or shortcuts; a verdict per test, one on the classifier, one on the data.

    Args:
        run: folder of a finished run that keeps its classifier, or of a bundle, which is audited without torch.
        out: folder for audit.json, .md and .html; what is done is kept there, so that a killed audit goes on.
        manifest: the images; default: the manifest that the run ran on, where it is still there. A bundle needs one.
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


@checked
@writes(file=True)
def explain(
    run: File,
    image: File,
    *,
    out: File,
    manifest: Images | None = None,
    class_name: str = "",
    method: str = "",
    fold: FoldNumber | None = None,
    mask: File | None = None,
    seen: bool = False,
    seed: Seed = 0,
) -> dict[str, Any]:
    """Draw where an image holds evidence for a class: a heat map over the radiograph, and its share inside the lungs.

    Args:
        run: folder of a finished run that keeps its classifier, or of a bundle, which is asked without torch.
        image: PNG, JPEG or DICOM.
        out: sheet to write (.png): the image, the map over it, the lungs' outline and the numbers.
        manifest: the images that the run ran on, where the image is looked up by its bytes; default: the file that
            the run read, or one in a folder above the run's. A bundle knows its training images without.
        class_name: class that is explained; default: the predicted one.
        method: heat map: smoothgrad, integrated or occlusion (any classifier); default: the best one that it offers.
        fold: fold whose classifier is asked, even one that was trained on the image; default: the one that held the
            image out, or the first for an image that the manifest does not have.
        mask: lung mask of the image's size; default: the manifest's, or an estimate.
        seen: explain an image even where every classifier was trained on it, or may have been; the sheet says so.
        seed: seed of methods that draw noise.

    Returns:
        Its numbers: `class`, `probability`, `predicted`, `scores`, `method`, `evidence_in_lungs`, `lung_area`,
        `lungs_from`, `note`.

    Raises:
        LeakError: every classifier was trained or tuned on the image, and neither `fold` nor `seen` is given.
        MismatchError: the manifest is another than the one that the run ran on.
        ThoraclipError: no manifest of the run is found, no classifier in the run, no such class, method or fold, or a
            file that cannot be read or written.
    """
    from thoraclip.bundle.seal import is_bundle
    from thoraclip.heatmaps.picture import explain_picture, require_png, require_question, why_no_mask, write_overlay
    from thoraclip.imaging import decode

    require_png(Path(out))
    decode(Path(image))  # what cannot be read is refused before the classifier is loaded
    options: dict[str, Any] = {"class_name": class_name, "method": method, "seed": seed}
    images = None if manifest is None else read_images(manifest)
    if is_bundle(Path(run)):
        from thoraclip.bundle.opening import open_bundle

        if fold is not None:
            raise ConfigError(f"--fold {fold}: a bundle holds one classifier; leave --fold out")
        opened = open_bundle(run)
        require_question(opened.labels, class_name, method)
        calibrated = opened.classify(Path(image)).scores  # as `predict`
        own, note = _unseen_by_bundle(opened.bundle, Path(image), images, seen=seen)
        options["of_set"] = opened.bundle.bits
        classifier: Predictor = opened
    else:
        calibrated = None
        from thoraclip.methods.explaining import choose_classifier
        from thoraclip.methods.predictors import read_run
        from thoraclip.tables.predictions import read_predictions

        finished = read_run(Path(run))
        finished.require_classifier()
        labels = read_predictions(finished.folder / "predictions.parquet").labels
        require_question(labels, class_name, method)
        chosen = choose_classifier(finished, Path(image), manifest=images, fold=fold, seen=seen)
        classifier = finished.classifier(chosen.fold, labels)
        own, note = chosen.lung_mask, chosen.note
        options |= {"bits": chosen.bits, "of_set": chosen.of_set}
    if mask is None and own is not None and (problem := why_no_mask(own, Path(image))):
        own, note = None, f"{note}; the manifest's lung mask does not serve ({problem})"
    lungs = own if mask is None else to_path(mask)
    explained = explain_picture(classifier, Path(image), mask=lungs, note=note, **options)
    if calibrated is not None:
        explained = dataclasses.replace(explained, scores=calibrated)
    write_overlay(Path(out), explained)
    return explained.as_dict()


def _unseen_by_bundle(bundle: Bundle, image: Path, manifest: Manifest | None, *, seen: bool) -> tuple[Path | None, str]:
    """(the manifest's lung mask of the image, which classifier explains it); raises as `explain`."""
    from thoraclip.imaging import read_bytes

    ran_on = bundle.facts["provenance"]["inputs"].get("manifest")
    if manifest is not None and manifest.fingerprint != ran_on:
        raise MismatchError(f"{bundle.folder}: its run ran on another manifest than this one; leave --manifest out")
    content = read_bytes(image)
    digest, note = hashlib.sha256(content).hexdigest(), bundle.note_on(content)
    if not seen and bundle.is_trained_on([digest])[0]:
        raise LeakError(
            f"{image}: {bundle.folder} was trained or tuned on this image; explain another, or this one all the same "
            "with --seen"
        )
    return None if manifest is None else manifest.lung_mask_of(manifest.rows_of(digest)), note
