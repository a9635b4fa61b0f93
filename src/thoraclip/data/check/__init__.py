"""`check`: can this data set be trained and judged on? Leaks, copies, contradictions, and what tells the classes apart.

    manifest --inspect--> statistics, thumbnails --find_duplicates--> pairs --+
        |                       +--class_differences, marks-------------------+--> check.json -> check.md, check.html
        +--counts, patients, identical files----------------------------------+

Without images only the last line is followed: the table alone, of millions of images, is checked in little memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from thoraclip import shapes
from thoraclip.data.check import findings
from thoraclip.data.check.inspection import Inspection, duplicate_pairs, inspect
from thoraclip.data.check.label_errors import label_errors
from thoraclip.data.check.page import html_page, label_errors_page, leaks, markdown_page, warnings
from thoraclip.data.duplicates import DuplicatePair
from thoraclip.documents import LARGE, read_json
from thoraclip.errors import InputError, ManifestError, MismatchError
from thoraclip.runs import Progress, provenance, write_json, write_text, writes, written_together
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

__all__ = ["check", "duplicate_clusters", "inspect", "read_check", "read_clusters", "write_check"]

_SCHEMA = 1
_GROUP = shapes.table(image_id=shapes.sequence(shapes.text, 1, shapes.ANY_NUMBER))
_SHAPE = shapes.table(
    manifest=shapes.text,
    provenance=shapes.table(inputs=shapes.table(manifest=shapes.text)),
    pictures=shapes.one_of(True, False),
    duplicates=shapes.optional(shapes.table(groups=shapes.sequence(_GROUP, 0, shapes.ANY_NUMBER), may=["groups"])),
    may=["pictures", "duplicates"],
)
"""Of `check.json`, as far as it is read."""


def check(
    manifest: Manifest,
    work: Path | None,
    *,
    predictions: tuple[str, Sequence[Predictions]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Look at every picture and at the table, which may leak; returns the content of `check.json`.

    Args:
        manifest: N images.
        work: folder that keeps the measurements, so that a second check only reads them; None looks at no picture.
        predictions: (their name, tables), for suspected label errors.
        seed: of the folds behind the class differences.
        progress: called with (done, total) of each stage.
    """
    suspected = predictions and label_errors(manifest, predictions[1], predictions[0])
    parts, classes = manifest.counts()
    content: dict[str, Any] = {
        "schema": _SCHEMA,
        "manifest": manifest.content_fingerprint,
        "images": len(manifest),
        "counts": {"parts": parts, "classes": classes},
        "tallies": findings.tallies(manifest),
        "unreadable": [],
        "remarks": findings.remarks(manifest),
        "patients": findings.patients(manifest),
        "label_errors": suspected,
    }
    if work is None:
        content |= {"pictures": False, "duplicates": findings.duplicates(manifest, *findings.identical(manifest))}
        content |= {"marks": {"per_class": {}, "images": []}, "differences": []}
    else:
        inspection, pairs = _look(manifest, work, progress)
        paths, ids = manifest.column("path"), manifest.column("image_id")
        content |= {
            "unreadable": [
                {"image_id": ids[row], "path": paths[row], "reason": reason}
                for row, reason in sorted(inspection.unreadable.items())
            ],
            "duplicates": findings.duplicates(manifest, pairs),
            "marks": findings.marks(manifest, inspection),
            "differences": findings.differences(manifest, inspection, seed=seed),
        }
    content |= {"leaks": list(leaks(content)), "warnings": list(warnings(content, manifest))}
    return content | {"provenance": provenance(seed=seed, inputs={"manifest": manifest.fingerprint})}


def _look(manifest: Manifest, work: Path, progress: Progress | None) -> tuple[Inspection, list[DuplicatePair]]:
    inspection = inspect(manifest, work, progress=progress)
    return inspection, duplicate_pairs(work / "pairs.json", (manifest, inspection), progress=progress)


def duplicate_clusters(manifest: Manifest, work: Path, *, progress: Progress | None = None) -> Manifest:
    """The manifest with a column `duplicate_cluster`, the same for images that show the same picture (see `check`)."""
    _, pairs = _look(manifest, work, progress)
    return _with_clusters(manifest, findings.duplicates(manifest, pairs)["groups"])


def read_check(folder: Path, manifest: Manifest, *, whole: bool = False) -> dict[str, Any]:
    """The content of a folder's `check.json`, made on these very images; `whole`, on labels, patients and split too.

    Raises:
        InputError: no check there.
        ManifestError: not the content of a check.
        MismatchError: made on other images, or (with `whole`) another split of them.
    """
    file = folder / "check.json" if folder.is_dir() else folder
    if not file.is_file():
        raise InputError(f"{folder}: no check.json there; make it with: thoraclip check MANIFEST --out {folder}")
    told: dict[str, Any] = {"error": ManifestError, "remedy": "make it again with: thoraclip check"}
    content: dict[str, Any] = read_json(file, limits=LARGE, **told)
    shapes.check(content, shapes.table(schema=shapes.whole(1)), file, **told)
    if content["schema"] > _SCHEMA:
        raise ManifestError(f"{file}: schema {content['schema']} is newer than {_SCHEMA}; upgrade thoraclip")
    shapes.check(content, _SHAPE, file, **told)
    if content["manifest"] != manifest.content_fingerprint:
        raise MismatchError(f"{file}: made on other images than this manifest's; run thoraclip check on this one")
    if whole and content["provenance"]["inputs"]["manifest"] != manifest.fingerprint:
        raise MismatchError(f"{file}: made on another split, or other labels or patients; run thoraclip check again")
    return content


def read_clusters(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with a column `duplicate_cluster`, from a check of the images; raises as `read_check` does."""
    content = read_check(folder, manifest)
    if not content.get("pictures", True):
        raise MismatchError(
            f"{folder}: a check of the table alone, which knows no near duplicates (identical files stay together "
            "anyway); run thoraclip check without --no-pictures"
        )
    return _with_clusters(manifest, content["duplicates"]["groups"])


def _with_clusters(manifest: Manifest, groups: Sequence[Mapping[str, Any]]) -> Manifest:
    """Each image of a group gets the group's smallest image id."""
    names = {image: min(group["image_id"]) for group in groups for image in group["image_id"]}
    place = pc.index_in(manifest.values("image_id"), value_set=pa.array(names, pa.string()))
    return manifest.with_columns(duplicate_cluster=pa.array(names.values(), pa.string()).take(place.combine_chunks()))


@writes()
def write_check(content: Mapping[str, Any], manifest: Manifest, out: Path | str) -> None:
    """Write `check.json`, and what is drawn from it: `check.md`, `check.html`, and `label-errors.html` of a check with
    predictions; InputError where `out` is a file."""
    out = Path(out)
    with written_together(out, "check"):
        write_json(out / "check.json", dict(content))
        write_text(out / "check.md", markdown_page(content))
        write_text(out / "check.html", html_page(content, manifest))
        if content.get("label_errors"):
            write_text(out / "label-errors.html", label_errors_page(content["label_errors"], manifest))
