"""Panel Data, what takes several manifests: overlap and join."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thoraclip.api.hooks import File, hooks, read_images, writes
from thoraclip.errors import InputError
from thoraclip.ranges import OnConflict, checked
from thoraclip.runs import Progress, require_own, write_json, written_together

if TYPE_CHECKING:
    from thoraclip.api.hooks import Files, Images
    from thoraclip.data.joining import Joined

__all__ = ["join", "overlap"]


@checked
@writes(own={"overlap.json": ("overlap.html",)})
def overlap(
    a: Images,
    b: Images,
    *,
    out: File,
    label_map: Sequence[str] | None = None,
    progress: bool | Progress = False,
) -> dict[str, Any]:
    """Find the images that two manifests share: identical files and near copies, and where their labels contradict.

    Args:
        a: images.
        b: images to compare them with.
        out: folder for overlap.json and overlap.html.
        label_map: label of either manifest that stands for one of the other, OLD=NEW; may be repeated.
        progress: see `thoraclip.api`.

    Returns:
        The content of `overlap.json`.
    """
    from thoraclip.data.overlap import compare_manifests, write_overlap

    manifests = read_images(a, may_leak=True), read_images(b, may_leak=True)
    content = compare_manifests(*manifests, Path(out), label_map=label_map or (), progress=hooks(progress, None)[0])
    write_overlap(content, *manifests, Path(out))
    return content


@checked
@writes(file=True)
def join(
    manifests: Files,
    *,
    out: File,
    label_map: Sequence[str] | None = None,
    on_conflict: OnConflict = "drop",
    progress: bool | Progress = False,
) -> Joined:
    """Make one manifest of several: an image that two of them hold stays once, and copies whose labels contradict each
    other are left out.

    Args:
        manifests: manifests, two or more; of copies the image of the first one stays.
        out: manifest to write (.parquet). What was left out is listed beside it, in `<out>.join.json`.
        label_map: OLD=NEW renames a label, OLD= leaves its images unlabelled, OLD=OLD keeps it apart from similar
            names; may be repeated.
        on_conflict: of copies with contradictory labels, drop leaves out all, first keeps those of the first manifest.
        progress: see `thoraclip.api`.

    Returns:
        The new `manifest`, and the `content` of `<out>.join.json`.
    """
    from thoraclip.data.joining import join_manifests
    from thoraclip.tables.manifest import require_place, write_manifest

    out = Path(out)
    listing = out.with_suffix(".join.json")
    require_place(out, "manifest")
    require_own(out.parent, {listing.name: ()})
    files = [Path(file) for file in ([manifests] if isinstance(manifests, str | Path) else manifests)]
    for number, file in enumerate(files):
        if file.resolve() == out.resolve():
            raise InputError(f"{out}: is what the command reads; choose another --out")
        if file.resolve() in (other.resolve() for other in files[:number]):
            raise InputError(f"{file}: is named twice; name each manifest once")
    images = [read_images(file, may_leak=True) for file in files]
    with tempfile.TemporaryDirectory() as work:
        done = join_manifests(
            images,
            Path(work),
            label_map=label_map or (),
            on_conflict=on_conflict,
            progress=hooks(progress, None)[0],
        )
    with written_together(out.parent, out.name):
        write_manifest(out, done.manifest)
        write_json(listing, dict(done.content))
    return done
