"""`open_clip_config.json`, by which open_clip describes a model: its reading, and what it says of the pixels.

Names and defaults are open_clip 3.3's (its classes `CLIPVisionCfg`, `CLIPTextCfg`, `PreprocessCfg`). A part that the
classes of Transformers do not compute is refused by name. No torch is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thoraclip.documents import read_json
from thoraclip.errors import ModelError
from thoraclip.models.files import OPEN_CLIP, OPEN_CLIP_WEIGHTS, Checkpoint, model_file
from thoraclip.shapes import Check, WrongError, check, number, one_of, table, whole

__all__ = [
    "HEADS_OF_TIMM",
    "PLAIN_VIT",
    "REMEDY",
    "no_weights",
    "open_clip_file",
    "open_clip_processor",
    "read_open_clip",
    "square_side",
    "tokenizer_remedy",
]

REMEDY = "take a model in Transformers format"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
HEADS_OF_TIMM = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
PLAIN_VIT = re.compile(rf"(?:vit|deit)_({'|'.join(HEADS_OF_TIMM)})_patch\d+_\d+(?:_in21k)?(?:\.\w+)?")
"""timm's ViTs of one class token, biased projections, norms of eps 1e-6 and exact GELU; group 1 gives the heads."""


def _any(_: Any) -> None:
    """What has no effect on the features, or none here."""


def _square(value: Any) -> None:
    """Pixels, as one whole number or twice the same."""
    sides = value if isinstance(value, list) else [value]
    whole(1, 10_000)(sides[0] if sides and sides == sides[:1] * len(sides) else value)


def _plain_vit(value: Any) -> None:
    if not isinstance(value, str) or not PLAIN_VIT.fullmatch(value):
        raise WrongError(value, "a plain ViT of timm, as vit_base_patch16_224,")


def _only(*choices: Any) -> Check:
    """One of the values that Transformers computes."""
    inner, rule = one_of(*choices), " or ".join(json.dumps(choice) for choice in choices if choice != "")

    def look(value: Any) -> None:
        try:
            inner(value)
        except WrongError as wrong:
            raise WrongError(wrong.value, f"{rule} (Transformers has no other)") from None

    return look


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


_COUNT, _NO, _NOTHING, _YES_OR_NO = whole(1, 10_000_000), _only(False), _only(None), _only(False, True)
_BOTH: dict[str, Check] = {
    "layers": whole(1, 200), "width": _COUNT, "mlp_ratio": number(0.01, 100),
    "ls_init_value": _NOTHING, "act_kwargs": _NOTHING, "norm_kwargs": _NOTHING, "block_type": _NOTHING,
    "qk_norm": _NO, "scaled_cosine_attn": _NO, "scale_heads": _NO, "scale_attn_inner": _NO, "scale_attn": _NO,
    "scale_fc": _NO,
    "output_tokens": _any, "final_ln_after_pool": _any,  # a norm of one token is the same before and after
}  # fmt: skip
_VISION = _BOTH | {
    "head_width": _COUNT, "patch_size": _square, "image_size": _square,
    "attentional_pool": _NO, "no_ln_pre": _NO, "pool_type": _only("tok"),
    "timm_model_name": _plain_vit, "timm_pool": _only("", "token", "avg"),
    "timm_proj": _only("linear", "mlp", "none", "", None), "timm_proj_bias": _YES_OR_NO,
    **dict.fromkeys(("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type"), _any),
    **dict.fromkeys(("timm_model_pretrained", "timm_drop", "timm_drop_path"), _any),
}  # fmt: skip
_TEXT = _BOTH | {
    "context_length": whole(1, 10_000), "vocab_size": _COUNT, "heads": _COUNT, "pad_id": _any, "eos_id": whole(),
    "pool_type": _only("argmax", "eos"), "proj_type": _only("linear"),
    "embed_cls": _NO, "no_causal_mask": _NO, "proj_bias": _NO, "tokenizer_kwargs": _only(None, {}),
    "tokenizer_mode": _only(None, ""),
    "hf_pooler_type": _only(None, "cls_pooler", "cls_last_hidden_state_pooler", "mean_pooler"),
    "hf_proj_type": _only(None, "linear", "mlp"),
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
    "mode": _only(None, "RGB"), "interpolation": _only(None, "bicubic", "bilinear", "random"),
    "resize_mode": _only(None, "shortest", "squash", "longest"), "fill_color": _only(None, 0),
}  # fmt: skip
_CONTENT = table(model_cfg=_MODEL, preprocess_cfg=table(_PREPROCESS, may=_PREPROCESS), may=["preprocess_cfg"])


def read_open_clip(path: Path) -> Any:
    """The content of the file, every part of which is known; raises ModelError for the first that is not."""
    content = read_json(path, error=ModelError, remedy="get the model again")
    check(content, _CONTENT, path, error=ModelError, remedy=REMEDY)
    return content


def open_clip_processor(path: Path) -> dict[str, Any]:
    """`preprocessor_config.json` of the image processor of Transformers that makes the same pixels.

    Raises:
        ModelError: not readable, or it says something that `imaging` does not do.
    """
    content = read_open_clip(path)
    given = {name: value for name, value in content.get("preprocess_cfg", {}).items() if value is not None}
    side = square_side(content["model_cfg"]["vision_cfg"].get("image_size", 224))
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
    path = model_file(checkpoint.location, OPEN_CLIP)
    if path is None:
        return "a tokenizer.json is needed"
    text = read_open_clip(path)["model_cfg"]["text_cfg"]
    source = text.get("hf_tokenizer_name") or text.get("hf_model_name") or "openai/clip-vit-base-patch32"
    return f"a tokenizer.json is needed: put the tokenizer's files of {source} beside the weights"


def open_clip_file(checkpoint: Checkpoint) -> Path:
    """The file of the weights, fetched where it is on the Hub alone; raises ModelError where there is none."""
    files = (model_file(checkpoint.location, name) for name in OPEN_CLIP_WEIGHTS)
    if (file := next(filter(None, files), None)) is None:
        raise no_weights(checkpoint.location)
    return file


def no_weights(location: str) -> ModelError:
    """The error of a model without safetensors."""
    return ModelError(
        f"model '{location}': no {OPEN_CLIP_WEIGHTS[0]} there, and pickled weights (.bin, .pt) are not read; convert "
        "them as docs/models.md says, and give the folder"
    )


def square_side(value: Any) -> int:
    """Pixels of a value of the file that `_square` lets through."""
    return int(value[0] if isinstance(value, list) else value)
