"""Heat maps from inside a network: gradients are those of finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.checkpoints import CLASSIFIERS, FAMILIES, save_checkpoint, save_classifier
from tests.heatmaps.readers import LABELS, noise

from thoraclip.heatmaps import MAPS, heat_map
from thoraclip.heatmaps.gradients import grey_gradient, integrated_gradients
from thoraclip.heatmaps.perturbation import blurred, log_odds
from thoraclip.models.backbones import Backbone, load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import LinearHead

KINDS = (*CLASSIFIERS, *FAMILIES)
GREY = noise(32)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    root, found = tmp_path_factory.mktemp("models"), {}
    for kind in KINDS:
        folder = (save_classifier if kind in CLASSIFIERS else save_checkpoint)(kind, root / kind, seed=3)
        found[kind] = load_backbone(str(folder), LABELS, precision="fp32", device="cpu")
        with torch.no_grad():
            for parameter in found[kind].head_parameters.values():
                parameter.mul_(20)  # so that it tells the classes apart
    return found


OUTSIDE = [(method, "vit") for method in MAPS]
INSIDE = [("integrated", kind) for kind in KINDS]


@pytest.mark.parametrize(("method", "kind"), sorted({*OUTSIDE, *INSIDE}))
def test_a_map_hangs_on_the_class_and_on_the_seed_where_it_draws(
    method: str, kind: str, networks: dict[str, Backbone]
) -> None:
    """Those that look inside, on every network; the others need one."""
    maps = [heat_map(networks[kind], GREY, c, method=method, seed=1) for c in range(3)]
    again, other = (heat_map(networks[kind], GREY, 0, method=method, seed=seed) for seed in (1, 2))
    assert maps[0].dtype == np.float32 and maps[0].shape == GREY.shape
    assert all((heat >= 0).all() and np.isfinite(heat).all() for heat in maps)
    assert max(heat.max() for heat in maps) > 1e-6
    assert np.array_equal(again, maps[0]), "same seed, same map"
    assert np.array_equal(other, maps[0]) == (method != "smoothgrad")
    assert not np.allclose(maps[0], maps[1], rtol=1e-3, atol=0), "the class counts"


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "clip", "siglip", "vision-text-dual-encoder"])
def test_gradients_are_finite_differences(kind: str, networks: dict[str, Backbone]) -> None:
    """Central differences of the log-odds of the scores, in f64, at some pixels."""
    classifier = networks[kind]
    features = getattr(classifier.network, "_features", None)
    whole = classifier.network if features is None else features.__self__.model  # also a projection nobody reads
    whole.double()
    classifier.network.double()
    side, step = classifier.preprocess.size, 1e-3
    unit = np.random.default_rng(5).random((side, side))
    try:
        found = grey_gradient(classifier, torch.from_numpy(unit)[None], 1)[0].numpy()
        mean, std = (np.array(v)[:, None, None] for v in (classifier.preprocess.mean, classifier.preprocess.std))

        def odds(picture: npt.NDArray[np.float64]) -> float:
            with torch.no_grad():
                logits = classifier.network(torch.from_numpy((picture[None] - mean) / std)[None])
            logits = getattr(logits, "logits", logits)
            return float(log_odds(logits.softmax(dim=-1).numpy(), 1)[0])

        for y, x in ((0, 0), (7, 9), (15, 16), (side - 3, side - 2)):
            up, down = unit.copy(), unit.copy()
            up[y, x] += step
            down[y, x] -= step
            assert found[y, x] == pytest.approx((odds(up) - odds(down)) / (2 * step), rel=2e-3, abs=2e-5)
    finally:
        whole.float()
        classifier.network.float()


def test_integrated_gradients_sum_to_the_difference(networks: dict[str, Backbone]) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1); smoothing reflects at the border and keeps the sum."""
    classifier = networks["clip"]
    found = integrated_gradients(classifier, GREY, 2).sum(dtype=np.float64)
    whole, blank = log_odds(classifier.look(np.stack([GREY, blurred(GREY)]))[1], 2)
    assert abs(whole - blank) > 1e-3
    assert found == pytest.approx(whole - blank, rel=0.02)


def test_bf16_never_reaches_a_gradient(networks: dict[str, Backbone]) -> None:
    exact = networks["vit"]
    for method in ("smoothgrad", "integrated"):
        low = heat_map(replace(exact, precision="bf16"), GREY, 0, method=method)
        assert np.array_equal(low, heat_map(exact, GREY, 0, method=method))


def test_an_encoder_with_a_head_is_explained_as_the_same_tower(networks: dict[str, Backbone], tmp_path: Path) -> None:
    """`EncoderClassifier` and `TowerClassifier` of the same weights, standardised features and all."""
    folder = save_checkpoint("clip", tmp_path / "clip", seed=3)
    tower, encoder = networks["clip"], load_dual_encoder(str(folder), precision="fp32", device="cpu")
    linear = tower.network.get_submodule("classifier")
    weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))  # type: ignore[operator]
    scale = np.linspace(0.5, 2, weight.shape[1]).astype(np.float32)
    mean = np.linspace(-1, 1, weight.shape[1]).astype(np.float32)
    head = LinearHead(LABELS, mean, scale, weight * scale, bias + weight @ mean)
    other: Any = EncoderClassifier(encoder, head, "pooled")
    for method in MAPS:
        a, b = (heat_map(c, GREY, 1, method=method) for c in (tower, other))
        assert np.abs(a - b).max() < 1e-2 * max(a.max(), 1e-6), method
