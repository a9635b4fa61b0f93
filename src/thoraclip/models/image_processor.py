"""How the image processor of a checkpoint makes pixels, read from its JSON without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thoraclip.documents import read_json
from thoraclip.errors import ConfigError, ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.models.files import Checkpoint

__all__ = ["preprocessor_json", "read_preprocess"]

_PILLOW_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic")
_PROCESSOR = "processor_config.json"
"""Transformers 5 saves the image processor inside it, and then alone; it counts where both files are."""
_IMAGE_PROCESSOR = "preprocessor_config.json"
_CUT_BELOW = 384
"""ConvNeXt's processor, which ResNet has too, does not cut images of this side and larger."""


def read_preprocess(checkpoint: Checkpoint, *, geometry: str) -> Preprocess:
    """Size, mean, std and resampling of the checkpoint's image processor; the geometry is the caller's.

    A rescaling other than by 1/255, and a processor without rescaling or normalisation, become mean and std of the
    spec, which give the same numbers.

    Raises:
        ModelError: no file, or it says something that `imaging` does not do.
        ConfigError: unknown geometry.
    """
    Preprocess(geometry=geometry)
    name, content = _image_processor(checkpoint)
    try:
        size, short = _sides(content)
        mean, std = _mean_and_std(content)
        resample = content.get("resample", 3)
        if type(resample) is not int or not 0 <= resample < len(_PILLOW_RESAMPLE):
            known = ", ".join(f"{number} {word}" for number, word in enumerate(_PILLOW_RESAMPLE))
            raise ValueError(f"resample = {resample!r} is none of {known}")
        if geometry == "crop" and short < size:
            raise ValueError(f"size = {short} is below crop_size = {size}, and images are not padded")
        return Preprocess(
            size=size,
            geometry=geometry,
            short_side=short if geometry == "crop" else None,
            resample=_PILLOW_RESAMPLE[resample],
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise checkpoint.error(
            f"its {name}: {missing}; images are resized, cut square and normalised; take a model whose image "
            "processor does that"
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
        "resample": _PILLOW_RESAMPLE.index(spec.resample),
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "size": side,
    }
    if spec.geometry == "crop":
        content |= {"do_center_crop": True, "crop_size": side, "size": {"shortest_edge": spec.short_side or spec.size}}
    return content


def _image_processor(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]]:
    """(name of the file, what it says of the image processor), as Transformers finds it."""
    for name in (_PROCESSOR, _IMAGE_PROCESSOR):
        path = _file(checkpoint, name)
        if path is None:
            continue
        content = read_json(path, error=ModelError, remedy="save the processor again")
        if name == _PROCESSOR and isinstance(content, Mapping):
            content = content.get("image_processor")
            if content is None:  # of a tokenizer alone
                continue
        if not isinstance(content, Mapping):
            raise checkpoint.error(f"its {name} describes no image processor; save the processor again")
        return name, content
    where = "beside the weights" if checkpoint.is_local else "on the Hub, or connect to it"
    raise checkpoint.error(
        f"{_IMAGE_PROCESSOR} is missing, and no {_PROCESSOR} describes an image processor; save the image processor "
        f"{where}"
    )


def _file(checkpoint: Checkpoint, name: str) -> Path | None:
    if checkpoint.is_local:
        path = Path(checkpoint.location) / name
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(checkpoint.location, name)
    except OSError:  # not there, or no network
        return None
    return Path(str(found))


def _sides(content: Mapping[str, Any]) -> tuple[int, int]:
    """(side of the square that enters the model, what the short side is resized to before it is cut), in pixels."""
    for setting, wanted in (("do_resize", True), ("do_pad", False)):
        if bool(content.get(setting, wanted)) != wanted:
            raise ValueError(f"{setting} = {content[setting]!r} is not supported")
    kind = _kind(content)
    if kind == "Siglip2" and content.get("size") is None:  # any number of patches: a square of the most
        side = int(content["patch_size"]) * math.isqrt(int(content["max_num_patches"]))
        return side, side
    whole = _side(content, "size")
    size = _side(content, "crop_size") if content.get("do_center_crop") and content.get("crop_size") else whole
    if "crop_pct" in content and (kind == "PoolFormer" or whole < _CUT_BELOW):
        return size, int(whole / float(content["crop_pct"] or 224 / 256))
    if kind == "Levit":
        return size, int(256 / 224 * whole)
    return size, whole


def _kind(content: Mapping[str, Any]) -> str:
    """`CLIP` of `CLIPImageProcessor`, of its variants, and of the `CLIPFeatureExtractor` of old files."""
    name = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    return name.partition("ImageProcessor")[0].partition("FeatureExtractor")[0]


def _side(content: Mapping[str, Any], name: str) -> int:
    value = content[name]
    if isinstance(value, Mapping):
        sides = [value["height"], value["width"]] if "height" in value else [value["shortest_edge"]]
    else:
        sides = list(value) if isinstance(value, Sequence) else [value]
    if not sides or len(set(sides)) != 1 or type(sides[0]) is not int or sides[0] < 1:
        raise ValueError(f"{name} = {value!r} is no square of whole pixels")
    return int(sides[0])


def _mean_and_std(content: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of pixels in [0, 1], by which (grey / 255 - mean) / std is what the processor makes."""
    kind = _kind(content)
    if content.get("do_normalize", kind != "MobileViT"):
        mean, std = (_three(content, name) for name in ("image_mean", "image_std"))
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    if kind == "EfficientNet" and content.get("include_top", True):  # divides by std once more
        std = [one * own for one, own in zip(std, _three(content, "image_std"), strict=True)]
    factor = 255 * float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 255.0
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"rescale_factor = {content['rescale_factor']!r} is no positive number")
    offset = 1.0 if content.get("rescale_offset") and content.get("do_rescale", True) else 0.0
    if not math.isclose(factor, 1, rel_tol=1e-6) or offset:
        mean, std = [(one + offset) / factor for one in mean], [one / factor for one in std]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _three(content: Mapping[str, Any], name: str) -> list[float]:
    value = content[name]
    numbers = list(value) if isinstance(value, list) else [value] * 3
    if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ValueError(f"{name} = {value!r} is not three numbers")
    if not all(map(math.isfinite, numbers)) or (name == "image_std" and min(numbers) <= 0):
        raise ValueError(f"{name} = {value!r}: finite numbers are needed, of image_std positive ones")
    return [float(n) for n in numbers]
