"""Networks that are trained end to end: the numbers of Transformers, a new head, and a folder that it loads back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import CLASSIFIERS, FAMILIES, SIDE, save_checkpoint, save_classifier
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    HGNetV2Config,
    SwinConfig,
    ViTConfig,
)

from thoraclip.errors import InputError, ModelError
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import Backbone, load_backbone, load_trained, read_trained_note

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))
KINDS = (*CLASSIFIERS, *FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {kind: save_classifier(kind, root / kind, seed=3) for kind in CLASSIFIERS}
    return made | {family: save_checkpoint(family, root / family, seed=3) for family in FAMILIES}


def load(folder: Path, labels: LabelSet = LABELS, **settings: Any) -> Backbone:
    return load_backbone(str(folder), labels, **{"precision": "fp32", "device": "cpu", **settings})


def pixels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_its_features_and_logits_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    """The Transformers model called by hand, with the same head."""
    found = load(folders[kind])
    by_hand = AutoModelForImageClassification.from_pretrained(
        folders[kind], num_labels=3, ignore_mismatched_sizes=True
    ).eval()
    by_hand.classifier.load_state_dict(found.network.get_submodule("classifier").state_dict())
    with torch.no_grad():
        expected = by_hand(pixel_values=torch.from_numpy(pixels())).logits
        logits = found.logits(torch.from_numpy(pixels()))
    assert (logits - expected).abs().max() < 1e-5
    assert np.abs(found.predict(pixels()) - expected.softmax(-1).numpy()).max() < 1e-5


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_tower_is_the_pooled_output_under_a_linear_layer(family: str, folders: dict[str, Path]) -> None:
    found, head = load(folders[family]), None
    by_hand = AutoModel.from_pretrained(folders[family]).eval()
    head = found.network.get_submodule("classifier")
    with torch.no_grad():
        pooled = by_hand.vision_model(pixel_values=torch.from_numpy(pixels())).pooler_output
        expected = pooled @ head.weight.T + head.bias  # type: ignore[operator, union-attr]
        logits = found.logits(torch.from_numpy(pixels()))
    assert (logits - expected).abs().max() < 1e-5
    assert not any(name.startswith("text") for name, _ in found.network.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_new_and_hangs_on_the_seed_alone(kind: str, folders: dict[str, Path]) -> None:
    one, again, other = load(folders[kind], seed=1), load(folders[kind], seed=1), load(folders[kind], seed=2)
    heads = [{n: p.detach() for n, p in b.head_parameters.items()} for b in (one, again, other)]
    assert heads[0]
    assert all(torch.equal(heads[0][n], heads[1][n]) for n in heads[0])
    assert not all(torch.equal(heads[0][n], heads[2][n]) for n in heads[0])
    bodies = [{n: p for n, p in b.network.named_parameters() if n not in b.head_parameters} for b in (one, other)]
    assert all(torch.equal(bodies[0][n], bodies[1][n]) for n in bodies[0])
    assert one.predict(pixels()).shape == (3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_pretrained_weights_everything_hangs_on_the_seed(kind: str, folders: dict[str, Path]) -> None:
    stream = torch.get_rng_state()
    one, again, other = (load(folders[kind], pretrained=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), stream)
    loaded = load(folders[kind], seed=1)
    weights = [dict(b.network.named_parameters()) for b in (one, again, other, loaded)]
    matrices = [n for n, p in weights[0].items() if p.dim() > 1 and n not in one.head_parameters and p.std() > 0]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not any(torch.equal(weights[0][n], weights[2][n]) for n in matrices)
    assert not any(torch.equal(weights[0][n], weights[3][n]) for n in matrices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_comes_back(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    found = load(folders[kind], geometry="crop")
    for name in ("one", "two"):
        found.save(tmp_path / name, {"step": 3})
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    again = load_trained(tmp_path / "one", precision="fp32", device="cpu")
    assert again.labels == LABELS
    assert again.preprocess == found.preprocess
    assert np.array_equal(again.predict(pixels()), found.predict(pixels()))
    assert read_trained_note(tmp_path / "one")["facts"] == {"step": 3}
    if kind in CLASSIFIERS:
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "one").eval()
        with torch.no_grad():
            logits = plain(pixel_values=torch.from_numpy(pixels())).logits
        assert plain.config.id2label == dict(enumerate(LABELS.names))
        assert np.abs(logits.softmax(-1).numpy() - found.predict(pixels())).max() < 1e-6


def test_depths_follow_the_layers(folders: dict[str, Path]) -> None:
    vit = load(folders["vit"])
    names = [n for n, _ in vit.network.named_parameters()]
    depth = dict(zip(names, vit.depths(names), strict=True))
    assert depth["vit.embeddings.cls_token"] == 0
    assert depth["vit.layers.0.mlp.fc1.weight"] == 1
    assert depth["vit.layers.1.mlp.fc1.weight"] == 2
    assert depth["vit.layernorm.weight"] == depth["classifier.weight"] == 3
    resnet = load(folders["resnet"])
    names = [n for n, _ in resnet.network.named_parameters()]
    depth = dict(zip(names, resnet.depths(names), strict=True))
    assert depth["resnet.embedder.embedder.convolution.weight"] == 0
    assert depth["resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"] == 2
    assert depth["classifier.1.weight"] == 3
    clip = load(folders["clip"])
    names = [n for n, _ in clip.network.named_parameters()]
    depth = dict(zip(names, clip.depths(names), strict=True))
    assert sorted(set(depth.values())) == [0, 1, 2, 3]
    (before,) = (name for name in names if name.endswith("pre_layrnorm.weight"))
    assert depth[before] == 0


@pytest.mark.parametrize(
    "config",
    [
        ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2, num_labels=7, image_size=SIDE),
        SwinConfig(depths=[1, 1], num_heads=[1, 2], embed_dim=8, image_size=SIDE, window_size=2, num_labels=7),
    ],
)
def test_any_architecture_that_transformers_has(config: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "model")
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path / "model")
    found = load(tmp_path / "model")
    names = [n for n, _ in found.network.named_parameters()]
    assert set(found.depths(names)) == {0, 1, 2, 3}
    assert found.predict(pixels()).shape == (3, 3)


def test_an_architecture_whose_head_cannot_be_told_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its pretrained weights would be taken for a head, and drawn anew."""
    config = HGNetV2Config(
        num_labels=7, embedding_size=8, stem_channels=[3, 4, 8], depths=[1], hidden_sizes=[8], stage_in_channels=[8],
        stage_mid_channels=[4], stage_out_channels=[8], stage_num_blocks=[1], stage_numb_of_layers=[1],
        stage_downsample=[False], stage_light_block=[False], stage_kernel_size=[3], out_features=["stage1"],
    )  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "model")
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path / "model")
    for pretrained in (True, False):
        with pytest.raises(ModelError, match="whose head cannot be told from its network"):
            load(tmp_path / "model", pretrained=pretrained)


def test_resnets_processor_is_understood(folders: dict[str, Path]) -> None:
    """`crop_pct` says how much larger the picture is before its middle is cut out."""
    assert load(folders["resnet"], geometry="crop").preprocess.short_side == int(SIDE / 0.875)
    assert load(folders["resnet"]).preprocess.size == SIDE


def damage(folder: Path, out: Path, change: Any) -> Path:
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_bad_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    first = "vit.embeddings.position_embeddings"  # a name that is the same on disk as in memory
    damaged = damage(folders["vit"], tmp_path / "nan", lambda t: t[first].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(ModelError, match=f"'{first}' holds NaN or infinite"):
        load(damaged)
    damaged = damage(folders["vit"], tmp_path / "missing", lambda t: t.pop(first))
    with pytest.raises(ModelError, match="1 weights are missing, first 'vit.embeddings.position_embeddings'"):
        load(damaged)
    headless = damage(folders["vit"], tmp_path / "headless", lambda t: t.pop("classifier.weight"))
    assert load(headless).predict(pixels()).shape == (3, 3)
    blip = tmp_path / "text"
    shutil.copytree(folders["vit"], blip)
    content = json.loads((blip / "config.json").read_text())
    (blip / "config.json").write_text(json.dumps(content | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="type 'bert' is neither an image classifier nor a dual encoder"):
        load(blip)
    grey = tmp_path / "grey"
    AutoModelForImageClassification.from_config(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_channels=1)
    ).save_pretrained(grey)
    with pytest.raises(ModelError, match="takes 1 channels"):
        load(grey)


def test_a_trained_folder_that_was_changed_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no thoraclip\.json there"):
        load_trained(folders["vit"])
    load(folders["vit"]).save(tmp_path / "model", {})
    note = tmp_path / "model" / "thoraclip.json"
    content = json.loads(note.read_text())
    note.write_text(json.dumps(content | {"labels": ["a", "b", "c", "d"]}))
    with pytest.raises(ModelError, match="name other classes"):
        load_trained(tmp_path / "model")
    note.write_text(json.dumps(content | {"schema": 99}))
    with pytest.raises(ModelError, match="schema 99 is newer"):
        load_trained(tmp_path / "model")
    note.write_text("{")
    with pytest.raises(ModelError, match="not readable"):
        load_trained(tmp_path / "model")
