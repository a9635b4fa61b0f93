"""A linear head on a vision tower as the head of the architecture's own `...ForImageClassification`.

That is exact where the class of Transformers reads the very feature of the tower that the head reads, which is tried on
the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thoraclip.errors import InputError
from thoraclip.models.backbones import set_labels
from thoraclip.models.checkpoint import quiet
from thoraclip.models.classifiers import Classifier, EncoderClassifier

__all__ = ["EXPORT_INSTEAD", "noise_pixels", "with_standard_head"]

EXPORT_INSTEAD = "`thoraclip export RUN --out BUNDLE` makes a bundle of it"
"""The remedy where Transformers has no such class."""


def with_standard_head(classifier: Classifier) -> Any:
    """The image classifier of Transformers around a copy of a classifier's tower, its head set so that the logits stay.

    Raises:
        InputError: the architecture has no image classifier, or one whose head reads another feature of the tower.
    """
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
            f"{EXPORT_INSTEAD}"
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
        raise InputError(f"{name}: its head cannot be told from its tower; {EXPORT_INSTEAD}")
    missing = own.load_state_dict(tower.state_dict(), strict=False).missing_keys
    network.to(next(tower.parameters()).device)
    if missing or not _reads(network, heads[0], pooled, noise_pixels(classifier)):
        raise InputError(
            f"{name}: its head does not read the feature that this classifier reads, the tower's pooled output, but "
            f"pools the tokens otherwise; {EXPORT_INSTEAD}, and merge of a finetune's run writes the tower itself"
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


def noise_pixels(classifier: Classifier) -> Tensor:
    """f32[2, 3, S, S], the same at every call."""
    side, generator = classifier.preprocess.size, torch.Generator().manual_seed(0)
    return classifier.expand(torch.randint(0, 256, (2, side, side), generator=generator, dtype=torch.uint8))
