"""Heat maps from inside a network: gradients are those of finite differences, relevance is the paper's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from tests.checkpoints import CLASSIFIERS, FAMILIES, save_checkpoint, save_classifier
from tests.heatmaps.readers import LABELS, noise
from transformers import SwinConfig, SwinForImageClassification

from thoraclip.errors import ConfigError
from thoraclip.heatmaps import BASELINES, MAPS, heat_map
from thoraclip.heatmaps.gradients import grey_gradient, integrated_gradients
from thoraclip.heatmaps.perturbation import blurred, log_odds
from thoraclip.models.backbones import Backbone, load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import LinearHead, Standardiser

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


def enlarged(coarse: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR))


OUTSIDE = [(method, "vit") for method in (*MAPS, *BASELINES)]
INSIDE = [(method, kind) for method in ("attention", "grad-cam") for kind in KINDS]


@pytest.mark.parametrize(("method", "kind"), sorted({*OUTSIDE, *INSIDE} - {("attention", "resnet")}))
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
    assert np.array_equal(other, maps[0]) == (method not in {"rise", "smoothgrad", "random"})
    assert np.allclose(maps[0], maps[1], rtol=1e-3, atol=0) == (method in BASELINES), "the class counts"


def test_a_network_without_attention_has_no_map_of_it(networks: dict[str, Backbone]) -> None:
    with pytest.raises(ConfigError, match="ResNetForImageClassification has no attention; take grad-cam"):
        heat_map(networks["resnet"], GREY, 0, method="attention")


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


def require_map(found: npt.NDArray[np.float32], coarse: npt.NDArray[np.floating]) -> None:
    expected = enlarged(coarse)
    assert found.max() > 1e-6
    assert np.abs(found - np.maximum(expected, 0)).max() < 1e-4 * np.abs(expected).max()


def test_grad_cam_of_a_resnet_by_hand(networks: dict[str, Backbone]) -> None:
    """The last stage's output, its gradient by a head that is a mean and a linear layer: closed form."""
    classifier = networks["resnet"]
    with torch.no_grad():
        body: Any = classifier.network.resnet
        features = body(classifier.expand(GREY[None])).last_hidden_state[0]
        head = classifier.network.classifier[1]  # type: ignore[index]
        others = torch.tensor([1, 2])
        share = head(features.mean(dim=(1, 2)))[others].softmax(dim=0)
        weights = (head.weight[0] - share @ head.weight[others]) / features[0].numel()
        cam = (weights[:, None, None] * features).sum(dim=0).numpy()
    require_map(heat_map(classifier, GREY, 0, method="grad-cam"), cam)


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_cams_of_a_transformer_by_hand(method: str, networks: dict[str, Backbone]) -> None:
    """Patch tokens after the first layer norm of CLIP's last block, loops over channels; without the class token."""
    classifier, seen = networks["clip"], []
    norm = classifier.network.vision_model.encoder.layers[-1].layer_norm1  # type: ignore[union-attr, index]
    hook = norm.register_forward_hook(lambda *call: seen.append(call[2]))  # type: ignore[operator, union-attr]
    chance = classifier.logits(classifier.expand(GREY[None]))[0].softmax(0)[2]
    hook.remove()
    (gradient,) = torch.autograd.grad(torch.log(chance / (1 - chance)), seen[0])
    tokens, slopes = (t[0, 1:].detach().numpy().reshape(4, 4, -1) for t in (seen[0], gradient))
    cam = np.zeros((4, 4), np.float32)
    for channel in range(tokens.shape[-1]):
        slope = slopes[..., channel]
        cam += tokens[..., channel] * (slope.mean() if method == "grad-cam" else slope)
    require_map(heat_map(classifier, GREY, 2, method=method), cam)


@pytest.mark.parametrize("kind", ["clip", "vit", "vision-text-dual-encoder"])
def test_relevance_is_that_of_the_paper(kind: str, networks: dict[str, Backbone]) -> None:
    """Chefer et al. 2021, eqs. 5 and 6, told slowly: attention asked for by Transformers' own switch, loops over heads."""
    classifier, target = networks[kind], 1
    tower = classifier.network.vision_model if kind != "vit" else classifier.network.vit
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")  # type: ignore[operator, union-attr]
    out = tower(classifier.expand(GREY[None]), output_attentions=True)  # type: ignore[operator]
    pooled = out.last_hidden_state[:, 0] if kind == "vit" else out.pooler_output
    chance = classifier.network.classifier(pooled)[0].softmax(0)[target]  # type: ignore[operator]
    gradients = torch.autograd.grad(torch.log(chance / (1 - chance)), out.attentions)
    tower.set_attn_implementation(before)  # type: ignore[operator, union-attr]
    relevance = np.eye(out.attentions[0].shape[-1])
    for weights, gradient in zip(out.attentions, gradients, strict=True):
        products = (weights[0] * gradient[0]).detach().numpy()
        mean = sum(np.where(product > 0, product, 0) for product in products) / len(products)
        relevance = relevance + mean @ relevance
    require_map(heat_map(classifier, GREY, target, method="attention"), relevance[0, 1:].reshape(4, 4))


def test_attention_is_set_back_even_after_an_error(
    networks: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = networks["siglip"]
    configs = [m.config for m in classifier.network.modules() if hasattr(m, "config")]
    before = [config._attn_implementation for config in configs]
    heat_map(classifier, GREY, 0, method="attention")
    assert "eager" not in before and [config._attn_implementation for config in configs] == before
    monkeypatch.setattr(type(classifier), "logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        heat_map(classifier, GREY, 0, method="attention")
    assert [config._attn_implementation for config in configs] == before
    assert not any(module._forward_hooks for module in classifier.network.modules())


def test_windows_of_attention_are_refused_and_their_grad_cam_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinForImageClassification(config).save_pretrained(tmp_path)
    size = '{"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    (tmp_path / "preprocessor_config.json").write_text(size)
    classifier = load_backbone(str(tmp_path), LABELS, precision="fp32", device="cpu")
    with pytest.raises(ConfigError, match="attends within windows, not over the whole picture; take grad-cam"):
        heat_map(classifier, GREY, 0, method="attention")
    assert max(heat_map(classifier, GREY, c, method="grad-cam").max() for c in range(3)) > 0


def test_bf16_never_reaches_a_gradient(networks: dict[str, Backbone]) -> None:
    exact = networks["vit"]
    for method in ("smoothgrad", "grad-cam", "attention"):
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
    head = LinearHead(LABELS, Standardiser(mean, scale), weight * scale, bias + weight @ mean)
    other: Any = EncoderClassifier(encoder, head, "pooled")
    for method in MAPS:
        a, b = (heat_map(c, GREY, 1, method=method) for c in (tower, other))
        assert np.abs(a - b).max() < 1e-2 * max(a.max(), 1e-6), method
