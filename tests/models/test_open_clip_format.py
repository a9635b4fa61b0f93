"""Models in open_clip's format compute what open_clip computed (golden values), and what is not converted is refused.

The values are of `scripts/make_open_clip_golden.py`; `golden/open_clip.json` names the versions.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
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
from scripts.make_open_clip_golden import CASES, EMBEDDING, SIDE, pixels, tokens
from tests.checkpoints import save_checkpoint
from tests.open_clip_folders import BIOMED, GOLDEN, NATIVE, WEIGHTS, save, save_tokenizer

from thoraclip.errors import ModelError
from thoraclip.labels import LabelSet
from thoraclip.methods.checking import check_model
from thoraclip.models.backbones import load_backbone, load_trained
from thoraclip.models.checkpoint import find_checkpoint
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.files import OPEN_CLIP, Checkpoint
from thoraclip.models.image_processor import read_preprocess
from thoraclip.models.lora import LoraSettings, add_lora
from thoraclip.models.open_clip_config import HEADS_OF_TIMM, PLAIN_VIT

TOLERANCE = 1e-5  # fp32: the same products, in another order


def load(folder: Path) -> DualEncoder:
    return load_dual_encoder(str(folder), precision="fp32", device="cpu")


def computed(encoder: DualEncoder, case: str) -> dict[str, torch.Tensor]:
    """Features and logits of the golden inputs."""
    ids = torch.from_numpy(tokens(CASES[case]))
    with torch.inference_mode():
        pooled, image = encoder.image_features(torch.from_numpy(pixels()))
        text = encoder.text_features({"input_ids": ids, "attention_mask": (ids != 0).long()})
    logits = encoder.logit_scale * torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    return {"pooled": pooled, "image": image, "text": text, "logits": logits}


def difference(encoder: DualEncoder, case: str, kinds: tuple[str, ...] = ("image", "text", "logits")) -> float:
    """The largest one to open_clip's values, any feature, any image or text."""
    found = computed(encoder, case)
    return max(float((found[kind] - torch.tensor(GOLDEN["cases"][case][kind])).abs().max()) for kind in kinds)


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


VISION, TEXT = "model_cfg.vision_cfg", "model_cfg.text_cfg"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "ResNet": (NATIVE, {"vision_cfg": {"layers": [3, 4, 6, 3]}}, f"{VISION}.layers = a list of 4"),
    "attentional pool": (NATIVE, {"vision_cfg": {"attentional_pool": True}}, f"{VISION}.attentional_pool = True"),
    "no first norm": (NATIVE, {"vision_cfg": {"no_ln_pre": True}}, f"{VISION}.no_ln_pre = True"),
    "mean of patches": (NATIVE, {"vision_cfg": {"pool_type": "avg"}}, f"{VISION}.pool_type = 'avg'"),
    "layer scale": (NATIVE, {"vision_cfg": {"ls_init_value": 0.1}}, f"{VISION}.ls_init_value = 0.1"),
    "norm of queries": (NATIVE, {"vision_cfg": {"qk_norm": True}}, f"{VISION}.qk_norm = True"),
    "blocks": (NATIVE, {"text_cfg": {"block_type": "custom"}}, f"{TEXT}.block_type = 'custom'"),
    "activation": (NATIVE, {"text_cfg": {"act_kwargs": {"approximate": "tanh"}}}, f"{TEXT}.act_kwargs = a table of 1"),
    "norm": (NATIVE, {"text_cfg": {"norm_kwargs": {"eps": 1e-6}}}, f"{TEXT}.norm_kwargs = a table of 1"),
    "images not square": (NATIVE, {"vision_cfg": {"image_size": [32, 64]}}, f"{VISION}.image_size = a list of 2"),
    "no heads": (NATIVE, {"vision_cfg": {"head_width": 25}}, f"{VISION}.head_width = 25: a number of heads that divides the width, 24"),
    "heads": (NATIVE, {"text_cfg": {"heads": 5}}, f"{TEXT}.heads = 5: a number of heads that divides the width, 24"),
    "no causal mask": (NATIVE, {"text_cfg": {"no_causal_mask": True}}, f"{TEXT}.no_causal_mask = True"),
    "class token": (NATIVE, {"text_cfg": {"embed_cls": True}}, f"{TEXT}.embed_cls = True"),
    "last token": (NATIVE, {"text_cfg": {"pool_type": "last"}}, f"{TEXT}.pool_type = 'last'"),
    "eos 2": (NATIVE, {"text_cfg": {"pool_type": "eos", "eos_id": 2}}, f"{TEXT}.eos_id = 2: another number where pool"),
    "biased projection": (NATIVE, {"text_cfg": {"proj_bias": True}}, f"{TEXT}.proj_bias = True"),
    "no text projection": (NATIVE, {"text_cfg": {"proj_type": "none"}}, f"{TEXT}.proj_type = 'none'"),
    "tokenizer": (NATIVE, {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, f"{TEXT}.tokenizer_kwargs = a table"),
    "CoCa": (NATIVE, {"multimodal_cfg": {}}, "model_cfg.multimodal_cfg = a table of 0: a part that Transformers has too"),
    "sigmoid loss": (NATIVE, {"init_logit_bias": -10}, "model_cfg.init_logit_bias = -10"),
    "unknown": (NATIVE, {"vision_cfg": {"rope": 1}}, f"{VISION}.rope = 1: a part that Transformers has too is needed"),
    "no width": (NATIVE, {"embed_dim": "16"}, "model_cfg.embed_dim = '16': a whole number"),
    "ConvNeXt": (BIOMED, {"vision_cfg": {"timm_model_name": "convnext_base"}}, f"{VISION}.timm_model_name = 'convnext_base': a plain ViT of timm"),
    "pool of timm": (BIOMED, {"vision_cfg": {"timm_pool": "map"}}, f"{VISION}.timm_pool = 'map'"),
    "head of timm": (BIOMED, {"vision_cfg": {"timm_proj": ""}}, "model_cfg.vision_cfg.timm_pool = '': token where timm_proj = ''"),
    "width of timm": ("timm, no projection", {"embed_dim": 16}, "model_cfg.embed_dim = 16: the width of vit_tiny_patch16_224, 24"),
    "heads of timm": (BIOMED, {"vision_cfg": {"timm_model_name": "vit_large_patch16_224"}}, f"{VISION}.timm_model_name = 'vit_large_patch16_224': a number of heads"),
    "max pooler": (BIOMED, {"text_cfg": {"hf_pooler_type": "max_pooler"}}, f"{TEXT}.hf_pooler_type = 'max_pooler'"),
    "other projection": (BIOMED, {"text_cfg": {"hf_proj_type": "cubic"}}, f"{TEXT}.hf_proj_type = 'cubic'"),
    "no BERT projection": (BIOMED, {"text_cfg": {"hf_proj_type": None}}, "model_cfg.embed_dim = 16: the width of bert, 64"),
    "more tokens than positions": (BIOMED, {"text_cfg": {"context_length": 33}}, f"{TEXT}.context_length = 33: a number up to 32"),
}  # fmt: skip
ASK: dict[str, Callable[[str], Any]] = {
    "loading": load_dual_encoder,
    "checking": partial(check_model, geometry="squash", encodes=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_that_is_not_converted_is_refused_by_name_before_any_weight_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, changes, message = REFUSED[name]
    monkeypatch.setattr("thoraclip.models.checkpoint.load_model", lambda *_: pytest.fail("weights were read"))
    folder = save(tmp_path / "m", case)
    content = json.loads((folder / OPEN_CLIP).read_text())
    for part, value in changes.items():
        own = content["model_cfg"].get(part)
        content["model_cfg"][part] = own | value if isinstance(own, dict) and isinstance(value, dict) else value
    (folder / OPEN_CLIP).write_text(json.dumps(content))
    for ask in ASK.values():
        with pytest.raises(ModelError) as caught:
            ask(str(folder))
        assert message in str(caught.value)
        assert str(caught.value).startswith(str(folder / OPEN_CLIP)) and "Transformers format" in str(caught.value)


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


def test_the_heads_of_a_bert_are_told_by_its_width_or_by_its_own_config(tmp_path: Path) -> None:
    case = "timm and BERT of 2 heads of 16"
    folder = save(tmp_path / "m", case)
    assert find_checkpoint(str(folder)).config.text_config.num_attention_heads == 2
    (folder / "config.json").unlink()
    for ask in ASK.values():
        with pytest.raises(ModelError, match="hf_model_name = 'bert': its config.json, since width 32 does not tell"):
            ask(str(folder))
    assert find_checkpoint(str(save(tmp_path / "64", BIOMED))).config.text_config.num_attention_heads == 1


def change_weights(folder: Path, change: dict[str, Any]) -> None:
    weights = load_file(folder / WEIGHTS) | change
    save_file({name: weight for name, weight in weights.items() if weight is not None}, folder / WEIGHTS)


BAD_WEIGHTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": (NATIVE, {"visual.proj": None}, "1 weights are missing, first 'visual_projection.weight'"),
    "unknown": (NATIVE, {"visual.extra": np.zeros(3, np.float32)}, "1 weights are not part of the architecture, first 'visual.extra'"),
    "other shape": (NATIVE, {"text_projection": np.zeros((3, 3), np.float32)}, "1 weights have another shape, first 'text_projection.weight'"),
    "infinite": (NATIVE, {"visual.proj": np.full((24, EMBEDDING), np.inf, np.float32)}, "NaN or infinite"),
    "whole": (NATIVE, {"visual.proj": np.zeros((24, EMBEDDING), np.int8)}, "weight 'visual.proj' holds whole numbers"),
    "RoBERTa": (BIOMED, {"text.transformer.embeddings.token_type_embeddings.weight": np.zeros((1, 64), np.float32)}, "hf_model_name = 'bert': a BERT is needed"),
    "no text tower": (BIOMED, {"text.transformer.embeddings.word_embeddings.weight": None}, "have no 'text.transformer.embeddings.word_embeddings.weight'"),
    "no patches": (BIOMED, {"visual.trunk.patch_embed.proj.weight": np.zeros(3, np.float32)}, "have no 'visual.trunk.patch_embed.proj.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_do_not_fill_the_towers_are_named(name: str, tmp_path: Path) -> None:
    case, change, message = BAD_WEIGHTS[name]
    change_weights(folder := save(tmp_path / "m", case), change)
    with pytest.raises(ModelError, match=re.escape(message)):
        load(folder)


def test_half_precision_old_buffers_and_the_other_name_of_the_file_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", BIOMED)
    weights = {name: weight.astype(np.float16) for name, weight in load_file(folder / WEIGHTS).items()}
    weights["text.transformer.embeddings.position_ids"] = np.arange(32)[None]
    (folder / WEIGHTS).unlink()
    save_file(weights, folder / "model.safetensors")
    encoder = load(folder)
    assert next(encoder.model.parameters()).dtype == torch.float32
    assert difference(encoder, BIOMED) < 0.05  # 11 bits a weight


def test_pickled_weights_alone_are_refused_with_a_remedy_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "m", NATIVE)
    state = {name: torch.from_numpy(weight) for name, weight in load_file(folder / WEIGHTS).items()}
    torch.save({"state_dict": state}, folder / "open_clip_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    for ask in ASK.values():
        with pytest.raises(ModelError, match=r"pickled weights .* are not read; convert them as docs/models.md says"):
            ask(str(folder))
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert difference(load(folder), NATIVE) < TOLERANCE


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


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"interpolation": "nearest"}, "preprocess_cfg.interpolation = 'nearest'"),
        ({"resize_mode": "stretch"}, "preprocess_cfg.resize_mode = 'stretch'"),
        ({"resize_mode": "longest", "fill_color": 127}, "preprocess_cfg.fill_color = 127"),
        ({"mode": "L"}, "preprocess_cfg.mode = 'L'"),
        ({"std": [0, 1, 1]}, "image_std = .* positive ones"),
        ({"mean": [1, 2]}, "image_mean = .* is not three numbers"),
    ],
)
def test_pixels_that_are_made_otherwise_are_refused(preprocess: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", NATIVE, preprocess=preprocess)
    for ask in ASK.values():
        with pytest.raises(ModelError, match=message):
            ask(str(folder))


def drop(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


TOKENIZERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "of CLIP is not there": (NATIVE, drop, r"put the tokenizer's files of openai/clip-vit-base-patch32 beside"),
    "of BERT is not there": (BIOMED, drop, r"put the tokenizer's files of bert beside"),
    "has too many words": (NATIVE, lambda f: save_tokenizer(f, end=59, words=60), "it has 60 words, and the text tower 50"),
    "ends with a lower word": (NATIVE, lambda f: save_tokenizer(f, end=4), "ends a text with word 4, and the text tower reads word"),
    "ends with another word": ("native, eos", lambda f: save_tokenizer(f, end=8), "ends a text with word 8, and the text tower reads word 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    case, change, message = TOKENIZERS[name]
    change(folder := save(tmp_path / "m", case))
    with pytest.raises(ModelError, match=message):
        load(folder)
    if change is drop:
        with pytest.raises(ModelError, match=message):
            ASK["checking"](str(folder))


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
    folder, labels = save(tmp_path / "m", BIOMED), LabelSet(("COVID-19", "Normal"))
    backbone = load_backbone(str(folder), labels, precision="fp32", device="cpu")
    backbone.save(tmp_path / "trained", {})
    assert np.array_equal(load_trained(tmp_path / "trained", precision="fp32", device="cpu").predict(pixels()), backbone.predict(pixels()))  # fmt: skip
    assert not [name for name, _ in backbone.network.named_parameters() if "pooler" in name]  # nothing that timm lacks
    encoder = load(folder)
    assert not [n for n in add_lora(encoder, LoraSettings(), seed=0).encoder_parameters if "lora" not in n]
    tuned = add_lora(load(folder), LoraSettings(projections="train"), seed=0)
    kept = {name.split("base_model.model.")[1].split(".")[0] for name in tuned.encoder_parameters if "lora" not in name}
    assert kept == {"visual_projection", "text_projection"}
    assert {name.split(".")[-2] for name in tuned.encoder_parameters if "text_projection" in name} == {"0", "2"}
