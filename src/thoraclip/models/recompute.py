"""Less memory for more time: the layers of a network are computed again in the backward pass."""

from __future__ import annotations

import functools

from torch import nn

from thoraclip.errors import ConfigError

__all__ = ["recompute_layers"]


def recompute_layers(network: nn.Module, name: str) -> None:
    """Gradient checkpointing, in eval mode too: only the layers themselves are told that they train, nothing inside
    them.

    Transformers' own switch refuses models that join two towers, although the towers' layers can do it.

    Args:
        network: whose layers are recomputed in the backward pass.
        name: of the model, for the message.

    Raises:
        ConfigError: no layer of it can do that.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"gradient_checkpointing: model '{name}' has no layers that can do it; set it to false")
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
