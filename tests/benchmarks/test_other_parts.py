"""Phantoms of other body parts: deterministic, one film physics, anatomy where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.other_parts import OTHER_PARTS, draw_other_phantom
from benchmarks.other_parts.film import Film

from thoraclip.errors import ConfigError


def bare_film(size: int = 256) -> Film:
    """A film without pose and warp: its grid is the image's."""
    film = Film(size, 10.0, np.random.default_rng(0))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    film.x, film.y = np.meshgrid(axis, axis)
    return film


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    return {
        part: np.stack([draw_other_phantom(part, rng=np.random.default_rng([3, i]), size=128) for i in range(4)])
        for part in OTHER_PARTS
    }


@pytest.mark.parametrize("part", OTHER_PARTS)
@pytest.mark.parametrize("size", [32, 33, 256])
def test_any_size_gives_a_square_of_bytes_with_contrast(part: str, size: int) -> None:
    image = draw_other_phantom(part, rng=np.random.default_rng(size), size=size)
    assert image.dtype == np.uint8 and image.shape == (size, size)
    assert np.ptp(np.percentile(image, [2, 98])) > 60
    assert len(np.unique(image)) > 60


@pytest.mark.parametrize("part", OTHER_PARTS)
def test_the_generator_alone_decides(part: str) -> None:
    first, again, other = (draw_other_phantom(part, rng=np.random.default_rng(seed), size=64) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2


def test_unknown_parts_and_sizes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="unknown body part 'pelvic'; did you mean 'pelvis'"):
        draw_other_phantom("pelvic", rng=rng)
    with pytest.raises(ConfigError, match=r"unknown body part 'xyz'; known: abdomen, .*skull"):
        draw_other_phantom("xyz", rng=rng)
    with pytest.raises(ConfigError, match="size = 31"):
        draw_other_phantom("hand", rng=rng, size=31)


def test_parts_differ_more_than_images_of_one_part(drawn: dict[str, np.ndarray]) -> None:
    """An image is nearer to the mean of its own part (without it, both sides averaged) than to most others."""
    sides = {part: (images.astype(float) + images[:, :, ::-1]) / 2 for part, images in drawn.items()}
    blurred = {p: i.reshape(len(i), 16, 8, 16, 8).mean(axis=(2, 4)).reshape(len(i), -1) for p, i in sides.items()}
    scaled = {p: (i - i.mean(1, keepdims=True)) / i.std(1, keepdims=True) for p, i in blurred.items()}
    right = 0
    for part, images in scaled.items():
        for row, image in enumerate(images):
            means = {
                p: np.delete(i, row, axis=0).mean(axis=0) if p == part else i.mean(axis=0) for p, i in scaled.items()
            }
            right += min(means, key=lambda p, image=image, means=means: np.abs(image - means[p]).sum()) == part
    assert right >= 0.85 * 4 * len(OTHER_PARTS)


MEASURED = {
    "hand": (71.1, 55.9, 5.76), "knee": (71.1, 68.7, 4.50), "skull": (56.1, 57.8, 3.99), "pelvis": (87.4, 59.6, 5.61),
    "foot": (44.4, 51.7, 3.57), "abdomen": (60.9, 52.8, 4.99), "lateral chest": (57.7, 61.9, 4.66),
}  # fmt: skip
"""Of four images, means of: grey level, its spread in an image, step to the next pixel."""


def test_the_grey_levels_are_those_that_were_measured(drawn: dict[str, np.ndarray]) -> None:
    assert list(drawn) == list(MEASURED)
    for part, images in drawn.items():
        step = np.abs(np.diff(images.astype(float), axis=2)).mean()
        assert (images.mean(), images.std(axis=(1, 2)).mean(), step) == pytest.approx(MEASURED[part], abs=0.06), part


def test_a_solid_rod_has_the_chord_of_a_cylinder() -> None:
    film = bare_film()
    film.flesh([(0.0, -2.0, 0.3), (0.0, 2.0, 0.3)])
    expected = 2 * 10 * np.sqrt(np.maximum(0.3**2 - film.x**2, 0))
    np.testing.assert_allclose(film.soft, expected, atol=2e-3)


@pytest.mark.parametrize("size", [64, 256])
def test_the_depth_inside_an_outline_is_its_signed_distance(size: int) -> None:
    film = bare_film(size)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = [(0.1 + 0.5 * float(np.cos(a)), -0.2 + 0.5 * float(np.sin(a))) for a in angles]
    expected = 0.5 - np.hypot(film.x - 0.1, film.y + 0.2)
    found = film.depth_inside(circle)
    rim = np.abs(expected) < 0.3
    np.testing.assert_allclose(found[rim], expected[rim], atol=0.006)
    assert ((found > 0) == (expected > 0))[np.abs(expected) > 0.006].all()
