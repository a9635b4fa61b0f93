"""One lung region for every image of an audit, all of one origin."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.data.batches import in_batches, read_indexed
from thoraclip.data.lungs.estimation import LungEstimate, estimate_lungs, oddities
from thoraclip.data.masks import fit_mask, mask_problem, read_mask
from thoraclip.errors import ConfigError, ImageError, ManifestError, did_you_mean
from thoraclip.imaging import Preprocess, decode
from thoraclip.runs import Progress, digest
from thoraclip.tables.manifest import Manifest

__all__ = ["SOURCES", "LungRegions", "lung_masks", "require_mask_source"]

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Estimate = Callable[[Grey], LungEstimate | Mask]
Found = tuple[Mask, str | None]

SOURCES = ("auto", "given", "estimate", "model", "none")
ORIGINS = {"given": "given", "estimate": "estimated", "model": "model", "none": "none"}
_BATCH = 64


@dataclass(frozen=True)
class LungRegions:
    """Where the lungs are, for R images.

    Args:
        masks: bool[R, S, S], in the order of the rows; nothing set for an image that is set aside.
        image_ids: of the R images.
        origin: `given`, `estimated`, `model` or `none`; the same for all.
        set_aside: (image id, reason) of every image without a usable region.
        words: a sentence for the reader: where the regions are from, why, and how many images are set aside.
    """

    masks: Mask
    image_ids: tuple[str, ...]
    origin: str
    set_aside: tuple[tuple[str, str], ...]
    words: str

    @property
    def usable(self) -> Mask:
        """bool[R]: True where an image has a region."""
        left = {name for name, _ in self.set_aside}
        return np.array([self.origin != "none" and name not in left for name in self.image_ids], dtype=bool)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over origin, ids and every pixel of the masks."""
        pixels = hashlib.sha256(np.packbits(self.masks).tobytes()).hexdigest()
        return digest([self.origin, list(self.image_ids), list(self.masks.shape), pixels])

    def as_json(self) -> dict[str, Any]:
        """What a report says of the regions."""
        return {
            "origin": self.origin, "words": self.words, "images": len(self.masks), "usable": int(self.usable.sum()),
            "set_aside": [{"image_id": name, "reason": reason} for name, reason in self.set_aside],
        }  # fmt: skip


def require_mask_source(value: str, name: str) -> None:
    """Raise ConfigError unless a setting names a source of regions, or a segmentation model (a folder, or a Hub id with a slash)."""
    known = [source for source in SOURCES if source != "model"]
    if value not in known and "/" not in value and not Path(value).is_dir():
        raise ConfigError(
            f"{name} = '{value}': neither a folder with a segmentation model nor one of {', '.join(known)}"
            f"{did_you_mean(value, known)}"
        )


def lung_masks(
    manifest: Manifest,
    spec: Preprocess,
    *,
    source: str = "auto",
    rows: Rows | None = None,
    estimate: Estimate | None = None,
    progress: Progress | None = None,
) -> LungRegions:
    """The lung region of each chosen image at a model's geometry.

    Regions of two origins are never mixed: if one class had masks by hand and another an estimate, what differs between the
    two would pass for what differs between the classes. `auto` takes the given masks only where every chosen image has one,
    and else estimates all.

    Args:
        manifest: images; `lung_mask` is relative to its root.
        spec: geometry and size, S.
        source: one of `SOURCES`; with `model`, `estimate` is a segmentation model's.
        rows: i64[R], the chosen rows in their order; None for all.
        estimate: u8[H, W] -> a `LungEstimate`, or bool[H, W] whose plausibility is then judged here; None for
            `estimate_lungs`. It is called from several threads.
        progress: called with (done, total).

    Returns:
        Regions of all R images. An image whose mask is unreadable, of another aspect ratio, empty or all-covering, or whose
        estimate is implausible, is set aside with the reason, and its mask is empty.

    Raises:
        ConfigError: unknown source, or `model` without a model.
        ManifestError: `given`, and an image has no mask.
        ImageError, InputError, MismatchError: a picture cannot be decoded, is gone or changed.
    """
    chosen = manifest if rows is None else manifest.take(rows)
    origin, why = _choose(chosen, source, estimate is not None)
    ids = tuple(chosen.column("image_id"))
    masks = np.zeros((len(chosen), spec.size, spec.size), dtype=bool)
    if origin == "none":
        return LungRegions(masks, ids, origin, (), why)
    find = _given(chosen, spec) if origin == "given" else _estimated(chosen, spec, estimate or estimate_lungs)
    aside = []
    for first, found in in_batches(find, len(chosen), batch_size=_BATCH):
        for row, (mask, reason) in enumerate(found, start=first):
            if reason is None:
                masks[row] = mask
            else:
                aside.append((ids[row], reason))
        if progress:
            progress(first + len(found), len(chosen))
    words = f"{why} {_count(aside, len(chosen))}".rstrip()
    return LungRegions(masks, ids, origin, tuple(aside), words)


def _choose(manifest: Manifest, source: str, has_estimate: bool) -> tuple[str, str]:
    """(origin, why in words)."""
    if source not in SOURCES:
        raise ConfigError(f"unknown source of lung regions '{source}'{did_you_mean(source, SOURCES)}")
    if source == "model" and not has_estimate:
        raise ConfigError(
            "source of lung regions 'model': no model is given; name a segmentation model, or use 'estimate'"
        )
    given = [mask is not None for mask in manifest.column("lung_mask")]
    if source == "given" and not all(given):
        raise ManifestError(
            f"manifest: {given.count(False)} of {len(given)} images have no lung mask ({_missing(manifest, given)}); "
            "give every image one, or use source 'auto' or 'estimate'"
        )
    if source == "none":
        return "none", "No lung region was asked for."
    if source in {"estimate", "model"}:
        by = "by the given segmentation model" if source == "model" else "from the pictures"
        return ORIGINS[source], f"All lung regions are estimated {by}, as asked for."
    if all(given):
        return "given", "The lung regions are the given masks."
    if not any(given):
        return "estimated", "No image has a lung mask, so all lung regions are estimated from the pictures."
    return "estimated", (
        f"Only {sum(given)} of {len(given)} images have a lung mask ({_missing(manifest, given)}); given and estimated regions "
        "are never mixed, so all are estimated from the pictures."
    )


def _missing(manifest: Manifest, given: Sequence[bool]) -> str:
    """Images without a mask per class, in words."""
    labels = [str(label or "unknown") for label in manifest.column("label")]
    total, without = Counter(labels), Counter(name for name, has in zip(labels, given, strict=True) if not has)
    return "without one: " + ", ".join(f"{without[name]} of {total[name]} {name}" for name in sorted(without))


def _count(aside: Sequence[tuple[str, str]], total: int) -> str:
    if not aside:
        return ""
    return f"{len(aside)} of {total} images are set aside without a region, first '{aside[0][0]}': {aside[0][1]}."


def _given(manifest: Manifest, spec: Preprocess) -> Callable[[int], Found]:
    named = manifest.column("lung_mask")
    files: list[Path] = [manifest.root / mask for mask in named]
    paths, hashes = manifest.paths(), manifest.column("sha256")
    widths, heights = manifest.column("width"), manifest.column("height")

    def find(row: int) -> Found:
        size = (heights[row], widths[row])
        shape = size if None not in size else _read(paths[row], hashes[row]).shape
        try:
            return _fitted(read_mask(files[row], shape), spec)
        except ImageError as error:
            return np.zeros((0, 0), bool), str(error).replace(str(files[row]), str(named[row]))

    return find


def _estimated(manifest: Manifest, spec: Preprocess, estimate: Estimate) -> Callable[[int], Found]:
    paths, hashes = manifest.paths(), manifest.column("sha256")

    def find(row: int) -> Found:
        made = estimate(_read(paths[row], hashes[row]))
        mask, reasons = (made.mask, made.reasons) if isinstance(made, LungEstimate) else (made, oddities(made))
        return (mask, f"implausible: {'; '.join(reasons)}") if reasons else _fitted(mask, spec)

    return find


def _fitted(mask: Mask, spec: Preprocess) -> Found:
    """The mask at the model's geometry, and what is wrong with it."""
    problem = mask_problem(mask)
    if problem:
        return mask, problem
    fitted = fit_mask(mask, spec)
    return fitted, None if fitted.any() else f"no part of the mask is left by geometry '{spec.geometry}'"


def _read(path: Path, sha256: str | None) -> Grey:
    data = read_indexed(path, sha256)
    try:
        return decode(data).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {str(error).removeprefix('image: ')}") from error
