"""Panel Data: index, check, select, card and phantom; `manifests` has what takes several, `splitting` the splits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thoraclip.api.hooks import File, config_of, hooks, read_images, settings_of, to_path, writes
from thoraclip.ranges import Bits, PhantomCount, Seed, Share, Side, checked
from thoraclip.runs import Progress, require_own, written_together
from thoraclip.spelling import LabelMap

if TYPE_CHECKING:
    from thoraclip.api.hooks import Files, Images
    from thoraclip.data.index import IndexResult
    from thoraclip.data.phantom import PhantomSummary
    from thoraclip.tables.manifest import Manifest

__all__ = ["card", "check", "index", "phantom", "select"]


@checked
@writes(file=True)
def index(
    root: File,
    *,
    out: File,
    layout: str = "",
    csv: File | None = None,
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
    bits: Bits | None = None,
    label_map: Mapping[str, str] | Sequence[str] = (),
    salt: File | None = None,
    fresh: bool = False,
    progress: bool | Progress = False,
) -> IndexResult:
    """Read a folder of images into a manifest. What cannot be used is listed, never dropped. A second time, only what
    changed is read.

    Args:
        root: folder that holds the images.
        out: manifest to write (.parquet). What is not in it is listed beside it, in `<out>.index.json`.
        layout: covid-qu-ex, folders or csv; default: recognised by the folder's content.
        csv: table of images, for layout csv.
        path_column: CSV column with the path below ROOT.
        label_column: CSV column with the class.
        id_column, split_column, patient_column, source_column, view_column, sex_column, age_column, mask_column,
            infection_mask_column: CSV column; default: the column of the same name, if any.
        bits: depth of 16-bit PNG files, 8 to 16; default: what each says, else one for its source, estimated.
        label_map: OLD=NEW renames a class or merges it into another, OLD= leaves its images unlabelled, OLD=OLD keeps
            it apart from similar names. May be repeated; in Python also a mapping.
        salt: file with the secret under which DICOM patient ids are hashed; default: this user's own.
        fresh: read every file again, changed or not.
        progress: see `thoraclip.api`.

    Returns:
        The `manifest`, which may leak as the files' own split may, and what was set aside, with reasons.
    """
    named = locals()
    from thoraclip.data.index import index as read_folder
    from thoraclip.data.index import write_index_report
    from thoraclip.data.layouts import COLUMN_SETTINGS, detect_layout
    from thoraclip.tables.manifest import require_place, write_manifest

    root, out = Path(root), Path(out)
    require_place(out, "manifest")
    require_own(out.parent, {out.with_suffix(".index.json").name: ()})
    result = read_folder(
        root,
        layout=layout or ("csv" if csv else detect_layout(root)),
        csv_file=to_path(csv),
        columns={column: named[name] for name, column in COLUMN_SETTINGS.items()},
        bits=bits,
        facts=out.with_suffix(".facts.jsonl"),
        fresh=fresh,
        salt=to_path(salt),
        label_map=LabelMap(label_map),
        progress=hooks(progress, None)[0],
    )
    with written_together(out.parent, out.name):
        write_manifest(out, result.manifest)
        write_index_report(out.with_suffix(".index.json"), result)
    return result


@checked
@writes(own={"check.json": ("check.md", "check.html", "label-errors.html")})
def check(
    manifest: Images,
    *,
    out: File | None = None,
    predictions: Files | None = None,
    pictures: bool = True,
    seed: Seed = 0,
    progress: bool | Progress = False,
) -> dict[str, Any]:
    """Find leaks, copies, contradictions, burned-in text, suspected label errors, and what tells the classes apart
    without anatomy.

    Args:
        manifest: the images; they may leak.
        out: folder for check.json, .md and .html; default: nothing is written.
        predictions: run folder, or file of predictions (.parquet, .csv), of classifiers that did not see the image:
            labels that they contradict are listed, with the images in label-errors.html; may be repeated (seeds).
        pictures: read the images. Without, only the table is checked (counts, patients, leaks, identical files), of
            millions of images.
        seed: seed of the folds behind the class differences.
        progress: see `thoraclip.api`.

    Returns:
        The content of `check.json`; `leaks` and `warnings` are sentences.
    """
    from thoraclip.data.check import check as find_faults
    from thoraclip.data.check import write_check
    from thoraclip.tables.predictions import read_predictions, read_validation

    images, tables, draw = read_images(manifest, may_leak=True), [], hooks(progress, None)[0]
    files = [Path(file) for file in ([predictions] if isinstance(predictions, str | Path) else predictions or ())]
    for file in files:  # of a run with a split also its validation scores
        own = read_predictions(file)
        tables += [own, *(table for table in read_validation(file) if not {*own.image_id} & {*table.image_id})]
    held_out = (", ".join(file.name for file in files), tables) if files else None
    with tempfile.TemporaryDirectory() if out is None else nullcontext(Path(out) / "inspection") as work:
        content = find_faults(images, Path(work) if pictures else None, predictions=held_out, seed=seed, progress=draw)
    if out is not None:
        write_check(content, images, Path(out))
    return content


@checked
@writes(file=True)
def select(manifest: Images, *, where: str, out: File) -> Manifest:
    """Keep the images for which a condition on the manifest's columns is true, and note the condition in the result.

    A comparison with an unknown value is neither true nor false, nor is its `not`: such images are left out and
    counted.

    Args:
        manifest: the images; they may leak.
        where: condition, as in: view in (PA, AP) and age_years >= 18. Words: ==, !=, <, <=, >, >=, in, not in,
            is null, is not null, and, or, not; quote names and values that hold other characters than letters, digits
            and underscores.
        out: manifest to write (.parquet).

    Returns:
        The new manifest; `selections` says what was asked and how many images were kept.
    """
    from thoraclip.tables.manifest import require_place, write_manifest

    require_place(Path(out), "manifest")
    write_manifest(Path(out), done := read_images(manifest, may_leak=True).select(where))
    return done


@checked
@writes(own={"croissant.json": ("data-card.md",)})
def card(manifest: File, *, out: File, config: File | None = None, check: File | None = None, **settings: Any) -> Path:
    """Write a data card and a Croissant record; name, licence, url, citation, ... are settings.

    Args:
        manifest: the manifest's file, which the record names.
        out: folder for data-card.md and croissant.json.
        config: TOML file with settings.
        check: folder of a check, whose findings are listed.
        settings: name, licence, url, citation, ...: the fields of `CardSettings`.

    Returns:
        The card's file.
    """
    from thoraclip.cards import CardSettings, write_card
    from thoraclip.data.check import read_check

    chosen, images = settings_of(CardSettings, config, settings, where="card"), read_images(manifest, may_leak=True)
    findings = read_check(Path(check), images, whole=True) if check else None
    write_card(Path(manifest), images, chosen, Path(out), check=findings)
    return Path(out) / "data-card.md"


@checked
@writes(argument="folder")
def phantom(
    folder: File,
    *,
    images: PhantomCount = 600,
    size: Side = 256,
    seed: Seed = 0,
    difficulty: Share = 0.5,
    shortcut: str = "",
    progress: bool | Progress = False,
) -> PhantomSummary:
    """Draw synthetic chest radiographs in the COVID-QU-Ex layout, with lung and infection masks.

    From 64 images on they are drawn by several processes.

    Args:
        folder: folder to write to.
        images: number of radiographs.
        size: side in pixels.
        seed: the set's only seed.
        difficulty: 0 easy to 1 impossible.
        shortcut: confounder tied to the class, KIND=STRENGTH; kinds: marker, border, exposure, device, texture,
            date (digits at one place).
        progress: see `thoraclip.api`.

    Returns:
        What was drawn; `root` is the folder.
    """
    named = locals()
    from thoraclip.data.phantom import PhantomConfig, parse_shortcut, write_phantoms

    kind, strength = parse_shortcut(shortcut)
    config = config_of(PhantomConfig, {**named, "shortcut": kind, "shortcut_strength": strength})
    return write_phantoms(Path(folder), config, progress=hooks(progress, None)[0])
