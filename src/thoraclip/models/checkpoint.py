"""Find a checkpoint (Hub id, local folder, shipped), load it whole, and merge an adapter into it.

Only safetensors are read, and no code from a checkpoint is ever run.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from thoraclip.documents import regular
from thoraclip.errors import MismatchError, ModelError, first_line
from thoraclip.models.files import (
    OPEN_CLIP_TYPE,
    Checkpoint,
    fingerprint,
    locate,
    not_found,
    read_config,
    read_note,
    read_table,
    require_float_weights,
    require_on_hub,
    stored_folder,
)
from thoraclip.models.open_clip_config import open_clip_file, tokenizer_remedy
from thoraclip.models.open_clip_towers import describe_open_clip
from thoraclip.shapes import table

__all__ = [
    "find_checkpoint",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "quiet",
    "require_finite_weights",
    "weights_fingerprint",
]


def find_checkpoint(name: str) -> Checkpoint:
    """Find a model by Hub id, local folder or shipped name, and read its configuration; raises ModelError, with what
    was tried and the remedy, where there is none."""
    from transformers import AutoConfig

    location, is_local = locate(name)
    if not is_local:
        require_on_hub(location, "*config.json")  # Transformers would ask many times
    own = read_config(location)
    described = describe_open_clip(location, own)
    if OPEN_CLIP_TYPE in (own.get("model_type"), (described or {}).get("model_type")):
        from thoraclip.models.open_clip_format import register  # takes a while to load

        register()
    try:
        config = AutoConfig.for_model(**described) if described else _read(AutoConfig, location, is_local)
    except Exception as error:  # Transformers and the Hub client raise OSError, ValueError, HTTP errors and more
        if is_local:
            raise ModelError(
                f"model '{name}': {location} holds no readable config.json ({first_line(error)})"
            ) from error
        raise not_found(name, first_line(error)) from error
    return Checkpoint(name, location, is_local, config, is_open_clip=described is not None)


def load_model(
    checkpoint: Checkpoint,
    architecture: Any = None,
    *,
    is_replaced: Callable[[str], bool] = lambda _: False,
    **options: Any,
) -> nn.Module:
    """Load all weights in fp32; a missing, unexpected or misshapen one is an error (Transformers only prints it).

    Args:
        architecture: Transformers class that the weights must fill; `None` for the one that the configuration names.
        is_replaced: by name, weights that are made anew afterwards, or not needed, and not checked.

    Raises:
        ModelError: no safetensors, the weights do not fit the architecture, or one of them is not finite or of whole
            numbers.
    """
    from transformers import MODEL_MAPPING, AutoModel

    location: str | None = checkpoint.location
    weights: dict[str, Any] = {"use_safetensors": True}
    try:
        if checkpoint.is_open_clip:
            from thoraclip.models.open_clip_format import converted_weights

            architecture, location = MODEL_MAPPING[type(checkpoint.config)], None
            weights = {"state_dict": dict(converted_weights(load_file(regular(open_clip_file(checkpoint)))))}
        network, info = _read(
            architecture or AutoModel,
            location,
            checkpoint.is_local,
            config=checkpoint.config,
            **weights,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below
            **options,
        )
    except Exception as error:  # OSError, safetensors and runtime errors
        raise checkpoint.error(
            f"weights cannot be loaded ({first_line(error)}); a model.safetensors is needed"
        ) from error
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith("position_ids")]  # a buffer of old files
    for what, names in (
        ("are missing", info["missing_keys"]),
        ("are not part of the architecture", unexpected),
        ("have another shape", [str(key[0]) for key in info["mismatched_keys"]]),
    ):
        wrong = sorted(name for name in names if not is_replaced(name))
        if wrong:
            raise checkpoint.error(
                f"{len(wrong)} weights {what}, first '{wrong[0]}'; the checkpoint is incomplete or of another type"
            )
    assert isinstance(network, nn.Module)
    folder = stored_folder(checkpoint.name)
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        require_float_weights(file, f"model '{checkpoint.name}'")
    require_finite_weights(checkpoint, network, is_replaced)
    return network


def require_finite_weights(
    checkpoint: Checkpoint, network: nn.Module, is_replaced: Callable[[str], bool] = lambda _: False
) -> None:
    """Raise ModelError for the first weight that is NaN or infinite."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not is_replaced(name) and not bool(tensor.isfinite().all()):
            raise checkpoint.error(f"weight '{name}' holds NaN or infinite numbers; the file is damaged: get it again")


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer; raises ModelError when it has none."""
    from transformers import AutoTokenizer

    try:
        if checkpoint.is_open_clip:
            from thoraclip.models.open_clip_format import fitting_tokenizer

            tokenizer = fitting_tokenizer(checkpoint, partial(_read, AutoTokenizer))
        else:
            tokenizer = _read(AutoTokenizer, checkpoint.location, checkpoint.is_local)
    except Exception as error:  # OSError, ValueError, KeyError
        raise checkpoint.error(
            f"its tokenizer cannot be loaded ({first_line(error)}); {tokenizer_remedy(checkpoint)}"
        ) from error
    if length := getattr(checkpoint.config, "open_clip", {}).get("context_length"):  # a BERT may have more positions
        tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    return tokenizer


def _read(kind: Any, location: str | None, is_local: bool, **given: Any) -> Any:
    with quiet():
        return kind.from_pretrained(location, local_files_only=is_local, trust_remote_code=False, **given)


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 over name, shape and fp32 bytes of every weight, in order of name."""
    weights = sorted(network.state_dict().items())
    return fingerprint((name, weight.detach().float().cpu().numpy()) for name, weight in weights)


def load_adapter(checkpoint: Checkpoint, network: nn.Module, folder: Path, *, scale: float) -> nn.Module:
    """Merge a PEFT adapter into the weights.

    `scale` is 1 for the adapter as it is, 0 for the base; between them every weight is interpolated (WiSE-FT, Wortsman
    et al. 2022, arXiv:2109.01903).

    Raises:
        InputError: no adapter there.
        MismatchError: it was trained on other weights.
        ModelError: it does not fit the architecture, tensor for tensor.
    """
    from peft import PeftModel, get_peft_model_state_dict

    note, path = read_note(folder), folder / "adapter_config.json"
    config = read_table(path, table(), "get the adapter again")
    if note is not None and note.base != weights_fingerprint(network):
        raise MismatchError(
            f"adapter '{folder}': trained on other weights than those of model '{checkpoint.name}'; name the base it "
            f"was trained on (it says: {config.get('base_model_name_or_path') or 'nothing'})"
        )
    require_float_weights(folder / "adapter_model.safetensors", f"adapter '{folder}'")
    before = {name: value.clone() for name, value in network.state_dict().items()} if scale != 1 else {}
    try:
        with safe_open(regular(folder / "adapter_model.safetensors"), framework="pt") as file:
            stored = set(file.keys())
        with quiet():
            tuned = PeftModel.from_pretrained(network, str(folder))
            own = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys()
            stray = sorted(stored - own - tuned.state_dict().keys()) + sorted(own - stored)
            if stray:  # PEFT passes over them
                raise ValueError(f"{len(stray)} tensors without a counterpart, first '{stray[0]}'")
            merged: nn.Module = tuned.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises ValueError, RuntimeError, KeyError on an adapter of another model
        raise ModelError(f"adapter '{folder}': does not fit model '{checkpoint.name}' ({first_line(error)})") from error
    with torch.no_grad():
        if note is not None and hasattr(merged, "logit_scale"):
            merged.logit_scale.fill_(note.log_scale)  # type: ignore[operator]
            if hasattr(merged, "logit_bias"):
                merged.logit_bias.fill_(note.bias)  # type: ignore[operator]
        for name, value in merged.state_dict().items():
            if name in before and value.is_floating_point():
                value.copy_(torch.lerp(before[name].to(value), value, scale))
    return merged


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The libraries' own prints and bars stay off while loading: what they say is checked here and raised."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level, bars = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one library about another
            yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()
