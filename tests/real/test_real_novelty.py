"""Real chest X-rays against photographs, by the features of a real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from thoraclip.data.index import IndexResult
from thoraclip.data.splits import assign_groups, independent_groups
from thoraclip.imaging import decode, fit
from thoraclip.posthoc.ood import fit_ood

pytestmark = pytest.mark.slow


def photographs() -> list[np.ndarray]:
    """Grey crops of the two photographs that scikit-learn ships: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    crops = []
    for picture in load_sample_images().images:
        grey = np.round(picture @ [0.299, 0.587, 0.114]).astype(np.uint8)
        crops += [grey, *(np.ascontiguousarray(grey[:, left : left + 427]) for left in (0, 100, 213))]
    return crops


def test_photographs_are_no_chest_xrays(shared: Path, talo: IndexResult) -> None:
    model, manifest = shared / "models" / "dino-minilm", talo.manifest
    from thoraclip.models.dual_encoder import load_dual_encoder

    targets, groups, paths = manifest.targets(manifest.label_set()), independent_groups(manifest), manifest.paths()
    rows = np.concatenate([np.flatnonzero(targets == c)[::step][:28] for c, step in ((0, 4), (1, 17), (2, 17))])
    part = assign_groups(targets[rows], groups[rows], [0.5, 0.3, 0.2], seed=0)
    encoder = load_dual_encoder(str(model))

    def embedded(pictures: list[np.ndarray]) -> np.ndarray:
        greys = np.stack([fit(picture, encoder.preprocess) for picture in pictures])
        return np.concatenate([encoder.encode_greys(greys[i : i + 32])[0] for i in range(0, len(greys), 32)])

    features = embedded([decode(paths[row]).pixels for row in rows])
    fitted = fit_ood(features[part == 0], targets=targets[rows][part == 0], held_out=features[part == 1])
    chests, strangers = fitted.score(features[part == 2]), fitted.score(embedded(photographs()))
    assert fitted.is_flagged(strangers).mean() > 0.8
    assert fitted.is_flagged(chests).mean() < 0.3
    assert roc_auc_score(np.r_[np.zeros(len(chests)), np.ones(len(strangers))], np.r_[chests, strangers]) > 0.95
