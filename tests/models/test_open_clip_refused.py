"""What is not converted of open_clip's format, and files that do not fit each other, are refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scripts.make_open_clip_golden import CASES, EMBEDDING
from tests.conftest import examples
from tests.open_clip_folders import (
    BIOMED,
    NATIVE,
    WEIGHTS,
    change_weights,
    difference,
    drop,
    load,
    save,
    save_tokenizer,
)

from thoraclip.errors import ModelError
from thoraclip.methods.checking import check_model
from thoraclip.models.checkpoint import find_checkpoint
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.files import OPEN_CLIP

ASK: dict[str, Callable[[str], Any]] = {
    "loading": load_dual_encoder,
    "checking": partial(check_model, geometry="squash", encodes=True),
}


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


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_that_is_not_converted_is_refused_by_name_before_any_weight_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, changes, message = REFUSED[name]
    monkeypatch.setattr("thoraclip.models.dual_encoder.load_model", lambda *_: pytest.fail("weights were read"))
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


def test_the_heads_of_a_bert_are_told_by_its_width_or_by_its_own_config(tmp_path: Path) -> None:
    case = "timm and BERT of 2 heads of 16"
    folder = save(tmp_path / "m", case)
    assert find_checkpoint(str(folder)).config.text_config.num_attention_heads == 2
    (folder / "config.json").unlink()
    for ask in ASK.values():
        with pytest.raises(ModelError, match="hf_model_name = 'bert': its config.json, since width 32 does not tell"):
            ask(str(folder))
    assert find_checkpoint(str(save(tmp_path / "64", BIOMED))).config.text_config.num_attention_heads == 1


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
    assert difference(load(folder), NATIVE) < 1e-5


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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2),
)
vision_names = st.sampled_from(["layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "pool_type", "timm_model_name", "timm_pool", "timm_proj", "odd"])  # fmt: skip
text_names = st.sampled_from(["layers", "width", "heads", "context_length", "vocab_size", "eos_id", "pool_type", "hf_model_name", "hf_pooler_type", "hf_proj_type"])  # fmt: skip


@given(
    case=st.sampled_from([NATIVE, BIOMED]),
    vision=st.dictionaries(vision_names, values, max_size=3),
    text=st.dictionaries(text_names, values, max_size=3),
    model=st.dictionaries(st.sampled_from(["embed_dim", "vision_cfg", "text_cfg", "quick_gelu"]), values, max_size=1),
    preprocess=st.dictionaries(st.sampled_from(["mean", "std", "interpolation", "resize_mode"]), values) | values,
)
@examples(100)
def test_any_description_is_read_or_refused(
    case: str, vision: Any, text: Any, model: Any, preprocess: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any-{CASES[case]['quick_gelu'] if case == NATIVE else 'timm'}"
    if not folder.is_dir():
        save(folder, case)
    parts = {"vision_cfg": CASES[case]["vision_cfg"] | vision, "text_cfg": CASES[case]["text_cfg"] | text}
    content = {"model_cfg": CASES[case] | parts | model, "preprocess_cfg": preprocess}
    (folder / OPEN_CLIP).write_text(json.dumps(content), encoding="utf-8")
    for ask in (find_checkpoint, ASK["checking"]):
        try:
            ask(str(folder))
        except ModelError as error:
            assert "\n" not in str(error) and len(str(error)) < 700


@pytest.mark.parametrize("content", ["[]", '{"model_cfg": []}', "{}", '{"model_cfg": {"embed_dim": NaN}}', "\0"])
def test_a_file_that_is_no_description_is_refused(content: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", NATIVE)
    (folder / OPEN_CLIP).write_text(content)
    for ask in ASK.values():
        with pytest.raises(ModelError, match=OPEN_CLIP):
            ask(str(folder))
