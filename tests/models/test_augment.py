"""Augmentation: exact where nothing is asked, right where it can be counted, and blind to batch, order and process."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import draw_picture, examples

from thoraclip.errors import ConfigError
from thoraclip.models import augment as module
from thoraclip.models.augment import Augmentation, augment

NOTHING = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma", "noise"), 0.0)


@pytest.fixture
def greys() -> torch.Tensor:
    return torch.from_numpy(np.stack([draw_picture(48, 48, seed=s) for s in range(6)]))


def only(**values: float) -> Augmentation:
    return Augmentation(**{**NOTHING, **values})


def drawn(monkeypatch: pytest.MonkeyPatch, **numbers: float) -> None:
    """Fix what is drawn: turn, zoom, x, y, nothing, gamma, contrast, brightness, noise."""
    names = ("turn", "zoom", "x", "y", "", "gamma", "contrast", "brightness", "noise")
    row = np.array([numbers.get(name, 0.0) for name in names], dtype=np.float32)
    monkeypatch.setattr(module, "_draw", lambda key, samples: np.tile(row, (len(samples), 1)))


def test_nothing_asked_nothing_changed(greys: torch.Tensor) -> None:
    assert torch.equal(augment(greys, only(), seed=0, step=0, samples=range(6)), greys)


def test_what_is_drawn_does_not_depend_on_the_batch(greys: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    config, samples = Augmentation(noise=0.05), [7, 3, 11, 0, 5, 2]
    whole = augment(greys, config, seed=1, step=4, samples=samples)
    for row, sample in enumerate(samples):
        assert torch.equal(augment(greys[row : row + 1], config, seed=1, step=4, samples=[sample])[0], whole[row])
    order = [4, 0, 5, 1, 3, 2]
    assert torch.equal(augment(greys[order], config, seed=1, step=4, samples=[samples[i] for i in order]), whole[order])
    monkeypatch.setattr(module, "_CHUNK", 4)
    assert torch.equal(augment(greys, config, seed=1, step=4, samples=samples), whole)


def test_seed_step_and_sample_each_change_the_draw(greys: torch.Tensor) -> None:
    results = [
        augment(greys[:1], Augmentation(), seed=seed, step=step, samples=[sample])
        for seed, step, sample in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert not any(torch.equal(first, second) for first, second in itertools.combinations(results, 2))


@pytest.mark.parametrize("shape", [(48, 48), (32, 48)])
@pytest.mark.parametrize(
    "numbers",
    [
        {"turn": 0.5},
        {"zoom": 1.0},
        {"zoom": -0.5},
        {"x": 1.0},
        {"y": -0.4},
        {"turn": -1.0, "zoom": 0.5, "x": -0.3, "y": 0.8},
    ],
)
def test_turn_zoom_and_move_are_those_of_the_plane(
    monkeypatch: pytest.MonkeyPatch, numbers: dict[str, float], shape: tuple[int, int]
) -> None:
    """In pixels, about the centre: against a bilinear look-up, pixel by pixel."""
    grey, (height, width) = torch.from_numpy(draw_picture(*shape, seed=1))[None], shape
    drawn(monkeypatch, **numbers)
    config = only(rotate_degrees=20, zoom=0.2, shift=0.125)
    found = augment(grey, config, seed=0, step=0, samples=[0])[0].numpy().astype(float)
    turn, zoom, x, y = (numbers.get(name, 0.0) for name in ("turn", "zoom", "x", "y"))
    cos, sin = (f(np.deg2rad(20 * turn)) / (1 + 0.2 * zoom) for f in (np.cos, np.sin))
    padded = np.pad(grey[0].numpy().astype(float), 40)
    for row, column in itertools.product(range(0, height, 3), range(0, width, 3)):
        u, v = column + 0.5 - width / 2, row + 0.5 - height / 2
        at_x = cos * u - sin * v + 0.125 * x * width + width / 2 - 0.5 + 40
        at_y = sin * u + cos * v + 0.125 * y * height + height / 2 - 0.5 + 40
        i, j, a, b = int(np.floor(at_y)), int(np.floor(at_x)), at_y % 1, at_x % 1
        upper, lower = ((1 - b) * padded[k, j] + b * padded[k, j + 1] for k in (i, i + 1))
        assert abs(found[row, column] - (1 - a) * upper - a * lower) <= 0.51 + 1e-3


def test_grey_changes_follow_their_formulas(greys: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = greys.numpy().astype(np.float64) / 255
    mean = unit.mean(axis=(1, 2), keepdims=True)
    for name, number, expected in (
        ("brightness", 0.5, unit + 0.1),
        ("contrast", -0.5, (unit - mean) * 0.9 + mean),
        ("gamma", 1.0, unit ** np.exp(0.2)),
    ):
        drawn(monkeypatch, **{name: number})
        found = augment(greys, only(**{name: 0.2}), seed=0, step=0, samples=range(6)).numpy()
        assert np.abs(found - np.clip(expected, 0, 1) * 255).max() <= 0.51, name


def test_noise_has_the_spread_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch, noise=-0.5)
    flat = torch.full((4, 64, 64), 128, dtype=torch.uint8)
    found = augment(flat, only(noise=0.1), seed=0, step=0, samples=range(4)).numpy().astype(float)
    assert abs(found.std() / 255 - 0.05) < 0.002 and abs(found.mean() - 128) < 1
    assert np.abs(np.corrcoef(found.reshape(4, -1)) - np.eye(4)).max() < 0.1, "every picture has noise of its own"


@examples(30)
@given(
    st.fixed_dictionaries(
        {
            "rotate_degrees": st.floats(0, 180), "shift": st.floats(0, 1), "zoom": st.floats(0, 0.9),
            "brightness": st.floats(0, 2), "contrast": st.floats(0, 1), "gamma": st.floats(0, 2),
            "noise": st.floats(0, 1),
        }
    ),
    st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 9),
)  # fmt: skip
def test_any_setting_gives_pictures_of_the_same_shape(
    values: dict[str, float], seed: int, step: int, height: int, width: int
) -> None:
    grey = torch.randint(0, 256, (2, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = augment(grey, Augmentation(**values), seed=seed, step=step, samples=[0, 1])
    assert found.dtype == torch.uint8 and found.shape == grey.shape
    assert torch.equal(found, augment(grey, Augmentation(**values), seed=seed, step=step, samples=[0, 1]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zoom": 0.91}, "zoom = 0.91: a number from 0 to 0.9 is needed"),
        ({"zoom": -0.1}, "zoom = -0.1"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**values)


def test_a_sample_for_each_picture(greys: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="5 samples for 6 images"):
        augment(greys, Augmentation(), seed=0, step=0, samples=range(5))
    empty = greys[:0]
    assert augment(empty, Augmentation(), seed=0, step=0, samples=[]).shape == (0, 48, 48)
