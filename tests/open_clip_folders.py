"""Folders in open_clip's format: the golden cases of `scripts/make_open_clip_golden.py`, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors.numpy import save_file
from tests.open_clip_weights import drawn
from tokenizers import Tokenizer, models, pre_tokenizers, processors

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
