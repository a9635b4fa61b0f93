"""Heat maps from scores alone: planted evidence is found, occlusion and curves are those of hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.heatmaps.readers import Grey, PatchReader, bright, noise

from thoraclip.errors import ConfigError, ImageError
from thoraclip.heatmaps import heat_map
from thoraclip.heatmaps.perturbation import blurred, log_odds, perturbation_curves
from thoraclip.imaging import normalise


@pytest.mark.parametrize("method", ["occlusion", "rise"])
@given(corner=st.tuples(st.integers(0, 3), st.integers(0, 3)), side=st.sampled_from([30, 56, 64]))
@examples(12)
def test_what_a_reader_of_one_patch_reads_is_found(method: str, corner: tuple[int, int], side: int) -> None:
    step = side // 4
    rows, columns = (slice(c * step, (c + 1) * step) for c in corner)
    heat = heat_map(PatchReader(side, rows, columns), bright(side, rows, columns), 0, method=method)
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    slack = step // 2 if method == "rise" else 1
    assert rows.start - slack <= y < rows.stop + slack and columns.start - slack <= x < columns.stop + slack
    if method == "occlusion":
        far = np.ones_like(heat, bool)
        reach = round(side / 7)
        far[max(0, rows.start - reach) : rows.stop + reach, max(0, columns.start - reach) : columns.stop + reach] = (
            False
        )
        assert heat[far].max() == 0, "what is not read has no heat"
        against = heat_map(PatchReader(side, rows, columns), bright(side, rows, columns), 1, method=method)
        assert against.max() == 0, "the patch speaks against the other class"


def test_occlusion_of_an_additive_reader_is_its_weight_times_what_blurring_takes() -> None:
    """By hand, patch by patch: the fall of the log-odds, spread bilinearly."""
    side, rows, columns = 28, slice(8, 16), slice(4, 12)
    reader, grey = PatchReader(side, rows, columns), bright(28, slice(8, 16), slice(4, 12))
    patch, stride = 4, 2
    fill, middles, falls = blurred(grey), [], {}

    def odds(picture: Grey) -> float:
        return float(log_odds(reader.predict(normalise(picture[None], reader.preprocess)), 0)[0])

    starts = list(range(stride - patch, side, stride))
    for y in starts:
        for x in starts:
            picture = grey.copy()
            picture[max(0, y) : y + patch, max(0, x) : x + patch] = fill[max(0, y) : y + patch, max(0, x) : x + patch]
            falls[y, x] = odds(grey) - odds(picture)
    middles = [start + 1.5 for start in starts]
    expected = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            near = {
                (y, x): max(0.0, 1 - abs(i - my) / 2) * max(0.0, 1 - abs(j - mx) / 2)
                for y, my in zip(starts, middles, strict=True)
                for x, mx in zip(starts, middles, strict=True)
            }
            expected[i, j] = sum(falls[k] * w for k, w in near.items()) / sum(near.values())
    found = heat_map(reader, grey, 0, method="occlusion")
    assert np.abs(found - np.maximum(expected, 0)).max() < 1e-5


def test_log_odds_keep_the_digits_of_a_sure_answer() -> None:
    scores = np.array([[1.0, 1e-9, 3e-9], [0.2, 0.3, 0.5]])
    assert log_odds(scores, 0) == pytest.approx([-np.log(4e-9), np.log(0.2 / 0.8)])
    assert log_odds(np.array([[1.0, 0.0]]), 0) == pytest.approx([-np.log(1e-12)])


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


def test_scores_alone_are_enough_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; sys.modules['matplotlib'] = None\n"
        "import numpy as np, thoraclip.methods.explain\n"
        "from thoraclip.heatmaps import heat_map\n"
        "from thoraclip.imaging import Preprocess; from thoraclip.labels import LabelSet\n"
        "class P:\n"
        "    labels, preprocess = LabelSet(('a', 'b')), Preprocess(size=32)\n"
        "    def predict(self, x):\n"
        "        p = 1 / (1 + np.exp(-x[:, 0, :8, :8].mean((1, 2)))); return np.stack([p, 1 - p], 1).astype(np.float32)\n"
        "g = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)\n"
        "assert heat_map(P(), g, 0, method='occlusion').shape == heat_map(P(), g, 1, method='rise').shape == (32, 32)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_bad_questions_are_answered_with_the_rule() -> None:
    reader = PatchReader(32, slice(0, 8), slice(0, 8))
    with pytest.raises(ConfigError, match="unknown method 'oclusion'; did you mean 'occlusion'"):
        heat_map(reader, noise(32), 0, method="oclusion")
    with pytest.raises(ConfigError, match="method 'grad-cam': needs the network, and here are only its scores"):
        heat_map(reader, noise(32), 0, method="grad-cam")
    with pytest.raises(ImageError, match=r"grey uint8\[31, 31\]: expected uint8 \[32, 32\]"):
        heat_map(reader, noise(31), 0)
    with pytest.raises(ConfigError, match="class 3: must lie between 0 and 2"):
        heat_map(reader, noise(32), 3, method="centre")
