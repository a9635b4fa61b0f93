"""A classifier as a plain Transformers folder, which `AutoModel` and `pipeline` open without ThoraCLIP.

Dual encoders are written as they are, their adapter merged. A linear head on a tower becomes the head of the
architecture's own `...ForImageClassification`, where that reads the very feature of the tower that the head reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from thoraclip.documents import kept_json, read_json
from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import InputError, ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import Backbone, TowerClassifier, set_labels
from thoraclip.models.checkpoint import find_checkpoint, load_model, quiet
from thoraclip.models.classifiers import Classifier, EncoderClassifier
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.models.files import OPEN_CLIP_TYPE, write_about
from thoraclip.models.image_processor import preprocessor_json
from thoraclip.models.standard_head import EXPORT_INSTEAD, noise_pixels, with_standard_head
from thoraclip.runs import write_json

__all__ = [
    "OpenedPlain",
    "PlainModel",
    "Texts",
    "image_classifier",
    "is_plain_folder",
    "plain_dual_encoder",
    "write_plain",
]

_NOTE = "thoraclip.json"
_UNSTEADY = ("is_local", "local_files_only", "name_or_path")
"""Of a tokenizer's configuration: where it was read from."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How a dual encoder reads the classes."""

    tokenizer: Any
    prompts: Mapping[str, tuple[str, ...]]  # by class, in the order of the scores
    padding: str  # of short texts, as the text tower was trained
    length: int  # tokens, at which a text is cut


@dataclass(frozen=True, kw_only=True)
class PlainModel:
    """What is written."""

    network: Any  # a Transformers model in fp32
    preprocess: Preprocess
    labels: LabelSet
    texts: Texts | None = None  # of a dual encoder

    @property
    def architecture(self) -> str:
        """Name of its Transformers class."""
        return type(self.network).__name__


def plain_dual_encoder(classifier: EncoderClassifier, prompts: Mapping[str, tuple[str, ...]]) -> PlainModel:
    """The dual encoder under a zero-shot classifier, whose classes have these prompts.

    Raises:
        InputError: its vision tower does not take the pixels of an image processor, as SigLIP 2 with patches of any
            aspect ratio, or its pools and projections are open_clip's.
    """
    encoder = classifier.encoder
    assert isinstance(encoder, DualEncoder), "prompts are compared in the space of both towers"
    if encoder.model.config.model_type == OPEN_CLIP_TYPE:
        raise InputError(
            f"model '{encoder.name}': no dual encoder of Transformers has the pools and projections of this model in "
            f"open_clip's format; {EXPORT_INSTEAD}"
        )
    try:
        with torch.inference_mode():
            encoder.tower(pixel_values=noise_pixels(classifier))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model '{encoder.name}': {type(encoder.model).__name__} does not take images of side "
            f"{classifier.preprocess.size} as an image processor makes them ({first_line(error)}); {EXPORT_INSTEAD}"
        ) from error
    return PlainModel(
        network=encoder.model,
        preprocess=classifier.preprocess,
        labels=classifier.labels,
        texts=Texts(
            tokenizer=encoder.tokenizer,
            prompts=prompts,
            padding=encoder.architecture.padding,
            length=encoder.text_length,
        ),
    )


def image_classifier(classifier: Classifier) -> PlainModel:
    """The image classifier of Transformers that gives the same logits.

    Raises:
        InputError: there is none: its architecture has no image classifier, or one whose head reads another feature of
            the tower.
    """
    network: Any
    if isinstance(classifier, Backbone) and not isinstance(classifier.network, TowerClassifier):
        network = classifier.network
    else:
        network = with_standard_head(classifier)
    set_labels(network.config, classifier.labels)
    return PlainModel(network=network, preprocess=classifier.preprocess, labels=classifier.labels)


def write_plain(folder: Path, plain: PlainModel, **facts: Any) -> None:
    """Write everything but the card into a folder; equal weights give equal bytes.

    Args:
        folder: there, and empty.
        plain: what is written.
        facts: what `thoraclip.json` says beside classes and preprocessing; JSON-able.
    """
    with quiet():
        plain.network.save_pretrained(folder)
        if plain.texts:
            plain.texts.tokenizer.save_pretrained(folder)
            path = folder / "tokenizer_config.json"
            content = read_json(path)
            write_json(path, {name: value for name, value in content.items() if name not in _UNSTEADY})
    for weights in folder.glob("*.safetensors"):  # which safetensors makes for this user alone
        weights.chmod((folder / "config.json").stat().st_mode)
    write_json(folder / "preprocessor_config.json", preprocessor_json(plain.preprocess))
    files = sorted({path.name for path in folder.iterdir()} | {_NOTE, "README.md"})
    write_about(
        folder,
        labels=list(plain.labels.names),
        preprocess=plain.preprocess.as_dict(),
        facts={"files": files, **facts},
    )


def is_plain_folder(folder: Path) -> bool:
    """True for a folder that `write_plain` wrote, and nothing else in it."""
    facts = kept_json(folder / _NOTE).get("facts")
    files = facts.get("files") if isinstance(facts, Mapping) else None
    return isinstance(files, list) and all(path.name in files for path in folder.iterdir())


class OpenedPlain:
    """What a reader gets from a folder, by Transformers alone.

    Args:
        folder: that `write_plain` wrote.
        plain: what was written, for its class, its prompts and its device.

    Raises:
        ModelError: Transformers does not load what was written.
    """

    def __init__(self, folder: Path, plain: PlainModel) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

        network: Any = load_model(
            find_checkpoint(str(folder)), AutoModel if plain.texts else AutoModelForImageClassification
        )
        if type(network) is not type(plain.network):
            raise ModelError(f"{folder}: opens as {type(network).__name__}, and {plain.architecture} was written")
        self._network, self._texts = network.eval().to(plain.network.device), plain.texts
        with quiet():
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            if plain.texts:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def pixels(self, grey: Greys) -> Singles:
        """u8[H, W] -> f32[3, S, S], as the folder's own image processor makes them of an image file."""
        made = self._processor(images=Image.fromarray(grey), return_tensors="np")["pixel_values"][0]
        return np.asarray(made, dtype=np.float32)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, S, S] -> f32[B, C]; of a dual encoder by the mean vector of each class's prompts."""
        if not (texts := self._texts):
            return torch.as_tensor(self._network(pixel_values=pixels).logits)
        every = [text for group in texts.prompts.values() for text in group]
        tokens = self._tokenizer(
            every, padding=texts.padding, truncation=True, max_length=texts.length, return_tensors="pt"
        )
        output = self._network(**tokens.to(pixels.device), pixel_values=pixels)
        groups = output.text_embeds.split([len(group) for group in texts.prompts.values()])
        vectors = nn.functional.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)
        logits: Tensor = self._network.logit_scale.exp() * output.image_embeds @ vectors.T
        return logits
