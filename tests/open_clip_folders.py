"""Folders in open_clip's format: the golden cases of `scripts/make_open_clip_golden.py`, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.numpy import load_file, save_file
from scripts.make_open_clip_golden import CASES, pixels, tokens
from tests.open_clip_weights import drawn
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.files import OPEN_CLIP

GOLDEN = json.loads((Path(__file__).parent / "models" / "golden" / "open_clip.json").read_text(encoding="utf-8"))
NATIVE, BIOMED = "native, QuickGELU", "timm and BERT as in BiomedCLIP"
WEIGHTS = "open_clip_model.safetensors"


def save(folder: Path, case: str, *, preprocess: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A folder as open_clip writes one; `changes` replace values of `model_cfg` and of the tables in it."""
    kept = GOLDEN["cases"][case]
    folder.mkdir(parents=True)
    model = json.loads(json.dumps(kept["model_cfg"]))
    for name, value in changes.items():
        model[name] = {**model[name], **value} if isinstance(value, dict) else value
    content = {"model_cfg": model, "preprocess_cfg": preprocess or {}}
    (folder / OPEN_CLIP).write_text(json.dumps(content), encoding="utf-8")
    if kept["bert"]:
        (folder / "config.json").write_text(json.dumps(kept["bert"]), encoding="utf-8")
    save_file(drawn(kept["shapes"]), folder / WEIGHTS)
    text = model["text_cfg"]
    save_tokenizer(folder, end=text["eos_id"] if text.get("pool_type") == "eos" else 49)
    return folder


def save_tokenizer(folder: Path, *, end: int, words: int = 50) -> None:
    """A tokenizer of words `w8`, `w9`, ... and of `[UNK]`, with a start and an end."""
    names = {number: f"w{number}" for number in range(words)} | {0: "[PAD]", 1: "[UNK]", 2: "<start>", end: "<end>"}
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in names.items()}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", end)])  # fmt: skip
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=1000
    ).save_pretrained(folder)


def load(folder: Path) -> DualEncoder:
    """In fp32 on the CPU."""
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


def change_weights(folder: Path, change: dict[str, Any]) -> None:
    """Put others in place of some weights; `None` takes one away."""
    weights = load_file(folder / WEIGHTS) | change
    save_file({name: weight for name, weight in weights.items() if weight is not None}, folder / WEIGHTS)


def drop(folder: Path) -> None:
    """Take the tokenizer away."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
