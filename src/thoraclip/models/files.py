"""Files of checkpoints and adapters, read without torch: where they lie, what they say, their fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from thoraclip.documents import read_json, regular
from thoraclip.errors import ConfigError, InputError, ManifestError, ModelError, did_you_mean, first_line
from thoraclip.runs import write_json
from thoraclip.shapes import Check, check, number, table, text, whole

__all__ = [
    "ABOUT",
    "OPEN_CLIP",
    "OPEN_CLIP_TYPE",
    "OPEN_CLIP_WEIGHTS",
    "SHIPPED",
    "AdapterNote",
    "Checkpoint",
    "adapter_folders",
    "description",
    "fingerprint",
    "holds_weights",
    "locate",
    "model_file",
    "read_about",
    "read_config",
    "read_note",
    "read_table",
    "require_adapter",
    "require_float_weights",
    "require_on_hub",
    "stored_fingerprint",
    "stored_folder",
    "weight_slices",
    "write_about",
]

SHIPPED = ("tiny-clip",)
OPEN_CLIP = "open_clip_config.json"
OPEN_CLIP_TYPE = "open-clip"  # model type of `open_clip_format.OpenClipConfig`
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")
_ARITHMETIC = 1  # number of the rules in `frozen`, by which bf16 is computed; other rules make other features
ABOUT = "thoraclip.json"
_WRITTEN = {
    "adapter_config.json", "adapter_model.safetensors",
    "config.json", "preprocessor_config.json", "model.safetensors", ABOUT,
}  # fmt: skip
"""All that lies in a folder of weights."""
_SCHEMA = 1
_WEIGHTS = ("weight", "bias", "scale", "token", "embedding", "embeddings", "embed", "proj", "projection")
"""Ends of the names of weights; buffers of whole numbers, such as position_ids, have others."""
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is and what it says of itself."""

    name: str  # as the user named it
    location: str  # a local folder, or the Hub id
    is_local: bool  # True for a folder: then the network is never asked
    config: Any  # the Transformers configuration
    is_open_clip: bool = False  # True where the files are in open_clip's format, and the weights have its names

    def error(self, text: str) -> ModelError:
        """A ModelError that names this model."""
        return ModelError(f"model '{self.name}': {text}")


def locate(name: str) -> tuple[str, bool]:
    """(folder, True) for a shipped or local model, (Hub id, False) for a name like owner/name; else ModelError."""
    if name in SHIPPED:
        return str(resources.files("thoraclip") / "models" / "assets" / name), True
    if name and Path(name).is_dir():  # "" would be the working directory
        return name, True
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise ModelError(
            f"model '{name}': no such folder or shipped model{did_you_mean(name, SHIPPED)} (a Hub id reads owner/name)"
        )
    return name, False


def description(weights: str, precision: str) -> dict[str, str]:
    """What identifies the features of a frozen encoder: the fingerprint of its weights, and `fp32` or `bf16`."""
    rules = {"arithmetic": str(_ARITHMETIC)} if precision == "bf16" else {}
    return {"weights": weights, "precision": precision} | rules


def stored_folder(model: str) -> Path | None:
    """Folder of a local or shipped model, or of a Hub model's newest files on this machine; `None` without any."""
    location, is_local = locate(model)
    if is_local:
        return Path(location)
    from huggingface_hub import try_to_load_from_cache  # takes 0.3 s to load

    files = (try_to_load_from_cache(location, name) for name in ("model.safetensors", *OPEN_CLIP_WEIGHTS))
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def model_file(location: str, name: str) -> Path | None:
    """A small file of a model, of a Hub model fetched where it is not on this machine; `None` where there is none."""
    if Path(location).is_dir():
        return path if (path := Path(location) / name).is_file() else None
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(location, name)))
    except OSError:  # not there, or no network
        return None


def read_config(location: str) -> Mapping[str, Any]:
    """The content of `config.json`; empty where `open_clip_config.json` is alone.

    Raises:
        ModelError: not readable, or no model in the folder.
    """
    path = model_file(location, "config.json")
    if path is None:
        if not Path(location).is_dir() or model_file(location, OPEN_CLIP):
            return {}
        path = Path(location) / "config.json"  # which is then said to be missing
    return read_table(path, table(), "get the model again")


def read_table(path: Path, shape: Check, remedy: str) -> dict[str, Any]:
    """The table of a JSON file of a model; raises ModelError where it is not readable or of another shape."""
    content: dict[str, Any] = read_json(path, error=ModelError, remedy=remedy)
    check(content, shape, path, error=ModelError, remedy=remedy)
    return content


def require_on_hub(name: str, files: str) -> None:
    """Raise ModelError where the Hub, asked once, does not have a model of which no such files (a pattern such as
    `*.safetensors`, of any revision) are on this machine."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    for file in ("config.json", OPEN_CLIP):
        config = try_to_load_from_cache(name, file)
        if isinstance(config, str) and any(Path(config).parents[1].glob(f"*/{files}")):
            return
    try:
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"))
        except errors.EntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(name, OPEN_CLIP))
    except Exception as error:  # of the Hub client, and of the HTTP library below it
        is_answer = isinstance(error, errors.HfHubHTTPError)
        reason = f"{'' if is_answer else 'which cannot be reached: '}{first_line(error)}"
        if isinstance(error, errors.RepositoryNotFoundError):
            reason = "no such model there, or one that needs a token"
        raise not_found(name, reason) from error


def not_found(name: str, reason: str) -> ModelError:
    """The error of a model that is nowhere; `reason` is what the Hub says."""
    return ModelError(
        f"model '{name}': neither a local folder, a shipped model ({', '.join(SHIPPED)}), nor found on the Hub "
        f"({reason}); check the spelling, or download it and give the folder"
    )


def require_float_weights(file: Path, name: str) -> None:
    """Raise ModelError, which begins with `name`, where a safetensors file is not readable or a weight is of whole
    numbers; the header alone is read."""
    for weight, part in weight_slices(file, f"{name}: {file.name}").items():
        if weight.endswith(_WEIGHTS) and part.get_dtype().startswith(("I", "U", "BOOL")):
            raise ModelError(
                f"{name}: {file.name}: weight '{weight}' holds whole numbers; take weights that are not quantised"
            )


def weight_slices(file: Path, where: str) -> dict[str, Any]:
    """Name -> slice of every weight of a safetensors file, whose type and shape are in the header; raises ModelError,
    which begins with `where`."""
    try:
        with safe_open(regular(file), framework="numpy") as weights:
            return {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{where} is not readable ({first_line(error)}); get it again") from error


def fingerprint(weights: Iterable[tuple[str, npt.NDArray[Any]]]) -> str:
    """SHA-256 over name, shape and fp32 bytes of weights, which must come in the order of their names."""
    hasher = hashlib.sha256()
    for name, weight in weights:
        hasher.update(f"{name}{weight.shape}".encode())
        hasher.update(np.ascontiguousarray(weight, dtype=np.float32).tobytes())
    return hasher.hexdigest()


def stored_fingerprint(folder: Path) -> str | None:
    """`checkpoint.weights_fingerprint` of the network that the `model.safetensors` of a folder fills, from the file
    alone.

    It is the network's where the file has the architecture's own names; where it does not, it is no network's
    fingerprint. `None` where there is no such file, or numbers that NumPy does not have.
    """
    try:
        with safe_open(regular(folder / "model.safetensors"), framework="numpy") as file:
            names = sorted(n for n in file.keys() if not n.endswith("position_ids"))  # noqa: SIM118  see `load_model`
            return fingerprint((name, file.get_tensor(name)) for name in names)
    except (OSError, SafetensorError, ValueError, TypeError):  # the last one for bf16
        return None


@dataclass(frozen=True)
class AdapterNote:
    """What PEFT's own files do not say of an adapter."""

    base: str  # fingerprint of the weights that it was trained on
    log_scale: float  # logarithm of the logit scale after training; in no module, so PEFT cannot keep it
    bias: float  # logit bias after training
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it was trained on, and how


_NOTE = table(base=text, log_scale=number(-20, 20), bias=number(-1e4, 1e4), facts=table(), may=["facts"])


def read_note(folder: Path) -> AdapterNote | None:
    """The note of an adapter folder; `None` for one that another program wrote.

    Raises:
        InputError: no adapter there.
        ModelError: the note is not readable, or from a newer version.
    """
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter '{folder}': no adapter_config.json there; name a PEFT adapter folder")
    return read_about(folder, f"adapter '{folder}'", _NOTE, AdapterNote)


def write_about(folder: Path, **content: Any) -> None:
    """Write `thoraclip.json` into a folder of trained weights."""
    write_json(folder / ABOUT, {"schema": _SCHEMA, **content})


def read_about(folder: Path, name: str, shape: Check, make: Callable[..., T]) -> T | None:
    """What `make` makes of the content of this shape that `write_about` got; `None` where there is none.

    Raises:
        ModelError: the file is not readable, or from a newer version; it begins with `name`.
    """
    path = folder / ABOUT
    if not path.is_file():
        return None
    content = read_table(path, table(schema=whole(1)), "train it again")
    if (schema := content.pop("schema")) > _SCHEMA:  # before its fields are looked at: it may have others
        raise ModelError(f"{name}: schema {schema} is newer than {_SCHEMA}; upgrade thoraclip")
    check(content, shape, path, error=ModelError, remedy="train it again")
    try:
        return make(**content)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError, ManifestError) as error:
        raise ModelError(f"{name}: {ABOUT} is not readable ({error!r}); train it again") from error


def holds_weights(folder: Path) -> bool:
    """True for a folder of trained weights, what `write_about` has marked or a PEFT adapter, and of nothing else."""
    is_marked = (folder / ABOUT).is_file() or (folder / "adapter_config.json").is_file()
    return is_marked and {place.name for place in folder.iterdir()} <= _WRITTEN


def require_adapter(name: str) -> dict[int | None, Path]:
    """`adapter_folders` of a folder that must have one; raises InputError where it has none."""
    folders = adapter_folders(Path(name))
    if not folders:
        raise InputError(
            f"adapter '{name}': no adapter there; name a PEFT adapter folder, or the run folder of a finished "
            "thoraclip finetune"
        )
    return folders


def adapter_folders(path: Path) -> dict[int | None, Path]:
    """Held-out fold -> PEFT folder, of an adapter or of a finished fine-tuning run, which has `adapter/` or
    `fold-<k>/adapter/` in it; fold `None` stands for all images. `{}` where nothing is there."""
    for single in (path, path / "adapter"):
        if (single / "adapter_config.json").is_file():
            return {None: single}
    folders = (file.parent for file in path.glob("fold-*/adapter/adapter_config.json"))
    by_fold = {int(f.parent.name[5:]): f for f in folders if f.parent.name[5:].isdigit()}
    return dict(sorted(by_fold.items()))
