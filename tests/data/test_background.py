"""Features outside the lungs: blind to the lungs, awake to frame, marks, exposure, grain and file."""

from __future__ import annotations

import numpy as np
import pytest

from thoraclip.data.background import BACKGROUND, background_features, file_features, shown_features
from thoraclip.data.phantom import draw_phantom


def phantom(label: str = "Normal", seed: int = 0, **choices: object) -> tuple[np.ndarray, np.ndarray]:
    drawn = draw_phantom(label, rng=np.random.default_rng(seed), size=128, **choices)  # type: ignore[arg-type]
    return drawn.pixels, drawn.lung_mask > 0


def test_every_group_is_described_and_has_as_many_numbers_for_every_picture() -> None:
    rows = []
    for seed in range(6):
        pixels, lungs = phantom(("COVID-19", "Non-COVID", "Normal")[seed % 3], seed)
        rows.append({**file_features(pixels, 9.0), **shown_features(pixels, lungs if seed % 2 else None)})
    groups = background_features(rows)
    assert list(groups) == list(BACKGROUND)
    for values in groups.values():
        assert values.shape[0] == 6 and np.isfinite(values).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_inside_the_lungs_does_not_count(seed: int) -> None:
    pixels, lungs = phantom(seed=seed)
    other = np.where(lungs, 255 - pixels, pixels)
    assert shown_features(pixels, lungs) == shown_features(other, lungs)


def test_without_lungs_the_middle_does_not_count() -> None:
    pixels, _ = phantom()
    other = pixels.copy()
    other[30:-30, 30:-30] = 0
    assert shown_features(pixels, None) == shown_features(other, None)


def test_exposure_and_grain_are_seen() -> None:
    pixels, lungs = phantom()
    bright = np.clip(pixels.astype(int) + 40, 0, 255).astype(np.uint8)
    assert shown_features(bright, lungs)["exposure"][0] > shown_features(pixels, lungs)["exposure"][0] + 20
    noise = np.random.default_rng(0).normal(0, 12, pixels.shape)
    grainy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    assert shown_features(grainy, lungs)["grain"][0] > 2 * shown_features(pixels, lungs)["grain"][0]


def test_marks_are_placed_and_the_file_is_weighed() -> None:
    pixels = np.full((128, 128), 90, dtype=np.uint8)
    assert file_features(pixels, 5.0)["marks"] == [0.0] * 7
    left, right = pixels.copy(), pixels.copy()
    for column in (10, 14, 18):
        left[8:20, column : column + 2] = 255
        right[8:20, 100 + column : 102 + column] = 255
    on_left, on_right = (file_features(p, 5.0)["marks"] for p in (left, right))
    assert on_left[0] >= 1 and on_left[4] < 0.3 and on_left[6] == 1.0
    assert on_right[0] >= 1 and on_right[4] > 0.7 and on_right[6] == 0.0
    heavy = file_features(pixels, 50.0)["file"]
    assert heavy[0] == 1.0 and heavy[-2] == 50.0 and heavy[-1] == pytest.approx(8e-3 * 50 / (128 * 128 / 1e6))
