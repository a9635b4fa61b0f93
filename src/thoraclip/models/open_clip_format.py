"""Weights of open_clip's format under the names of Transformers, and the class for towers that are not CLIP's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from thoraclip.models.files import OPEN_CLIP_TYPE, Checkpoint, model_file

__all__ = ["OpenClipConfig", "OpenClipModel", "converted_weights", "fitting_tokenizer", "register"]

_RENAMED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(?!visual\.|text\.|logit_)", "text."),  # the older layout, whose text tower lies at the top
        (r"^visual\.(head\.proj|proj|trunk\.head)(?=\.|$)", "visual_projection"),
        (r"^visual\.head\.mlp\.fc1\.", "visual_projection.0."),
        (r"^visual\.head\.mlp\.fc2\.", "visual_projection.2."),
        (r"^text\.(proj|text_projection)(?=\.|$)", "text_projection"),
        (r"^visual\.trunk\.blocks\.(\d+)\.", r"vision_model.encoder.layer.\1."),
        (r"^visual\.trunk\.(cls_token)$", r"vision_model.embeddings.\1"),
        (r"^visual\.trunk\.pos_embed$", "vision_model.embeddings.position_embeddings"),
        (r"^visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
        (r"^visual\.trunk\.norm\.", "vision_model.layernorm."),
        (r"(\.layer\.\d+)\.norm1\.", r"\1.layernorm_before."),
        (r"(\.layer\.\d+)\.norm2\.", r"\1.layernorm_after."),
        (r"(\.layer\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
        (r"(\.layer\.\d+)\.attn\.qkv\.", r"\1.attention.attention.{query,key,value}."),
        (r"(\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"(\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
        (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
        (r"^text\.transformer\.resblocks\.", "text_model.encoder.layers."),
        (r"(\.layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
        (r"(\.layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
        (r"(\.layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
        (r"(\.layers\.\d+)\.attn\.out_proj\.", r"\1.self_attn.out_proj."),
        (r"(\.layers\.\d+)\.attn\.in_proj_", r"\1.self_attn.{q,k,v}_proj."),
        (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
        (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
        (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
        (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
        (r"^text\.token_embedding\.", "text_model.embeddings.token_embedding."),
        (r"^text\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
        (r"^text\.ln_final\.", "text_model.final_layer_norm."),
        (r"^text\.transformer\.", "text_model."),
    )
)
"""Names of open_clip -> names in files of Transformers, one after the other; braces hold parts of a fused weight."""
_FUSED = re.compile(r"\{(.*)\}")


def converted_weights(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of open_clip -> (name, weight) in fp32, as files of Transformers have them; an unknown name stays."""
    for name, stored in weights.items():
        if name.endswith("position_ids"):  # a buffer of old files
            continue
        new = name
        for pattern, replacement in _RENAMED:
            new = pattern.sub(replacement, new)
        weight = stored.float() if stored.is_floating_point() else stored
        if new.startswith("logit_"):  # some files have a vector of one number
            yield new, weight.reshape(())
        elif new in ("visual_projection", "text_projection"):  # a matrix that stands right of the features
            yield f"{new}.weight", weight.T.contiguous()
        elif fused := _FUSED.search(new):
            parts = fused[1].split(",")
            for part, own in zip(parts, weight.chunk(len(parts)), strict=False):
                yield _FUSED.sub(part, new), own.clone()
        else:
            yield new, weight


def fitting_tokenizer(checkpoint: Checkpoint, read: Callable[..., Any]) -> Any:
    """The tokenizer beside the weights; raises ValueError where there is none that gives what the text tower reads."""
    location, text, kind = checkpoint.location, checkpoint.config.text_config, dict[str, Any]()
    if model_file(location, "tokenizer.json") is None:
        name, vocabulary = ("bert", "vocab.txt") if text.model_type == "bert" else ("clip", "vocab.json")
        if model_file(location, vocabulary) is None:
            raise ValueError(f"neither tokenizer.json nor {vocabulary} is there")
        kind["config"] = AutoConfig.for_model(name)  # which nothing else tells
    tokenizer = read(location, checkpoint.is_local, **kind)
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"it has {len(tokenizer)} words, and the text tower {text.vocab_size}")
    if text.model_type != "bert":
        # whose feature is the text's; 2 stands for the highest
        end = max(tokenizer.get_vocab().values()) if text.eos_token_id == 2 else text.eos_token_id
        if (last := tokenizer("chest x-ray").input_ids[-1]) != end:
            raise ValueError(f"it ends a text with word {last}, and the text tower reads word {end}")
    return tokenizer


class OpenClipConfig(VisionTextDualEncoderConfig):  # type: ignore[misc]
    """Of an `OpenClipModel`; the table `open_clip` says how its towers are pooled and projected.

    vision_pool: `token` or `avg` of a ViT; text_pool: of a BERT, as open_clip names its poolers; where one is absent,
    the tower is CLIP's own, which pools itself. visual_projection, text_projection: `linear` (also where it is absent),
    `mlp` of the mean of both widths, `wide_mlp` of twice the embedding's width, or `none`. context_length: most tokens.
    """

    model_type = OPEN_CLIP_TYPE


def register() -> None:
    """Let `AutoConfig` and `AutoModel` know the two classes."""
    AutoConfig.register(OPEN_CLIP_TYPE, OpenClipConfig, exist_ok=True)
    AutoModel.register(OpenClipConfig, OpenClipModel, exist_ok=True)


class OpenClipModel(VisionTextDualEncoderModel):  # type: ignore[misc]
    """Two towers that were trained together, each with the pool and the projection that its configuration names."""

    config_class = OpenClipConfig

    def __init__(self, config: Any, vision_model: Any = None, text_model: Any = None) -> None:
        super().__init__(config, vision_model, text_model)
        parts, side = config.open_clip, config.projection_dim
        if pool := parts.get("vision_pool"):
            self.vision_model.pooler = _TokenPool(pool)
        if pool := parts.get("text_pool"):
            if pool != "cls_pooler":
                self.text_model.pooler = _TokenPool("token")
            if pool == "mean_pooler":
                self.text_model.register_forward_hook(_pool_by_mask, with_kwargs=True)
        kind, has_bias = parts.get("visual_projection"), parts.get("visual_projection_bias", False)
        self.visual_projection = _projection(kind, self.vision_embed_dim, side, has_bias=has_bias)
        self.text_projection = _projection(parts.get("text_projection"), self.text_embed_dim, side)


class _TokenPool(nn.Module):
    """Tokens [B, N, D] -> [B, D]: the first one, or the mean of all others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._is_mean = kind == "avg"

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:].mean(dim=1) if self._is_mean else tokens[:, 0]


def _pool_by_mask(_: nn.Module, __: Any, given: dict[str, Any], output: Any) -> Any:
    """The mean of the tokens that are no padding, as the pooled output of a text tower."""
    mask = given["attention_mask"].unsqueeze(-1)
    output.pooler_output = (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return output


def _projection(kind: str | None, width: int, side: int, *, has_bias: bool = False) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind in ("mlp", "wide_mlp"):
        hidden = 2 * side if kind == "wide_mlp" else (width + side) // 2
        first = nn.Linear(width, hidden, bias=kind == "wide_mlp")
        return nn.Sequential(first, nn.GELU(), nn.Linear(hidden, side, bias=has_bias))
    return nn.Linear(width, side, bias=has_bias)
