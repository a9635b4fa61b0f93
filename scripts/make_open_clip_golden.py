"""Features of open_clip itself for tiny models of every kind that `models.open_clip_format` reads.

    python -m venv env
    env/bin/pip install -c constraints.txt torch numpy safetensors transformers ftfy regex tqdm pillow pyyaml
    env/bin/pip install --no-deps open_clip_torch==3.3.0 timm==1.0.31
    env/bin/python scripts/make_open_clip_golden.py tests/models/golden/open_clip.json

The package needs neither open_clip, timm nor torchvision; this script does, in an environment of its own. torchvision,
which both import for image transforms alone, is replaced by an empty module: no transform is called here. Sizes that
open_clip leaves to timm and to the Hub are given to these: width 24, 2 layers, 32 pixels, patches of 8.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.open_clip_weights import drawn

SIDE, EMBEDDING, WIDTH = 32, 16, 24
NATIVE_VISION = {"image_size": SIDE, "patch_size": 8, "width": WIDTH, "head_width": 8, "layers": 2}
NATIVE_TEXT = {"context_length": 16, "vocab_size": 50, "width": WIDTH, "heads": 3, "layers": 2}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": SIDE}
BERT = {
    "hf_model_name": "bert",
    "hf_proj_type": "mlp",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": 20,
}
BERT_SIZES = {
    "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 40, "num_attention_heads": 1,
    "max_position_embeddings": 32,
}  # fmt: skip


def _model(vision: dict[str, Any], text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"embed_dim": EMBEDDING, "vision_cfg": vision, "text_cfg": text} | more


CASES: dict[str, dict[str, Any]] = {
    "native, GELU": _model(NATIVE_VISION, NATIVE_TEXT),
    "native, QuickGELU": _model(NATIVE_VISION, NATIVE_TEXT, quick_gelu=True),
    "native, 77 tokens": _model(NATIVE_VISION, NATIVE_TEXT | {"context_length": 77}),
    "native, eos": _model(NATIVE_VISION, NATIVE_TEXT | {"pool_type": "eos", "eos_id": 7}),
    "native, mlp_ratio": _model(NATIVE_VISION | {"mlp_ratio": 2.6667}, NATIVE_TEXT | {"mlp_ratio": 1.5}),
    "native, norm after the pool": _model(NATIVE_VISION | {"final_ln_after_pool": True}, NATIVE_TEXT),
    "native, CustomTextCLIP": _model(NATIVE_VISION, NATIVE_TEXT, custom_text=True, quick_gelu=True),
    "native, vector of one logit scale": _model(NATIVE_VISION, NATIVE_TEXT, nonscalar_logit_scale=True),
    "timm and BERT as in BiomedCLIP": _model(TIMM, BERT),
    "timm and BERT, linear": _model(TIMM | {"timm_pool": "token"}, BERT | {"hf_proj_type": "linear"}),
    "timm and BERT, mean": _model(TIMM, BERT | {"hf_pooler_type": "mean_pooler"}),
    "timm and BERT, BERT's own pooler": _model(TIMM, BERT | {"hf_pooler_type": "cls_pooler"}),
    "timm and BERT, pooler by default": _model(TIMM, BERT | {"hf_pooler_type": None}),
    "timm and BERT of 2 heads of 16": _model(TIMM, BERT),
    "timm, mean of patches, bias": _model(TIMM | {"timm_pool": "avg", "timm_proj_bias": True}, BERT),
    "timm, mlp": _model(TIMM | {"timm_proj": "mlp"}, NATIVE_TEXT, custom_text=True),
    "timm, mlp with bias": _model(TIMM | {"timm_proj": "mlp", "timm_proj_bias": True}, NATIVE_TEXT),
    "timm, its own head": _model(TIMM | {"timm_proj": "", "timm_pool": "token"}, NATIVE_TEXT),
    "timm, no projection": _model(TIMM | {"timm_proj": "none", "timm_pool": "token"}, NATIVE_TEXT, embed_dim=WIDTH),
    "native and BERT": _model(NATIVE_VISION, BERT, quick_gelu=True),
}  # fmt: skip
HEADS = {"timm and BERT of 2 heads of 16": {"hidden_size": 32, "num_attention_heads": 2}}
"""Cases whose BERT has other sizes, which its own `config.json` tells."""


class _Absent(ModuleType):
    """torchvision, of which nothing is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _Names(type):
    def __getattr__(cls, name: str) -> str:
        return name


class _Nothing(metaclass=_Names):
    pass


class _Finder:
    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, _: ModuleType) -> None:
        pass


@contextmanager
def _sizes(bert: dict[str, Any]) -> Iterator[str]:
    """Tiny sizes for the towers whose sizes open_clip does not set; gives the folder of the BERT's configuration."""
    import open_clip.timm_model as towers
    import transformers

    create = towers.timm.create_model
    towers.timm.create_model = functools.partial(create, embed_dim=WIDTH, depth=2, img_size=SIDE, patch_size=8)
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertConfig(**bert).save_pretrained(folder)
        yield folder
    towers.timm.create_model = create


def tokens(config: dict[str, Any]) -> np.ndarray:
    """Texts of different lengths as open_clip's tokenizers pad them: with 0, up to the context length."""
    text, rng = config["text_cfg"], np.random.RandomState(1)
    length, ends = text["context_length"], 49 if text.get("pool_type") != "eos" else text["eos_id"]
    rows = np.zeros((4, length), np.int64)
    for row, count in zip(rows, (3, 7, 11, length), strict=True):
        row[:count] = rng.randint(8, 49, count)
        row[count - 1] = ends
    return rows


def pixels() -> np.ndarray:
    """f32[4, 3, 32, 32], normalised."""
    return np.random.RandomState(0).standard_normal((4, 3, SIDE, SIDE)).astype(np.float32)


def features(config: dict[str, Any], bert: dict[str, Any]) -> dict[str, Any]:
    """What open_clip computes: shapes of the weights, features and logits."""
    import open_clip
    import torch

    asked = json.loads(json.dumps(config))
    with _sizes(bert) as folder:
        if "hf_model_name" in asked["text_cfg"]:
            asked["text_cfg"] |= {"hf_model_name": folder, "hf_model_pretrained": False}
        custom = asked.pop("custom_text", False) or "hf_model_name" in asked["text_cfg"]
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**asked).eval()
    shapes = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in drawn(shapes).items()}, strict=True)
    with torch.inference_mode():
        image = model.encode_image(torch.from_numpy(pixels()))
        text = model.encode_text(torch.from_numpy(tokens(config)))
        logits, _ = model.get_logits(torch.from_numpy(pixels()), torch.from_numpy(tokens(config)))
    found = {"image": image, "text": text, "logits": logits}
    return {"shapes": shapes, **{n: np.asarray(v.numpy(), np.float64).round(7).tolist() for n, v in found.items()}}


def main(out: Path) -> None:
    """Write the file."""
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    cases = {}
    for name, config in CASES.items():
        bert = HEADS.get(name)
        cases[name] = {"model_cfg": config, "bert": bert and {"model_type": "bert", **bert}}
        cases[name] |= features(config, BERT_SIZES | (bert or {}))
        print(name)
    versions = {name: metadata.version(name) for name in ("open_clip_torch", "timm", "torch", "transformers")}
    content = {"versions": versions, "timm": timm_heads(), "cases": cases}
    out.parent.mkdir(exist_ok=True)
    out.write_text(_json(content) + "\n")


def timm_heads() -> dict[str, list[int]]:
    """timm's ViTs -> (width, heads) of those that are built as vit_base_patch16_224 is, else nothing."""
    import timm
    import torch

    def signature(name: str) -> tuple[Any, ...]:
        with torch.device("meta"):
            model = timm.create_model(name)
        lines = re.sub(r"(?<!e-)\b\d+\b", "#", repr(model)).splitlines()  # all numbers but the epsilon of the norms
        layers = {line for line in lines if not line.startswith("  (head)")}  # any number of blocks
        attention = getattr(model.blocks[0], "attn", None)
        traits = (getattr(model, name, None) for name in ("global_pool", "num_prefix_tokens", "no_embed_class"))
        return layers, *traits, getattr(model, "embed_dim", 0), getattr(attention, "num_heads", 0)

    plain, found = signature("vit_base_patch16_224")[:4], {}
    for name in timm.list_models(["vit_*_patch*", "deit_*_patch*"]):
        *kind, width, heads = signature(name)
        found[name] = [width, heads] if tuple(kind) == plain else []
    return found


def _json(value: Any, depth: int = 0) -> str:
    """JSON with a line for each case's field, so that a change is seen in a diff."""
    if not isinstance(value, dict) or depth > 2:
        return json.dumps(value)
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(k)}: {_json(v, depth + 1)}" for k, v in value.items())
    return "{\n" + inner + "\n" + " " * depth + "}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
