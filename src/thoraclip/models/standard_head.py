"""A linear head on a vision tower as the head of the architecture's own `...ForImageClassification`.

That is exact where the class of Transformers reads the very feature of the tower that the head reads, which is tried on
the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.dtypes import Floats
from thoraclip.errors import InputError
from thoraclip.models.backbones import set_labels
from thoraclip.models.checkpoint import quiet
from thoraclip.models.classifiers import Classifier, EncoderClassifier

__all__ = ["EXPORT_INSTEAD", "noise_pixels", "with_standard_head"]

EXPORT_INSTEAD = "`thoraclip export RUN --out BUNDLE` makes a bundle of it"
"""The remedy where Transformers has no such class."""


@dataclass(frozen=True)
class _Tower:
    """A vision tower with a linear layer on its pooled output."""

    network: Any  # the tower, a Transformers model
    configs: tuple[Any, ...]  # of which the first that has an image classifier counts
    pooled: Callable[[Tensor], Tensor]  # f32[B, 3, S, S] -> f32[B, D]
    weight: Floats  # f64[C, D]
    bias: Floats  # f64[C]


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


def with_standard_head(classifier: Classifier) -> Any:
    """The image classifier of Transformers around a copy of a classifier's tower, its head set so that the logits stay.

    Raises:
        InputError: the architecture has no image classifier, or one whose head reads another feature of the tower.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSES

    tower = _tower(classifier)
    config = next((config for config in tower.configs if type(config) in CLASSES), None)
    if config is None:
        raise InputError(
            f"model '{_name_of(classifier)}': Transformers has no image classifier of type "
            f"'{tower.configs[0].model_type}'; {EXPORT_INSTEAD}"
        )
    kinds = CLASSES[type(config)]
    with quiet(), torch.random.fork_rng(devices=[]):
        settings = set_labels(type(config).from_dict(config.to_dict()), classifier.labels)
        network = (kinds[0] if isinstance(kinds, tuple) else kinds)._from_config(settings).float().eval()
    own = next((m for m in network.children() if isinstance(m, type(tower.network))), None)
    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and own is not None and not _is_in(m, own)]
    name = f"{type(network).__name__} of model '{_name_of(classifier)}'"
    if own is None or len(heads) != 1:
        raise InputError(f"{name}: its head cannot be told from its tower; {EXPORT_INSTEAD}")
    missing = own.load_state_dict(tower.network.state_dict(), strict=False).missing_keys
    network.to(next(tower.network.parameters()).device)
    places = None if missing else _places(network, heads[0], tower, noise_pixels(classifier))
    if places is None:
        raise InputError(
            f"{name}: its head does not read the feature that this classifier reads, the tower's pooled output, but "
            f"pools the tokens otherwise; {EXPORT_INSTEAD}, and merge of a finetune's run writes the tower itself"
        )
    with torch.no_grad():
        heads[0].weight.zero_()
        heads[0].weight[:, places].copy_(torch.from_numpy(tower.weight))
        heads[0].bias.copy_(torch.from_numpy(tower.bias))
    return network


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


def noise_pixels(classifier: Classifier) -> Tensor:
    """f32[2, 3, S, S], the same at every call."""
    side, generator = classifier.preprocess.size, torch.Generator().manual_seed(0)
    return classifier.expand(torch.randint(0, 256, (2, side, side), generator=generator, dtype=torch.uint8))
