"""Perturbations of a radiograph: a region is taken away and replaced.

What a classifier still knows without the lungs, and what it loses without everything else, tells what it reads
(Maguolo & Nanni 2021, arXiv:2004.12823; Teixeira et al. 2021, doi:10.3390/s21217116; DeGrave et al. 2021,
doi:10.1038/s42256-021-00338-7). A region is replaced by

    mean    one grey level for all images
    blur    a smooth continuation of what is around it
    any     another image's background: that image, its own lungs filled as in `blur`

Every fill leaves traces: hence all three, each for a third of the images of a class (so that a view takes one pass an
image and no verdict hangs on one fill), a region of equal area at random, and a view in which nothing is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.dtypes import Greys, Ints, Masks, Singles

__all__ = [
    "BORDER", "CORNER", "FEW", "FILLS", "MARGIN", "VIEWS", "Scene", "View", "border", "continue_smoothly", "corners",
    "make_view", "with_margin",
]  # fmt: skip


MARGIN = 0.03  # lungs are removed with a margin of this share of the side, since a lesion blurs what lies beside it
BORDER = 0.10  # width of the border, as a share of the side
CORNER = (0.20, 0.32)  # height and width of a corner, as shares of the side
FILLS: Mapping[str, tuple[str, ...]] = {"in-turn": ("mean", "blur", "any"), "plain-in-turn": ("mean", "blur")}
"""Fills that the images of a class get in turn."""
FEW = 64
"""Images of a control that is only shown: its 95 % interval reaches 12 points to each side at most."""
_COARSE, _REACHES, _ENOUGH = 32, (1.5, 4.0, 12.0), 0.05
"""Of a smooth continuation: cells along a side of its grid, standard deviations of its Gaussians, in cells, and the
weight at which one meets enough of the picture to count alone."""


@dataclass(frozen=True)
class Scene:
    """Images and what is needed to alter them.

    `same`, `other` and `any` are, for each image, another one of the same class, of another one and of any, whose
    background replaces its own; -1 where there is none.
    """

    greys: Greys  # u8[N, S, S]
    lungs: Masks  # bool[N, S, S]; all False where no lung region is known
    level: int  # the grey level of the fill `mean`
    same: Ints  # i64[N], as are the next two
    other: Ints
    any: Ints
    turn: Ints  # i64[N], which of the fills of a view with several an image gets: the one of this number, modulo theirs
    seed: int = 0  # of the random regions


@dataclass(frozen=True)
class View:
    """One way to alter an image."""

    title: str  # as printed, begins a sentence
    region: Callable[[Scene, Ints], Masks]  # (scene, rows) -> bool[R, S, S], what is replaced
    fill: str  # `mean`, `blur`, or the donor's background: `same`, `other`, `any`; or a name in `FILLS`
    needs_lungs: bool = True  # False where the region is the same whatever the image shows
    finds: str = "what lies outside the lungs"  # what is left (where `is_alone`), or was lost
    is_alone: bool = False  # the answers are compared with chance; else with those on `before`
    before: str = "original"  # the view that it is compared with; empty for a view that others are compared with
    trial: tuple[str, str] | None = None  # name and title of the comparison, where they are not those of the view
    counts: bool = True  # False for a control of the classifier, which is in no verdict
    most: int | None = None  # images that it is asked of at most, of a control that is only shown
    refits: str = "yes"  # probes are fitted on it; `control`: compared with the originals, in no verdict; or `no`


def make_view(view: View, scene: Scene, rows: Ints) -> Greys:
    """u8[R, S, S]: the given pictures of a scene under a view."""
    if view.fill in FILLS:
        fills, made = FILLS[view.fill], np.empty_like(scene.greys[rows])
        for number, fill in enumerate(fills):
            own = scene.turn[rows] % len(fills) == number
            if own.any():
                made[own] = make_view(replace(view, fill=fill), scene, rows[own])
        return made
    greys, region = scene.greys[rows], view.region(scene, rows)
    if view.fill == "mean":
        return np.where(region, np.uint8(scene.level), greys)
    if view.fill == "blur":
        return _blurred(greys, region)
    donors = {"same": scene.same, "other": scene.other, "any": scene.any}[view.fill][rows]
    return np.where(region, _blurred(scene.greys[donors], _lungs(scene, donors)), greys)


def _blurred(greys: Greys, region: Masks) -> Greys:
    return np.where(region, continue_smoothly(greys, region), greys)


def continue_smoothly(greys: Greys, region: Masks) -> Greys:
    """u8[R, S, S]: the pictures as their surroundings would continue into the region.

    Normalised convolution (Knutsson & Westin 1993, CVPR, "Normalized and differential convolution"): the Gaussian mean
    of the pixels outside the region, on a grid of 32 cells a side, with wider Gaussians further inside; where nothing
    is outside, mid-grey.
    """
    known = ~region
    weight = _reduce(known.astype(np.float32))
    value = _reduce(np.where(known, greys, 0).astype(np.float32))
    total = weight.sum(axis=(1, 2))
    mean = np.where(total > 0, value.sum(axis=(1, 2)) / np.maximum(total, 1e-6), 127.5)
    coarse = np.broadcast_to(mean[:, None, None], weight.shape).astype(np.float32)
    for reach in reversed(_REACHES):
        near, seen = (ndimage.gaussian_filter(a, (0, reach, reach), mode="nearest") for a in (value, weight))
        share = np.minimum(1.0, seen / _ENOUGH)
        coarse = share * near / np.maximum(seen, 1e-6) + (1 - share) * coarse
    side = (greys.shape[2], greys.shape[1])
    wide = [np.asarray(Image.fromarray(c.astype(np.float32)).resize(side, Image.Resampling.BILINEAR)) for c in coarse]
    return np.clip(np.round(np.stack(wide)), 0, 255).astype(np.uint8)


def _reduce(values: Singles) -> Singles:
    """f32[R, S, S] -> f32[R, c, c], averaged."""
    cells = min(_COARSE, values.shape[1])
    return np.stack([np.asarray(Image.fromarray(v).resize((cells, cells), Image.Resampling.BOX)) for v in values])


def with_margin(mask: Masks) -> Masks:
    """bool[S, S]: lungs and a margin of `MARGIN` around them."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=max(1, round(MARGIN * min(mask.shape)))))


def _lungs(scene: Scene, rows: Ints) -> Masks:
    return np.stack([with_margin(mask) for mask in scene.lungs[rows]])


def _box(scene: Scene, rows: Ints) -> Masks:
    """The rectangle around both lungs and their margin."""
    lungs = _lungs(scene, rows)
    boxes = np.zeros_like(lungs)
    for box, mask in zip(boxes, lungs, strict=True):
        for window in ndimage.find_objects(mask.astype(np.int8)):  # of all its pixels: one, or none
            box[window] = True
    return boxes


def _all_but_lungs(scene: Scene, rows: Ints) -> Masks:
    return ~scene.lungs[rows]


def border(height: int, width: int) -> Masks:
    """bool[height, width]: the ring that is `BORDER` wide."""
    down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    ring = np.ones((height, width), dtype=bool)
    ring[down:-down, across:-across] = False
    return ring


def corners(height: int, width: int) -> Masks:
    """bool[height, width]: the four corners, of the size of `CORNER`."""
    down, across = max(1, round(CORNER[0] * height)), max(1, round(CORNER[1] * width))
    mask = np.ones((height, width), dtype=bool)
    mask[down:-down] = mask[:, across:-across] = False
    return mask


def _same(mask: Callable[[int, int], Masks], scene: Scene, rows: Ints) -> Masks:
    """One region for all images."""
    return np.broadcast_to(mask(*scene.greys.shape[1:]), (len(rows), *scene.greys.shape[1:]))


_EDGES = {"border": partial(_same, border), "corners": partial(_same, corners)}
_nothing = partial(_same, lambda *shape: np.zeros(shape, dtype=bool))


def _as_much_at_random(like: Callable[[Scene, Ints], Masks], scene: Scene, rows: Ints) -> Masks:
    """As many pixels as a region has, in smooth blobs that do not look at the picture."""
    regions = []
    for row, own in zip(rows.tolist(), like(scene, rows), strict=True):
        drawn = np.random.default_rng([scene.seed, row]).standard_normal(own.shape, dtype=np.float32)
        smooth = ndimage.gaussian_filter(drawn, 0.08 * own.shape[0], mode="wrap")
        region = np.zeros(own.size, dtype=bool)
        region[np.argsort(smooth, axis=None, kind="stable")[: int(own.sum())]] = True
        regions.append(region.reshape(own.shape))
    return np.stack(regions)


_alone = partial(View, is_alone=True)
_everywhere = partial(View, needs_lungs=False)
_rest = partial(View, counts=False, refits="control")

VIEWS: Mapping[str, View] = {
    "original": _everywhere("the pictures as they are", _nothing, "mean", before="", refits="no"),
    "sham": _everywhere("nothing replaced, by the same code", _nothing, "blur", before="", refits="no", most=FEW),
    "lungs-removed": _alone("the lungs replaced", _lungs, "in-turn"),
    "box-removed": _alone("the box around the lungs replaced", _box, "in-turn"),
    "lungs-only": View("all but the lungs replaced", _all_but_lungs, "in-turn", counts=False, refits="no", most=FEW),
    "lungs-only-other": View(
        "all but the lungs replaced by the background of a picture of another class",
        _all_but_lungs,
        "other",
        before="lungs-only-same",
        trial=("background-swapped", "the background of a picture of another class in place of one of the same class"),
        refits="control",
    ),
    "lungs-only-same": View(
        "all but the lungs replaced by the background of a picture of the same class",
        _all_but_lungs,
        "same",
        before="",
        refits="no",
    ),
    **{
        f"{name}-removed": _everywhere(
            f"the {name}, in place of as many pixels at random, replaced by a smooth continuation",
            region,
            "blur",
            finds=f"the {name}",
            before=f"{name}-at-random",
        )
        for name, region in _EDGES.items()
    },
    "border-only": _everywhere(
        "all but the border replaced",
        partial(_same, lambda *shape: ~border(*shape)),
        "plain-in-turn",
        finds="the border",
        is_alone=True,
    ),
    "random-removed": _rest(
        "as many pixels as the lungs have, at random, replaced", partial(_as_much_at_random, _lungs), "in-turn"
    ),
    **{
        f"{name}-at-random": _rest(
            f"as many pixels as the {name} {verb}, at random, replaced by a smooth continuation",
            partial(_as_much_at_random, _EDGES[name]),
            "blur",
            needs_lungs=False,
        )
        for name, verb in (("border", "has"), ("corners", "have"))
    },
}
"""Name -> view, in the order in which they are made."""
