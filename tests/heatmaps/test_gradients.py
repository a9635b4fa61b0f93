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


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    root = tmp_path_factory.mktemp("models")
    made = {kind: save_classifier(kind, root / kind, seed=3) for kind in CLASSIFIERS}
    made |= {family: save_checkpoint(family, root / family, seed=3) for family in FAMILIES}
    found = {kind: load_backbone(str(folder), LABELS, precision="fp32", device="cpu") for kind, folder in made.items()}
    for backbone in found.values():  # heads that tell the classes apart
        with torch.no_grad():
            for parameter in backbone.head_parameters.values():
                parameter.mul_(20)
    return found


@pytest.mark.parametrize("kind", [*CLASSIFIERS, *FAMILIES])
@pytest.mark.parametrize("method", [*MAPS, *BASELINES])
def test_every_method_on_every_network(method: str, kind: str, networks: dict[str, Backbone]) -> None:
    classifier = networks[kind]
    grey = noise(classifier.preprocess.size)
    if (method, kind) == ("attention", "resnet"):
        with pytest.raises(ConfigError, match="ResNetForImageClassification has no attention; take grad-cam"):
            heat_map(classifier, grey, 0, method=method)
        return
    maps = [heat_map(classifier, grey, c, method=method, seed=1) for c in range(3)]
    again = heat_map(classifier, grey, 0, method=method, seed=1)
    assert maps[0].dtype == np.float32 and maps[0].shape == grey.shape
    assert all((heat >= 0).all() and np.isfinite(heat).all() for heat in maps)
    assert np.array_equal(again, maps[0]), "same seed, same map"
    assert max(heat.max() for heat in maps) > 1e-6
    if method in MAPS:
        assert not np.allclose(maps[0], maps[1], rtol=1e-3, atol=0), "the class counts"


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "clip", "siglip", "vision-text-dual-encoder"])
def test_gradients_are_finite_differences(kind: str, networks: dict[str, Backbone]) -> None:
    """Central differences of the log-odds of the scores, in f64, at some pixels."""
    classifier = networks[kind]
    features = getattr(classifier.network, "_features", None)
    whole = (
        classifier.network if features is None else features.__self__.model
    )  # the tower, and a projection nobody reads
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
    grey = noise(classifier.preprocess.size)
    found = integrated_gradients(classifier, grey, 2).sum(dtype=np.float64)
    pair = classifier.look(np.stack([grey, blurred(grey)]))[1]
    whole, blank = log_odds(pair, 2)
    assert abs(whole - blank) > 1e-3
    assert found == pytest.approx(whole - blank, rel=0.02)


def test_grad_cam_of_a_resnet_by_hand(networks: dict[str, Backbone]) -> None:
    """The last stage's output, its gradient by a head that is a mean and a linear layer: closed form."""
    classifier = networks["resnet"]
    grey = noise(classifier.preprocess.size)
    with torch.no_grad():
        pixels = classifier.expand(grey[None])
        features = classifier.network.resnet(pixels).last_hidden_state[0]  # type: ignore[operator, union-attr]
        head = classifier.network.classifier[1]  # type: ignore[index]
        logits = head(features.mean(dim=(1, 2)))
        others = torch.tensor([1, 2])
        share = logits[others].softmax(dim=0)
        weights = (head.weight[0] - share @ head.weight[others]) / features[0].numel()
        cam = (weights[:, None, None] * features).sum(dim=0).numpy()
    fine = np.asarray(Image.fromarray(cam).resize(grey.shape, Image.Resampling.BILINEAR))
    found = heat_map(classifier, grey, 0, method="grad-cam")
    assert found.max() > 1e-6
    assert np.abs(found - np.maximum(fine, 0)).max() < 1e-5 * np.abs(fine).max()


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_cams_of_a_transformer_by_hand(method: str, networks: dict[str, Backbone]) -> None:
    """Patch tokens after the first layer norm of CLIP's last block, loops over channels; without the class token."""
    classifier = networks["clip"]
    grey, seen = noise(classifier.preprocess.size), []
    norm = classifier.network.vision_model.encoder.layers[-1].layer_norm1  # type: ignore[union-attr, index]
    hook = norm.register_forward_hook(lambda *call: seen.append(call[2]))  # type: ignore[operator, union-attr]
    logits = classifier.logits(classifier.expand(grey[None]))[0]
    hook.remove()
    chance = logits.softmax(0)[2]
    (gradient,) = torch.autograd.grad(torch.log(chance / (1 - chance)), seen[0])
    tokens, slopes = (t[0, 1:].detach().numpy().reshape(4, 4, -1) for t in (seen[0], gradient))
    cam = np.zeros((4, 4), np.float32)
    for channel in range(tokens.shape[-1]):
        slope = slopes[..., channel]
        cam += tokens[..., channel] * (slope.mean() if method == "grad-cam" else slope)
    fine = np.asarray(Image.fromarray(cam).resize(grey.shape, Image.Resampling.BILINEAR))
    found = heat_map(classifier, grey, 2, method=method)
    assert found.max() > 1e-6
    assert np.abs(found - np.maximum(fine, 0)).max() < 1e-4 * np.abs(fine).max()


@pytest.mark.parametrize("kind", ["clip", "vit", "vision-text-dual-encoder"])
def test_relevance_is_that_of_the_paper(kind: str, networks: dict[str, Backbone]) -> None:
    """Chefer et al. 2021, eqs. 5 and 6, told slowly: attention asked for by Transformers' own switch, loops over heads."""
    classifier = networks[kind]
    grey, target = noise(classifier.preprocess.size), 1
    tower = classifier.network.vision_model if kind != "vit" else classifier.network.vit
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")  # type: ignore[operator, union-attr]
    out = tower(classifier.expand(grey[None]), output_attentions=True)  # type: ignore[operator]
    pooled = out.last_hidden_state[:, 0] if kind == "vit" else out.pooler_output
    logits = classifier.network.classifier(pooled)[0]  # type: ignore[operator]
    odds = torch.log(logits.softmax(0)[target] / (1 - logits.softmax(0)[target]))
    gradients = torch.autograd.grad(odds, out.attentions)
    tower.set_attn_implementation(before)  # type: ignore[operator, union-attr]
    tokens = out.attentions[0].shape[-1]
    relevance = np.eye(tokens)
    for weights, gradient in zip(out.attentions, gradients, strict=True):
        mean = np.zeros((tokens, tokens))
        for head in range(weights.shape[1]):
            product = (weights[0, head] * gradient[0, head]).detach().numpy()
            mean += np.where(product > 0, product, 0) / weights.shape[1]
        relevance = relevance + mean @ relevance
    row = relevance[0, 1:].reshape(4, 4).astype(np.float32)
    expected = np.asarray(Image.fromarray(row).resize(grey.shape, Image.Resampling.BILINEAR))
    found = heat_map(classifier, grey, target, method="attention")
    assert np.abs(found - expected).max() < 1e-4 * expected.max()


def test_attention_is_set_back_even_after_an_error(
    networks: dict[str, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = networks["siglip"]
    configs = [m.config for m in classifier.network.modules() if hasattr(m, "config")]
    before = [config._attn_implementation for config in configs]
    heat_map(classifier, noise(32), 0, method="attention")
    assert "eager" not in before and [config._attn_implementation for config in configs] == before
    monkeypatch.setattr(type(classifier), "logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        heat_map(classifier, noise(32), 0, method="attention")
    assert [config._attn_implementation for config in configs] == before
    assert not any(module._forward_hooks for module in classifier.network.modules())


def test_windows_of_attention_are_refused_and_their_grad_cam_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinForImageClassification(config).save_pretrained(tmp_path)
    size = '{"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}'
    (tmp_path / "preprocessor_config.json").write_text(size)
    classifier = load_backbone(str(tmp_path), LABELS, precision="fp32", device="cpu")
    with pytest.raises(ConfigError, match="attends within windows, not over the whole picture; take grad-cam"):
        heat_map(classifier, noise(32), 0, method="attention")
    assert max(heat_map(classifier, noise(32), c, method="grad-cam").max() for c in range(3)) > 0


def test_bf16_never_reaches_a_gradient(networks: dict[str, Backbone]) -> None:
    exact = networks["vit"]
    for method in ("smoothgrad", "grad-cam", "attention"):
        low = heat_map(replace(exact, precision="bf16"), noise(32), 0, method=method)
        assert np.array_equal(low, heat_map(exact, noise(32), 0, method=method))


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
        a, b = (heat_map(c, noise(32), 1, method=method) for c in (tower, other))
        assert np.abs(a - b).max() < 1e-2 * max(a.max(), 1e-6), method
