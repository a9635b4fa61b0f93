"""Estimated lungs against the phantoms' true masks, the parts against slow oracles, and one origin for every image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import ndimage
from tests.conftest import examples

from thoraclip.data import lungs as regions
from thoraclip.data.lungs import LungRegions, lung_masks, oddities
from thoraclip.data.masks import fit_mask
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.errors import ConfigError, ImageError, ManifestError, MismatchError
from thoraclip.imaging import Preprocess, decode
from thoraclip.imaging import lungs as parts
from thoraclip.imaging.lungs import estimate_lungs, usual_lungs
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


def quality(pixels: Grey) -> float:
    contrast = parts._local_contrast(pixels)
    assert contrast is not None
    return parts._place(contrast)[1]


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
    (0.745, 0.802), (0.852, 0.720), (0.855, 0.763), (0.730, 0.891), (0.848, 0.663), (0.859, 0.812), (0.651, 0.757),
    (0.767, 0.762), (0.856, 0.812), (0.842, 0.907),
)  # fmt: skip
"""Dice with the true mask, and quality, of ten phantoms; most rules and constants move one by 0.006 or more."""


@pytest.mark.parametrize("number", range(10))
def test_phantoms_with_true_masks(number: int) -> None:
    pixels, truth = phantom(CLASSES[number % 3], number, (0.2, 0.8)[number % 2])
    mask, reason = estimate_lungs(pixels)
    assert mask.shape == pixels.shape and mask.dtype == bool and reason is None
    assert (dice(mask, truth), quality(pixels)) == pytest.approx(MEASURED[number], abs=0.005)


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
}


@pytest.mark.parametrize("name", ALIKE)
def test_the_mask_moves_with_the_picture_and_exposure_hardly_matters(name: str) -> None:
    pixels, _ = phantom("Normal", 2)
    change, move, least = ALIKE[name]
    changed = np.ascontiguousarray(change(pixels).astype(np.uint8))
    mask = estimate_lungs(changed)[0]
    assert mask.shape == changed.shape
    assert dice(mask, move(estimate_lungs(pixels)[0]).astype(bool)) > least


@pytest.mark.parametrize(("x", "y", "radius"), [(76.8, 125, 20), (179.2, 125, 20), (53, 100, 12)])
def test_an_opacity_hardly_moves_the_outline(x: float, y: float, radius: float) -> None:
    """Two within the lungs, one at the wall."""
    pixels, truth = phantom("Normal", 2)
    rows, columns = np.mgrid[:256, :256]
    blob = np.exp(-(((columns - x) / radius) ** 2) - ((rows - y) / radius) ** 2)
    assert ((blob > 0.5) & truth).sum() > radius**2
    opaque = estimate_lungs(np.clip(pixels + 110 * blob, 0, 255).astype(np.uint8))[0]
    assert dice(opaque, estimate_lungs(pixels)[0]) > 0.97


def test_what_shows_no_lungs_is_implausible() -> None:
    blank, reason = estimate_lungs(np.full((200, 180), 90, np.uint8))
    assert reason == "the image is blank" and blank.shape == (200, 180) and not blank.any()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    for nothing in (noise, ramp):
        (mask, reason), share = estimate_lungs(nothing), quality(nothing)
        assert share < 0.3 and not mask.any()
        assert reason == f"the lungs are faint: quality {share:.2f} is below 0.35"


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
@examples(40)
def test_any_picture_has_an_answer(pixels: Grey) -> None:
    mask, reason = estimate_lungs(pixels)
    assert mask.shape == pixels.shape and (reason is None or not mask.any())
    assert reason == "the image is blank" or 0 <= quality(pixels) <= 1


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


def test_weights_are_the_mean_rim_less_the_mean_inside() -> None:
    """Placement by placement, with SciPy's dilation; one of them reaches over the image's edge."""
    tried = np.array([[0.5, 0.12, 0.85, 0.41], [0.42, -0.05, 1.04, 0.5], [0.58, 0.3, 0.7, 0.26]])
    contrast = np.random.default_rng(0).normal(size=(48, 48))
    made = parts._weights(tried) @ contrast.ravel()
    for value, placement in zip(made, tried, strict=True):
        inside = parts._draw(placement[None], 48, 48)[0]
        rim = ndimage.binary_dilation(inside, np.ones((3, 3))) & ~inside
        assert value == pytest.approx(contrast[rim].mean() - contrast[inside].mean(), abs=1e-5)


def test_local_contrast_is_the_distance_from_the_mean_nearby() -> None:
    """At some pixels, by a loop over all others; exposure and contrast of the image do not count."""
    pixels = np.random.default_rng(1).integers(40, 200, (48, 48)).astype(np.uint8)
    made, values = parts._local_contrast(pixels), pixels.astype(float)
    assert made is not None
    for y, x in ((0, 0), (3, 40), (24, 24), (47, 20)):
        near = np.array([[np.exp(-((y - j) ** 2 + (x - i) ** 2) / (2 * 4.8**2)) for i in range(48)] for j in range(48)])
        mean = (near * values).sum() / near.sum()
        spread = np.sqrt((near * values**2).sum() / near.sum() - mean**2)
        expected = (values[y, x] - mean) / (spread + 0.05 * values.std())
        assert made.reshape(48, 48)[y, x] == pytest.approx(expected, abs=1e-6)
    darker = parts._local_contrast((pixels // 2 * 2 - 40).astype(np.uint8))
    assert (
        darker is not None and np.abs(darker - parts._local_contrast((pixels // 2 * 2).astype(np.uint8))).max() < 1e-6
    )


def test_usual_lungs_hold_those_of_phantoms() -> None:
    truths = [phantom(CLASSES[n % 3], n)[1] for n in range(9)]
    assert np.mean([dice(usual_lungs(256, 256), truth) for truth in truths]) > 0.75
    assert dice(usual_lungs(512, 640), resized(512, 640)(usual_lungs(256, 256)).astype(bool)) > 0.98


# one origin for every image


def two_lungs(shape: tuple[int, ...], shift: int = 0) -> Mask:
    mask = np.zeros(shape, bool)
    height, width = shape
    mask[height // 6 + shift : 3 * height // 4 + shift, width // 8 : 3 * width // 8] = True
    mask[height // 6 + shift : 3 * height // 4 + shift, 5 * width // 8 : 7 * width // 8] = True
    return mask


def shift_of(grey: Grey) -> int:
    return int(grey.astype(np.int64).sum()) % 5


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
def test_given_masks_are_taken_where_every_image_has_one(manifest: Manifest) -> None:
    done: list[tuple[int, int]] = []
    given_to_all = with_masks(manifest, list(range(24)))
    found = lung_masks(given_to_all, SPEC, progress=lambda *at: done.append(at))
    assert found.origin == "given" and found.set_aside == () and found.words == "The lung regions are the given masks."
    assert_shifted(found, [row % 4 for row in range(24)])
    assert found.usable.all()
    assert done == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    few = lung_masks(with_masks(manifest, [3, 9, 20]).take(np.array([20, 3])), SPEC)
    assert few.origin == "given"
    assert_shifted(few, [0, 3])


WHY = {
    "auto": "No image has a lung mask, so ",
    "estimate": "As asked for, ",
    "partly": "Only 23 of 24 images have a lung mask (without one: 1 of 8 Normal); "
    "given and estimated regions are never mixed, so ",
}


@pytest.mark.parametrize("case", WHY)
@pytest.mark.parametrize("has_sizes", [True, False])
def test_where_masks_are_missing_all_images_get_the_usual_region(
    case: str, has_sizes: bool, manifest: Manifest
) -> None:
    """The outline and a margin of 3 % around it, whatever the image shows, at the model's geometry."""
    chosen = with_masks(manifest, [row for row in range(24) if row != 20]) if case == "partly" else manifest
    if not has_sizes:
        chosen = chosen.with_columns(width=[None] * 24, height=[None] * 24)
    spec = Preprocess(size=24, geometry="pad")
    made = lung_masks(chosen, spec, source="estimate" if case == "estimate" else "auto")
    assert made.origin == "estimated" and made.usable.all() and made.set_aside == ()
    assert made.words == f"{WHY[case]}one region is estimated for all: where lungs usually lie, with a margin."
    wide = ndimage.binary_dilation(usual_lungs(256, 256), iterations=8)
    expected = fit_mask(np.asarray(Image.fromarray(wide).resize((40, 48), Image.Resampling.NEAREST)), spec)
    assert 0.3 < expected.mean() < 0.6 and (made.masks == expected).all()
    if case == "partly":
        with pytest.raises(ManifestError, match=r"1 of 24 images have no lung mask \(without one: 1 of 8 Normal\)"):
            lung_masks(chosen, SPEC, source="given")


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


def test_regions_lie_in_what_a_remedy_keeps(manifest: Manifest) -> None:
    few = with_masks(manifest, [3, 9, 20]).take(np.array([20, 3]))
    spec = Preprocess(size=24, remedy="centre+equalise")
    for source in ("given", "estimate"):
        whole, kept = (lung_masks(few, one, source=source).masks for one in (Preprocess(size=240), spec))
        inner = whole[:, 24:-24, 24:-24].reshape(len(few), 24, 8, 24, 8).mean(axis=(2, 4)) > 0.5
        assert (inner == kept).mean() > 0.93 and kept.any()


def a_models_bare_mask(grey: Grey) -> Mask:
    mask = two_lungs(grey.shape)
    mask[:, grey.shape[1] // 2 :] &= shift_of(grey) != 0
    return mask


def test_implausible_masks_of_a_model_are_set_aside(manifest: Manifest) -> None:
    odd = np.array([shift_of(decode(path).pixels) == 0 for path in manifest.paths()])
    made = lung_masks(manifest, SPEC, estimate=a_models_bare_mask)
    assert 0 < odd.sum() < 24 and made.origin == "model"
    assert made.words.startswith("All lung regions are estimated by the given segmentation model, as asked for.")
    assert [reason for _, reason in made.set_aside] == ["implausible: 1 parts in place of two lungs"] * odd.sum()
    np.testing.assert_array_equal(made.usable, ~odd)
    np.testing.assert_array_equal(made.masks.any(axis=(1, 2)), ~odd)


def shifted(grey: Grey) -> Mask:
    """A model's mask that differs from image to image."""
    return two_lungs(grey.shape, shift_of(grey))


@pytest.mark.usefixtures("small_batches")
def test_masks_of_a_model_are_in_order_though_threads_made_them(manifest: Manifest) -> None:
    made = lung_masks(manifest, SPEC, estimate=shifted)
    assert made.usable.all()
    assert_shifted(made, [shift_of(decode(path).pixels) for path in manifest.paths()])


def test_none_may_be_asked_for_and_what_makes_no_sense_is_refused(manifest: Manifest) -> None:
    found = lung_masks(manifest, SPEC, source="none")
    assert found.origin == "none" and not found.masks.any() and not found.usable.any() and found.set_aside == ()
    with pytest.raises(ConfigError, match=r"unknown source of lung regions 'givn'; did you mean 'given'\?"):
        lung_masks(manifest, SPEC, source="givn")


def test_a_picture_that_changed_is_refused(manifest: Manifest, picture: Callable[..., Grey]) -> None:
    path: Path = manifest.paths()[5]
    Image.fromarray(picture(48, 40, seed=999)).save(path)
    with pytest.raises(MismatchError, match=r"its content changed since it was indexed"):
        lung_masks(manifest, SPEC, estimate=shifted)
