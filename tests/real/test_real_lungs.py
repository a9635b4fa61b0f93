"""Estimated lungs against masks that readers drew."""

from __future__ import annotations

import numpy as np
import pytest

from thoraclip.data.index import IndexResult
from thoraclip.data.masks import mask_problem, read_mask
from thoraclip.imaging import decode
from thoraclip.imaging.lungs import estimate_lungs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "median", "worst"),
    [("covid_qu_ex", 18, 0.8, 0.6), ("talo", 58, 0.86, 0.7)],
    ids=["COVID-QU-Ex", "covid3-talo"],
)
def test_estimates_are_plausible_and_overlap_with_the_masks_of_readers(
    name: str, count: int, median: float, worst: float, request: pytest.FixtureRequest
) -> None:
    """Dice of every plausible estimate. The masks of COVID-QU-Ex leave the heart out, those of the others do not."""
    result: IndexResult = request.getfixturevalue(name)
    found = result.manifest
    pairs = [(p, found.root / mask) for p, mask in zip(found.paths(), found.column("lung_mask"), strict=True) if mask]
    assert len(pairs) == count
    overlap = []
    for picture, file in pairs:
        pixels = decode(picture).pixels
        truth, (estimate, reason) = read_mask(file, pixels.shape), estimate_lungs(pixels)
        assert mask_problem(truth) is None
        if reason is None:
            overlap.append(2 * (estimate & truth).sum() / (estimate.sum() + truth.sum()))
    assert np.median(overlap) >= median and min(overlap) >= worst
    assert len(overlap) / count >= 0.9
