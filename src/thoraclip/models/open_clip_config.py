"""`open_clip_config.json`, by which open_clip describes a model, as configurations of Transformers; read without torch.

Names and defaults are open_clip 3.3's (its classes `CLIPVisionCfg`, `CLIPTextCfg`, `PreprocessCfg`). A part that the
classes of Transformers do not compute is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from thoraclip.documents import read_json, regular
from thoraclip.errors import ModelError, first_line
from thoraclip.models.files import OPEN_CLIP, OPEN_CLIP_TYPE, OPEN_CLIP_WEIGHTS, Checkpoint, model_file, stored_folder
from thoraclip.shapes import Check, WrongError, check, number, one_of, table, whole

__all__ = ["describe_open_clip", "open_clip_file", "open_clip_processor", "tokenizer_remedy"]

Shapes = Mapping[str, tuple[int, ...]]
_REMEDY = "take a model in Transformers format"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
_PLAIN_VIT = re.compile(rf"(?:vit|deit)_({'|'.join(_HEADS)})_patch\d+_\d+(?:_in21k)?(?:\.\w+)?")
"""timm's ViTs of one class token, biased projections, norms of eps 1e-6 and exact GELU; group 1 gives the heads."""
_CONTEXT = 77


def _any(_: Any) -> None:
    """What has no effect on the features, or none here."""


def _square(value: Any) -> None:
    """Pixels, as one whole number or twice the same."""
    sides = value if isinstance(value, list) else [value]
    whole(1, 10_000)(sides[0] if sides and sides == sides[:1] * len(sides) else value)


def _plain_vit(value: Any) -> None:
    if not isinstance(value, str) or not _PLAIN_VIT.fullmatch(value):
        raise WrongError(value, "a plain ViT of timm, as vit_base_patch16_224,")


def _parts(fields: Mapping[str, Check], *needed: str) -> Check:
    """A table of these fields and no others."""
    inner = table(fields, may=fields.keys() - set(needed))

    def look(value: Any) -> None:
        inner(value)
        for name in sorted(value.keys() - fields.keys()):
            wrong = WrongError(value[name], "a part that Transformers has too")
            wrong.place.append(f".{name}")
            raise wrong

    return look


_COUNT, _NO, _NOTHING, _YES_OR_NO = whole(1, 1_000_000), one_of(False), one_of(None), one_of(False, True)
_BOTH: dict[str, Check] = {
    "layers": _COUNT, "width": _COUNT, "mlp_ratio": number(0.01, 100),
    "ls_init_value": _NOTHING, "act_kwargs": _NOTHING, "norm_kwargs": _NOTHING, "block_type": _NOTHING,
    "qk_norm": _NO, "scaled_cosine_attn": _NO, "scale_heads": _NO, "scale_attn_inner": _NO, "scale_attn": _NO,
    "scale_fc": _NO,
    "output_tokens": _any, "final_ln_after_pool": _any,  # a norm of one token is the same before and after
}  # fmt: skip
_VISION = _BOTH | {
    "head_width": _COUNT, "patch_size": _square, "image_size": _square,
    "attentional_pool": _NO, "no_ln_pre": _NO, "pool_type": one_of("tok"),
    "timm_model_name": _plain_vit, "timm_pool": one_of("", "token", "avg"),
    "timm_proj": one_of("linear", "mlp", "none", "", None), "timm_proj_bias": _YES_OR_NO,
    **dict.fromkeys(("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type"), _any),
    **dict.fromkeys(("timm_model_pretrained", "timm_drop", "timm_drop_path"), _any),
}  # fmt: skip
_TEXT = _BOTH | {
    "context_length": whole(1, 10_000), "vocab_size": _COUNT, "heads": _COUNT, "pad_id": _any, "eos_id": whole(),
    "pool_type": one_of("argmax", "eos"), "proj_type": one_of("linear"),
    "embed_cls": _NO, "no_causal_mask": _NO, "proj_bias": _NO, "tokenizer_kwargs": one_of(None, {}),
    "tokenizer_mode": one_of(None, ""),
    "hf_pooler_type": one_of(None, "cls_pooler", "cls_last_hidden_state_pooler", "mean_pooler"),
    "hf_proj_type": one_of(None, "linear", "mlp"),
    **dict.fromkeys(("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name"), _any),
}  # fmt: skip
_MODEL = _parts(
    {
        "embed_dim": _COUNT, "vision_cfg": _parts(_VISION), "text_cfg": _parts(_TEXT), "quick_gelu": _YES_OR_NO,
        "init_logit_bias": _NOTHING,
        **dict.fromkeys(("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict"), _any),
    },
    "embed_dim", "vision_cfg", "text_cfg",
)  # fmt: skip
_PREPROCESS = {
    "mode": one_of(None, "RGB"), "interpolation": one_of(None, "bicubic", "bilinear", "random"),
    "resize_mode": one_of(None, "shortest", "squash", "longest"), "fill_color": one_of(None, 0),
}  # fmt: skip
_CONTENT = table(model_cfg=_MODEL, preprocess_cfg=table(_PREPROCESS, may=_PREPROCESS), may=["preprocess_cfg"])


def describe_open_clip(location: str, own: Mapping[str, Any], *, is_local: bool) -> dict[str, Any] | None:
    """The configuration, as JSON, of the Transformers classes that compute the same; `None` for another format.

    A model is in open_clip's format where there is `open_clip_config.json` and no `config.json`, or one that describes
    the BERT of its text tower, or one of timm. CLIP's own two towers become `CLIPConfig`, all else
    `open_clip_format.OpenClipConfig`.

    Args:
        location: a folder, or a Hub id.
        own: the content of `config.json`; empty where there is none.
        is_local: True for a folder.

    Raises:
        ModelError: a file is not readable, a part is not supported, or there are no safetensors.
    """
    if own.get("model_type") not in (None, "bert"):
        return None
    path = model_file(location, OPEN_CLIP, is_local=is_local)
    if path is None:
        return None
    config = _read(path)["model_cfg"]
    shapes = _stored_shapes(location, is_local=is_local)
    try:
        return _transformers(config, shapes, own if "model_type" in own else None)
    except ValueError as error:
        raise ModelError(f"{path}: model_cfg.{error} is needed; {_REMEDY}") from error
    except KeyError as error:
        raise ModelError(f"{path}: the weights beside it have no {error}; get the model again") from error


def _read(path: Path) -> Any:
    content = read_json(path, error=ModelError, remedy="get the model again")
    check(content, _CONTENT, path, error=ModelError, remedy=_REMEDY)
    return content


def open_clip_processor(path: Path) -> dict[str, Any]:
    """`preprocessor_config.json` of the image processor of Transformers that makes the same pixels.

    Raises:
        ModelError: not readable, or it says something that `imaging` does not do.
    """
    content = _read(path)
    given = {name: value for name, value in content.get("preprocess_cfg", {}).items() if value is not None}
    side = _side(content["model_cfg"]["vision_cfg"].get("image_size", 224))
    square = {"height": side, "width": side}
    is_cut = given.get("resize_mode", "shortest") == "shortest"
    kind, size = ("CLIP", {"shortest_edge": side}) if is_cut else ("ViT", square)
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "size": size,
        "crop_size": square,
        "resample": 2 if given.get("interpolation") == "bilinear" else 3,
        "image_mean": given.get("mean", list(_MEAN)),
        "image_std": given.get("std", list(_STD)),
    }


def tokenizer_remedy(checkpoint: Checkpoint) -> str:
    """What is needed where the tokenizer of a model is not there."""
    path = model_file(checkpoint.location, OPEN_CLIP, is_local=checkpoint.is_local)
    if path is None:
        return "a tokenizer.json is needed"
    source = _read(path)["model_cfg"]["text_cfg"].get("hf_tokenizer_name") or "openai/clip-vit-base-patch32"
    return f"a tokenizer.json is needed: put the tokenizer's files of {source} beside the weights"


def open_clip_file(checkpoint: Checkpoint) -> Path:
    """The file of the weights, fetched where it is on the Hub alone; raises ModelError where there is none."""
    files = (model_file(checkpoint.location, name, is_local=checkpoint.is_local) for name in OPEN_CLIP_WEIGHTS)
    if (file := next(filter(None, files), None)) is None:
        raise _no_weights(checkpoint.location)
    return file


def _no_weights(location: str) -> ModelError:
    return ModelError(
        f"model '{location}': no {OPEN_CLIP_WEIGHTS[0]} there, and pickled weights (.bin, .pt) are not read; convert "
        "them as docs/models.md says, and give the folder"
    )


def _stored_shapes(location: str, *, is_local: bool) -> Shapes:
    """Name -> shape of every weight; of a Hub model that is not on this machine, the header of the file is fetched."""
    folder = stored_folder(location)
    kept = [folder / name for name in OPEN_CLIP_WEIGHTS if folder and (folder / name).is_file()]
    if is_local and not kept:
        raise _no_weights(location)
    if not kept:
        return _hub_shapes(location)
    file = kept[0]
    try:
        with safe_open(regular(file), framework="numpy") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{file}: is not readable ({first_line(error)}); get it again") from error


def _hub_shapes(name: str) -> Shapes:
    from huggingface_hub import errors, parse_safetensors_file_metadata

    for file in OPEN_CLIP_WEIGHTS:
        try:
            header = parse_safetensors_file_metadata(name, file)
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # of the Hub client, and of the HTTP library below it
            raise ModelError(f"model '{name}': {file} cannot be fetched ({first_line(error)})") from error
        return {weight: tuple(info.shape) for weight, info in header.tensors.items()}
    raise _no_weights(name)


def _transformers(config: Mapping[str, Any], shapes: Shapes, bert: Mapping[str, Any] | None) -> dict[str, Any]:
    vision_cfg, text_cfg, side = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"  # of CLIP's own towers alone
    is_timm, is_hf = bool(vision_cfg.get("timm_model_name")), bool(text_cfg.get("hf_model_name"))
    vision, vision_parts = _timm(vision_cfg, shapes, side) if is_timm else (_vision(vision_cfg, activation), {})
    text, text_parts = _bert(text_cfg, shapes, side, bert) if is_hf else (_text(text_cfg, activation), {})
    made = {"projection_dim": side, "vision_config": vision, "text_config": text}
    if not is_timm and not is_hf:
        return {"model_type": "clip", **made}
    parts = {"context_length": text_cfg.get("context_length", _CONTEXT)} | vision_parts | text_parts
    return {"model_type": OPEN_CLIP_TYPE, **made, "open_clip": parts}


def _vision(given: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """`CLIPVisionConfig` of `open_clip.transformer.VisionTransformer`."""
    width = given.get("width", 768)
    return {
        "model_type": "clip_vision_model",
        "num_attention_heads": _heads("vision_cfg.head_width", width, width // given.get("head_width", 64)),
        "image_size": _side(given.get("image_size", 224)),
        "patch_size": _side(given.get("patch_size", 16)),
        **_layers(given, width, activation),
    }


def _text(given: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """`CLIPTextConfig` of `open_clip.transformer.TextTransformer`.

    The feature is that of the first token `eos_token_id`, or where this is 2 (which Transformers has so for older
    checkpoints) of the token of the highest number.
    """
    width, eos = given.get("width", 512), given.get("eos_id", 2)
    if given.get("pool_type") == "eos" and eos == 2:
        raise _refused("text_cfg.eos_id", eos, "another number where pool_type = eos")
    return {
        "model_type": "clip_text_model",
        "num_attention_heads": _heads("text_cfg.heads", width, given.get("heads", 8)),
        "vocab_size": given.get("vocab_size", 49408),
        "max_position_embeddings": given.get("context_length", _CONTEXT),
        "eos_token_id": eos if given.get("pool_type") == "eos" else 2,
        "bos_token_id": None,
        "pad_token_id": None,
        **_layers(given, width, activation),
    }


def _layers(given: Mapping[str, Any], width: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": given.get("layers", 12),
        "intermediate_size": int(width * given.get("mlp_ratio", 4.0)),
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def _timm(given: Mapping[str, Any], shapes: Shapes, embedding: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`ViTConfig`, parts) of `open_clip.timm_model.TimmModel` around `timm.models.VisionTransformer`."""
    name, pool, head = given["timm_model_name"], given.get("timm_pool", "avg"), given.get("timm_proj", "linear")
    match = _PLAIN_VIT.fullmatch(name)
    width, _, patch, _ = shapes["visual.trunk.patch_embed.proj.weight"]
    if head in ("none", "", None) and pool != "token":  # otherwise norms are put elsewhere, or nothing is pooled
        raise _refused("vision_cfg.timm_pool", pool, f"token where timm_proj = {head!r}")
    if head == "none" and width != embedding:
        raise _refused("embed_dim", embedding, f"the width of {name}, {width}, where timm_proj = 'none',")
    projection = {"linear": "linear", "mlp": "wide_mlp", "none": "none"}.get(head, "linear")
    has_bias = bool(given.get("timm_proj_bias")) if head in ("linear", "mlp") else True
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_attention_heads": _heads("vision_cfg.timm_model_name", width, _HEADS[match[1]] if match else 0, name),
        "num_hidden_layers": _depth(shapes, "visual.trunk.blocks."),
        "intermediate_size": shapes["visual.trunk.blocks.0.mlp.fc1.weight"][0],
        "image_size": _side(given.get("image_size", 224)),
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }, {"vision_pool": pool or "token", "visual_projection": projection, "visual_projection_bias": has_bias}


def _bert(
    given: Mapping[str, Any], shapes: Shapes, embedding: int, kept: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`BertConfig`, parts) of `open_clip.hf_model.HFTextEncoder` around `BertModel`; `kept` is its `config.json`."""
    name, tower = given["hf_model_name"], "text.transformer."
    vocabulary, width = shapes[f"{tower}embeddings.word_embeddings.weight"]
    positions, types = (shapes[f"{tower}embeddings.{kind}_embeddings.weight"][0] for kind in ("position", "token_type"))
    if types != 2:  # of RoBERTa, whose weights have the same names, it is 1; its positions count otherwise
        raise _refused("text_cfg.hf_model_name", name, "a BERT")
    heads = width // 64 if kept is None else kept.get("num_attention_heads")  # of BERT in all its sizes
    if type(heads) is not int or heads < 1 or width % heads or (kept is None and width % 64):
        raise _refused("text_cfg.hf_model_name", name, f"its config.json, since width {width} does not tell the heads,")
    if given.get("hf_proj_type", "mlp") is None and width != embedding:
        raise _refused("embed_dim", embedding, f"the width of {name}, {width}, where hf_proj_type = None,")
    if (length := given.get("context_length", _CONTEXT)) > positions:
        raise _refused("text_cfg.context_length", length, f"a number up to {positions}, the positions of the weights,")
    pool = given.get("hf_pooler_type", "mean_pooler")
    return {
        **(kept or {}),
        "model_type": "bert",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": _depth(shapes, f"{tower}encoder.layer."),
        "intermediate_size": shapes[f"{tower}encoder.layer.0.intermediate.dense.weight"][0],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }, {
        "text_pool": pool or "cls_last_hidden_state_pooler",
        "text_projection": given.get("hf_proj_type", "mlp") or "none",
    }


def _depth(shapes: Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _heads(place: str, width: int, heads: int, value: Any = None) -> int:
    if heads < 1 or width % heads:
        raise _refused(place, heads if value is None else value, f"a number of heads that divides the width, {width},")
    return heads


def _side(value: Any) -> int:
    return int(value[0] if isinstance(value, list) else value)


def _refused(place: str, value: Any, rule: str) -> ValueError:
    return ValueError(f"{place} = {value!r}: {rule}")
