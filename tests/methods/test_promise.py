"""The promise of prediction sets, kept on pictures: a probe on the shipped encoder, phantoms, many random splits."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.evaluation.calibration import ece
from thoraclip.evaluation.metrics import Scored
from thoraclip.methods.embed import cached_embeddings
from thoraclip.methods.encoders import EncoderConfig
from thoraclip.models.heads import fit_lbfgs
from thoraclip.posthoc.conformal import fit_thresholds
from thoraclip.posthoc.scaling import fit_temperature

CALIBRATING = 110
"""Images of a class; enough for the tenth that may be missed to be met within a point."""


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Scores of 600 phantoms by a linear probe on 450 others, of which about two thirds are right."""
    root = tmp_path_factory.mktemp("promise")
    write_phantoms(root / "images", PhantomConfig(images=1050, size=96, seed=0, difficulty=0.0), workers=1)
    manifest = index(root / "images", layout="csv", csv_file=root / "images" / "phantoms.csv").manifest
    embedded, labels = cached_embeddings(EncoderConfig(), manifest, root / "embeddings"), manifest.label_set()
    features, target = np.asarray(embedded.pooled[embedded.rows_for(manifest)]), manifest.targets(labels)
    rows = np.random.default_rng(0).permutation(len(target))
    (head,) = fit_lbfgs(features[rows[:450]], target[rows[:450]], labels, l2=[1e-3], weighting="none")
    return Scored(target[rows[450:]], head.predict(features[rows[450:]]))


@pytest.mark.slow
def test_sets_hold_what_they_promise_in_every_class(unseen: Scored) -> None:
    """200 splits; of an ideal draw the mean is ceil(111 * 0.9) / 111 = 0.901."""
    accuracy = float(unseen.correct.mean())
    assert 0.45 < accuracy < 0.95, "neither a trivial task nor a hopeless one"
    rng, covered = np.random.default_rng(1), []
    for _ in range(200):
        val = np.concatenate(
            [rng.permutation(np.flatnonzero(unseen.target == c))[:CALIBRATING] for c in range(unseen.class_count)]
        )
        test = np.setdiff1d(np.arange(len(unseen.target)), val)
        sets = fit_thresholds(unseen.scores[val], unseen.target[val], alpha=0.1).sets(unseen.scores[test])
        hit = sets[np.arange(len(test)), unseen.target[test]]
        covered.append([hit[unseen.target[test] == c].mean() for c in range(unseen.class_count)])
    np.testing.assert_allclose(np.mean(covered, axis=0), 0.9, atol=0.01)


@pytest.mark.slow
def test_the_calibration_error_of_real_scores_is_that_of_another_implementation(unseen: Scored) -> None:
    """Sorted and cut into runs, one at a time; equal where no two scores are equal."""
    scaled = fit_temperature(unseen.scores, unseen.target).apply(unseen.scores)
    for table in (unseen, Scored(unseen.target, scaled)):
        assert len(np.unique(table.confidence)) == len(table.confidence)
        assert ece(table.confidence, table.correct) == pytest.approx(
            _by_runs(table.confidence, table.correct), abs=1e-12
        )


def _by_runs(confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> float:
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True))
    n, total = len(pairs), 0.0
    edges = [math.ceil(b * n / 15) for b in range(16)]
    for first, last in pairwise(edges):
        total += abs(sum(right - sure for sure, right in pairs[first:last])) / n
    return total
