"""A classifier as a plain Transformers folder, which `AutoModel` and `pipeline` open without ThoraCLIP.

Dual encoders are written as they are, their adapter merged. A linear head on a tower becomes the head of the
architecture's own `...ForImageClassification`, where that reads the very feature of the tower that the head reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from thoraclip.dtypes import Floats, Greys, Singles
from thoraclip.errors import InputError, ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.models.backbones import Backbone, TowerClassifier
from thoraclip.models.checkpoint import find_checkpoint, load_model, quiet
from thoraclip.models.classifiers import Classifier, EncoderClassifier
from thoraclip.models.dual_encoder import DualEncoder
from thoraclip.models.files import write_about
from thoraclip.models.image_processor import preprocessor_json
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
_REMEDY = "`thoraclip export RUN --out BUNDLE` makes a bundle of it"
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


@dataclass(frozen=True)
class _Tower:
    """A vision tower with a linear layer on its pooled output."""

    network: Any  # the tower, a Transformers model
    configs: tuple[Any, ...]  # of which the first that has an image classifier counts
    pooled: Callable[[Tensor], Tensor]  # f32[B, 3, S, S] -> f32[B, D]
    weight: Floats  # f64[C, D]
    bias: Floats  # f64[C]


def plain_dual_encoder(classifier: EncoderClassifier, prompts: Mapping[str, tuple[str, ...]]) -> PlainModel:
    """The dual encoder under a zero-shot classifier, whose classes have these prompts.

    Raises:
        InputError: its vision tower does not take the pixels of an image processor, as SigLIP 2 with patches of any
            aspect ratio.
    """
    encoder = classifier.encoder
    assert isinstance(encoder, DualEncoder), "prompts are compared in the space of both towers"
    try:
        with torch.inference_mode():
            encoder.tower(pixel_values=_noise(classifier))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model '{encoder.name}': {type(encoder.model).__name__} does not take images of side "
            f"{classifier.preprocess.size} as an image processor makes them ({first_line(error)}); {_REMEDY}"
        ) from error
    return PlainModel(
        network=encoder.model,
        preprocess=classifier.preprocess,
        labels=classifier.labels,
        texts=Texts(
            tokenizer=encoder.tokenizer,
            prompts=prompts,
            padding=encoder.architecture.padding,
            length=int(min(encoder.tokenizer.model_max_length, encoder.model.config.text_config.max_position_embeddings)),
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
        network = _with_head(_tower(classifier), classifier)
    _with_labels(network.config, classifier.labels)
    return PlainModel(network=network, preprocess=classifier.preprocess, labels=classifier.labels)


def _tower(classifier: Classifier) -> _Tower:
    if isinstance(classifier, EncoderClassifier):
        encoder = classifier.encoder
        configs = (classifier.network.config, encoder.model.config)
        weight, bias = classifier.head.folded()
        return _Tower(classifier.network, configs, encoder.pooled, weight, bias)
    network: Any = classifier.network
    head = [parameter.detach().cpu().double().numpy() for parameter in network.classifier.parameters()]
    configs = (network.vision_model.config, classifier.config)
    return _Tower(network.vision_model, configs, network.pooled, head[0], head[1])


def _with_head(tower: _Tower, classifier: Classifier) -> Any:
    """The architecture's image classifier around a copy of the tower, its head set so that the logits stay."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSES

    config = next((config for config in tower.configs if type(config) in CLASSES), None)
    if config is None:
        raise InputError(
            f"model '{_name_of(classifier)}': Transformers has no image classifier of type "
            f"'{tower.configs[0].model_type}'; {_REMEDY}"
        )
    kinds = CLASSES[type(config)]
    with quiet(), torch.random.fork_rng(devices=[]):
        settings = _with_labels(type(config).from_dict(config.to_dict()), classifier.labels)
        network = (kinds[0] if isinstance(kinds, tuple) else kinds)._from_config(settings).float().eval()
    own = next((m for m in network.children() if isinstance(m, type(tower.network))), None)
    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and own is not None and not _is_in(m, own)]
    name = f"{type(network).__name__} of model '{_name_of(classifier)}'"
    if own is None or len(heads) != 1:
        raise InputError(f"{name}: its head cannot be told from its tower; {_REMEDY}")
    missing = own.load_state_dict(tower.network.state_dict(), strict=False).missing_keys
    network.to(next(tower.network.parameters()).device)
    places = None if missing else _places(network, heads[0], tower, _noise(classifier))
    if places is None:
        raise InputError(
            f"{name}: its head does not read the feature that this classifier reads, the tower's pooled output, but "
            f"pools the tokens otherwise; {_REMEDY}, and merge of a finetune's run writes the tower itself"
        )
    with torch.no_grad():
        heads[0].weight.zero_()
        heads[0].weight[:, places].copy_(torch.from_numpy(tower.weight))
        heads[0].bias.copy_(torch.from_numpy(tower.bias))
    return network


def _with_labels(config: Any, labels: LabelSet) -> Any:
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: number for number, name in enumerate(labels.names)}
    return config


def _name_of(classifier: Classifier) -> str:
    """As the user named the model."""
    return classifier.encoder.name if isinstance(classifier, EncoderClassifier) else classifier.name


def _is_in(module: nn.Module, other: nn.Module) -> bool:
    return any(module is inner for inner in other.modules())


@torch.inference_mode()
def _places(network: nn.Module, head: nn.Linear, tower: _Tower, pixels: Tensor) -> slice | None:
    """Which inputs of the head are the tower's pooled output; `None` where none are. It is tried, on noise."""
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        network(pixel_values=pixels)
    except (TypeError, ValueError, RuntimeError):  # takes its pixels in another form
        return None
    finally:
        hook.remove()
    wanted = tower.pooled(pixels).float()
    given = inputs[0].float()[:, : wanted.shape[1]]  # DINOv2 appends the mean of the patches to it
    near = 1e-4 * float(wanted.abs().max())
    is_same = given.shape == wanted.shape and bool(torch.allclose(given, wanted, rtol=0, atol=near))
    return slice(0, wanted.shape[1]) if is_same else None


def _noise(classifier: Classifier) -> Tensor:
    side, generator = classifier.preprocess.size, torch.Generator().manual_seed(0)
    return classifier.expand(torch.randint(0, 256, (2, side, side), generator=generator, dtype=torch.uint8))


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
            content = json.loads(path.read_text(encoding="utf-8"))
            write_json(path, {name: value for name, value in content.items() if name not in _UNSTEADY})
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
    try:
        files = json.loads((folder / _NOTE).read_text(encoding="utf-8"))["facts"]["files"]
        return {path.name for path in folder.iterdir()} <= set(files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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

        network: Any = load_model(find_checkpoint(str(folder)), AutoModel if plain.texts else AutoModelForImageClassification)
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
        return self._network.logit_scale.exp() * output.image_embeds @ vectors.T
