"""The files of a checkpoint, read without torch: where they lie, what the image processor says, and the weights'
fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from thoraclip.errors import ModelError, did_you_mean, first_line
from thoraclip.imaging import Preprocess

__all__ = [
    "SHIPPED",
    "Checkpoint",
    "description",
    "locate",
    "preprocessor_json",
    "read_preprocess",
    "stored_fingerprint",
    "stored_folder",
]

SHIPPED = ("tiny-clip",)
_PILLOW_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ARITHMETIC = 1
"""Number of the rules in `frozen`, by which bf16 is computed; features made by others are other numbers."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is and what it says of itself.

    Args:
        name: as the user named it.
        location: a local folder, or the Hub id.
        is_local: True for a folder: then the network is never asked.
        config: the Transformers configuration.
    """

    name: str
    location: str
    is_local: bool
    config: Any

    def error(self, text: str) -> ModelError:
        """A ModelError that names this model."""
        return ModelError(f"model '{self.name}': {text}")


def locate(name: str) -> tuple[str, bool]:
    """(folder, True) for a shipped or local model, (Hub id, False) for a name like owner/name; else ModelError."""
    if name in SHIPPED:
        return str(resources.files("thoraclip") / "models" / "assets" / name), True
    if Path(name).is_dir():
        return name, True
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise ModelError(
            f"model '{name}': no such folder or shipped model{did_you_mean(name, SHIPPED)} (a Hub id reads owner/name)"
        )
    return name, False


def read_preprocess(checkpoint: Checkpoint, *, geometry: str) -> Preprocess:
    """Size, mean, std and resampling from `preprocessor_config.json`; the geometry is the caller's.

    Raises:
        ModelError: the file is missing or says something that `imaging` does not do.
    """
    path = _preprocessor_file(checkpoint)
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        sides = dict(_sides(content.get("size")))
        crop = _sides(content["crop_size"]) if content.get("do_center_crop") and "crop_size" in content else {}
        size = int(crop.get("height") or sides.get("height") or sides["shortest_edge"])
        short = int(sides.get("shortest_edge") or size)
        if "crop_pct" in content and size < 384:  # ConvNeXt's processor, which ResNet has too: larger ones are not cut
            short = int(size / float(content["crop_pct"] or 224 / 256))
        return Preprocess(
            size=size,
            geometry=geometry,
            short_side=max(short, size) if geometry == "crop" else None,
            resample=_PILLOW_RESAMPLE[int(content.get("resample", 3))],
            mean=tuple(content["image_mean"]),
            std=tuple(content["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        config = getattr(checkpoint.config, "vision_config", checkpoint.config)
        native = getattr(config, "image_size", None)
        raise checkpoint.error(
            f"{path.name} is not understood ({error!r}); expected size, image_mean and image_std for {native}"
        ) from error


def preprocessor_json(spec: Preprocess) -> dict[str, Any]:
    """`preprocessor_config.json` that `read_preprocess` reads back; bars (geometry `pad`) have no word in it."""
    side = {"height": spec.size, "width": spec.size}
    content: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if spec.geometry == "crop" else "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": {name: number for number, name in _PILLOW_RESAMPLE.items()}[spec.resample],
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "size": side,
    }
    if spec.geometry == "crop":
        content |= {"do_center_crop": True, "crop_size": side, "size": {"shortest_edge": spec.short_side}}
    return content


def _sides(value: Any) -> Mapping[str, Any]:
    return {"height": value, "width": value} if isinstance(value, int) else (value or {})


def _preprocessor_file(checkpoint: Checkpoint) -> Path:
    if checkpoint.is_local:
        path = Path(checkpoint.location) / "preprocessor_config.json"
        if not path.is_file():
            raise checkpoint.error("preprocessor_config.json is missing; save the image processor beside the weights")
        return path
    from transformers.utils import cached_file

    try:
        found = cached_file(checkpoint.location, "preprocessor_config.json")
    except OSError as error:
        raise checkpoint.error(f"preprocessor_config.json cannot be had ({first_line(error)})") from error
    return Path(str(found))


def description(weights: str, precision: str) -> dict[str, str]:
    """What identifies the features of a frozen encoder, wherever its files lie: its weights' fingerprint, `fp32` or
    `bf16`."""
    return {"weights": weights, "precision": precision} | (
        {"arithmetic": str(_ARITHMETIC)} if precision == "bf16" else {}
    )


def stored_folder(model: str) -> Path | None:
    """The folder of a local or shipped model, or of a Hub model's newest files on this machine; `None` where there are
    none."""
    location, is_local = locate(model)
    if is_local:
        return Path(location)
    from huggingface_hub import try_to_load_from_cache  # takes 0.3 s to load

    found = try_to_load_from_cache(location, "model.safetensors")
    return Path(found).parent if isinstance(found, str) else None


def stored_fingerprint(folder: Path) -> str | None:
    """`checkpoint.weights_fingerprint` of the network that the `model.safetensors` of a folder fills, from the file
    alone.

    It is the network's where the file has the architecture's own names; where it does not, it is no network's
    fingerprint. `None` where there is no such file, or numbers that NumPy does not have.
    """
    hasher = hashlib.sha256()
    try:
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            for name in sorted(file.keys()):
                if not name.endswith("position_ids"):  # a buffer of old files, see `checkpoint.load_model`
                    weight = file.get_tensor(name)
                    hasher.update(f"{name}{tuple(weight.shape)}".encode())
                    hasher.update(np.ascontiguousarray(weight, dtype=np.float32).tobytes())
    except (OSError, SafetensorError, TypeError):  # the last one for bf16
        return None
    return hasher.hexdigest()
