"""Image classifiers that are trained end to end: Transformers' own, or a vision tower with a head.

A trained one is a folder: `model.safetensors`, `config.json` and `preprocessor_config.json` as Transformers writes them
(so that `AutoModelForImageClassification` loads it, where it is one), and `thoraclip.json` with the classes and what it
was trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from thoraclip.documents import regular
from thoraclip.dtypes import Floats, Greys, Singles
from thoraclip.errors import InputError, ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.imaging.preprocessing import PREPROCESS_SHAPE
from thoraclip.imaging.remedies import NONE
from thoraclip.labels import LabelSet
from thoraclip.models.architectures import ARCHITECTURES
from thoraclip.models.checkpoint import find_checkpoint, load_model, quiet, require_finite_weights
from thoraclip.models.dual_encoder import load_vision_encoder, untrained_encoder
from thoraclip.models.files import Checkpoint, holds_weights, read_about, require_float_weights, write_about
from thoraclip.models.image_processor import preprocessor_json
from thoraclip.models.network import Network, network_settings
from thoraclip.models.vision_encoder import VisionEncoder
from thoraclip.runs import atomic_open, whole_folder, write_json
from thoraclip.shapes import sequence, table, text

__all__ = ["Backbone", "TowerClassifier", "load_backbone", "load_trained", "read_trained_note", "set_labels"]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)\.")
"""Number of the layer in a parameter's name: the first such number, which of a ResNet is the stage."""
_FIRST = re.compile(r"embed|stem|pre_layrnorm")  # what comes before all layers
_HEAD_STD = 0.02


class TowerClassifier(nn.Module):
    """The vision tower of an encoder, its pooled output, and a linear layer on it, for C classes."""

    base_model_prefix = "vision_model"  # as Transformers' classifiers have

    def __init__(self, encoder: VisionEncoder, classes: int) -> None:
        super().__init__()
        if "text" in encoder.towers:
            del encoder.model.text_model  # it would only take memory
        self.pooled: Callable[[Tensor], Tensor] = encoder.pooled  # f32[B, 3, S, S] -> f32[B, D], for the linear layer
        self.vision_model = encoder.tower
        side = encoder.preprocess.size
        with torch.inference_mode():
            width = self.pooled(torch.zeros(1, 3, side, side, device=encoder.device)).shape[-1]
        self.classifier = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, S, S] -> logits [B, C]."""
        logits: Tensor = self.classifier(self.pooled(pixels))
        return logits


@dataclass(frozen=True, kw_only=True)
class Backbone(Network):
    """A classifier of grey images; a `Predictor`."""

    network: nn.Module  # a Transformers image classifier or a `TowerClassifier`, fp32
    config: Any  # its Transformers configuration
    labels: LabelSet  # C classes, in the order of the scores

    @property
    def base(self) -> str:
        """Prefix of the names of all parameters that are not the head's."""
        return f"{self.network.base_model_prefix}."

    def logits(self, pixels: Tensor) -> Tensor:
        """f32[B, 3, H, W] -> f32[B, C], with gradient."""
        with self.autocast():
            output = self.network(pixels)
        return (output if isinstance(output, Tensor) else output.logits).float()

    @torch.inference_mode()
    def predict(self, pixels: Singles) -> Singles:
        """f32[B, 3, H, W] -> f32[B, C], each row sums to 1; the network must be in eval mode."""
        scores = self.logits(torch.from_numpy(pixels).to(self.device)).softmax(dim=-1)
        return np.asarray(scores.cpu().numpy())

    @property
    def features_key(self) -> tuple[str, ...]:
        """Of this network alone: equal for the same object."""
        return (self.name, self.precision)

    @torch.inference_mode()
    def look(self, greys: Greys) -> tuple[Singles, Floats]:
        """u8[B, H, W] -> (inputs of the head f32[B, D], scores f64[B, C], rows sum to 1)."""
        head = self.network.get_submodule(next(iter(self.head_parameters)).split(".")[0])
        inputs: list[Tensor] = []
        with head.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
            scores = self.logits(self.expand(greys)).double().softmax(dim=-1)
        return inputs[0].float().flatten(1).cpu().numpy(), scores.cpu().numpy()

    @property
    def head_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are no part of the pretrained network."""
        return {n: p for n, p in self.network.named_parameters() if not n.startswith(self.base)}

    @property
    def running_statistics(self) -> dict[str, Tensor]:
        """What batch normalisation has seen, by name; empty without one."""
        return {
            f"{name}.{kind}": buffer
            for name, module in self.network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for kind, buffer in module.named_buffers(recurse=False)
        }

    def depths(self, names: Sequence[str]) -> list[int]:
        """Per parameter: 0 for the embedding, 1 to L for the layers, L + 1 for what comes after, as the head."""
        matches = [_LAYER.search(name) for name in names]
        layers = 1 + max((int(match[1]) for match in matches if match), default=-1)
        return [
            int(match[1]) + 1 if match else 0 if name.startswith(self.base) and _FIRST.search(name) else layers + 1
            for name, match in zip(names, matches, strict=True)
        ]

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the folder, or replace it; it appears whole, and equal weights give equal bytes.

        `facts` say what it was trained on, and how; JSON-able.
        """
        config = json.loads(set_labels(self.config, self.labels).to_json_string(use_diff=False))
        for unsteady in ("_name_or_path", "transformers_version"):
            config.pop(unsteady, None)
        tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(self.network.state_dict().items())}
        with whole_folder(folder, holds_weights) as part:
            write_json(part / "config.json", config)
            write_json(part / "preprocessor_config.json", preprocessor_json(self.preprocess))
            with atomic_open(part / "model.safetensors") as stream:
                stream.write(save(tensors, {"format": "pt"}))
            write_about(part, labels=list(self.labels.names), preprocess=self.preprocess.as_dict(), facts=dict(facts))


def set_labels(config: Any, labels: LabelSet) -> Any:
    """The Transformers configuration with the classes, in the order of the scores."""
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: number for number, name in enumerate(labels.names)}
    return config


def load_backbone(
    model: str,
    labels: LabelSet,
    *,
    pretrained: bool = True,
    seed: int = 0,
    geometry: str = "squash",
    remedy: str = NONE,
    precision: str = "auto",
    device: str = "",
) -> Backbone:
    """A network for these classes, its head drawn anew from the seed, all else as in the checkpoint.

    Args:
        model: Hub id, local folder, or `tiny-clip`: an image classifier of any architecture that Transformers has, or a
            dual encoder or a vision tower, which then gets a head on its pooled output.
        labels: C classes.
        pretrained: False draws every weight from the seed: the architecture alone is taken.
        seed: of what is drawn.
        geometry, remedy, precision, device: as in `load_vision_encoder`.

    Raises:
        ModelError: not found, no image classifier, or weights missing, unexpected or not finite.
    """
    from transformers import AutoModelForImageClassification

    checkpoint = find_checkpoint(model)
    settings = network_settings(checkpoint, geometry, remedy=remedy, precision=precision, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module
        if pretrained and _is_tower(checkpoint):
            network = TowerClassifier(load_vision_encoder(model, device=device), len(labels))
        else:
            network = _untrained(checkpoint, len(labels), settings)
            base = f"{network.base_model_prefix}."
            if pretrained:
                # the head is drawn anew; heads of other tasks, and a pooler without a use here, may be in the file
                network = load_model(
                    checkpoint,
                    AutoModelForImageClassification,
                    is_replaced=lambda name: not name.startswith(base) or ".pooler." in name,
                )
    backbone = _backbone(checkpoint, network, labels, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # weights of standard deviation 0.02, biases 0 and norms 1, as in ViT and BERT
        for name, parameter in sorted(backbone.head_parameters.items()):
            drawn = torch.randn(parameter.shape, generator=generator) * _HEAD_STD
            parameter.copy_(drawn if parameter.dim() > 1 else torch.tensor(float(name.endswith("weight"))))
    return backbone


def _is_tower(checkpoint: Checkpoint) -> bool:
    """True for a dual encoder, and a vision tower of which Transformers has no image classifier."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    architecture = ARCHITECTURES.get(str(checkpoint.config.model_type))
    has_classifier = type(checkpoint.config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return architecture is not None and (architecture.has_text or not has_classifier)


def _untrained(checkpoint: Checkpoint, classes: int, settings: dict[str, Any]) -> nn.Module:
    """The architecture with a head for C classes, weights drawn from PyTorch's global stream."""
    from transformers import AutoModelForImageClassification

    if _is_tower(checkpoint):
        return TowerClassifier(untrained_encoder(checkpoint, settings), classes)
    config = checkpoint.config
    if getattr(config, "num_channels", 3) != 3:
        raise checkpoint.error(f"takes {config.num_channels} channels; a network of 3 is needed")
    config.num_labels = classes
    try:
        with quiet():
            network: nn.Module = AutoModelForImageClassification.from_config(config)
    except ValueError as error:
        raise checkpoint.error(
            f"type '{config.model_type}' is no image classifier, dual encoder or vision tower that gives image features"
        ) from error
    if {name.startswith(f"{network.base_model_prefix}.") for name, _ in network.named_parameters()} != {True, False}:
        raise checkpoint.error(f"of type '{config.model_type}', whose head cannot be told from its network")
    return network


def _backbone(checkpoint: Checkpoint, network: nn.Module, labels: LabelSet, settings: dict[str, Any]) -> Backbone:
    placed = network.float().eval().to(settings["device"])
    return Backbone(network=placed, config=checkpoint.config, labels=labels, **settings)


_NOTE = table(labels=sequence(text, 2, 1000, unique=True), preprocess=PREPROCESS_SHAPE, facts=table())


def read_trained_note(folder: Path) -> tuple[LabelSet, Preprocess, Mapping[str, Any]]:
    """The classes of a trained network, how its pixels are made, and what `save` was told besides.

    Raises:
        InputError: no trained network there.
        ModelError: the note is not readable, or from a newer version.
    """
    note = read_about(
        folder,
        str(folder),
        _NOTE,
        lambda labels, preprocess, facts: (LabelSet(tuple(labels)), Preprocess.from_dict(preprocess), facts),
    )
    if note is None:
        raise InputError(f"{folder}: no thoraclip.json there; name a folder that thoraclip baseline wrote")
    return note


def load_trained(folder: Path, *, precision: str = "auto", device: str = "") -> Backbone:
    """A network that `Backbone.save` wrote, ready to predict.

    Raises:
        InputError: no trained network there.
        ModelError: a weight is missing, unexpected, misshapen or not finite.
    """
    labels, spec, _ = read_trained_note(folder)
    checkpoint = find_checkpoint(str(folder))
    settings = network_settings(checkpoint, spec, precision=precision, device=device)
    with torch.random.fork_rng(devices=[]):
        network = _untrained(checkpoint, len(labels), settings)
    try:
        network.load_state_dict(load_file(regular(folder / "model.safetensors")))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{folder}: model.safetensors does not fit its config.json ({first_line(error)}); train it again"
        ) from error
    require_float_weights(folder / "model.safetensors", f"model '{folder}'")
    require_finite_weights(checkpoint, network)
    if tuple(checkpoint.config.id2label.values()) != labels.names:
        raise ModelError(f"{folder}: config.json and thoraclip.json name other classes; train it again")
    return _backbone(checkpoint, network, labels, settings)
