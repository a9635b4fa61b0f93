"""The towers that `open_clip_config.json` describes, as configurations of Transformers; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thoraclip.errors import ModelError, first_line
from thoraclip.models.files import (
    OPEN_CLIP,
    OPEN_CLIP_TYPE,
    OPEN_CLIP_WEIGHTS,
    model_file,
    stored_folder,
    weight_slices,
)
from thoraclip.models.open_clip_config import HEADS_OF_TIMM, PLAIN_VIT, REMEDY, no_weights, read_open_clip, square_side

__all__ = ["describe_open_clip"]

_CONTEXT = 77  # tokens, where the file is silent


class _Shapes(dict[str, tuple[int, ...]]):
    """Name of a weight -> its shape; `KeyError` where it is not there or has another number of dimensions."""

    def of(self, name: str, dimensions: int = 2) -> tuple[int, ...]:
        if len(self.get(name, ())) != dimensions:
            raise KeyError(name)
        return self[name]


def describe_open_clip(location: str, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration, as JSON, of the Transformers classes that compute the same; `None` for another format.

    A model is in open_clip's format where there is `open_clip_config.json` and no `config.json`, or one that describes
    the BERT of its text tower, or one of timm. CLIP's own two towers become `CLIPConfig`, all else
    `open_clip_format.OpenClipConfig`.

    `location` is a folder, or a Hub id; `own` the content of `config.json`, empty where there is none. Raises
    ModelError where a file is not readable, a part is not supported, or there are no safetensors.
    """
    if own.get("model_type") not in (None, "bert"):
        return None
    path = model_file(location, OPEN_CLIP)
    if path is None:
        return None
    config = read_open_clip(path)["model_cfg"]
    shapes = _stored_shapes(location)
    try:
        return _transformers(config, shapes, own if "model_type" in own else None)
    except ValueError as error:
        raise ModelError(f"{path}: model_cfg.{error} is needed; {REMEDY}") from error
    except KeyError as error:
        raise ModelError(f"{path}: the weights beside it have no {error}; get the model again") from error


def _stored_shapes(location: str) -> _Shapes:
    """Name -> shape of every weight; of a Hub model that is not on this machine, the header of the file is fetched."""
    if folder := stored_folder(location):
        for name in OPEN_CLIP_WEIGHTS:
            if (folder / name).is_file():
                parts = weight_slices(folder / name, f"{folder / name}:")
                return _Shapes((weight, tuple(part.get_shape())) for weight, part in parts.items())
    if Path(location).is_dir():
        raise no_weights(location)
    from huggingface_hub import errors, parse_safetensors_file_metadata

    for name in OPEN_CLIP_WEIGHTS:
        try:
            header = parse_safetensors_file_metadata(location, name)
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # of the Hub client, and of the HTTP library below it
            raise ModelError(f"model '{location}': {name} cannot be fetched ({first_line(error)})") from error
        return _Shapes((weight, tuple(info.shape)) for weight, info in header.tensors.items())
    raise no_weights(location)


def _transformers(config: Mapping[str, Any], shapes: _Shapes, bert: Mapping[str, Any] | None) -> dict[str, Any]:
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
    width, side = given.get("width", 768), given.get("head_width", 64)
    return {
        "model_type": "clip_vision_model",
        "num_attention_heads": _heads("vision_cfg.head_width", width, width // side, side),
        "image_size": square_side(given.get("image_size", 224)),
        "patch_size": square_side(given.get("patch_size", 16)),
        **_layers(given, width, activation),
    }


def _text(given: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """`CLIPTextConfig` of `open_clip.transformer.TextTransformer`.

    The feature is that of the first token `eos_token_id`, or where this is 2 (which Transformers has so for older
    checkpoints) of the token of the highest number.
    """
    width, heads, eos = given.get("width", 512), given.get("heads", 8), given.get("eos_id", 2)
    if given.get("pool_type") == "eos" and eos == 2:
        raise _refused("text_cfg.eos_id", eos, "another number where pool_type = eos")
    return {
        "model_type": "clip_text_model",
        "num_attention_heads": _heads("text_cfg.heads", width, heads, heads),
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


def _timm(given: Mapping[str, Any], shapes: _Shapes, embedding: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`ViTConfig`, parts) of `open_clip.timm_model.TimmModel` around `timm.models.VisionTransformer`."""
    name, pool, head = given["timm_model_name"], given.get("timm_pool", "avg"), given.get("timm_proj", "linear")
    match = PLAIN_VIT.fullmatch(name)
    heads = HEADS_OF_TIMM[match[1]] if match else 0
    width, _, patch, _ = shapes.of("visual.trunk.patch_embed.proj.weight", 4)
    if head in ("none", "", None) and pool != "token":  # otherwise norms are put elsewhere, or nothing is pooled
        raise _refused("vision_cfg.timm_pool", pool, f"token where timm_proj = {head!r}")
    if head == "none" and width != embedding:
        raise _refused("embed_dim", embedding, f"the width of {name}, {width}, where timm_proj = 'none',")
    projection = {"linear": "linear", "mlp": "wide_mlp", "none": "none"}.get(head, "linear")
    has_bias = bool(given.get("timm_proj_bias")) if head in ("linear", "mlp") else True
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_attention_heads": _heads("vision_cfg.timm_model_name", width, heads, name),
        "num_hidden_layers": _depth(shapes, "visual.trunk.blocks."),
        "intermediate_size": shapes.of("visual.trunk.blocks.0.mlp.fc1.weight")[0],
        "image_size": square_side(given.get("image_size", 224)),
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }, {"vision_pool": pool or "token", "visual_projection": projection, "visual_projection_bias": has_bias}


def _bert(
    given: Mapping[str, Any], shapes: _Shapes, embedding: int, kept: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`BertConfig`, parts) of `open_clip.hf_model.HFTextEncoder` around `BertModel`; `kept` is its `config.json`."""
    name, tower = given["hf_model_name"], "text.transformer."
    vocabulary, width = shapes.of(f"{tower}embeddings.word_embeddings.weight")
    positions, types = (
        shapes.of(f"{tower}embeddings.{kind}_embeddings.weight")[0] for kind in ("position", "token_type")
    )
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
        "intermediate_size": shapes.of(f"{tower}encoder.layer.0.intermediate.dense.weight")[0],
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }, {
        "text_pool": pool or "cls_last_hidden_state_pooler",
        "text_projection": given.get("hf_proj_type", "mlp") or "none",
    }


def _depth(shapes: _Shapes, prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)})


def _heads(place: str, width: int, heads: int, value: Any) -> int:
    if heads < 1 or width % heads:
        raise _refused(place, value, f"a number of heads that divides the width, {width},")
    return heads


def _refused(place: str, value: Any, rule: str) -> ValueError:
    return ValueError(f"{place} = {value!r}: {rule}")
