"""What every network that reads images has: how its pixels are made, where it runs and how precisely it computes."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Greys
from thoraclip.errors import ConfigError
from thoraclip.imaging import Preprocess, check_pixels
from thoraclip.imaging.remedies import NONE
from thoraclip.models.files import Checkpoint
from thoraclip.models.image_processor import read_preprocess
from thoraclip.ranges import Precision, conform

__all__ = ["Network", "expand_greys", "network_settings", "recompute_layers", "resolve_precision", "usual_device"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a network is called, which pixels it takes, where it is and how it computes."""

    name: str  # as the user named the model
    preprocess: Preprocess  # how pixels must be made
    device: torch.device  # where the weights are
    precision: str  # `fp32` or `bf16` (autocast)

    def expand(self, greys: Greys | Tensor) -> Tensor:
        """u8[B, H, W] -> f32[B, 3, H, W] on the device; see `expand_greys`."""
        return expand_greys(greys, self.preprocess, self.device)

    def check(self, greys: Greys) -> None:
        """Look at what enters the network with `imaging.check_pixels`; for the first batch."""
        check_pixels(self.expand(greys).cpu().numpy(), self.preprocess)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision as a context for the forward pass."""
        is_fp32 = self.precision == "fp32"
        return nullcontext() if is_fp32 else torch.autocast(self.device.type, dtype=torch.bfloat16)


def network_settings(
    checkpoint: Checkpoint,
    preprocess: Preprocess | str = "squash",
    *,
    remedy: str = NONE,
    precision: str,
    device: str,
) -> dict[str, Any]:
    """The fields of a `Network`; precision and device as in `load_vision_encoder`. A geometry stands for the
    checkpoint's own preprocessing with it and with the remedy."""
    if isinstance(preprocess, str):
        preprocess = read_preprocess(checkpoint, geometry=preprocess, remedy=remedy)
    place = torch.device(device) if device else usual_device()
    precision = resolve_precision(precision, place)
    return {"name": checkpoint.name, "preprocess": preprocess, "device": place, "precision": precision}


def usual_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> `bf16` where the device has bf16 arithmetic, else `fp32`; raises ConfigError for an unknown name."""
    conform("precision", precision, Precision)
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    has_bf16 |= device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # no public name for this question yet
    return "bf16" if has_bf16 else "fp32"


def expand_greys(greys: Greys | Tensor, spec: Preprocess, device: torch.device) -> Tensor:
    """u8[B, H, W] -> f32[B, 3, H, W] on the device: the numbers of `imaging.normalise`, from a twelfth of the bytes."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (spec.mean, spec.std))
    unit = torch.as_tensor(greys).to(device, non_blocking=True)[:, None].float() * np.float32(1 / 255).item()
    return (unit - mean).div_(std)


def recompute_layers(network: nn.Module, name: str) -> None:
    """Compute the layers of a network, which is changed in place, again in the backward pass: less memory, more time.

    Unlike Transformers' own switch it works in eval mode (only the layers themselves are set to train, nothing inside
    them) and in models that join two towers. Raises ConfigError, which names the model, where no layer supports it.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(f"gradient_checkpointing: model '{name}' has no layers that can do it; set it to false")
    for layer in layers:
        layer.gradient_checkpointing = layer.training = True
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
