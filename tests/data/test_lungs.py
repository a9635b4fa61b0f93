"""Estimated lungs against the phantoms' true masks, the parts against slow oracles, and one origin for every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tests.conftest import examples

from thoraclip.data.lungs import LungEstimate, estimate_lungs, oddities, regions
from thoraclip.data.lungs import contour as contours
from thoraclip.data.lungs.regions import LungRegions, lung_masks
from thoraclip.data.masks import fit_mask
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.errors import ConfigError, ImageError, ManifestError, MismatchError
from thoraclip.imaging import Preprocess, decode
from thoraclip.tables.manifest import Manifest

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SPEC = Preprocess(size=24)


@cache
def phantom(label: str, number: int, difficulty: float = 0.5) -> tuple[Grey, Mask]:
    drawn = draw_phantom(label, rng=np.random.default_rng([7, number]), size=256, difficulty=difficulty)
    return drawn.pixels, drawn.lung_mask > 0


def dice(one: Mask, other: Mask) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def resized(height: int, width: int) -> Callable[[Grey | Mask], npt.NDArray[np.generic]]:
    def resize(values: Grey | Mask) -> npt.NDArray[np.generic]:
        kind = Image.Resampling.NEAREST if values.dtype == bool else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(values).resize((width, height), kind))

    return resize


def within(ground: npt.NDArray[np.generic] | int) -> Callable[[Grey | Mask], npt.NDArray[np.generic]]:
    """The picture amid a larger one, u8[330, 300]."""

    def frame(values: Grey | Mask) -> npt.NDArray[np.generic]:
        whole = np.zeros((330, 300), values.dtype) + np.asarray(ground, values.dtype)
        whole[50:306, 20:276] = values
        return whole

    return frame


# the estimate


MEASURED = (
    (0.859, 0.489), (0.887, 0.409), (0.927, 0.449), (0.750, 0.343), (0.872, 0.424), (0.933, 0.439), (0.703, 0.504),
    (0.802, 0.361), (0.903, 0.437), (0.907, 0.502),
)  # fmt: skip
"""Dice with the true mask, and quality, of ten phantoms; most rules and constants move one by 0.006 or more."""


@pytest.mark.parametrize("number", range(10))
def test_phantoms_with_true_masks(number: int) -> None:
    pixels, truth = phantom(CLASSES[number % 3], number, (0.2, 0.8)[number % 2])
    estimate = estimate_lungs(pixels)
    assert estimate.mask.shape == pixels.shape and estimate.mask.dtype == bool
    assert estimate.is_plausible, estimate.reasons
    assert (dice(estimate.mask, truth), estimate.quality) == pytest.approx(MEASURED[number], abs=0.005)


COLLIMATOR = np.tile(np.linspace(215, 255, 300).astype(np.uint8), (330, 1))
"""Unevenly white, with a letter on it; the picture's air is dark within."""
COLLIMATOR[5:25, 20:30] = 0
ALIKE = {
    "smaller": (resized(128, 128), resized(128, 128), 0.95),
    "larger and of another shape": (resized(700, 650), resized(700, 650), 0.95),
    "fainter": (lambda pixels: np.round(30 + 0.4 * pixels), lambda mask: mask, 0.97),
    "black bars": (within(0), within(0), 0.9),
    "white bars": (within(255), within(0), 0.9),
    "an uneven white collimator": (within(COLLIMATOR), within(0), 0.9),
    "mirrored": (np.fliplr, np.fliplr, 0.9),  # roughly: the template knows on which side the heart lies
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_mask_moves_with_the_picture_and_exposure_hardly_matters(name: str) -> None:
    pixels, _ = phantom("Normal", 2)
    change, move, least = ALIKE[name]
    changed = np.ascontiguousarray(change(pixels).astype(np.uint8))
    mask = estimate_lungs(changed).mask
    assert mask.shape == changed.shape
    assert dice(mask, move(estimate_lungs(pixels).mask).astype(bool)) > least


@pytest.mark.parametrize(
    ("x", "y", "radius", "least"), [(76.8, 125, 20, 0.9), (179.2, 125, 20, 0.9), (53, 100, 12, 0.45)]
)
def test_an_opacity_within_a_lung_stays_lung_and_half_of_one_at_the_wall(
    x: float, y: float, radius: float, least: float
) -> None:
    """The last one hides the wall; the convex one leaves half of it inside, and without that it is a quarter."""
    pixels, truth = phantom("Normal", 2)
    rows, columns = np.mgrid[:256, :256]
    blob = np.exp(-(((columns - x) / radius) ** 2) - ((rows - y) / radius) ** 2)
    mask = estimate_lungs(np.clip(pixels + 110 * blob, 0, 255).astype(np.uint8)).mask
    inside = (blob > 0.5) & truth
    assert inside.sum() > radius**2
    assert mask[inside].mean() > least


def test_what_shows_no_lungs_is_implausible() -> None:
    blank = estimate_lungs(np.full((200, 180), 90, np.uint8))
    assert blank.reasons == ("the picture is blank",) and not blank.mask.any() and not blank.is_plausible
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    for nothing in (noise, ramp):
        found = estimate_lungs(nothing)
        assert not found.is_plausible and found.quality < 0.1
        assert found.reasons[0] == f"the lungs are faint: quality {found.quality:.2f} is below 0.27"


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
@examples(40)
def test_any_picture_has_an_answer(pixels: Grey) -> None:
    found = estimate_lungs(pixels)
    assert found.mask.shape == pixels.shape and 0 <= found.quality <= 1
    assert found.is_plausible == (not found.reasons)


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), np.float32), ((4, 4, 3), np.uint8), ((0, 4), np.uint8)])
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ImageError, match=r"u8\[H, W\] with at least one pixel is expected"):
        estimate_lungs(np.zeros(shape, dtype))


ODD = {
    "two side by side": ([(0.3, 0.5, 0.2), (0.9, 0.5, 0.2)], None),
    "with a speck": ([(0.3, 0.5, 0.2), (0.9, 0.5, 0.2), (0.6, 0.9, 0.02)], None),
    "one": ([(0.5, 0.5, 0.3)], "1 parts in place of two lungs"),
    "three": ([(0.2, 0.5, 0.15), (0.6, 0.5, 0.15), (1.0, 0.5, 0.15)], "3 parts in place of two lungs"),
    "none": ([], "0.0 % of the picture is lung; expected 5 to 70 %"),
    "all": ([(0.5, 0.5, 2)], "100.0 % of the picture is lung; expected 5 to 70 %"),
    "tiny": ([(0.3, 0.5, 0.06), (0.9, 0.5, 0.06)], "1.8 % of the picture is lung; expected 5 to 70 %"),
    "uneven": ([(0.3, 0.5, 0.25), (0.9, 0.5, 0.1)], "one lung is 0.16 of the other; expected 0.30 or more"),
    "stacked": ([(0.6, 0.25, 0.2), (0.6, 0.75, 0.2)], "the two parts do not lie side by side"),
    "in a corner": (
        [(0.12, 0.15, 0.14), (0.45, 0.15, 0.14)],
        "the lungs' middle lies at 0.23 of the width and 0.15 of",
    ),
}
"""Discs at (x, y) with a radius, as shares of the height, in a picture of 400 x 500; and what is said of them."""


@pytest.mark.parametrize("name", ODD)
def test_oddities(name: str) -> None:
    discs, reason = ODD[name]
    y, x = np.mgrid[:400, :500] / 400
    mask = np.zeros((400, 500), bool)
    for across, down, radius in discs:
        mask |= (x - across) ** 2 + (y - down) ** 2 < radius * radius
    found = oddities(mask)
    assert found == () if reason is None else len(found) == 1 and found[0].startswith(reason)


# its parts


@pytest.mark.parametrize(("stiff", "least"), [(0.0, 20), (0.6, 18)])
def test_the_best_path_is_the_best_of_all_closed_paths(stiff: float, least: int) -> None:
    """Of 6 points and 3 offsets; beginning elsewhere than it ends may cost a little."""
    cost = stiff * (np.arange(3)[:, None] - np.arange(3)) ** 2.0
    paths = np.array(list(product(range(3), repeat=6)))
    same = 0
    for seed in range(20):
        gain = 3 * np.random.default_rng(seed).random((6, 3))
        values = gain[np.arange(6), paths].sum(axis=1) - cost[paths, np.roll(paths, -1, axis=1)].sum(axis=1)
        found = contours._closed_path(gain, cost)
        value = gain[np.arange(6), found].sum() - cost[found, np.roll(found, -1)].sum()
        same += value >= values.max() - 1e-9
    assert same >= least


# one origin for every image


def two_lungs(shape: tuple[int, ...], shift: int = 0) -> Mask:
    mask = np.zeros(shape, bool)
    height, width = shape
    mask[height // 6 + shift : 3 * height // 4 + shift, width // 8 : 3 * width // 8] = True
    mask[height // 6 + shift : 3 * height // 4 + shift, 5 * width // 8 : 7 * width // 8] = True
    return mask


def shift_of(grey: Grey) -> int:
    return int(grey.astype(np.int64).sum()) % 5


def stand_in(grey: Grey) -> LungEstimate:
    """An estimate that differs from picture to picture."""
    return LungEstimate(two_lungs(grey.shape, shift_of(grey)), 0.5, ())


def with_masks(manifest: Manifest, rows: list[int]) -> Manifest:
    """Masks for some rows, each shifted by its row so that no two neighbours are alike."""
    names: list[str | None] = [None] * len(manifest)
    for row in rows:
        names[row] = f"mask-{row}.png"
        mask = two_lungs((48, 40), row % 4)
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(manifest.root / f"mask-{row}.png")
    return manifest.with_columns(lung_mask=names)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_BATCH", 5)


def assert_shifted(found: LungRegions, shifts: Sequence[int]) -> None:
    for mask, shift in zip(found.masks, shifts, strict=True):
        np.testing.assert_array_equal(mask, fit_mask(two_lungs((48, 40), shift), SPEC))


@pytest.mark.usefixtures("small_batches")
def test_given_masks_are_taken_where_every_chosen_image_has_one(manifest: Manifest) -> None:
    done: list[tuple[int, int]] = []
    ids = tuple(manifest.column("image_id"))
    given_to_all = with_masks(manifest, list(range(24)))
    found = lung_masks(given_to_all, SPEC, estimate=stand_in, progress=lambda *at: done.append(at))
    assert found.origin == "given" and found.set_aside == () and found.words == "The lung regions are the given masks."
    assert_shifted(found, [row % 4 for row in range(24)])
    assert found.image_ids == ids and found.usable.all()
    assert done == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    few = lung_masks(with_masks(manifest, [3, 9, 20]), SPEC, rows=np.array([20, 3]))
    assert few.origin == "given" and few.image_ids == (ids[20], ids[3])
    assert_shifted(few, [0, 3])


@pytest.mark.usefixtures("small_batches")
def test_one_image_without_a_mask_and_all_are_estimated(manifest: Manifest) -> None:
    partly = with_masks(manifest, [row for row in range(24) if row != 20])
    found = lung_masks(partly, SPEC, estimate=stand_in)
    assert found.origin == "estimated" and found.usable.all()
    assert found.words == (
        "Only 23 of 24 images have a lung mask (without one: 1 of 8 Normal); given and estimated regions are never mixed, so "
        "all are estimated from the pictures."
    )
    assert_shifted(
        found, [shift_of(decode(path).pixels) for path in manifest.paths()]
    )  # in order, though threads made them
    with pytest.raises(ManifestError, match=r"1 of 24 images have no lung mask \(without one: 1 of 8 Normal\)"):
        lung_masks(partly, SPEC, source="given")


@pytest.mark.usefixtures("small_batches")
def test_every_unusable_mask_is_set_aside_with_its_reason(manifest: Manifest) -> None:
    given_to_all = with_masks(manifest, list(range(24)))
    root, ids = manifest.root, manifest.column("image_id")
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(root / "mask-2.png")
    Image.fromarray(np.full((48, 40), 255, np.uint8)).save(root / "mask-5.png")
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(root / "mask-7.png")
    (root / "mask-11.png").write_bytes(b"no picture")
    (root / "mask-13.png").unlink()
    found = lung_masks(given_to_all, SPEC)
    reasons = dict(found.set_aside)
    assert list(reasons) == [ids[row] for row in (2, 5, 7, 11, 13)]
    for row, reason in (
        (2, "the mask is empty"), (5, "the mask covers 100.0 % of the picture"),
        (7, "mask-7.png: the mask is 48 x 48 pixels and its picture 40 x 48"),
        (11, "mask-11.png: the mask is no PNG or JPEG picture"), (13, "mask-13.png: cannot be read"),
    ):  # fmt: skip
        assert reasons[ids[row]].startswith(reason)
        assert not found.masks[row].any() and not found.usable[row]
    assert found.masks.any(axis=(1, 2)).sum() == found.usable.sum() == 19
    assert found.words.endswith(f"5 of 24 images are set aside without a region, first '{ids[2]}': {reasons[ids[2]]}.")
    assert found.as_json() == {
        "origin": "given", "words": found.words, "images": 24, "usable": 19,
        "set_aside": [{"image_id": name, "reason": reason} for name, reason in reasons.items()],
    }  # fmt: skip


def test_a_mask_that_the_crop_leaves_nothing_of_is_set_aside(manifest: Manifest) -> None:
    given_to_all = with_masks(manifest, list(range(24)))
    mask = np.zeros((48, 40), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(manifest.root / "mask-4.png")
    found = lung_masks(given_to_all, Preprocess(size=24, geometry="crop", short_side=32))
    assert [reason for _, reason in found.set_aside] == ["no part of the mask is left by geometry 'crop'"]


def an_odd_estimate(grey: Grey) -> LungEstimate:
    odd = shift_of(grey) == 0
    return LungEstimate(two_lungs(grey.shape), 0.1 if odd else 0.6, ("too faint", "too small") if odd else ())


def a_models_bare_mask(grey: Grey) -> Mask:
    mask = two_lungs(grey.shape)
    mask[:, grey.shape[1] // 2 :] &= shift_of(grey) != 0
    return mask


WHY = {
    "auto": ("estimated", "No image has a lung mask, so all lung regions are estimated from the pictures."),
    "estimate": ("estimated", "All lung regions are estimated from the pictures, as asked for."),
    "model": ("model", "All lung regions are estimated by the given segmentation model, as asked for."),
}


@pytest.mark.parametrize("source", WHY)
def test_implausible_estimates_are_set_aside(manifest: Manifest, source: str) -> None:
    origin, why = WHY[source]
    odd = np.array([shift_of(decode(path).pixels) == 0 for path in manifest.paths()])
    made, reason = an_odd_estimate, "implausible: too faint; too small"
    if source == "model":
        made, reason = a_models_bare_mask, "implausible: 1 parts in place of two lungs"
    found = lung_masks(manifest, SPEC, source=source, estimate=made)
    assert 0 < odd.sum() < 24 and found.origin == origin and found.words.startswith(why)
    assert [reason for _, reason in found.set_aside] == [reason] * odd.sum()
    np.testing.assert_array_equal(found.usable, ~odd)
    np.testing.assert_array_equal(found.masks.any(axis=(1, 2)), ~odd)


def test_the_fingerprint_follows_pixels_and_origin(manifest: Manifest) -> None:
    one, again = (lung_masks(manifest, SPEC, estimate=stand_in).fingerprint for _ in range(2))
    model = lung_masks(manifest, SPEC, source="model", estimate=lambda grey: stand_in(grey).mask).fingerprint
    moved = lung_masks(manifest, SPEC, estimate=lambda g: LungEstimate(two_lungs(g.shape, 1), 0.5, ())).fingerprint
    assert one == again and len({one, model, moved}) == 3


def test_none_may_be_asked_for_and_what_makes_no_sense_is_refused(manifest: Manifest) -> None:
    found = lung_masks(manifest, SPEC, source="none")
    assert found.origin == "none" and not found.masks.any() and not found.usable.any() and found.set_aside == ()
    with pytest.raises(ConfigError, match=r"unknown source of lung regions 'givn'; did you mean 'given'\?"):
        lung_masks(manifest, SPEC, source="givn")
    with pytest.raises(ConfigError, match="source of lung regions 'model': no model is given"):
        lung_masks(manifest, SPEC, source="model")


def test_a_picture_that_changed_is_refused(manifest: Manifest, picture: Callable[..., Grey]) -> None:
    path: Path = manifest.paths()[5]
    Image.fromarray(picture(48, 40, seed=999)).save(path)
    with pytest.raises(MismatchError, match=r"its content changed since it was indexed"):
        lung_masks(manifest, SPEC, source="estimate", estimate=stand_in)
