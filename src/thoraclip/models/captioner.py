"""Images -> sentences: BLIP, through Transformers, decoded greedily so that equal images give equal texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thoraclip.dtypes import Greys
from thoraclip.errors import ConfigError
from thoraclip.models.checkpoint import find_checkpoint, load_model, load_tokenizer, weights_fingerprint
from thoraclip.models.network import Network, network_settings

__all__ = ["Captioner", "load_captioner"]


@dataclass(frozen=True, kw_only=True)
class Captioner(Network):
    """An image-to-text model and its settings."""

    model: Any  # the Transformers model, in eval mode, fp32
    tokenizer: Any
    prompt: Tensor | None  # i64[1, L], the tokens that every text begins with, and an end token that the model cuts off
    max_new_tokens: int
    origin: Mapping[str, Any]  # what identifies the texts that it writes (JSON-able)

    @torch.inference_mode()
    def caption(self, greys: Greys, *, check: bool = False) -> list[str]:
        """u8[B, H, W] -> B texts, the prompt included; a text is empty where the model has nothing to say.

        The likeliest token is taken at every step, without sampling or beams. Each text depends on its own image; in
        bf16 rounding, and so a near tie, can depend on the batch.

        `greys` are made by `imaging.fit` with this captioner's spec; `check` those of the first batch.
        """
        if check:
            self.check(greys)
        pixels = self.expand(greys)
        prompt = None if self.prompt is None else self.prompt.to(self.device).repeat(len(pixels), 1)
        with self.autocast():
            tokens = self.model.generate(
                pixels,
                input_ids=prompt,
                max_new_tokens=self.max_new_tokens,
                num_beams=1,
                do_sample=False,
                interpolate_pos_encoding=self.preprocess.size != self.model.config.vision_config.image_size,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def load_captioner(
    model: str,
    *,
    prompt: str = "",
    max_new_tokens: int = 40,
    geometry: str = "squash",
    precision: str = "auto",
    device: str = "",
) -> Captioner:
    """Load a BLIP captioner; every weight that the architecture has must be in the checkpoint, and none besides.

    Args:
        model: a Hub id (such as Salesforce/blip-image-captioning-base) or a local folder in Transformers format.
        prompt: words that every caption begins with, such as "a chest x-ray of"; empty for none.
        max_new_tokens: tokens that the model may add.
        geometry, precision, device: as in `load_vision_encoder`.

    Raises:
        ModelError: not found, not BLIP, or weights missing or unexpected.
        ConfigError: unknown geometry or precision, or more tokens than the model has places for.
    """
    from transformers import BlipForConditionalGeneration

    checkpoint = find_checkpoint(model)
    model_type = str(checkpoint.config.model_type)
    if model_type != "blip":
        raise checkpoint.error(
            f"type '{model_type}' is no captioner; name a BLIP model, such as Salesforce/blip-image-captioning-base"
        )
    settings = network_settings(checkpoint, geometry, precision=precision, device=device)
    tokenizer = load_tokenizer(checkpoint)
    begun = tokenizer(prompt, return_tensors="pt").input_ids if prompt else None
    used = 1 if begun is None else begun.shape[1] - 1
    places = int(checkpoint.config.text_config.max_position_embeddings)
    if used + max_new_tokens > places:
        raise ConfigError(
            f"max_new_tokens = {max_new_tokens}: with the {used} tokens before them more than the {places} that model "
            f"'{model}' has places for; take {places - used} or fewer"
        )
    network = load_model(checkpoint, BlipForConditionalGeneration)
    origin = {
        "captioner": "blip",
        "model": Path(model).resolve().name if checkpoint.is_local else model,
        "revision": getattr(checkpoint.config, "_commit_hash", None),
        "weights": weights_fingerprint(network),
        "preprocess": settings["preprocess"].as_dict(),
        "precision": settings["precision"],
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
    }
    return Captioner(
        model=network.eval().to(settings["device"]),
        tokenizer=tokenizer,
        prompt=begun,
        max_new_tokens=max_new_tokens,
        origin=origin,
        **settings,
    )
