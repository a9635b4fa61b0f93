"""One function per command, with the command's arguments; the commands are thin shells around these functions.

    thoraclip probe folds.parquet --out runs/probe --set model=tiny-clip
    thoraclip.probe("folds.parquet", out="runs/probe", model="tiny-clip")

An argument of the command comes first, its options are keywords, and so is every setting (`--set`, which wins over a TOML
file given as `config`). Files and folders are text or paths; a manifest is a file or a `Manifest`. A mistake that the user
can mend is a `ThoraclipError`.

Nothing is printed unless it is asked for: `progress=True` writes to standard error how far the work is and what the user
should know. A program that shows this by itself gives `progress`, called with (done, total), and `announce`, called with a
line of text. The total is 0 where it is not known.

The functions of the methods are not written here: they follow from `METHODS`, each made when it is first asked for.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from thoraclip.errors import ConfigError, InputError
from thoraclip.methods import METHODS
from thoraclip.runs import Progress, is_main_process, process_count

if TYPE_CHECKING:
    from thoraclip.data.index import IndexResult
    from thoraclip.data.phantom import PhantomSummary
    from thoraclip.deploy.scoring import ScoringSummary
    from thoraclip.methods.subject import Subject
    from thoraclip.tables.captions import Captions
    from thoraclip.tables.embeddings import Embeddings
    from thoraclip.tables.manifest import Manifest
    from thoraclip.tables.predictions import Predictions

__all__ = [
    "MethodVerb", "audit", "caption", "card", "check", "demo", "embed", "explain", "export", "index", "phantom", "predict", "report", "run_study", "serve", "split",
]  # fmt: skip

Announce = Callable[[str], None]


def demo(
    *,
    out: str | Path = "demo-out",
    images: int = 480,
    seed: int = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Draw phantoms, run the shipped tiny-clip zero-shot, with probes and tuned, and judge; offline.

    Args:
        out: folder to write to.
        images: phantoms to draw, 60 or more; a script that draws 64 or more at once guards its entry, see `phantom`.
        seed: of the phantoms.
        progress, announce: see `thoraclip.verbs`.

    Returns:
        The content of `report.json`.
    """
    from thoraclip.data.phantom import PhantomConfig, write_phantoms
    from thoraclip.study import demo_study
    from thoraclip.study import run_study as run

    if images < 60:
        raise ConfigError(f"images = {images}: the demo needs 60 or more")
    draw, tell = _hooks("images", progress, announce)
    phantoms = PhantomConfig(images=images, seed=seed, difficulty=0.0)
    tell(f"drawing {images} phantoms")
    summary = write_phantoms(Path(out) / "phantoms", phantoms, progress=draw)
    tell(f"{summary.images} phantoms of {summary.patients} patients")
    config, methods = demo_study(summary.root, Path(out) / "phantoms.parquet")
    return run(config, methods, Path(out), announce=tell, progress=draw)


def run_study(
    source: str | Path,
    *,
    out: str | Path,
    progress: bool | Progress = False,
    announce: Announce | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run a list of methods on one manifest and write the report; what is done and valid is not run again.

    It is the command `study`; `thoraclip.study` is the package behind it.

    Args:
        source: study file, or a folder of images.
        out: the study folder.
        progress, announce: see `thoraclip.verbs`.
        settings: of the study, or of the methods that know them; they win over the file.

    Returns:
        The content of `report.json`; `failed` lists the methods that failed.

    Raises:
        ThoraclipError: a setting is unknown, the images cannot be had, or every method failed.
    """
    from thoraclip.study import read_study
    from thoraclip.study import run_study as run

    config, methods = read_study(Path(source), _values(settings))
    draw, tell = _hooks("images", progress, announce)
    return run(config, methods, Path(out), announce=tell, progress=draw)


def index(
    root: str | Path,
    *,
    out: str | Path,
    layout: str = "",
    csv: str | Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    id_column: str | None = None,
    split_column: str | None = None,
    patient_column: str | None = None,
    source_column: str | None = None,
    view_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    mask_column: str | None = None,
    infection_mask_column: str | None = None,
    salt: str | Path | None = None,
    fresh: bool = False,
    progress: bool | Progress = False,
) -> IndexResult:
    """Read a folder of images into a manifest file; a second time, only what changed is read.

    Args:
        root: folder that holds the images.
        out: manifest to write (.parquet); what is not in it is listed beside it, in `<out>.index.json`.
        layout: covid-qu-ex, folders or csv; empty finds out.
        csv: table of images, for layout csv.
        path_column, label_column, id_column, split_column, patient_column, source_column, view_column, sex_column,
            age_column, mask_column, infection_mask_column: columns of that table.
        salt: file with the secret under which DICOM patient ids are hashed; None for this user's own.
        fresh: read every file again, changed or not.
        progress: see `thoraclip.verbs`.

    Returns:
        The `manifest`, which may leak as the files' own split may, and what was set aside, with reasons.

    Raises:
        ThoraclipError: see `thoraclip.data.index.index`.
    """
    from thoraclip.data.index import index as read_folder
    from thoraclip.data.index import write_index_report
    from thoraclip.data.layouts import CsvColumns, detect_layout
    from thoraclip.tables.manifest import require_parquet, write_manifest

    columns = CsvColumns(
        path=path_column, label=label_column, image_id=id_column, split=split_column, patient=patient_column,
        source=source_column, view=view_column, sex=sex_column, age_years=age_column, lung_mask=mask_column,
        infection_mask=infection_mask_column,
    )  # fmt: skip
    root, out = Path(root), Path(out)
    require_parquet(out)
    result = read_folder(
        root, layout=layout or ("csv" if csv else detect_layout(root)), csv_file=_path(csv), columns=columns,
        facts=out.with_suffix(".facts.jsonl"), fresh=fresh, salt=_path(salt),
        progress=_hooks("indexing", progress)[0],
    )  # fmt: skip
    write_manifest(out, result.manifest)
    write_index_report(out.with_suffix(".index.json"), result)
    return result


def check(
    manifest: str | Path | Manifest,
    *,
    out: str | Path | None = None,
    pictures: bool = True,
    seed: int = 0,
    progress: bool | Progress = False,
) -> dict[str, Any]:
    """Find leaks, copies, contradictions, burned-in text, and what tells the classes apart without anatomy.

    Args:
        manifest: the images; they may leak.
        out: folder for check.json, .md and .html; None writes nothing.
        pictures: False looks at the table alone: counts, patients, leaks and identical files, of millions of images.
        seed: of the folds behind the class differences.
        progress: see `thoraclip.verbs`.

    Returns:
        The content of `check.json`; `leaks` and `warnings` are sentences.
    """
    from thoraclip.data.check import check as look
    from thoraclip.data.check import write_check

    images = _images(manifest, may_leak=True)
    draw, _ = _hooks("checking", progress)
    if out is None:
        with tempfile.TemporaryDirectory() as work:
            return look(images, Path(work) if pictures else None, seed=seed, progress=draw)
    content = look(images, Path(out) / "inspection" if pictures else None, seed=seed, progress=draw)
    write_check(content, images, Path(out))
    return content


def split(
    manifest: str | Path | Manifest,
    *,
    out: str | Path,
    folds: int | None = None,
    fractions: str | Sequence[float] | None = None,
    seed: int = 0,
    duplicates: str | Path | None = None,
) -> Manifest:
    """Split a manifest into folds or train/val/test, stratified by class, whole patients and identical files together.

    Args:
        manifest: the images; they may leak.
        out: manifest to write (.parquet).
        folds: number of folds; or give fractions.
        fractions: shares of train, val and test, as in (0.7, 0.1, 0.2).
        seed: decides the shuffle.
        duplicates: folder of a check, whose near duplicates are kept together.

    Returns:
        The new manifest.
    """
    from thoraclip.data.check import read_clusters
    from thoraclip.data.splits import parse_fractions, split_folds, split_fractions
    from thoraclip.tables.manifest import require_parquet, write_manifest

    if (folds is None) == (fractions is None):
        raise ConfigError("give either --folds 5 or --fractions 0.7,0.1,0.2")
    require_parquet(Path(out))
    images = _images(manifest, may_leak=True)
    if duplicates is not None:
        images = read_clusters(images, Path(duplicates))
    if folds is not None:
        done = split_folds(images, folds=folds, seed=seed)
    else:
        shares = parse_fractions(fractions) if isinstance(fractions, str) else fractions or ()
        done = split_fractions(images, fractions=shares, seed=seed)
    write_manifest(Path(out), done)
    return done


def card(
    manifest: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    check: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Write a data card and a Croissant record.

    Args:
        manifest: the images' file, which the record names.
        out: folder for data-card.md and croissant.json.
        config: TOML file with settings.
        check: folder of a check, whose findings are listed.
        settings: name, licence, url, citation, ...: the fields of `CardSettings`.

    Returns:
        The card's file.
    """
    from thoraclip.config import build_config, read_toml
    from thoraclip.data.card import CardSettings, write_card
    from thoraclip.data.check import read_check

    values = (read_toml(Path(config)) if config else {}) | _values(settings)
    said = build_config(CardSettings, values, where=str(config or "card"))
    images = _images(manifest, may_leak=True)
    found = read_check(Path(check), images, whole=True) if check else None
    write_card(Path(manifest), images, said, Path(out), check=found)
    return Path(out) / "data-card.md"


def phantom(
    folder: str | Path,
    *,
    images: int = 600,
    size: int = 256,
    seed: int = 0,
    difficulty: float = 0.5,
    shortcut: str = "",
    progress: bool | Progress = False,
) -> PhantomSummary:
    """Draw synthetic chest radiographs in the COVID-QU-Ex layout, with lung and infection masks.

    Args:
        folder: where they are written.
        images: number of radiographs. From 64 on they are drawn by several processes: a script that calls this guards its
            entry with `if __name__ == "__main__":`.
        size: side in pixels.
        seed: the set's only seed.
        difficulty: 0 easy to 1 impossible.
        shortcut: KIND=STRENGTH of a confounder tied to the class: marker, border, exposure, device or texture.
        progress: see `thoraclip.verbs`.

    Returns:
        What was drawn; `root` is the folder.
    """
    from thoraclip.data.phantom import PhantomConfig, parse_shortcut, write_phantoms

    kind, strength = parse_shortcut(shortcut)
    config = PhantomConfig(
        images=images, size=size, seed=seed, difficulty=difficulty, shortcut=kind, shortcut_strength=strength
    )
    return write_phantoms(Path(folder), config, progress=_hooks("drawing", progress)[0])


def caption(
    manifest: str | Path | Manifest,
    *,
    captioner: str,
    out: str | Path,
    model: str | Path = "Salesforce/blip-image-captioning-base",
    column: str = "",
    append_label: bool = False,
    everywhere: bool = False,
    prompt: str = "",
    max_new_tokens: int = 40,
    geometry: str = "squash",
    batch_size: int = 16,
    precision: str = "auto",
    seed: int = 0,
    pixels: str | Path | None = None,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> Captions:
    """Write a text for every image, by a model, a template or from a column; goes on where it was interrupted.

    Args:
        manifest: the images.
        captioner: blip, template or column.
        out: captions file to write (.parquet).
        model, column, append_label, everywhere, prompt, max_new_tokens, geometry, batch_size, precision, seed: see
            `CaptionConfig`.
        pixels: folder that keeps decoded pictures.
        progress, announce: see `thoraclip.verbs`.
    """
    from thoraclip.methods.caption import EVERYWHERE_LEAKS, CaptionConfig
    from thoraclip.methods.caption import caption as write

    config = CaptionConfig(
        captioner=captioner, model=str(model), column=column, append_label=append_label, everywhere=everywhere,
        prompt=prompt, max_new_tokens=max_new_tokens, geometry=geometry, batch_size=batch_size, precision=precision,
        seed=seed,
    )  # fmt: skip
    draw, tell = _hooks("captioning", progress, announce)
    if everywhere:
        tell(EVERYWHERE_LEAKS)
    return write(_images(manifest), config, Path(out), pixels=_path(pixels), progress=draw)


def embed(
    manifest: str | Path | Manifest,
    *,
    model: str | Path,
    out: str | Path,
    adapter: str | Path = "",
    geometry: str = "squash",
    batch_size: int = 0,
    precision: str = "auto",
    pixels: str | Path | None = None,
    engine: str = "threads",
    workers: int = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> Embeddings | None:
    """Run a frozen encoder over a manifest once and keep its features; goes on where it was interrupted.

    Several processes that `torchrun` or `accelerate launch` started share the work; the features are the same bytes with any
    number of threads, processes and actors.

    Args:
        manifest: the images.
        model: Hub id, local folder, or tiny-clip.
        out: folder to write to.
        adapter: PEFT adapter folder; empty for none.
        geometry: squash, crop or pad.
        batch_size: images per forward pass; 0 for what suits the device.
        precision: fp32, bf16 or auto.
        pixels: folder that keeps decoded pictures.
        engine: threads, or ray: the actors of a Ray cluster, each with the encoder loaded once.
        workers: ray: actors; 0 for one on each GPU, or, without a GPU, on each machine.
        progress, announce: see `thoraclip.verbs`.

    Returns:
        The features; `None` in all but the first of several processes.
    """
    from thoraclip.methods.embed import EncoderConfig, load_encoder
    from thoraclip.methods.embed import embed as write
    from thoraclip.methods.engines import by_ray
    from thoraclip.methods.processes import ProcessGroup
    from thoraclip.ray_pool import require_engine

    require_engine(engine, workers=workers)
    if engine == "ray" and (pixels is not None or process_count() > 1):
        raise ConfigError("engine = ray decodes where it encodes: leave out --pixels, and start it without a launcher")
    images = _images(manifest)
    config = EncoderConfig(
        model=str(model), adapter=str(adapter), geometry=geometry, batch_size=batch_size, precision=precision
    )
    draw, tell = _hooks("embedding", progress, announce)
    with ProcessGroup() if process_count() > 1 else nullcontext() as group:
        encoder = load_encoder(config)
        done = write(
            images, encoder, Path(out), batch_size=batch_size, pixels=_path(pixels), group=group, progress=draw, announce=tell,
            engine=by_ray(config, images, encoder.description, workers=workers) if engine == "ray" else None,
        )  # fmt: skip
    return done if is_main_process() else None


def report(
    predictions: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    manifest: str | Path | Manifest | None = None,
    thumbnails: bool = True,
    title: str = "Chest X-ray classification report",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge predictions: metrics with 95 % intervals, paired comparisons, one page to look at.

    Args:
        predictions: files (.parquet, .csv) or run folders, anyone's.
        out: folder for report.json, .md and .html.
        manifest: where pictures (for thumbnails) and patients are looked up.
        thumbnails: show misclassified images in the page.
        title: headline.
        resamples: of the bootstrap, 100 or more.
        seed: of the bootstrap.

    Returns:
        The content of `report.json`.
    """
    from thoraclip.judge.report import MethodResult, judge, write_report
    from thoraclip.methods.validation import read_validation
    from thoraclip.runs import file_sha256, provenance
    from thoraclip.tables.predictions import read_predictions

    given = [predictions] if isinstance(predictions, str | Path) else predictions
    names = _row_names([Path(file) for file in given])
    images = None if manifest is None else _images(manifest)
    patients, paths = (images.by_id("patient"), images.paths_by_id()) if images else ({}, None)
    methods = [
        MethodResult(
            name=name, kind="predictions", predictions=(read_predictions(file).with_patients(patients),),
            validation=(read_validation(file.parent),) if file.name == "predictions.parquet" else (),
        )
        for name, file in names.items()
    ]  # fmt: skip
    facts = provenance(seed=seed, inputs={name: file_sha256(file) for name, file in names.items()})
    content = judge(methods, title=title, resamples=resamples, seed=seed, provenance=facts)
    write_report(content, Path(out), image_paths=paths, thumbnails=thumbnails)
    return content


def audit(
    run: str | Path,
    *,
    out: str | Path,
    manifest: str | Path | Manifest | None = None,
    config: str | Path | None = None,
    pixels: str | Path | None = None,
    progress: bool | Progress = False,
    announce: Announce | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Ask whether a classifier reads lungs or shortcuts: altered pictures, probes fitted anew, what needs no lungs at all.

    Args:
        run: folder of a finished run that keeps its classifier, or of a bundle, which is audited without torch.
        out: folder for audit.json, .md and .html; what is done is kept there, so that a killed audit goes on.
        manifest: the images; None for the manifest of the study that the run is of. A bundle needs one.
        config: TOML file with settings.
        pixels: folder that keeps decoded pictures.
        progress, announce: see `thoraclip.verbs`.
        settings: images, masks, folds, ...: the fields of `thoraclip.methods.audit.AuditConfig`; they win over the file.

    Returns:
        The content of `audit.json`.
    """
    from thoraclip.config import build_config, read_toml
    from thoraclip.judge.audit_page import write_audit
    from thoraclip.methods.audit import AuditConfig
    from thoraclip.methods.audit import audit as look

    values = (read_toml(Path(config)) if config else {}) | _values(settings)
    asked = build_config(AuditConfig, values, where=str(config or "audit"))
    subject, images = _subject(Path(run), manifest)
    draw, tell = _hooks("images", progress, announce)
    content = look(subject, images, asked, Path(out), pixels=_path(pixels), progress=draw, announce=tell)
    write_audit(content, Path(out))
    return content


def _subject(folder: Path, manifest: str | Path | Manifest | None) -> tuple[Subject, Manifest]:
    """(a run or a bundle, the images that it is audited on)."""
    from thoraclip.deploy.seal import is_bundle

    if is_bundle(folder):
        from thoraclip.deploy.opening import open_bundle
        from thoraclip.deploy.subject import BundleSubject

        if manifest is None:
            raise InputError(f"{folder}: a bundle does not know where its images are; name a manifest with --manifest")
        return BundleSubject(open_bundle(folder)), _images(manifest)
    from thoraclip.methods.predictors import find_manifest, read_run

    finished = read_run(folder)
    return finished, find_manifest(finished) if manifest is None else _images(manifest)


def _row_names(given: Sequence[Path]) -> dict[str, Path]:
    """A name for each file: its stem, or its folder's name where the stem says nothing; made unique."""
    names: dict[str, Path] = {}
    for path in given:
        file = path / "predictions.parquet" if path.is_dir() else path
        stem = file.resolve().parent.name if file.stem == "predictions" else file.stem
        candidates = (stem, *(f"{stem} ({i})" for i in range(2, len(given) + 2)))
        names[next(name for name in candidates if name not in names and name != "majority")] = file
    return names


def explain(
    run: str | Path,
    image: str | Path,
    *,
    out: str | Path,
    class_name: str = "",
    method: str = "",
    fold: int | None = None,
    mask: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw where a picture holds evidence for a class, as a trained classifier sees it; a map is no proof.

    Args:
        run: folder of a finished run that keeps a classifier, or of a bundle, which is asked without torch.
        image: PNG, JPEG or DICOM.
        out: sheet to write (.png): the picture, the map over it, the lungs' outline and the numbers.
        class_name: the class that is explained; empty for the predicted one.
        method: occlusion, smoothgrad or integrated; empty for the default. A bundle shows only its scores: occlusion.
        fold: whose classifier is asked; None for the one that held the picture out, or the first.
        mask: lung mask of the picture's size; None for the manifest's, or an estimate.
        seed: of methods that draw noise.

    Returns:
        Its numbers: `class`, `probability`, `predicted`, `scores`, `method`, `evidence_in_lungs`, `lung_area`,
        `lungs_from`, `note`.

    Raises:
        ThoraclipError: no classifier in the run, no such class, method or fold, or a file that cannot be read or written.
    """
    from thoraclip.deploy.seal import is_bundle
    from thoraclip.heatmaps.picture import explain_picture, require_png, why_no_mask, write_overlay

    require_png(Path(out))
    if is_bundle(Path(run)):
        from thoraclip.deploy.opening import open_bundle

        if fold is not None:
            raise ConfigError(f"--fold {fold}: a bundle holds one classifier; leave --fold out")
        opened = open_bundle(run)
        found = explain_picture(
            opened,
            Path(image),
            class_name=class_name,
            method=method,
            mask=_path(mask),
            seed=seed,
            note=opened.bundle.title,
        )
        calibrated = opened.classify(Path(image)).scores  # as `predict` tells them
        found = dataclasses.replace(found, scores=calibrated)
        write_overlay(Path(out), found)
        return found.as_dict()
    from thoraclip.methods.explain import load_classifier as load
    from thoraclip.methods.predictors import read_run

    classifier, chosen = load(read_run(Path(run)), Path(image), fold=fold)
    asked = partial(explain_picture, classifier, Path(image), class_name=class_name, method=method, seed=seed)
    own = chosen.lung_mask if mask is None else None
    if own is not None and (problem := why_no_mask(own, Path(image))):
        found = asked(mask=None, note=f"{chosen.note}; the manifest's lung mask does not serve ({problem})")
    else:
        found = asked(mask=own or _path(mask), note=chosen.note)
    write_overlay(Path(out), found)
    return found.as_dict()


def export(
    run: str | Path,
    *,
    out: str | Path,
    int8: bool = False,
    fold: int | None = None,
    manifest: str | Path | Manifest | None = None,
    images: int = 2000,
    thumbnails: int = 0,
    seed: int = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> dict[str, Any]:
    """Make a bundle of a run: a folder that predicts without torch, written only if it is shown to be the same classifier.

    Args:
        run: folder of a finished run that keeps its classifier.
        out: folder of the bundle; a bundle that is there is replaced once the new one is whole.
        int8: a quarter of the size and several times the speed, if the test images show that the answers stay alike.
        fold: whose classifier; None for the first one, or the split's.
        manifest: the images that the run ran on; None for the manifest of the study that it is of.
        images: no more than this many training, validation and test images are looked at; int8 is compared on all test images.
        thumbnails: so many training pictures are inside, small, for the page of `serve`; whoever has the bundle can see them.
        seed: of draws and resamples.
        progress, announce: see `thoraclip.verbs`.

    Returns:
        The content of `parity.json`: how far the bundle is from the original.

    Raises:
        ParityError: the exported model does not reproduce the original, or it cannot be shown; nothing is written.
    """
    from thoraclip.deploy.export import export_bundle, require_place
    from thoraclip.methods.original import load_original
    from thoraclip.methods.predictors import find_manifest, read_run

    require_place(Path(out))
    finished = read_run(Path(run))
    original = load_original(finished, find_manifest(finished) if manifest is None else _images(manifest), fold=fold)
    draw, tell = _hooks("images", progress, announce)
    return export_bundle(
        original, Path(out), int8=int8, images=images, thumbnails=thumbnails, seed=seed, progress=draw, announce=tell
    )


def predict(
    bundle: str | Path,
    paths: str | Path | Sequence[str | Path] | None = None,
    *,
    manifest: str | Path | None = None,
    out: str | Path | IO[bytes] | None = None,
    format: str = "",
    threads: int = 0,
    engine: str = "threads",
    workers: int = 0,
    progress: bool | Progress = False,
    announce: Announce | None = None,
) -> ScoringSummary:
    """Score any number of pictures with a bundle; without torch, and a killed run goes on where it stopped.

    Args:
        bundle: folder that `export` wrote.
        paths: pictures, folders of pictures, and `-` for a list on standard input, one path a line or NUL-separated.
        manifest: `.parquet`, or `.csv` with a column `path`, in place of paths.
        out: table to write, a file or a binary stream; None keeps the rows in the summary.
        format: csv or jsonl; empty for what the file's name says, else csv.
        threads: pictures at once; 0 for as many as there are cores; not with ray.
        engine: threads, or ray: the actors of a Ray cluster, each with the bundle opened once.
        workers: ray: actors; 0 for one on each GPU, or, without a GPU, on each machine.
        progress, announce: see `thoraclip.verbs`.

    Returns:
        How many were scored, failed and unlike the training images, the first reasons, and what was left out.

    Raises:
        ThoraclipError: no such picture or bundle, the table cannot be written, it was begun with another bundle, or not one
            picture can be read; the table is there then.
    """
    from thoraclip.deploy.opening import open_bundle
    from thoraclip.deploy.rows import table_format
    from thoraclip.ray_pool import require_engine

    require_engine(engine, workers=workers, threads=threads)
    if manifest is not None and isinstance(out, str | Path) and Path(out).resolve() == Path(manifest).resolve():
        raise ConfigError(f"{out}: is the manifest; choose another --out")
    kind = table_format(format, out)
    classifier = open_bundle(bundle)  # before the imports below, whose libraries are loaded while it is checked

    from thoraclip.deploy.engines import by_ray
    from thoraclip.deploy.pictures import find_pictures
    from thoraclip.deploy.scoring import open_table, require_one, score

    named = [paths] if isinstance(paths, str | Path) else paths or []
    pictures = find_pictures(named, manifest=_path(manifest))
    draw, tell = _hooks("images", progress, announce)
    place = Path(out) if isinstance(out, str | Path) else out
    with open_table(place, classifier.labels, kind, fingerprint=classifier.bundle.fingerprint, announce=tell) as table:
        far = by_ray(classifier, workers=workers) if engine == "ray" else None
        summary = score(classifier, pictures, table, threads=threads, engine=far, progress=draw)
    require_one(summary, place)
    return summary


def serve(
    bundle: str | Path,
    *,
    beside: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    page: bool | None = None,
    token_file: str | Path | None = None,
    allow_origin: Sequence[str] | None = None,
    threads: int = 0,
    announce: Announce | None = None,
    **settings: Any,
) -> None:
    """Answer over HTTP with a bundle, and show a page, until the process is told to stop; without torch.

    Args:
        bundle: folder that `export` wrote.
        beside: another one, to compare: the page shows both, the API answers with it when it is named.
        host, port: where it listens; port 0 for any that is free.
        page: whether there is a page at `/`; None for whether Gradio is installed.
        token_file: file with the token that every client must bring; None for the environment's `THORACLIP_TOKEN`, or none.
        allow_origin: origins of pages on other hosts that may ask.
        threads: pictures at once; 0 for as many as there are cores.
        announce: gets the address, and what should be known of it.
        settings: fields of `thoraclip.deploy.server.limits.Limits`.

    Raises:
        ThoraclipError: no such bundle, an unknown setting, no token in the file, or somebody else listens there.
    """
    from thoraclip.config import build_config
    from thoraclip.deploy.server.limits import Limits
    from thoraclip.deploy.server.running import has_page, is_loopback, listen, read_token, serve_bundles

    limits = build_config(Limits, settings, where="--set")
    token, tell = read_token(_path(token_file)), announce or _silent
    with listen(host, port) as place:
        if not token and not is_loopback(place):
            tell(f"no token: whoever reaches {host} can ask; --token-file FILE demands one")
        with_page = has_page() if page is None else page
        if not with_page and page is None:
            tell("no page: pip install 'thoraclip[ui]' brings one")
        serve_bundles(
            [Path(one) for one in (bundle, beside) if one is not None], place, limits=limits, threads=threads, token=token,
            origins=allow_origin or (), with_page=with_page, started=lambda address: tell(f"serving at {address} (Ctrl+C ends)"),
        )  # fmt: skip


class MethodVerb(Protocol):
    """Run one method: `zeroshot`, `finetune`, ..., a function for every kind in `METHODS`. What is there and valid is only read.

    Its settings are keywords too, the same as behind `--set`; `help(thoraclip.probe)` lists those of a method.
    """

    __name__: str

    def __call__(
        self,
        manifest: str | Path | Manifest,
        *,
        out: str | Path,
        config: str | Path | None = None,
        pixels: str | Path | None = None,
        progress: bool | Progress = False,
        announce: Announce | None = None,
        **settings: Any,
    ) -> tuple[Predictions, Mapping[str, Any]] | Any:  # None is too rare to ask for it after every call
        """Run the method.

        Args:
            manifest: the split images.
            out: the run folder.
            config: TOML file with settings.
            pixels: folder that keeps decoded pictures, so that each is decoded once for all methods.
            progress, announce: see `thoraclip.verbs`.
            settings: of the method; they win over the file.

        Returns:
            The predictions, and the method's details (JSON-able); None in all but the first of several processes.

        Raises:
            ThoraclipError: a setting is unknown or out of range, or the images do not serve.
        """


_ARGUMENTS = inspect.cleandoc(MethodVerb.__call__.__doc__ or "").partition("\n\n")[2]


@cache
def _method_verb(kind: str) -> MethodVerb:
    """The function of a method; its signature and its help name every setting."""
    from thoraclip.config import field_help

    def verb(
        manifest: str | Path | Manifest,
        *,
        out: str | Path,
        config: str | Path | None = None,
        pixels: str | Path | None = None,
        progress: bool | Progress = False,
        announce: Announce | None = None,
        **settings: Any,
    ) -> tuple[Predictions, Mapping[str, Any]] | None:
        from thoraclip.config import build_config, read_toml
        from thoraclip.methods.running import run_method

        values = read_toml(Path(config)) if config else {}
        if values.pop("kind", kind) != kind:
            raise ConfigError(f"{config}: holds settings of another method than '{kind}'")
        built = build_config(METHODS[kind].config_type, values | _values(settings), where=str(config or kind))
        draw, tell = _hooks(kind, progress, announce)
        images = _images(manifest)
        return run_method(kind, built, images, Path(out), pixels=_path(pixels), progress=draw, announce=tell)

    fields = dataclasses.fields(METHODS[kind].config_type)
    texts = field_help(METHODS[kind].config_type)  # type: ignore[arg-type]
    lines = "".join(f"    {field.name}: {texts[field.name]}\n" for field in fields)
    arguments = _ARGUMENTS.replace("    settings: of the method; they win over the file.\n", lines)
    own = inspect.signature(verb)
    keywords = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields
    ]
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    verb.__name__ = verb.__qualname__ = kind
    verb.__doc__ = f"{METHODS[kind].summary}\n\n{arguments}"
    verb.__signature__ = own.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
    return verb


def __getattr__(name: str) -> MethodVerb:
    if name not in METHODS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return _method_verb(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *METHODS})


def _images(given: str | Path | Manifest, *, may_leak: bool = False) -> Manifest:
    """A manifest as it was given, or read; one that leaks is refused unless it may."""
    from thoraclip.tables.manifest import Manifest, read_manifest

    if not isinstance(given, Manifest):
        return read_manifest(Path(given), may_leak=may_leak)
    return given.strict() if given.may_leak and not may_leak else given


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a settings file holds them: paths are text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def _hooks(what: str, progress: bool | Progress, announce: Announce | None = None) -> tuple[Progress | None, Announce]:
    """What the work below calls with (done, total), and with a line for the user."""
    lines = _Lines(what)
    if not isinstance(progress, bool):
        return progress, announce or _silent
    if progress and is_main_process():
        return lines.draw, announce or lines.tell
    return None, announce or _silent


def _silent(_: str) -> None:
    pass


class _Lines:
    """Standard error for a person: one line for each stage, rewritten until the stage ends."""

    def __init__(self, what: str) -> None:
        self._what, self._is_open = what, False

    def draw(self, done: int, total: int) -> None:
        self._is_open = done < total or not total
        sys.stderr.write(f"\r{self._what}: {done}{f'/{total}' if total else ''}" + ("" if self._is_open else "\n"))
        sys.stderr.flush()

    def tell(self, text: str) -> None:
        sys.stderr.write(("\n" if self._is_open else "") + f"{text}\n")
        self._is_open = False
