"""Estimated lungs against the phantoms' true masks, the parts against slow oracles, and one origin for every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from tests.conftest import examples

from thoraclip.data.lungs import LungEstimate, estimate_lungs, estimation, oddities, regions
from thoraclip.data.lungs import contour as contours
from thoraclip.data.lungs import shape as shapes
from thoraclip.data.lungs.evidence import SIDE, find_evidence
from thoraclip.data.lungs.regions import lung_masks
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


def resize(values: Grey | Mask, height: int, width: int) -> npt.NDArray[np.generic]:
    kind = Image.Resampling.NEAREST if values.dtype == bool else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize((width, height), kind))


# the estimate


def test_phantoms_with_true_masks() -> None:
    found = {}
    for number, difficulty in enumerate((0.2, 0.8) * 5):
        pixels, truth = phantom(CLASSES[number % 3], number, difficulty)
        estimate = estimate_lungs(pixels)
        assert estimate.mask.shape == pixels.shape and estimate.mask.dtype == bool
        assert estimate.is_plausible, (difficulty, number, estimate.reasons)
        found[difficulty, number] = dice(estimate.mask, truth)
    assert np.median(list(found.values())) >= 0.86, found
    assert min(found.values()) >= 0.6, found


@pytest.mark.parametrize(("height", "width"), [(128, 128), (700, 650)])
def test_the_size_of_the_picture_hardly_matters(height: int, width: int) -> None:
    pixels, _ = phantom("Normal", 2)
    again = estimate_lungs(resize(pixels, height, width).astype(np.uint8)).mask
    assert again.shape == (height, width)
    assert dice(resize(again, 256, 256).astype(bool), estimate_lungs(pixels).mask) > 0.95


def test_exposure_hardly_matters() -> None:
    pixels, _ = phantom("Normal", 2)
    faint = np.round(30 + 0.4 * pixels).astype(np.uint8)
    assert dice(estimate_lungs(faint).mask, estimate_lungs(pixels).mask) > 0.97


@pytest.mark.parametrize("level", [0, 255])
def test_bars_move_the_mask_with_the_picture(level: int) -> None:
    pixels, _ = phantom("Normal", 2)
    framed = np.full((330, 300), level, np.uint8)
    framed[50:306, 20:276] = pixels
    mask = estimate_lungs(framed).mask
    assert dice(mask[50:306, 20:276], estimate_lungs(pixels).mask) > 0.9
    assert not mask[:45].any() and not mask[:, :15].any()


def test_an_uneven_white_collimator_is_cut_off() -> None:
    """Shaded, with a letter on it, and the picture's air dark within."""
    pixels, _ = phantom("Normal", 2)
    framed = np.tile(np.linspace(215, 255, 300).astype(np.uint8), (330, 1))
    framed[5:25, 20:30] = 0
    framed[50:306, 20:276] = pixels
    assert dice(estimate_lungs(framed).mask[50:306, 20:276], estimate_lungs(pixels).mask) > 0.9


def test_a_mirrored_picture_has_mirrored_lungs() -> None:
    """Roughly: the template knows on which side the heart lies."""
    pixels, _ = phantom("Normal", 2)
    assert dice(estimate_lungs(pixels[:, ::-1].copy()).mask[:, ::-1], estimate_lungs(pixels).mask) > 0.9


@pytest.mark.parametrize("x", [0.3, 0.7])
def test_an_opacity_within_a_lung_stays_lung(x: float) -> None:
    pixels, truth = phantom("Normal", 2)
    rows, columns = np.mgrid[:256, :256]
    blob = np.exp(-(((columns - 256 * x) / 20) ** 2) - ((rows - 125) / 20) ** 2)
    opaque = np.clip(pixels + 110 * blob, 0, 255).astype(np.uint8)
    mask = estimate_lungs(opaque).mask
    inside = (blob > 0.5) & truth
    assert inside.sum() > 500
    assert mask[inside].mean() > 0.9


def test_half_of_an_opacity_at_the_wall_stays_lung() -> None:
    """It hides the wall; the convex one leaves half of it inside, and without that it is a quarter."""
    pixels, truth = phantom("Normal", 2)
    rows, columns = np.mgrid[:256, :256]
    wall = np.flatnonzero(truth[100])[0]
    blob = np.exp(-(((columns - wall - 5) / 12) ** 2) - ((rows - 100) / 12) ** 2)
    mask = estimate_lungs(np.clip(pixels + 110 * blob, 0, 255).astype(np.uint8)).mask
    assert mask[(blob > 0.5) & truth].mean() > 0.45


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


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_other_arrays_are_refused(pixels: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match=r"u8\[H, W\] with at least one pixel is expected"):
        estimate_lungs(pixels)  # type: ignore[arg-type]


def discs(*places: tuple[float, float, float], shape: tuple[int, int] = (400, 500)) -> Mask:
    """Discs at (x, y) with a radius, all as shares of the height."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / shape[0]
    return np.any([(columns - x) ** 2 + (rows - y) ** 2 < r * r for x, y, r in places], axis=0)


ODD = {
    "two side by side": ([(0.3, 0.5, 0.2), (0.9, 0.5, 0.2)], None),
    "with a speck": ([(0.3, 0.5, 0.2), (0.9, 0.5, 0.2), (0.6, 0.9, 0.02)], None),
    "one": ([(0.5, 0.5, 0.3)], "1 parts in place of two lungs"),
    "three": ([(0.2, 0.5, 0.15), (0.6, 0.5, 0.15), (1.0, 0.5, 0.15)], "3 parts in place of two lungs"),
    "tiny": ([(0.3, 0.5, 0.06), (0.9, 0.5, 0.06)], "1.8 % of the picture is lung; expected 5 to 70 %"),
    "uneven": ([(0.3, 0.5, 0.25), (0.9, 0.5, 0.1)], "one lung is 0.16 of the other; expected 0.30 or more"),
    "stacked": ([(0.6, 0.25, 0.2), (0.6, 0.75, 0.2)], "the two parts do not lie side by side"),
    "in a corner": ([(0.12, 0.15, 0.14), (0.45, 0.15, 0.14)], "the lungs' middle lies at 0.23 of the width and 0.15 of the height"),
}  # fmt: skip


def test_oddities() -> None:
    for case, (places, reason) in ODD.items():
        found = oddities(discs(*places))
        assert found == () if reason is None else len(found) == 1 and found[0].startswith(reason), (case, found)
    assert oddities(np.zeros((9, 9), bool)) == ("0.0 % of the picture is lung; expected 5 to 70 %",)
    assert oddities(np.ones((9, 9), bool)) == ("100.0 % of the picture is lung; expected 5 to 70 %",)


# its parts


def inside_of(outline: npt.NDArray[np.float64], side: int = 1000) -> Mask:
    sheet = Image.new("L", (side, side))
    ImageDraw.Draw(sheet).polygon([(side * x, side * y) for x, y in outline], fill=255)
    return np.asarray(sheet) > 0


@pytest.mark.parametrize("side", [-1, 1])
def test_separation_is_the_difference_of_darkness(side: int) -> None:
    """Of an evidence that is dark exactly where two rectangles lie, and of one where only that on one side is."""
    lungs = two_lungs((SIDE, SIDE))
    evidence = replace(find_evidence(phantom("Normal", 2)[0]), dark=sums_of(lungs))
    x, y = np.array([16, 48, 48, 16]) / SIDE, np.array([22, 22, 96, 96]) / SIDE
    borders = [np.stack([x, y], axis=1), np.stack([x + 0.5, y], axis=1)]
    assert estimation._separation(evidence, borders) == pytest.approx(1.0, abs=0.1)
    half = lungs.copy()
    half[:, :64] &= side > 0
    half[:, 64:] &= side < 0
    assert estimation._separation(replace(evidence, dark=sums_of(half)), borders) == pytest.approx(0.5, abs=0.1)
    assert estimation._separation(replace(evidence, dark=sums_of(~lungs)), borders) == pytest.approx(-1.0, abs=0.1)


def sums_of(dark: Mask) -> npt.NDArray[np.float32]:
    return np.pad(np.cumsum(dark, axis=1), ((0, 0), (1, 0))).astype(np.float32)


@pytest.mark.parametrize("side", [-1, 1])
def test_normals_point_out(side: int) -> None:
    outline = shapes.outlines(np.array([[0.5, 0.1, 0.9, 0.4, 0.05, 0.1]]), side)[0]
    out, mask = shapes.normals(outline, side), inside_of(outline)
    np.testing.assert_allclose(np.hypot(*out.T), 1, atol=1e-6)
    for step, expected in ((0.02, False), (-0.02, True)):
        x, y = (1000 * (outline + step * out)).astype(int).T
        assert (mask[y, x] == expected).mean() >= 0.9  # the costophrenic angle is sharper than the step


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("params", [(0.5, 0.1, 0.9, 0.4, 0.0, 0.0), (0.45, 0.2, 0.7, 0.3, 0.1, 0.2)])
def test_dark_area_inside_an_outline_is_that_of_its_pixels(side: int, params: tuple[float, ...]) -> None:
    pixels, _ = phantom("Normal", 2)
    evidence, row = find_evidence(pixels), np.array([params])
    dark, area = shapes._inside(evidence, row, shapes._spans(row, side))
    darkness = np.diff(evidence.dark, axis=1)
    mask = inside_of(shapes.outlines(row, side)[0], SIDE)
    assert area[0] == pytest.approx(mask.mean(), rel=0.08)
    assert dark[0] == pytest.approx((darkness * mask).sum() / SIDE**2, rel=0.08)


def test_darkness_around_is_that_of_the_box() -> None:
    evidence = find_evidence(phantom("Normal", 2)[0])
    row = np.array([[0.5, 0.25, 0.5, 0.25, 0.0, 0.0]])
    darkness = np.diff(evidence.dark, axis=1).astype(np.float64)
    left, right = round((0.5 - 1.06 * 0.25) * SIDE), round((0.5 + 1.06 * 0.25) * SIDE)
    top, bottom = round(0.15 * SIDE), round(0.80 * SIDE)
    expected = darkness[top:bottom, left:right].sum() / SIDE**2
    assert shapes._around(evidence, row, (-1, 1))[0] == pytest.approx(expected, abs=1e-6)


def test_the_smaller_lung_is_taken_halfway_to_the_larger_one() -> None:
    left, right = shapes.balance(np.array([0.5, 0.10, 0.7, 0.4, 0.01, 0.2]), np.array([0.5, 0.14, 0.8, 0.3, 0.03, 0.1]))
    np.testing.assert_allclose(left, [0.5, 0.10, 0.75, 0.4, 0.01, 0.2])
    np.testing.assert_allclose(right, [0.5, 0.12, 0.8, 0.35, 0.03, 0.1])


def test_the_grid_holds_what_is_looked_up_for_it() -> None:
    params, prior, pairs, spans = shapes._grid()
    row = len(params) // 3
    alone = params[row : row + 1]
    for side in (-1, 1):
        for kept, made in zip(pairs[side], shapes._pairs(alone, side, shapes._WIDE), strict=True):
            np.testing.assert_array_equal(kept[row], made[0])
        for kept, made in zip(spans[side], shapes._spans(alone, side), strict=True):
            np.testing.assert_array_equal(kept[row], made[0])
    assert (prior <= 0).all()


def test_the_best_path_is_free_without_stiffness_and_rigid_with_much() -> None:
    gain = np.random.default_rng(0).normal(size=(16, 5))
    free = contours._closed_path(gain, np.zeros((5, 5)))
    np.testing.assert_array_equal(free, gain.argmax(axis=1))
    offsets = np.arange(5)
    rigid = contours._closed_path(gain, 1e6 * (offsets[:, None] - offsets) ** 2.0)
    repeated = np.concatenate([gain, gain[:8]]).sum(axis=0)  # once around and half again
    assert (rigid == repeated.argmax()).all()


def test_the_best_path_is_the_best_of_all_closed_paths() -> None:
    """Every closed path of 6 points and 3 offsets, where the picture decides clearly."""
    cost = 0.6 * (np.arange(3)[:, None] - np.arange(3)) ** 2.0
    same = 0
    for seed in range(20):
        gain = 3 * np.random.default_rng(seed).random((6, 3))
        paths = np.array(list(product(range(3), repeat=6)))
        values = gain[np.arange(6), paths].sum(axis=1) - cost[paths, np.roll(paths, -1, axis=1)].sum(axis=1)
        found = contours._closed_path(gain, cost)
        value = gain[np.arange(6), found].sum() - cost[found, np.roll(found, -1)].sum()
        same += value >= values.max() - 1e-9
    assert same >= 18  # beginning elsewhere than it ends may cost a little


@pytest.mark.parametrize("side", [-1, 1])
def test_a_dent_in_the_lateral_wall_is_filled_and_one_at_the_heart_is_not(side: int) -> None:
    outline = shapes.outlines(np.array([[0.5, 0.1, 0.9, 0.4, 0.0, 0.0]]), side)[0]
    whole = contours._make_wall_convex(outline, side)
    dented = outline.copy()
    dented[7, 0] -= side * 0.1
    np.testing.assert_allclose(contours._make_wall_convex(dented, side)[7, 0], whole[7, 0], atol=0.02)
    hearted = outline.copy()
    hearted[19, 0] += side * 0.1
    np.testing.assert_array_equal(contours._make_wall_convex(hearted, side)[19], hearted[19])
    assert (side * (whole[:, 0] - outline[:, 0]) >= 0).all()


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


@pytest.mark.usefixtures("small_batches")
def test_given_masks_are_taken_where_every_image_has_one(manifest: Manifest) -> None:
    done: list[tuple[int, int]] = []
    given_to_all = with_masks(manifest, list(range(24)))
    found = lung_masks(given_to_all, SPEC, estimate=stand_in, progress=lambda *at: done.append(at))
    assert found.origin == "given" and found.set_aside == () and found.words == "The lung regions are the given masks."
    for row in range(24):
        np.testing.assert_array_equal(found.masks[row], fit_mask(two_lungs((48, 40), row % 4), SPEC))
    assert found.image_ids == tuple(manifest.column("image_id")) and found.usable.all()
    assert done[-1] == (24, 24)


@pytest.mark.usefixtures("small_batches")
def test_one_image_without_a_mask_and_all_are_estimated(manifest: Manifest) -> None:
    partly = with_masks(manifest, [row for row in range(24) if row != 20])
    found = lung_masks(partly, SPEC, estimate=stand_in)
    assert found.origin == "estimated" and found.usable.all()
    assert found.words == (
        "Only 23 of 24 images have a lung mask (without one: 1 of 8 Normal); given and estimated regions are never mixed, so "
        "all are estimated from the pictures."
    )
    for row, path in enumerate(manifest.paths()):  # in order, though threads made them
        shift = shift_of(decode(path).pixels)
        np.testing.assert_array_equal(found.masks[row], fit_mask(two_lungs((48, 40), shift), SPEC))
    with pytest.raises(ManifestError, match=r"1 of 24 images have no lung mask \(without one: 1 of 8 Normal\)"):
        lung_masks(partly, SPEC, source="given")


def test_only_the_chosen_rows_count(manifest: Manifest) -> None:
    partly = with_masks(manifest, [3, 9, 20])
    found = lung_masks(partly, SPEC, rows=np.array([20, 3]))
    assert found.origin == "given" and found.masks.shape == (2, 24, 24)
    assert found.image_ids == tuple(manifest.column("image_id")[row] for row in (20, 3))
    np.testing.assert_array_equal(found.masks[1], fit_mask(two_lungs((48, 40), 3), SPEC))


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


def test_implausible_estimates_are_set_aside(manifest: Manifest) -> None:
    def estimate(grey: Grey) -> LungEstimate:
        odd = shift_of(grey) == 0
        return LungEstimate(two_lungs(grey.shape), 0.1 if odd else 0.6, ("too faint", "too small") if odd else ())

    odd = [shift_of(decode(path).pixels) == 0 for path in manifest.paths()]
    found = lung_masks(manifest, SPEC, source="estimate", estimate=estimate)
    assert 0 < sum(odd) < 24
    assert [reason for _, reason in found.set_aside] == ["implausible: too faint; too small"] * sum(odd)
    np.testing.assert_array_equal(found.usable, ~np.array(odd))
    np.testing.assert_array_equal(found.masks.any(axis=(1, 2)), ~np.array(odd))


def test_a_models_bare_masks_are_judged_here(manifest: Manifest) -> None:
    def model(grey: Grey) -> Mask:
        mask = two_lungs(grey.shape)
        if shift_of(grey) == 0:
            mask[:, grey.shape[1] // 2 :] = False
        return mask

    one_lung = sum(shift_of(decode(path).pixels) == 0 for path in manifest.paths())
    found = lung_masks(manifest, SPEC, source="model", estimate=model)
    assert found.origin == "model" and "by the given segmentation model" in found.words
    assert [reason for _, reason in found.set_aside] == ["implausible: 1 parts in place of two lungs"] * one_lung


def test_no_region_when_none_is_asked_for(manifest: Manifest) -> None:
    found = lung_masks(manifest, SPEC, source="none")
    assert found.origin == "none" and not found.masks.any() and not found.usable.any() and found.set_aside == ()


def test_the_fingerprint_follows_pixels_and_origin(manifest: Manifest) -> None:
    one, again = (lung_masks(manifest, SPEC, estimate=stand_in).fingerprint for _ in range(2))
    model = lung_masks(manifest, SPEC, source="model", estimate=lambda grey: stand_in(grey).mask).fingerprint
    moved = lung_masks(manifest, SPEC, estimate=lambda g: LungEstimate(two_lungs(g.shape, 1), 0.5, ())).fingerprint
    assert one == again
    assert len({one, model, moved}) == 3


def test_settings_that_make_no_sense_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"unknown source of lung regions 'givn'; did you mean 'given'\?"):
        lung_masks(manifest, SPEC, source="givn")
    with pytest.raises(ConfigError, match="source of lung regions 'model': no model is given"):
        lung_masks(manifest, SPEC, source="model")


def test_a_picture_that_changed_is_refused(manifest: Manifest, picture: Callable[..., Grey]) -> None:
    path: Path = manifest.paths()[5]
    Image.fromarray(picture(48, 40, seed=999)).save(path)
    with pytest.raises(MismatchError, match=r"its content changed since it was indexed"):
        lung_masks(manifest, SPEC, source="estimate", estimate=stand_in)
