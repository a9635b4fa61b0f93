"""Tiny random models of the real classes, saved as a user's checkpoint folder would be."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TINY = Path(str(resources.files("thoraclip") / "models" / "assets" / "tiny-clip"))
SIDE = 32
_LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_LAYERS, "patch_size": 8}
_TEXT = {
    **_LAYERS, "vocab_size": 768, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
FAMILIES = ("clip", "siglip", "siglip2", "vision-text-dual-encoder")


def save_checkpoint(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A random dual encoder of one family with its tokenizer and image processor, in Transformers format."""
    import torch

    torch.manual_seed(seed)
    _model(family).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    square = {"height": SIDE, "width": SIDE}
    content = {"size": square, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.3, 0.2]}
    if family in {"clip", "vision-text-dual-encoder"}:
        content |= {"size": {"shortest_edge": SIDE}, "do_center_crop": True, "crop_size": square}
    return _with_processor(folder, content)


def _with_processor(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _model(family: str) -> torch.nn.Module:
    import transformers as hf

    if family == "clip":
        return hf.CLIPModel(
            hf.CLIPConfig(text_config=_TEXT, vision_config={**_VISION, "image_size": SIDE}, projection_dim=12)
        )
    if family == "siglip":
        return hf.SiglipModel(hf.SiglipConfig(text_config=_TEXT, vision_config={**_VISION, "image_size": SIDE}))
    if family == "siglip2":
        return hf.Siglip2Model(hf.Siglip2Config(text_config=_TEXT, vision_config={**_VISION, "num_patches": 16}))
    vision = hf.Dinov2Model(
        hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    )
    text = {k: v for k, v in _TEXT.items() if not k.endswith("_token_id")}
    return hf.VisionTextDualEncoderModel(
        vision_model=vision, text_model=hf.BertModel(hf.BertConfig(**text, pad_token_id=1))
    )


TOWERS = (
    *("clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "dinov2", "dinov2_with_registers"),
    *("dinov3_vit", "dinov3_convnext", "vit", "deit", "vit_mae", "vit_msn", "beit", "swin", "swinv2"),
    *("convnext", "convnextv2", "resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "efficientnet"),
)
_STAGES = {"hidden_sizes": [8, 12, 16, 16], "depths": [1] * 4}
_WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": SIDE}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_SIZES: dict[str, dict[str, Any]] = {
    "convnext": _STAGES, "convnextv2": _STAGES, "dinov3_convnext": _STAGES, "swin": _WINDOWS, "swinv2": _WINDOWS,
    "resnet": _RESNET, "regnet": _RESNET | {"groups_width": 4}, "mobilenet_v1": {}, "mobilenet_v2": {},
    "efficientnet": {},
}  # fmt: skip
"""Of the towers that are no transformers of one width."""


def save_tower(model_type: str, folder: Path, *, seed: int = 0, with_head: bool = False) -> Path:
    """A random vision tower with its image processor; `with_head` as its image classifier saves it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    sizes = _SIZES.get(model_type, _VISION | ({} if model_type == "siglip2_vision_model" else {"image_size": SIDE}))
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(seed)
    (AutoModelForImageClassification if with_head else AutoModel).from_config(config).save_pretrained(folder)
    content = {"size": {"height": SIDE, "width": SIDE}, "resample": 3, "image_mean": [0.5, 0.4, 0.3]}
    return _with_processor(folder, content | {"image_std": [0.25, 0.3, 0.2]})


_WORDS = ["a", "an", "chest", "x", "-", "ray", "of", "the", "lung", "heart", "left", "right", "both", "white", "dark"]


def save_blip(folder: Path, *, seed: int = 0, silent: bool = False, talkative: bool = False) -> Path:
    """A random BLIP captioner with a WordPiece tokenizer.

    Of a `silent` one the first word is always the end of the text; a `talkative` one has nothing but words.
    """
    import torch
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration

    tokenizer = BertTokenizerFast(
        {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *_WORDS))},
        bos_token="[DEC]",
    )
    text = {
        **_VISION, "vocab_size": len(tokenizer), "max_position_embeddings": 48, "encoder_hidden_size": 16,
        "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0,
        "initializer_range": 1.0,  # wide, so that the picture is heard and texts differ
    }  # fmt: skip
    vision = {**_VISION, "image_size": SIDE, "initializer_range": 0.3}
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    bias = model.text_decoder.cls.predictions.bias.data
    if silent:
        bias[3] = 1e4
    if talkative:
        bias[:6] = -1e4  # the tokens that are no words
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.3, 0.2], "size": {"height": SIDE, "width": SIDE}}
    content = {"image_processor_type": "BlipImageProcessor", **numbers}
    return _with_processor(folder, content)


CLASSIFIERS = ("resnet", "vit")


def save_classifier(kind: str, folder: Path, *, seed: int = 0, classes: int = 5) -> Path:
    """A random ResNet-18-like (basic layers, batch normalisation) or ViT-like image classifier with its image processor."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    if kind == "resnet":
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=classes
        )
        model: torch.nn.Module = ResNetForImageClassification(config)
        size = {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875}
        processor = {"image_processor_type": "ConvNextImageProcessor", **size}
    else:
        vit = {**_VISION, "image_size": SIDE, "num_labels": classes}
        model = ViTForImageClassification(ViTConfig(**vit))
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    model.save_pretrained(folder)
    content = {**processor, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return _with_processor(folder, content)


LUNG_CLASSES = ("background", "left lung", "Right Lung", "heart")


def save_segmenter(
    folder: Path, *, seed: int = 0, classes: tuple[str, ...] = LUNG_CLASSES, always: str | None = None
) -> Path:
    """A random SegFormer with its image processor; of every pixel it says `always`, where that is given."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(seed)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, initializer_range=0.5,
        id2label=dict(enumerate(classes)), label2id={name: number for number, name in enumerate(classes)},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    if always is not None:
        model.decode_head.classifier.weight.data.zero_()
        model.decode_head.classifier.bias.data = torch.tensor([float(name == always) for name in classes])
    model.save_pretrained(folder)
    content = {
        "image_processor_type": "SegformerImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 2,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    return _with_processor(folder, content)
