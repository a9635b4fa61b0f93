"""Networks that are trained end to end: the numbers of Transformers, a new head, and a folder that it loads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import CLASSIFIERS, FAMILIES, SIDE
from tests.models.conftest import LABELS, changed
from transformers import AutoModel, AutoModelForImageClassification, ConvNextConfig, HGNetV2Config, SwinConfig

from thoraclip.errors import InputError, ModelError
from thoraclip.models.backbones import Backbone, load_backbone, load_trained, read_trained_note

KINDS = (*CLASSIFIERS, *FAMILIES)
PIXELS = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def load(folder: Path, **settings: Any) -> Backbone:
    return load_backbone(str(folder), LABELS, **{"precision": "fp32", "device": "cpu", **settings})


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in backbone.network.named_parameters()}


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "clip", "siglip"])
def test_its_logits_are_those_of_transformers_under_the_same_head(kind: str, checkpoints: dict[str, Path]) -> None:
    """Of a dual encoder: the tower's pooled output under a linear layer."""
    found = load(checkpoints[kind])
    head = found.network.get_submodule("classifier")
    with torch.no_grad():
        if kind in CLASSIFIERS:
            by_hand = AutoModelForImageClassification.from_pretrained(
                checkpoints[kind], num_labels=3, ignore_mismatched_sizes=True
            ).eval()
            by_hand.classifier.load_state_dict(head.state_dict())
            expected = by_hand(pixel_values=PIXELS).logits
        else:
            by_hand = AutoModel.from_pretrained(checkpoints[kind]).eval()
            expected = head(by_hand.vision_model(pixel_values=PIXELS).pooler_output)
            assert not any(name.startswith("text") for name in weights(found))
        assert (found.logits(PIXELS) - expected).abs().max() < 1e-5
    assert np.abs(found.predict(PIXELS.numpy()) - expected.softmax(-1).numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_hangs_on_the_seed_alone_and_without_pretrained_weights_all_does(
    kind: str, checkpoints: dict[str, Path]
) -> None:
    stream = torch.get_rng_state()
    loaded = [load(checkpoints[kind], seed=seed) for seed in (1, 1, 2)]
    untrained = [load(checkpoints[kind], pretrained=False, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), stream)
    heads = loaded[0].head_parameters.keys()
    (one, again, other), (drawn, redrawn, otherwise) = (list(map(weights, each)) for each in (loaded, untrained))
    for name in one:
        is_drawn = name in heads and one[name].dim() > 1
        assert torch.equal(one[name], again[name]) and torch.equal(drawn[name], redrawn[name]), name
        assert torch.equal(one[name], other[name]) != is_drawn, name
        if one[name].dim() > 1 and drawn[name].std() > 0:
            assert not torch.equal(drawn[name], otherwise[name]), name
            assert is_drawn == torch.equal(drawn[name], one[name]), name
        if is_drawn:
            assert 0.01 < float(one[name].std()) < 0.04
    assert loaded[0].predict(PIXELS.numpy()).shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_comes_back(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    found = load(checkpoints[kind], geometry="crop")
    for name in ("one", "two"):
        found.save(tmp_path / name, {"step": 3})
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    again, expected = load_trained(tmp_path / "one", precision="fp32", device="cpu"), found.predict(PIXELS.numpy())
    assert (again.labels, again.preprocess) == (LABELS, found.preprocess)
    assert np.array_equal(again.predict(PIXELS.numpy()), expected)
    assert read_trained_note(tmp_path / "one")[2] == {"step": 3}
    if kind in CLASSIFIERS:
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "one").eval()
        assert plain.config.id2label == dict(enumerate(LABELS.names))
        with torch.no_grad():
            assert np.abs(plain(pixel_values=PIXELS).logits.softmax(-1).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vit", {"vit.embeddings.cls_token": 0, "vit.layers.0.mlp.fc1.weight": 1, "vit.layers.1.mlp.fc1.weight": 2}),
        ("vit", {"vit.layernorm.weight": 3, "classifier.weight": 3}),
        ("resnet", {"resnet.embedder.embedder.convolution.weight": 0, "classifier.1.weight": 3}),
        ("resnet", {"resnet.encoder.stages.1.layers.0.layer.0.convolution.weight": 2}),
        ("clip", {"vision_model.pre_layrnorm.weight": 0, "vision_model.encoder.layers.1.mlp.fc1.weight": 2}),
    ],
)
def test_depths_follow_the_layers(kind: str, expected: dict[str, int], checkpoints: dict[str, Path]) -> None:
    backbone = load(checkpoints[kind])
    names = list(weights(backbone))
    depth = dict(zip(names, backbone.depths(names), strict=True))
    assert {name: depth[name] for name in expected} == expected
    assert set(depth.values()) == {0, 1, 2, 3}


@pytest.fixture
def saved(checkpoints: dict[str, Path], tmp_path: Path) -> Any:
    """`saved(config)`: the folder of a classifier of this architecture."""

    def save(config: Any) -> Path:
        folder = changed(checkpoints["vit"], tmp_path / "model")
        AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(
    "config",
    [
        ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, num_labels=7, image_size=SIDE),
        SwinConfig(depths=[1, 1], num_heads=[1, 2], embed_dim=8, image_size=SIDE, window_size=2, num_labels=7),
    ],
)
def test_any_architecture_that_transformers_has(config: Any, saved: Any) -> None:
    found = load(saved(config))
    assert set(found.depths(list(weights(found)))) == {0, 1, 2, 3}
    assert found.predict(PIXELS.numpy()).shape == (3, 3)


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_architecture_whose_head_cannot_be_told_is_refused(pretrained: bool, saved: Any) -> None:
    """Its pretrained weights would be taken for a head, and drawn anew."""
    config = HGNetV2Config(
        num_labels=7, embedding_size=8, stem_channels=[3, 4, 8], depths=[1], hidden_sizes=[8], stage_in_channels=[8],
        stage_mid_channels=[4], stage_out_channels=[8], stage_num_blocks=[1], stage_numb_of_layers=[1],
        stage_downsample=[False], stage_light_block=[False], stage_kernel_size=[3], out_features=["stage1"],
    )  # fmt: skip
    with pytest.raises(ModelError, match="whose head cannot be told from its network"):
        load(saved(config), pretrained=pretrained)


def test_resnets_processor_is_understood(checkpoints: dict[str, Path]) -> None:
    """`crop_pct` says how much larger the picture is before its middle is cut out."""
    assert load(checkpoints["resnet"], geometry="crop").preprocess.short_side == int(SIDE / 0.875)
    assert load(checkpoints["resnet"]).preprocess.size == SIDE


def test_a_head_that_is_not_whole_is_nothing_to_a_network_that_gets_a_new_one(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """But to a trained one it is."""
    headless = load(changed(checkpoints["vit"], tmp_path / "headless", {"classifier.weight": None}))
    assert headless.predict(PIXELS.numpy()).shape == (3, 3)
    headless.save(tmp_path / "trained", {})
    nan = {"classifier.bias": torch.full((3,), torch.nan)}
    cases = [
        ({"classifier.weight": None}, "model.safetensors does not fit its config.json"),
        (nan, "weight 'classifier.bias' holds NaN or infinite numbers"),
    ]
    for number, (change, message) in enumerate(cases):
        with pytest.raises(ModelError, match=message):
            load_trained(changed(tmp_path / "trained", tmp_path / str(number), change))


def test_a_trained_folder_whose_note_is_missing_or_another_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no thoraclip\.json there"):
        load_trained(checkpoints["vit"])
    load(checkpoints["vit"]).save(tmp_path / "model", {})
    note = tmp_path / "model" / "thoraclip.json"
    content = json.loads(note.read_text())
    for text, message in (
        (json.dumps(content | {"labels": LABELS.names[::-1]}), "name other classes"),
        (json.dumps(content | {"schema": 2}), "schema 2 is newer than 1"),
        ("{", "not valid JSON"),
    ):
        note.write_text(text)
        with pytest.raises(ModelError, match=message):
            load_trained(tmp_path / "model")
