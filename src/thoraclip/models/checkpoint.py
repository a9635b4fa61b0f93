"""Find a checkpoint (Hub id, local folder, shipped) and load it whole.

Only safetensors are read, and no code from a checkpoint is ever run.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from thoraclip.errors import ModelError, first_line
from thoraclip.models.files import SHIPPED, Checkpoint, locate, preprocessor_json, read_preprocess

__all__ = [
    "SHIPPED",
    "Checkpoint",
    "find_checkpoint",
    "load_model",
    "load_tokenizer",
    "locate",
    "preprocessor_json",
    "quiet",
    "read_preprocess",
    "require_finite_weights",
    "weights_fingerprint",
]


def find_checkpoint(name: str) -> Checkpoint:
    """Find a model by Hub id, local folder or shipped name, and read its configuration.

    Raises:
        ModelError: no such model, with what was tried and the remedy.
    """
    from transformers import AutoConfig

    location, is_local = locate(name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(location, local_files_only=is_local, trust_remote_code=False)
    except Exception as error:  # Transformers and the Hub client raise OSError, ValueError, HTTP errors and more
        if is_local:
            raise ModelError(
                f"model '{name}': {location} holds no readable config.json ({first_line(error)})"
            ) from error
        raise ModelError(
            f"model '{name}': neither a local folder, a shipped model ({', '.join(SHIPPED)}), nor found on the Hub "
            f"({first_line(error)}); check the spelling, or download it and give the folder"
        ) from error
    return Checkpoint(name, location, is_local, config)


def load_model(
    checkpoint: Checkpoint, architecture: Any = None, *, is_replaced: Callable[[str], bool] = lambda _: False
) -> nn.Module:
    """Load all weights in fp32; a missing, unexpected or misshapen one is an error (Transformers only prints it).

    Args:
        checkpoint: as found.
        architecture: the Transformers class that the weights must fill; `None` for the one that the configuration
            names.
        is_replaced: weights, by name, that are made anew afterwards, so that nothing is asked of them.

    Raises:
        ModelError: no safetensors, the weights do not fit the architecture, or one of them is not finite.
    """
    import torch
    from transformers import AutoModel

    try:
        with quiet():
            network, info = (architecture or AutoModel).from_pretrained(
                checkpoint.location,
                config=checkpoint.config,
                local_files_only=checkpoint.is_local,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below
            )
    except Exception as error:  # OSError, safetensors and runtime errors
        raise checkpoint.error(
            f"weights cannot be loaded ({first_line(error)}); a model.safetensors is needed"
        ) from error
    missing = sorted(info["missing_keys"])
    unexpected = sorted(
        key for key in info["unexpected_keys"] if not key.endswith("position_ids")
    )  # a buffer of old files
    misshapen = sorted(str(key[0]) for key in info["mismatched_keys"])
    for what, names in (
        ("are missing", missing),
        ("are not part of the architecture", unexpected),
        ("have another shape", misshapen),
    ):
        asked = [name for name in names if not is_replaced(name)]
        if asked:
            raise checkpoint.error(
                f"{len(asked)} weights {what}, first '{asked[0]}'; the checkpoint is incomplete or of another type"
            )
    assert isinstance(network, nn.Module)
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
        with quiet():
            return AutoTokenizer.from_pretrained(
                checkpoint.location, local_files_only=checkpoint.is_local, trust_remote_code=False
            )
    except Exception as error:  # OSError, ValueError, KeyError
        raise checkpoint.error(
            f"its tokenizer cannot be loaded ({first_line(error)}); a tokenizer.json is needed"
        ) from error


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 over name, shape and fp32 bytes of every weight, in order of name."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        hasher.update(f"{name}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()


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
