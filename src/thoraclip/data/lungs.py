"""The lung region of every image of an audit, all of one origin."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.data.batches import in_batches, read_pixels
from thoraclip.data.masks import fit_mask, mask_problem, read_mask
from thoraclip.data.views import MARGIN
from thoraclip.dtypes import Greys, Masks
from thoraclip.errors import ConfigError, ImageError, ManifestError, did_you_mean
from thoraclip.imaging import Preprocess
from thoraclip.imaging.lungs import usual_lungs
from thoraclip.imaging.remedies import Box, crops, kept_box
from thoraclip.runs import Progress
from thoraclip.tables.manifest import Manifest

__all__ = ["SOURCES", "LungRegions", "lung_masks", "oddities", "require_mask_source", "usual_region"]

Estimate = Callable[[Greys], Masks]
Found = tuple[Masks, str | None]

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
SOURCES = ("auto", "given", "estimate", "none")
_BATCH = 64

AREA = (0.05, 0.70)  # share of the image that two lungs can take
LEAST_RATIO = 0.30  # area of the smaller lung over that of the larger one
MIDDLE = (0.20, 0.80)  # where the middle of both lungs can lie, as a share of the width and of the height
_SPECK = 0.01  # parts smaller than this share of the image are no lung
_LOOK = 128  # longer side, at most, at which a mask is looked at


@dataclass(frozen=True)
class LungRegions:
    """Where the lungs are, for R images."""

    masks: Masks  # bool[R, S, S], in the order of the rows; nothing set for an image that is set aside, else something
    origin: str  # `given`, `estimated`, `model` or `none`; the same for all
    set_aside: tuple[tuple[str, str], ...]  # (image id, reason) of every image without a usable region
    words: str  # a sentence for the reader: where the regions are from, why, and how many images are set aside

    @property
    def usable(self) -> Masks:
        """bool[R]: True where an image has a region."""
        return np.asarray(self.masks.any(axis=(1, 2)))

    def as_json(self) -> dict[str, Any]:
        """What a report says of the regions."""
        return {
            "origin": self.origin,
            "words": self.words,
            "images": len(self.masks),
            "usable": int(self.usable.sum()),
            "set_aside": [{"image_id": name, "reason": reason} for name, reason in self.set_aside],
        }


def require_mask_source(value: str, name: str) -> None:
    """Raise ConfigError unless a setting names a source, or a segmentation model: a folder, or a Hub id with '/'."""
    if value not in SOURCES and not _HUB_ID.fullmatch(value) and not os.path.isdir(value):  # noqa: PTH112, no errors
        raise ConfigError(
            f"{name} = '{value}': neither a folder with a segmentation model nor one of {', '.join(SOURCES)}"
            f"{did_you_mean(value, SOURCES)}"
        )


def lung_masks(
    manifest: Manifest,
    spec: Preprocess,
    *,
    source: str = "auto",
    estimate: Estimate | None = None,
    progress: Progress | None = None,
) -> LungRegions:
    """The lung region of each image at a model's geometry.

    Regions of two origins are never mixed: if one class had masks by hand and another an estimate, what differs between
    the two would pass for what differs between the classes. `auto` takes the given masks only where every image has
    one. Else all images get the same region: where lungs usually lie. A region estimated for each image is smaller
    where a lung is opaque, so its shape tells the class; docs/audit.md has the measurement.

    An image whose mask is unreadable, of another aspect ratio, empty, all-covering, or (a model's) implausible, is set
    aside with the reason, and its mask is empty.

    Args:
        manifest: R images; `lung_mask` is relative to its root.
        spec: geometry and size, S.
        source: one of `SOURCES`; not looked at where there is a model.
        estimate: u8[H, W] -> bool[H, W], a segmentation model's mask, which is checked here; called by several threads.
        progress: called with (done, total).

    Raises:
        ConfigError: unknown source.
        ManifestError: `given`, and an image has no mask.
        ImageError, InputError, MismatchError: a picture cannot be decoded, is gone or changed.
    """
    origin, why = _choose(manifest, source, estimate is not None)
    count, ids = len(manifest), manifest.column("image_id")
    masks = np.zeros((count, spec.size, spec.size), dtype=bool)
    if origin == "none":
        return LungRegions(masks, origin, (), why)
    aside = []
    for first, found in in_batches(_finder(manifest, spec, origin, estimate), count, batch_size=_BATCH):
        for row, (mask, reason) in enumerate(found, start=first):
            if reason is None:
                masks[row] = mask
            else:
                aside.append((ids[row], reason))
        if progress:
            progress(first + len(found), count)
    if aside:
        (name, reason), *_ = aside
        why += f" {len(aside)} of {count} images are set aside without a region, first '{name}': {reason}."
    return LungRegions(masks, origin, tuple(aside), why)


def _choose(manifest: Manifest, source: str, has_estimate: bool) -> tuple[str, str]:
    """(origin, why in words)."""
    if has_estimate:
        return "model", "All lung regions are estimated by the given segmentation model, as asked for."
    if source not in SOURCES:
        raise ConfigError(f"unknown source of lung regions '{source}'{did_you_mean(source, SOURCES)}")
    given = [mask is not None for mask in manifest.column("lung_mask")]
    if source == "given" and not all(given):
        raise ManifestError(
            f"manifest: {given.count(False)} of {len(given)} images have no lung mask ({_missing(manifest, given)}); "
            "give every image one, or use source 'auto' or 'estimate'"
        )
    if source == "none":
        return "none", "No lung region was asked for."
    if all(given) and source != "estimate":
        return "given", "The lung regions are the given masks."
    why = "No image has a lung mask, so"
    if source == "estimate":
        why = "As asked for,"
    elif any(given):
        why = (
            f"Only {sum(given)} of {len(given)} images have a lung mask ({_missing(manifest, given)}); "
            "given and estimated regions are never mixed, so"
        )
    return "estimated", f"{why} one region is estimated for all: where lungs usually lie, with a margin."


def _missing(manifest: Manifest, given: Sequence[bool]) -> str:
    """Images without a mask per class, in words."""
    labels = [str(label or "unknown") for label in manifest.column("label")]
    total, without = Counter(labels), Counter(name for name, has in zip(labels, given, strict=True) if not has)
    return "without one: " + ", ".join(f"{without[name]} of {total[name]} {name}" for name in sorted(without))


def usual_region(height: int, width: int) -> Masks:
    """bool[height, width]: where lungs usually lie and a margin of `MARGIN` around them, for an image of this size."""
    return np.asarray(Image.fromarray(_wide()).resize((width, height), Image.Resampling.NEAREST))


@cache
def _wide() -> Masks:
    return np.asarray(ndimage.binary_dilation(usual_lungs(256, 256), iterations=round(256 * MARGIN)))


def _finder(manifest: Manifest, spec: Preprocess, origin: str, estimate: Estimate | None) -> Callable[[int], Found]:
    """Row -> its mask by a model, the usual region stretched over it, or its given mask."""
    named = manifest.column("lung_mask")
    paths, hashes, bits = manifest.paths(), manifest.column("sha256"), manifest.bits
    widths, heights = manifest.column("width"), manifest.column("height")

    def find(row: int) -> Found:
        shape, box = (heights[row], widths[row]), None
        if estimate or None in shape or crops(spec.remedy):
            pixels = read_pixels(paths[row], hashes[row], bits=bits[row])
            shape, box = pixels.shape, kept_box(pixels, spec.remedy)
        if estimate:
            mask = estimate(pixels)
            reasons = oddities(mask)
            return (mask, f"implausible: {'; '.join(reasons)}") if reasons else _fitted(mask, spec, box)
        if origin == "estimated":
            return _fitted(usual_region(*shape), spec, box)
        file = manifest.root / named[row]
        try:
            return _fitted(read_mask(file, shape), spec, box)
        except ImageError as error:
            return np.zeros((0, 0), bool), str(error).replace(str(file), str(named[row]))

    return find


def _fitted(mask: Masks, spec: Preprocess, box: Box | None) -> Found:
    """The mask at the model's geometry, or what the box holds of it, and what is wrong with it."""
    if box:
        left, top, right, bottom = box
        mask = mask[top:bottom, left:right]
    problem = mask_problem(mask)
    if problem:
        return mask, problem
    fitted = fit_mask(mask, spec)
    return fitted, None if fitted.any() else f"no part of the mask is left by geometry '{spec.geometry}'"


def oddities(mask: Masks) -> tuple[str, ...]:
    """What speaks against a mask bool[H, W] being two lungs in a frontal radiograph, in words."""
    scale = min(1.0, _LOOK / max(mask.shape))
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    area = float(small.mean())
    if not AREA[0] <= area <= AREA[1]:
        return (f"{100 * area:.1f} % of the picture is lung; expected {100 * AREA[0]:.0f} to {100 * AREA[1]:.0f} %",)
    parts, count = ndimage.label(small)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(sizes >= _SPECK * small.size) + 1
    if len(large) != 2:
        return (f"{len(large)} parts in place of two lungs",)
    found = []
    ratio = sizes[large - 1].min() / sizes[large - 1].max()
    if ratio < LEAST_RATIO:
        found.append(f"one lung is {ratio:.2f} of the other; expected {LEAST_RATIO:.2f} or more")
    centres = np.array(ndimage.center_of_mass(small, parts, large)) / small.shape
    (y, x), (down, across) = centres.mean(axis=0), np.abs(centres[1] - centres[0])
    if across * small.shape[1] <= down * small.shape[0]:
        found.append("the two parts do not lie side by side")
    if not (MIDDLE[0] <= x <= MIDDLE[1] and MIDDLE[0] <= y <= MIDDLE[1]):
        found.append(f"the lungs' middle lies at {x:.2f} of the width and {y:.2f} of the height, too near the edge")
    return tuple(found)
