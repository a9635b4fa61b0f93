"""A trained classifier scores the same in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints import save_classifier

from thoraclip.errors import ConfigError
from thoraclip.labels import LabelSet
from thoraclip.methods import network_scores
from thoraclip.methods.network_scores import compute_of, scores_of
from thoraclip.models.backbones import Backbone, load_backbone
from thoraclip.models.runtimes import RUNTIMES, TORCH, Choice, is_installed

LABELS = LabelSet(("a", "b", "c"))
ROWS = np.random.default_rng(0).permutation(12)[:9]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = save_classifier("resnet", tmp_path_factory.mktemp("models") / "resnet")
    return load_backbone(str(folder), LABELS, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def greys(backbone: Backbone) -> np.ndarray:
    side = backbone.preprocess.size
    return np.random.default_rng(1).integers(0, 256, (12, side, side), dtype=np.uint8)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if is_installed(name)])
def test_every_installed_runtime_gives_the_scores_of_torch(
    name: str, backbone: Backbone, greys: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet, which pads, so that grey is not folded into it; the last batch is short, and rows stay in order."""
    monkeypatch.setattr(network_scores, "_BATCH", 4)
    weights = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    compute, seen = compute_of(backbone, greys, ROWS, runtime=name, announce=print), list[tuple[int, int]]()
    found = scores_of(backbone, greys, ROWS, compute=compute, progress=lambda *given: seen.append(given))
    np.testing.assert_allclose(found, scores_of(backbone, greys, ROWS), atol=1e-6)
    assert len({tuple(row) for row in found.round(5)}) > 1, "or any order would do"
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert all((tensor == weights[name]).all() for name, tensor in backbone.network.state_dict().items())


def test_auto_measures_the_pictures_of_these_rows(
    backbone: Backbone, greys: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(plain, write, pictures, total, announce):  # type: ignore[no-untyped-def]
        assert (pictures(range(3, 9)) == greys[ROWS[3:9]]).all() and total == 9
        (logits,) = plain(pictures(range(9)))
        expected = scores_of(backbone, greys, ROWS)
        np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, rtol=1e-5)
        return Choice("other", lambda _: [], 2.0)

    monkeypatch.setattr(network_scores, "measured", measured)
    assert compute_of(backbone, greys, ROWS, runtime="auto", announce=print) is not None
    assert compute_of(backbone, greys, ROWS, runtime=TORCH, announce=print) is None


def test_bf16_stays_with_torch(tmp_path: Path, greys: np.ndarray) -> None:
    rough = load_backbone(str(save_classifier("resnet", tmp_path / "resnet")), LABELS, precision="bf16", device="cpu")
    assert compute_of(rough, greys, ROWS, runtime="auto", announce=print) is None
    with pytest.raises(ConfigError, match="runtime = onnxruntime: computes in fp32 on a CPU, not in bf16"):
        compute_of(rough, greys, ROWS, runtime="onnxruntime", announce=print)
