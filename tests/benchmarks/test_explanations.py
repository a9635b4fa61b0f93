"""The baselines and the curves that heat maps are measured by."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.explanations import BASELINES, perturbation_curves
from tests.heatmaps.readers import PatchReader, bright, noise

from thoraclip.heatmaps.perturbation import blurred
from thoraclip.imaging import normalise


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_a_map_of_the_pictures_size(name: str) -> None:
    heat, again = (BASELINES[name](noise(32)) for _ in range(2))
    assert heat.dtype == np.float32 and heat.shape == (32, 32)
    assert (heat >= 0).all() and np.isfinite(heat).all() and heat.max() > 1e-6
    assert np.array_equal(again, heat)


def test_curves_begin_and_end_at_the_picture_and_its_blur() -> None:
    side, rows, columns = 56, slice(0, 14), slice(28, 42)
    reader, grey = PatchReader(side, rows, columns), bright(side, rows, columns)
    ideal = np.zeros((side, side), np.float32)
    ideal[rows, columns] = 1
    deletion, insertion = perturbation_curves(reader, grey, ideal, 0, steps=16)
    plain, blank = (float(reader.predict(normalise(g[None], reader.preprocess))[0, 0]) for g in (grey, blurred(grey)))
    assert deletion[[0, -1]] == pytest.approx([plain, blank]) and insertion[[0, -1]] == pytest.approx([blank, plain])
    assert deletion[1:] == pytest.approx(blank), "the patch is a sixteenth: gone after one step"
    assert insertion[1:] == pytest.approx(plain)
    worst, _ = perturbation_curves(reader, grey, -ideal, 0, steps=16)
    assert worst[:-1] == pytest.approx(plain)
