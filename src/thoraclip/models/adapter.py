"""Merge a PEFT adapter into the weights that it was trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from thoraclip.errors import MismatchError, ModelError, first_line
from thoraclip.models.adapter_note import AdapterNote, adapter_folders, read_note, write_note
from thoraclip.models.checkpoint import Checkpoint, quiet, weights_fingerprint

__all__ = ["AdapterNote", "adapter_folders", "load_adapter", "read_note", "write_note"]


def load_adapter(checkpoint: Checkpoint, network: nn.Module, folder: Path, *, scale: float) -> nn.Module:
    """Merge a PEFT adapter into the weights.

    Args:
        checkpoint, network: the base.
        folder: the adapter.
        scale: 1 for the adapter as it is, 0 for the base; between them every weight is interpolated (WiSE-FT, Wortsman
            et al. 2022, arXiv:2109.01903).

    Raises:
        InputError: no adapter there.
        MismatchError: it was trained on other weights.
        ModelError: it does not fit the architecture, tensor for tensor.
    """
    from peft import PeftModel, get_peft_model_state_dict

    note = read_note(folder)
    if note is not None and note.base != weights_fingerprint(network):
        raise MismatchError(
            f"adapter '{folder}': trained on other weights than those of model '{checkpoint.name}'; name the base it "
            f"was trained on (it says: {_base_name(folder)})"
        )
    before = {name: value.clone() for name, value in network.state_dict().items()} if scale != 1 else {}
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            stored = set(file.keys())
        with quiet():
            tuned = PeftModel.from_pretrained(network, str(folder))
            _require_same(stored, get_peft_model_state_dict(tuned, save_embedding_layers=False), tuned.state_dict())
            merged: nn.Module = tuned.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises ValueError, RuntimeError, KeyError on an adapter of another model
        raise ModelError(f"adapter '{folder}': does not fit model '{checkpoint.name}' ({first_line(error)})") from error
    with torch.no_grad():
        if note is not None:
            merged.logit_scale.fill_(note.log_scale)  # type: ignore[operator]
            if hasattr(merged, "logit_bias"):
                merged.logit_bias.fill_(note.bias)  # type: ignore[operator]
        for name, value in merged.state_dict().items():
            if name in before and value.is_floating_point() and not math.isclose(scale, 1):
                value.copy_(torch.lerp(before[name].to(value), value, scale))
    return merged


def _require_same(stored: Set[str], adapter: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Raise ValueError where PEFT passed over a tensor of the file, or found none for one of the adapter's."""
    stray = sorted(stored - adapter.keys() - network.keys()) + sorted(adapter.keys() - stored)
    if stray:
        raise ValueError(f"{len(stray)} tensors without a counterpart, first '{stray[0]}'")


def _base_name(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "nothing")
