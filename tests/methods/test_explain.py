"""Heat maps: planted evidence is found, gradients are those of finite differences, relevance is the paper's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.checkpoints import CLASSIFIERS, FAMILIES, save_checkpoint, save_classifier
from transformers import SwinConfig, SwinForImageClassification

from thoraclip.errors import ConfigError, ImageError
from thoraclip.imaging import Preprocess, fit, normalise
from thoraclip.labels import LabelSet
from thoraclip.methods.explain import Explanation, write_overlay
from thoraclip.methods.gradients import grey_gradient, integrated_gradients
from thoraclip.methods.heatmaps import BASELINES, MAPS, heat_map
from thoraclip.methods.overlay import Panel, colours, display_size, draw_overlay, spread
from thoraclip.methods.perturbation import blurred, log_odds, perturbation_curves
from thoraclip.models.backbones import Backbone, load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import LinearHead, Standardiser

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))
Grey = npt.NDArray[np.uint8]


class PatchReader:
    """Linear in one patch of the greys and blind to the rest; knows nothing but scores."""

    labels = LABELS

    def __init__(self, side: int, rows: slice, columns: slice) -> None:
        self.preprocess = Preprocess(size=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._patch = (slice(None), 0, rows, columns)

    def predict(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logit = 8 * pixels[self._patch].mean(axis=(1, 2)) - 4
        logits = np.stack([logit, -logit, np.zeros_like(logit)], axis=1)
        powers = np.exp(logits)
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def noise(side: int, seed: int = 0) -> Grey:
    return np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8)


def bright(side: int, rows: slice, columns: slice) -> Grey:
    """Dark noise with a bright patch, which blurring takes away."""
    grey = noise(side) // 4
    grey[rows, columns] = 240
    return grey


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


@pytest.mark.parametrize("method", ["occlusion", "rise"])
@given(corner=st.tuples(st.integers(0, 3), st.integers(0, 3)), side=st.sampled_from([30, 56, 64]))
@settings(max_examples=12, deadline=None)
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


def test_scores_alone_are_enough_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; sys.modules['matplotlib'] = None\n"
        "import numpy as np, thoraclip.methods.explain\n"
        "from thoraclip.methods.heatmaps import heat_map\n"
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


@pytest.mark.parametrize("spec", [
    Preprocess(size=48), Preprocess(size=48, geometry="pad"), Preprocess(size=48, geometry="crop"),
    Preprocess(size=48, geometry="crop", short_side=60),
])  # fmt: skip
@given(height=st.integers(60, 200), width=st.integers(60, 200), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_spot_of_the_picture_comes_back_to_its_place(spec: Preprocess, height: int, width: int, seed: int) -> None:
    """A bright spot, fitted as the network's input and spread back, is where it was; what `crop` cuts off is not seen."""
    rng = np.random.default_rng(seed)
    y, x = int(rng.integers(12, height - 12)), int(rng.integers(12, width - 12))
    picture = np.zeros((height, width), np.uint8)
    picture[y - 4 : y + 5, x - 4 : x + 5] = 255
    heat, seen = spread(fit(picture, spec).astype(np.float32), spec, height, width)
    assert heat.shape == seen.shape == (height, width)
    assert (heat[~seen] == 0).all()
    assert seen.all() or spec.geometry == "crop"
    if spec.geometry == "crop":
        cut = min(height, width) * spec.size / (spec.short_side or spec.size)
        assert seen.sum() == pytest.approx(cut * cut, rel=0.06)
    inside = seen[y - 8 : y + 9, x - 8 : x + 9].all()
    if inside:
        rows, columns = np.nonzero(heat > heat.max() / 2)
        pixel = max(height, width) / spec.size
        assert abs(rows.mean() - y) <= 0.5 * pixel + 0.5 and abs(columns.mean() - x) <= 0.5 * pixel + 0.5


def test_sizes_of_the_display() -> None:
    assert display_size(224, 224) == (448, 448)
    assert display_size(256, 200) == (512, 400)
    assert display_size(600, 700) == (600, 700)
    assert display_size(4096, 2048) == (1024, 512)
    assert display_size(1, 3000) == (1, 1024)


def test_colours_grow_brighter_in_even_steps() -> None:
    """Lightness L* (CIE 1976) of the scale: rising, no step twice as large as another."""
    unit = colours(np.linspace(0, 1, 8)) / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    steps = np.diff(lightness)
    assert steps.min() > 0 and steps.max() < 2 * steps.min()


def test_the_sheet_shows_the_picture_the_heat_and_the_lungs() -> None:
    grey = noise(448)
    heat, lungs, seen = np.zeros((448, 448), np.float32), np.zeros((448, 448), bool), np.ones((448, 448), bool)
    heat[300:320, 300:320] = 2
    lungs[50:200, 50:200] = True
    seen[:, :20] = False
    sheet = np.asarray(draw_overlay(grey, heat, Panel("A: 0.9", ["x" * 200], "foot"), lungs=lungs, seen=seen))
    plain, painted = sheet[12:460, 12:460].astype(int), sheet[12:460, 472:920].astype(int)
    assert np.array_equal(plain[310, 310], [grey[310, 310]] * 3)
    assert painted[310, 310] == pytest.approx(0.3 * grey[310, 310] + 0.7 * colours(np.array(1.0)), abs=1)
    assert np.array_equal(painted[400, 400], [grey[400, 400]] * 3), "no evidence, no colour"
    assert painted[400, 5, 0] == pytest.approx(0.4 * grey[400, 5], abs=1)
    for picture in (plain, painted):
        bluer = picture[52:198, 48:53, 2] - picture[52:198, 48:53, 0]
        assert (bluer.max(axis=1) > 60).all(), "a cyan line along the lungs' border"
        assert np.array_equal(picture[120, 120], [grey[120, 120]] * 3), "and nothing within them"


def test_evidence_in_the_lungs_is_counted_where_the_network_sees(tmp_path: Path) -> None:
    heat, lungs, seen = np.zeros((448, 448), np.float32), np.zeros((448, 448), bool), np.ones((448, 448), bool)
    heat[100:200, 100:200], lungs[150:300, 100:200], seen[:, 400:] = 1, True, False
    found = Explanation(
        label="b", scores={"a": 0.7, "b": 0.3}, method="rise", grey=noise(448), heat=heat, seen=seen, lungs=lungs,
        lungs_from="estimated", note="the first",
    )  # fmt: skip
    assert found.evidence_in_lungs == pytest.approx(0.5)
    assert found.lung_area == pytest.approx(150 * 100 / (448 * 400))
    assert found.predicted == "a"
    write_overlay(tmp_path / "a.png", found)
    first = (tmp_path / "a.png").read_bytes()
    write_overlay(tmp_path / "a.png", found)
    assert (tmp_path / "a.png").read_bytes() == first
    with Image.open(tmp_path / "a.png") as sheet:
        assert json.loads(sheet.info["thoraclip"]) == found.as_dict()
    without = replace(found, lungs=np.zeros_like(lungs), heat=np.zeros_like(heat))
    assert (without.evidence_in_lungs, without.lung_area) == (None, None)
    write_overlay(tmp_path / "b.png", without)
    assert Image.open(tmp_path / "b.png").size == (2 * 448 + 48 + 330, 448 + 24)
