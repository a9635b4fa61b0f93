"""Weighted metrics against the same metrics of the physically repeated rows; the resamples themselves."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from tests.evaluation.tables import headline

from thoraclip.evaluation.calibration import equal_mass_bins
from thoraclip.evaluation.metrics import METRICS, PER_CLASS, Scored, per_class
from thoraclip.evaluation.resampling import PreparedTable, resample_weights


def _table(rng: np.random.Generator, *, ties: bool) -> Scored:
    classes, n = int(rng.integers(2, 7)), int(rng.integers(1, 40))
    scores = rng.dirichlet(np.ones(classes), size=n)
    if ties:
        scores = np.round(scores * 4) + 0.25
    return Scored(rng.integers(0, rng.integers(1, classes + 1), n), scores)


@examples(24)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_weights_mean_repeated_rows(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scored = _table(rng, ties=ties)
    weights = rng.integers(0, 4, size=(len(scored.target), 1)).astype(np.float64)
    weights[rng.integers(len(weights)), weights.sum(axis=0) == 0] = 1
    _compare(scored, weights)


def test_weights_mean_repeated_rows_for_all_small_ones() -> None:
    weights = np.array(list(itertools.product(range(3), repeat=4))[1:], dtype=np.float64).T
    for scores in ([0.9, 0.4, 0.6, 0.3], [0.5, 0.5, 0.7, 0.5]):
        _compare(Scored(np.array([0, 1, 1, 0]), np.stack([np.array(scores), 1 - np.array(scores)], axis=1)), weights)


def _compare(scored: Scored, weights: npt.NDArray[np.float64]) -> None:
    found = PreparedTable(scored).metrics(weights)
    assert tuple(found.headline) == tuple(METRICS) and set(found.per_class) == set(PER_CLASS)
    for column, own in enumerate(weights.T.astype(int)):
        rows = np.repeat(np.arange(len(own)), own)
        repeated = Scored(scored.target[rows], scored.scores[rows])
        for name, value in headline(repeated).items():
            assert name == "ece" or _same(found.headline[name][column], value), (name, own)
        for name, values in per_class(repeated).items():
            for c, value in enumerate(values):
                assert _same(found.per_class[name][column, c], value), (name, c, own)


def _same(found: float, expected: float | None) -> bool:
    return bool(np.isnan(found)) if expected is None else found == pytest.approx(expected, abs=1e-9)


@examples(30)
@given(st.integers(0, 2**32 - 1))
def test_ece_of_a_resample_keeps_the_bins_of_the_sample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scored = _table(rng, ties=False)
    weights = rng.integers(1, 4, size=(len(scored.target), 1)).astype(np.float64)
    member, w = equal_mass_bins(scored.confidence), weights[:, 0]
    gaps = [
        abs(sum(w[i] * (scored.correct[i] - scored.confidence[i]) for i in np.flatnonzero(member == b)))
        for b in range(15)
    ]
    found = PreparedTable(scored).metrics(weights)
    assert found.headline["ece"][0] == pytest.approx(sum(gaps) / w.sum())
    once = PreparedTable(scored).metrics(np.ones_like(weights))
    assert once.headline["ece"][0] == pytest.approx(headline(scored)["ece"], abs=1e-12)
    assert once.noise["ece"][0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cells", [1, 130, 1_000, 10**6])
def test_the_chunk_size_never_changes_the_resamples(cells: int) -> None:
    groups = np.arange(30) // 2
    whole = np.concatenate(list(resample_weights(groups, resamples=50, seed=7)), axis=1)
    chunked = np.concatenate(list(resample_weights(groups, resamples=50, seed=7, cells=cells)), axis=1)
    shorter = np.concatenate(list(resample_weights(groups, resamples=20, seed=7, cells=cells)), axis=1)
    assert (whole == chunked).all() and (whole[:, :20] == shorter).all()


def test_a_group_is_drawn_as_a_whole_and_as_many_as_there_are() -> None:
    groups = np.array([0, 1, 0, 2, 1, 0])
    weights = next(resample_weights(groups, resamples=400, seed=0))
    assert (weights[0] == weights[2]).all() and (weights[1] == weights[4]).all()
    assert (weights[[0, 1, 3]].sum(axis=0) == 3).all()
    assert weights[0].mean() == pytest.approx(1, abs=0.15)
    turned = np.array([2, 0, 1])
    (plain,), (moved,) = (list(resample_weights(g, resamples=9, seed=0)) for g in (np.arange(3), turned))
    assert (moved == plain[turned]).all(), "as many groups as images, in another order"
