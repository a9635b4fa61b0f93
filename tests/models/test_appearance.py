"""Changes that hide where an image comes from: each right where it can be counted, and blind to batch and class."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import draw_picture

from thoraclip.models import appearance as module
from thoraclip.models.appearance import CHANGES, compressed, crops
from thoraclip.models.augment import AUGMENTATIONS, RandomisedAugmentation, augment

NAMES = ("crop", *CHANGES)
NOTHING: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(RandomisedAugmentation)}


def only(**values: float) -> RandomisedAugmentation:
    return RandomisedAugmentation(**(NOTHING | values))


@pytest.fixture(scope="module")
def greys() -> torch.Tensor:
    return torch.from_numpy(np.stack([draw_picture(64, 48, seed=s) for s in range(12)]))


def test_nothing_asked_nothing_changed(greys: torch.Tensor) -> None:
    assert torch.equal(augment(greys, only(), seed=0, step=0, samples=range(12)), greys)
    assert set(CHANGES) <= set(NOTHING) and len({change.stream for change in CHANGES.values()}) == len(CHANGES)


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_each_change_is_of_the_sample_and_not_of_its_batch(name: str, greys: torch.Tensor) -> None:
    config = RandomisedAugmentation() if name == "all" else only(**{name: 1.0})
    samples = list(range(40, 52))
    whole = augment(greys, config, seed=1, step=4, samples=samples)
    assert whole.dtype == torch.uint8 and whole.shape == greys.shape
    assert (whole != greys).flatten(1).any(1).sum() >= 6
    for row in (0, 5, 11):
        alone = augment(greys[row : row + 1], config, seed=1, step=4, samples=[samples[row]])
        assert torch.equal(alone[0], whole[row])
    order = [7, 2, 9]
    assert torch.equal(augment(greys[order], config, seed=1, step=4, samples=[samples[n] for n in order]), whole[order])
    assert not torch.equal(augment(greys, config, seed=1, step=5, samples=samples), whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [(1, 1), (3, 9)])
def test_tiny_images_and_flat_ones(name: str, side: tuple[int, int]) -> None:
    for grey in (0, 128, 255):
        images = torch.full((3, *side), grey, dtype=torch.uint8)
        assert augment(images, only(**{name: 1.0}), seed=0, step=0, samples=range(3)).shape == images.shape


@pytest.mark.parametrize("name", ["border", "markers", "jpeg", "grain"])
def test_a_share_of_every_class_is_changed(name: str) -> None:
    """Rows of a manifest are sorted by class: the first and the second half are changed equally often."""
    noise = np.random.default_rng(0).integers(60, 190, (1, 16, 16), dtype=np.uint8)
    images = torch.from_numpy(np.repeat(noise, 1200, axis=0))
    found = augment(images, only(**{name: 0.5}), seed=3, step=0, samples=range(1200))
    rates = (found != images).flatten(1).any(1).float().reshape(2, 600).mean(1)
    most = 0.5
    assert abs(float(rates[0] - rates[1])) < 3.5 * np.sqrt(2 * 0.25 / 600)
    assert (rates > most - 0.15).all() and (rates <= most + 0.07).all()


def test_crops_cut_each_end_by_at_most_15_percent() -> None:
    boxes = crops(0.5, lambda stream: [np.random.default_rng([stream, n]) for n in range(500)])
    low, high = boxes[..., 1] - boxes[..., 0], boxes[..., 1] + boxes[..., 0]
    assert low.min() >= -1 - 1e-6 and low.max() <= -0.7 + 1e-6 and high.min() >= 0.7 - 1e-6 and high.max() <= 1 + 1e-6
    assert abs((boxes == [1, 0]).all((1, 2)).mean() - 0.5) < 0.08 and low.max() > -0.72


def test_a_cropped_ramp_is_the_ramp_between_the_cuts() -> None:
    ramp = torch.arange(0, 256, 2, dtype=torch.uint8).expand(8, 64, 128)
    found = augment(ramp, only(crop=1.0), seed=0, step=0, samples=range(8)).double()
    streams = [np.random.Generator(np.random.Philox(key=(0, 0), counter=[0, 0, 16, n])) for n in range(8)]
    for image, (factor, move) in zip(found, crops(1.0, lambda _: streams)[:, 0], strict=True):
        x = ((torch.arange(128) + 0.5) / 64 - 1) * factor + move
        expected = ((x + 1) * 64 - 0.5).clamp(0, 127) * 2
        assert (image[32, 2:-2] - expected[2:-2]).abs().max() <= 0.52


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 95])
def test_compression_is_that_of_a_jpeg_file(quality: int) -> None:
    grey = draw_picture(61, 83, seed=quality)
    found = compressed(torch.from_numpy(grey)[None] / 255, torch.full((1, 1, 1), float(quality)))[0].numpy() * 255
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=quality)
    expected = np.array(Image.open(file)).astype(float)[:56, :80]
    ours = np.clip(found[:56, :80], 0, 255)
    difference = np.abs(ours - expected).reshape(7, 8, 10, 8).max((1, 3))
    assert (difference <= 3).mean() >= 0.9, "but for blocks with a coefficient on the border of two multiples"
    assert np.abs(ours - grey[:56, :80]).mean() > 0.3, "something is lost"


def test_a_curve_only_rises() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).expand(20, 4, 256)
    found = augment(ramp, only(curve=1.0), seed=0, step=0, samples=range(20)).int()
    assert (found.diff(dim=2) >= 0).all() and (found[..., 0] == 0).all() and (found[..., -1] == 255).all()


def test_a_blur_is_a_gaussian() -> None:
    point = torch.zeros(1, 33, 33)
    point[0, 16, 16] = 1
    found = module._smooth(point, torch.tensor([[[2.0]]]), 2.5)[0].double()
    at = torch.arange(33) - 16.0
    assert abs(float(found.sum()) - 1) < 1e-5
    assert abs(float((found.sum(0) * at**2).sum()) - 4) < 0.1 and torch.allclose(found, found.T)


def test_borders_cover_at_most_15_percent_of_each_end() -> None:
    images = torch.full((200, 40, 40), 77, dtype=torch.uint8)
    found = augment(images, only(border=1.0), seed=0, step=0, samples=range(200))
    assert (found[:, 6:-6, 6:-6] == 77).all()
    ends = torch.stack([found[:, 0, 20], found[:, -1, 20], found[:, 20, 0], found[:, 20, -1]]) != 77
    rates = ends.float().mean(1)
    assert rates.max() - rates.min() < 0.15 and rates.min() > 0.4


def test_randomised_is_a_name_of_the_setting() -> None:
    assert isinstance(AUGMENTATIONS["randomised"], RandomisedAugmentation)
    assert dataclasses.asdict(AUGMENTATIONS["standard"] or only()).keys().isdisjoint(CHANGES)
