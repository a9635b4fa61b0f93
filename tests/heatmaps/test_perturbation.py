"""Heat maps from scores alone: planted evidence is found, occlusion is that of hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.heatmaps.readers import Grey, PatchReader, bright, noise

from thoraclip.errors import ConfigError, ImageError
from thoraclip.heatmaps import heat_map
from thoraclip.heatmaps.perturbation import blurred, log_odds
from thoraclip.imaging import normalise


@given(corner=st.tuples(st.integers(0, 3), st.integers(0, 3)), side=st.sampled_from([30, 56, 64]))
@examples(12)
def test_what_a_reader_of_one_patch_reads_is_found(corner: tuple[int, int], side: int) -> None:
    step = side // 4
    rows, columns = (slice(c * step, (c + 1) * step) for c in corner)
    reader, grey = PatchReader(side, rows, columns), bright(side, rows, columns)
    heat, reach = heat_map(reader, grey, 0, method="occlusion"), round(side / 7)
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    assert rows.start - 1 <= y < rows.stop + 1 and columns.start - 1 <= x < columns.stop + 1
    heat[max(0, rows.start - reach) : rows.stop + reach, max(0, columns.start - reach) : columns.stop + reach] = 0
    assert heat.max() == 0, "what is not read has no heat"
    assert heat_map(reader, grey, 1, method="occlusion").max() == 0, "the patch speaks against the other class"


def test_occlusion_of_an_additive_reader_is_its_weight_times_what_blurring_takes() -> None:
    """By hand, patch by patch: the fall of the log-odds, spread bilinearly."""
    side, patch, stride, rows, columns = 28, 4, 2, slice(8, 16), slice(4, 12)
    reader, grey = PatchReader(side, rows, columns), bright(side, rows, columns)
    fill, starts = blurred(grey), range(stride - patch, side, stride)

    def odds(picture: Grey) -> float:
        return float(log_odds(reader.predict(normalise(picture[None], reader.preprocess)), 0)[0])

    total, weights = np.zeros((side, side)), np.zeros((side, side))
    for top, left in itertools.product(starts, starts):
        picture, box = grey.copy(), (slice(max(0, top), top + patch), slice(max(0, left), left + patch))
        picture[box] = fill[box]
        fall = odds(grey) - odds(picture)
        for y, x in itertools.product(range(side), range(side)):
            near = max(0.0, 1 - abs(y - top - 1.5) / 2) * max(0.0, 1 - abs(x - left - 1.5) / 2)
            total[y, x] += near * fall
            weights[y, x] += near
    found = heat_map(reader, grey, 0, method="occlusion")
    assert np.abs(found - np.maximum(total / weights, 0)).max() < 1e-5


def test_log_odds_keep_the_digits_of_a_sure_answer() -> None:
    scores = np.array([[1.0, 1e-9, 3e-9], [0.2, 0.3, 0.5]])
    assert log_odds(scores, 0) == pytest.approx([-np.log(4e-9), np.log(0.2 / 0.8)])
    assert log_odds(np.array([[1.0, 0.0]]), 0) == pytest.approx([-np.log(1e-12)])


@pytest.mark.parametrize(
    ("side", "class_index", "method", "error", "message"),
    [
        (32, 0, "oclusion", ConfigError, "unknown method 'oclusion'; did you mean 'occlusion'"),
        (32, 0, "rise", ConfigError, "unknown method 'rise'; known: integrated, occlusion, smoothgrad"),
        (32, 0, "integrated", ConfigError, "method 'integrated': needs the network, and here are only its scores"),
        (31, 0, "", ImageError, r"grey uint8\[31, 31\]: expected uint8 \[32, 32\]"),
        (32, 3, "occlusion", ConfigError, "class 3: must lie between 0 and 2"),
        (32, -1, "occlusion", ConfigError, "class -1: must lie between 0 and 2"),
    ],
)
def test_bad_questions_are_answered_with_the_rule(
    side: int, class_index: int, method: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        heat_map(PatchReader(32, slice(0, 8), slice(0, 8)), noise(side), class_index, method=method)
