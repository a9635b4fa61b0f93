"""A classifier as a plain Transformers folder, which `AutoModel` and `pipeline` open without ThoraCLIP.

Dual encoders are written as they are, their adapter merged. A linear head on a tower becomes the head of the
architecture's own `...ForImageClassification`, where that reads the very feature of the tower that the head reads; it
is tried on the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from thoraclip.models.files import ABOUT, OPEN_CLIP_TYPE, write_about
from thoraclip.models.image_processor import preprocessor_json
from thoraclip.runs import write_json

__all__ = [
    "OpenedPlain",
    "PlainModel",
    "image_classifier",
    "is_plain_folder",
    "plain_dual_encoder",
    "write_plain",
]

_EXPORT_INSTEAD = "`thoraclip export RUN --out BUNDLE` makes a bundle of it"
"""The remedy where Transformers has no such class."""
_UNSTEADY = ("is_local", "local_files_only", "name_or_path")
"""Of a tokenizer's configuration: where it was read from."""


@dataclass(frozen=True, kw_only=True)
class PlainModel:
    """What is written."""

    network: Any  # a Transformers model in fp32
    preprocess: Preprocess
    labels: LabelSet
    encoder: DualEncoder | None = None  # around `network`, where that is one
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # its classes', in the order of the scores

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
            f"open_clip's format; {_EXPORT_INSTEAD}"
        )
    try:
        with torch.inference_mode():
            encoder.tower(pixel_values=_noise_pixels(classifier))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model '{encoder.name}': {type(encoder.model).__name__} does not take images of side "
            f"{classifier.preprocess.size} as an image processor makes them ({first_line(error)}); {_EXPORT_INSTEAD}"
        ) from error
    return PlainModel(
        network=encoder.model,
        preprocess=classifier.preprocess,
        labels=classifier.labels,
        encoder=encoder,
        prompts=prompts,
    )


def image_classifier(classifier: Classifier) -> PlainModel:
    """The image classifier of Transformers that gives the same logits.

    Raises:
        InputError: there is none: its architecture has no image classifier, or one whose head reads another feature of
            the tower.
    """
    has_own = isinstance(classifier, Backbone) and not isinstance(classifier.network, TowerClassifier)
    network: Any = classifier.network if has_own else _with_standard_head(classifier)
    set_labels(network.config, classifier.labels)
    return PlainModel(network=network, preprocess=classifier.preprocess, labels=classifier.labels)


def _with_standard_head(classifier: Classifier) -> Any:
    """The image classifier of Transformers around a copy of a classifier's tower, its head set so that the logits stay;
    raises as `image_classifier`."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSES

    encoder: Any = classifier.encoder if isinstance(classifier, EncoderClassifier) else classifier
    if isinstance(classifier, EncoderClassifier):
        tower, pooled, outer = encoder.tower, encoder.pooled, encoder.model.config
        weight, bias = map(torch.from_numpy, classifier.head.folded())
    else:
        tower, pooled, outer = encoder.network.vision_model, encoder.network.pooled, encoder.config
        weight, bias = encoder.network.classifier.weight, encoder.network.classifier.bias
    config = next((config for config in (tower.config, outer) if type(config) in CLASSES), None)
    if config is None:
        raise InputError(
            f"model '{encoder.name}': Transformers has no image classifier of type '{tower.config.model_type}'; "
            f"{_EXPORT_INSTEAD}"
        )
    kinds = CLASSES[type(config)]
    with quiet(), torch.random.fork_rng(devices=[]):
        settings = set_labels(type(config).from_dict(config.to_dict()), classifier.labels)
        network = (kinds[0] if isinstance(kinds, tuple) else kinds)._from_config(settings).float().eval()
    own = next((m for m in network.children() if isinstance(m, type(tower))), network)
    inside = set(own.modules())
    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and m not in inside]
    name = f"{type(network).__name__} of model '{encoder.name}'"
    if len(heads) != 1:
        raise InputError(f"{name}: its head cannot be told from its tower; {_EXPORT_INSTEAD}")
    missing = own.load_state_dict(tower.state_dict(), strict=False).missing_keys
    network.to(next(tower.parameters()).device)
    if missing or not _reads(network, heads[0], pooled, _noise_pixels(classifier)):
        raise InputError(
            f"{name}: its head does not read the feature that this classifier reads, the tower's pooled output, but "
            f"pools the tokens otherwise; {_EXPORT_INSTEAD}, and merge of a finetune's run writes the tower itself"
        )
    with torch.no_grad():
        heads[0].weight.zero_()
        heads[0].weight[:, : weight.shape[1]].copy_(weight)
        heads[0].bias.copy_(bias)
    return network


@torch.inference_mode()
def _reads(network: nn.Module, head: nn.Linear, pooled: Callable[[Tensor], Tensor], pixels: Tensor) -> bool:
    """True where the first inputs of the head are the tower's pooled output. It is tried, on noise."""
    inputs: list[Tensor] = []
    try:
        with head.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
            network(pixel_values=pixels)
    except (TypeError, ValueError, RuntimeError):  # takes its pixels in another form
        return False
    wanted = pooled(pixels).float()
    given = inputs[0].float()[:, : wanted.shape[1]]  # DINOv2 appends the mean of the patches to it
    near = 1e-4 * float(wanted.abs().max())
    return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=0, atol=near)


def _noise_pixels(classifier: Classifier) -> Tensor:
    """f32[2, 3, S, S], the same at every call."""
    side, generator = classifier.preprocess.size, torch.Generator().manual_seed(0)
    return classifier.expand(torch.randint(0, 256, (2, side, side), generator=generator, dtype=torch.uint8))


def write_plain(folder: Path, plain: PlainModel, **facts: Any) -> None:
    """Write everything but the card into an empty folder; equal weights give equal bytes.

    `facts` (JSON-able) are what `thoraclip.json` says beside classes and preprocessing.
    """
    with quiet():
        plain.network.save_pretrained(folder)
        if plain.encoder:
            plain.encoder.tokenizer.save_pretrained(folder)
            path = folder / "tokenizer_config.json"
            content = read_json(path)
            write_json(path, {name: value for name, value in content.items() if name not in _UNSTEADY})
    for weights in folder.glob("*.safetensors"):  # which safetensors makes for this user alone
        weights.chmod((folder / "config.json").stat().st_mode)
    write_json(folder / "preprocessor_config.json", preprocessor_json(plain.preprocess))
    files = sorted({path.name for path in folder.iterdir()} | {ABOUT, "README.md"})
    write_about(
        folder,
        labels=list(plain.labels.names),
        preprocess=plain.preprocess.as_dict(),
        facts={"files": files, **facts},
    )


def is_plain_folder(folder: Path) -> bool:
    """True for a folder that `write_plain` wrote, and nothing else in it."""
    facts = kept_json(folder / ABOUT).get("facts")
    files = facts.get("files") if isinstance(facts, Mapping) else None
    return isinstance(files, list) and all(path.name in files for path in folder.iterdir())


class OpenedPlain:
    """What a reader gets from a folder of `write_plain`, by Transformers alone; ModelError where that does not load it.

    `plain` is what was written, for its class, its prompts and its device.
    """

    def __init__(self, folder: Path, plain: PlainModel) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

        kind = AutoModel if plain.encoder else AutoModelForImageClassification
        network: Any = load_model(find_checkpoint(str(folder)), kind)
        if type(network) is not type(plain.network):
            raise ModelError(f"{folder}: opens as {type(network).__name__}, and {plain.architecture} was written")
        self._network, self._plain = network.eval().to(plain.network.device), plain
        with quiet():
            self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            if plain.encoder:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def pixels(self, grey: Greys) -> Singles:
        """u8[H, W] -> f32[3, S, S], as the folder's own image processor makes them of an image file."""
        made = self._processor(images=Image.fromarray(grey), return_tensors="np")["pixel_values"][0]
        return np.asarray(made, dtype=np.float32)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, S, S] -> f32[B, C]; of a dual encoder by the mean vector of each class's prompts."""
        if not (encoder := self._plain.encoder):
            return torch.as_tensor(self._network(pixel_values=pixels).logits)
        prompts = self._plain.prompts.values()
        settings = {"padding": encoder.architecture.padding, "truncation": True, "max_length": encoder.text_length}
        tokens = self._tokenizer([text for group in prompts for text in group], **settings, return_tensors="pt")
        output = self._network(**tokens.to(pixels.device), pixel_values=pixels)
        groups = output.text_embeds.split([len(group) for group in prompts])
        vectors = nn.functional.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)
        logits: Tensor = self._network.logit_scale.exp() * output.image_embeds @ vectors.T
        return logits
