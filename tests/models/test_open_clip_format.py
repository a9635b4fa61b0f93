"""Models in open_clip's format compute what open_clip computed (golden values), and what is not converted is refused.

The values are of `scripts/make_open_clip_golden.py`; `golden/open_clip.json` names the versions.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file
from scripts.make_open_clip_golden import CASES, EMBEDDING, SIDE, pixels
from tests.checkpoints import save_checkpoint
from tests.open_clip_folders import (
    BIOMED,
    GOLDEN,
    NATIVE,
    WEIGHTS,
    computed,
    difference,
    drop,
    load,
    save,
)

from thoraclip.errors import InputError, ModelError
from thoraclip.labels import LabelSet
from thoraclip.methods.checking import check_model
from thoraclip.models.backbones import load_backbone, load_trained
from thoraclip.models.checkpoint import find_checkpoint
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.files import OPEN_CLIP, Checkpoint
from thoraclip.models.heads import LinearHead
from thoraclip.models.image_processor import read_preprocess
from thoraclip.models.lora import LoraSettings, add_lora
from thoraclip.models.open_clip_config import HEADS_OF_TIMM, PLAIN_VIT
from thoraclip.models.plain_folder import image_classifier, plain_dual_encoder, write_plain

LABELS = LabelSet(("COVID-19", "Normal"))
TOLERANCE = 1e-5  # fp32: the same products, in another order


def test_the_golden_file_is_of_these_cases_and_of_named_versions() -> None:
    assert {name: kept["model_cfg"] for name, kept in GOLDEN["cases"].items()} == CASES
    assert set(GOLDEN["versions"]) == {"open_clip_torch", "timm", "torch", "transformers"}


@pytest.mark.parametrize("case", CASES)
def test_features_and_logits_are_those_of_open_clip(case: str, tmp_path: Path) -> None:
    assert difference(load(save(tmp_path / "m", case)), case) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "changes", "kind"),
    [
        (NATIVE, {"quick_gelu": False}, "image"),
        (NATIVE, {"quick_gelu": False}, "text"),
        (NATIVE, {"vision_cfg": {"head_width": 12}}, "image"),
        (NATIVE, {"text_cfg": {"heads": 2}}, "text"),
        ("native, eos", {"text_cfg": {"eos_id": 49}}, "text"),
        (BIOMED, {"text_cfg": {"hf_pooler_type": "mean_pooler"}}, "text"),
        ("timm and BERT, mean", {"text_cfg": {"hf_pooler_type": "cls_last_hidden_state_pooler"}}, "text"),
        (BIOMED, {"vision_cfg": {"timm_pool": "avg"}}, "image"),
        (BIOMED, {"vision_cfg": {"timm_model_name": "vit_small_patch16_224"}}, "image"),
        ("native and BERT", {"quick_gelu": False}, "image"),
    ],
)
def test_every_word_of_the_description_counts(case: str, changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """So the values above would tell a wrong activation, pool or number of heads."""
    assert difference(load(save(tmp_path / "m", case, **changes)), case, (kind,)) > 100 * TOLERANCE


@pytest.mark.parametrize("case", [NATIVE, "native, eos", BIOMED, "timm and BERT, mean", "timm, mlp"])
def test_texts_are_tokenized_cut_and_padded_as_open_clip_does_it(case: str, tmp_path: Path) -> None:
    encoder, config = load(save(tmp_path / "m", case)), CASES[case]["text_cfg"]
    length, end = config["context_length"], config.get("eos_id", 49)
    numbers = [[9, 30], [8, 11, 12, 13, 14], list(range(8, 48)) * 3]  # the last one is too long
    rows = torch.zeros(3, length, dtype=torch.long)
    for row, words in zip(rows, numbers, strict=True):
        given = [2, *words[: length - 2], end]
        row[: len(given)] = torch.tensor(given)
    with torch.inference_mode():
        padded = encoder.text_features({"input_ids": rows, "attention_mask": (rows != 0).long()})
    found = encoder.encode_texts([" ".join(f"w{n}" for n in words) for words in numbers])
    np.testing.assert_allclose(found, torch.nn.functional.normalize(padded, dim=-1), atol=TOLERANCE)


def test_the_pooled_feature_is_the_first_token_after_the_last_norm(tmp_path: Path) -> None:
    encoder = load(save(tmp_path / "m", BIOMED))
    with torch.inference_mode():
        tower = encoder.model.vision_model(torch.from_numpy(pixels()))
    assert torch.equal(computed(encoder, BIOMED)["pooled"], tower.last_hidden_state[:, 0])
    weight = torch.from_numpy(load_file(tmp_path / "m" / WEIGHTS)["visual.head.proj.weight"])
    torch.testing.assert_close(computed(encoder, BIOMED)["image"], tower.last_hidden_state[:, 0] @ weight.T)


def test_the_vits_that_are_taken_for_plain_ones_are_those_that_timm_builds_alike() -> None:
    taken = {name for name in GOLDEN["timm"] if PLAIN_VIT.fullmatch(name)}
    assert taken == {name for name, sizes in GOLDEN["timm"].items() if sizes} and len(taken) > 20
    for name in taken:
        match = PLAIN_VIT.fullmatch(name)
        assert match is not None and HEADS_OF_TIMM[match[1]] == GOLDEN["timm"][name][1], name
    assert PLAIN_VIT.fullmatch("vit_base_patch16_224.augreg_in21k") and PLAIN_VIT.fullmatch(
        "vit_base_patch16_224_in21k"
    )
    assert not PLAIN_VIT.fullmatch("vit_base_patch16_siglip_224") and not PLAIN_VIT.fullmatch("xvit_base_patch16_224")


def test_half_precision_old_buffers_and_the_other_name_of_the_file_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", BIOMED)
    weights = {name: weight.astype(np.float16) for name, weight in load_file(folder / WEIGHTS).items()}
    weights["text.transformer.embeddings.position_ids"] = np.arange(32)[None]
    (folder / WEIGHTS).unlink()
    save_file(weights, folder / "model.safetensors")
    encoder = load(folder)
    assert next(encoder.model.parameters()).dtype == torch.float32
    assert difference(encoder, BIOMED) < 0.05  # 11 bits a weight


def test_the_format_of_transformers_counts_where_both_are(tmp_path: Path) -> None:
    folder = save_checkpoint("clip", tmp_path / "m")
    shutil.copy(save(tmp_path / "o", BIOMED) / OPEN_CLIP, folder)
    assert not find_checkpoint(str(folder)).is_open_clip
    assert load(folder).fingerprint == load(save_checkpoint("clip", tmp_path / "clip")).fingerprint
    timm = save(tmp_path / "timm", NATIVE)  # its Hub repositories have a config.json of its own
    (timm / "config.json").write_text('{"architecture": "vit_base_patch16_224", "num_classes": 0}')
    assert difference(load(timm), NATIVE) < TOLERANCE


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({}, {"resample": "bicubic", "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "size": 999}, {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}),
        ({"mean": 0.5, "std": 0.25, "mode": "RGB", "interpolation": None}, {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}),
        ({"interpolation": "bilinear", "resize_mode": "squash"}, {"resample": "bilinear"}),
        ({"interpolation": "random", "resize_mode": "longest", "fill_color": 0}, {"resample": "bicubic"}),
    ],
)  # fmt: skip
def test_pixels_are_made_as_the_description_says(
    preprocess: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(tmp_path / "m", NATIVE, preprocess=preprocess, vision_cfg={"image_size": [SIDE, SIDE]})
    for geometry in ("squash", "crop", "pad"):
        spec = read_preprocess(Checkpoint("m", str(folder), True, None), geometry=geometry)
        assert (spec.size, spec.geometry, spec.short_side or SIDE) == (SIDE, geometry, SIDE)
        assert {name: getattr(spec, name) for name in expected} == expected


def test_a_vocabulary_alone_is_a_berts_tokenizer(tmp_path: Path) -> None:
    drop(folder := save(tmp_path / "m", BIOMED))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "x", "-", "ray"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokens = load(folder).tokenize(["Chest X-ray", "ray"])
    assert tokens["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3], [2, 8, 3, 0, 0, 0]]


def test_of_a_model_on_the_hub_small_files_are_read_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = save(tmp_path / "m", BIOMED), list[str]()

    def metadata(url: str) -> None:
        asked.append(url.rsplit("/", 1)[1])
        if not (folder / asked[-1]).is_file():
            raise errors.EntryNotFoundError("404")

    def cached(_: str, name: str) -> str:
        asked.append(name)
        if not (folder / name).is_file():
            raise OSError("404")
        return str(folder / name)

    def header(_: str, name: str) -> Any:
        if not (folder / name).is_file():
            raise errors.EntryNotFoundError("404")
        return SimpleNamespace(tensors={n: SimpleNamespace(shape=s) for n, s in GOLDEN["cases"][BIOMED]["shapes"].items()})  # fmt: skip

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", header)
    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    check_model("owner/biomed", "squash", encodes=True)
    found = find_checkpoint("owner/biomed")
    assert found.is_open_clip and found.config.text_config.num_hidden_layers == 2
    assert asked[:2] == ["config.json", OPEN_CLIP] and not any(name.endswith("safetensors") for name in asked)
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="model 'owner/biomed': no open_clip_model.safetensors there, and pickled"):
        check_model("owner/biomed", "squash", encodes=True)


def test_a_trained_tower_and_its_towers_projections_are_kept(tmp_path: Path) -> None:
    """The folder that a baseline writes is read again, in another process too; LoRA trains a perceptron whole."""
    folder = save(tmp_path / "m", BIOMED)
    backbone = load_backbone(str(folder), LABELS, precision="fp32", device="cpu")
    backbone.save(tmp_path / "trained", {})
    assert np.array_equal(load_trained(tmp_path / "trained", precision="fp32", device="cpu").predict(pixels()), backbone.predict(pixels()))  # fmt: skip
    assert not [name for name, _ in backbone.network.named_parameters() if "pooler" in name]  # nothing that timm lacks
    encoder = load(folder)
    assert not [n for n in add_lora(encoder, LoraSettings(), seed=0).encoder_parameters if "lora" not in n]
    tuned = add_lora(load(folder), LoraSettings(projections="train"), seed=0)
    kept = {name.split("base_model.model.")[1].split(".")[0] for name in tuned.encoder_parameters if "lora" not in name}
    assert kept == {"visual_projection", "text_projection"}
    assert {name.split(".")[-2] for name in tuned.encoder_parameters if "text_projection" in name} == {"0", "2"}


def zeroshot(folder: Path) -> EncoderClassifier:
    encoder = load(folder)
    weight = np.random.default_rng(0).normal(size=(2, EMBEDDING)).astype(np.float32)
    return EncoderClassifier(encoder, LinearHead.unscaled(LABELS, weight), "projected")


def test_clips_own_towers_are_merged_into_a_plain_folder_and_others_are_refused(tmp_path: Path) -> None:
    prompts = {"COVID-19": ("w9 w10",), "Normal": ("w11",)}
    classifier = zeroshot(save(tmp_path / "native", NATIVE))
    (tmp_path / "plain").mkdir()
    write_plain(tmp_path / "plain", plain_dual_encoder(classifier, prompts))
    assert not find_checkpoint(str(tmp_path / "plain")).is_open_clip
    assert difference(load(tmp_path / "plain"), NATIVE) < TOLERANCE
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "plain")) is transformers.CLIPModel
    with pytest.raises(InputError, match="no dual encoder of Transformers has the pools .* `thoraclip export RUN"):
        plain_dual_encoder(zeroshot(save(tmp_path / "biomed", BIOMED)), prompts)


def test_a_probe_on_the_vit_is_merged_into_its_image_classifier(tmp_path: Path) -> None:
    encoder, rng = load(save(tmp_path / "m", BIOMED)), np.random.default_rng(0)
    head = LinearHead.unscaled(LABELS, rng.normal(size=(2, 24)).astype(np.float32))
    classifier = EncoderClassifier(encoder, head, "pooled")
    network = image_classifier(classifier).network
    assert type(network) is transformers.ViTForImageClassification
    with torch.inference_mode():
        found, own = network(torch.from_numpy(pixels())).logits, classifier.logits(torch.from_numpy(pixels()))
    torch.testing.assert_close(found, own, atol=TOLERANCE, rtol=0)
