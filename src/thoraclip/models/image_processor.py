"""How the image processor of a checkpoint makes pixels, read from its JSON without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thoraclip.documents import read_json
from thoraclip.errors import ConfigError, ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.imaging.remedies import NONE
from thoraclip.models.files import OPEN_CLIP, Checkpoint, model_file
from thoraclip.models.open_clip_config import open_clip_processor

__all__ = ["preprocessor_json", "read_preprocess"]

_PILLOW_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic")
_PROCESSOR = "processor_config.json"
"""Transformers 5 saves the image processor inside it, and then alone; it counts where both files are."""
_IMAGE_PROCESSOR = "preprocessor_config.json"
_CUT_BELOW = 384
"""ConvNeXt's processor, which ResNet has too, does not cut images of this side and larger."""
_CUT: dict[str, Any] = {"do_center_crop": True, "is_square": False}
_BILINEAR: dict[str, Any] = {"resample": 2}
_KINDS: Mapping[str, Mapping[str, Any]] = {
    **{kind: {} for kind in ("", "Beit", "Blip", "DPT", "Pvt")},
    **dict.fromkeys(("Bit", "CLIP", "ChineseCLIP", "Levit", "MobileViT"), _CUT),
    **dict.fromkeys(("DINOv3ViT", "Segformer", "Siglip2", "ViT"), _BILINEAR),
    **dict.fromkeys(("MobileNetV1", "MobileNetV2"), _CUT | _BILINEAR),
    "ConvNext": {"is_square": False, "crop_pct": 224 / 256},
    "DeiT": {"do_center_crop": True},
    "EfficientNet": {"include_top": True},
    "PoolFormer": _CUT | {"crop_pct": 0.9},
    "Siglip": {"is_square": False},
}
"""Image processors whose numbers `imaging` gives -> what their class says where the file is silent, besides
`_DEFAULTS`; `is_square` is what a `size` of one number means. "" is of a file that names no class."""
_DEFAULTS: Mapping[str, Any] = {
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "is_square": True,
}
_NEEDED = {"do_resize": True, "do_pad": False, "keep_aspect_ratio": False, "ensure_multiple_of": 1}


def read_preprocess(checkpoint: Checkpoint, *, geometry: str, remedy: str = NONE) -> Preprocess:
    """Size, mean, std and resampling of the checkpoint's image processor; geometry and remedy are the caller's.

    A rescaling other than by 1/255, and a processor without rescaling or normalisation, become mean and std of the
    spec, which give the same numbers.

    Raises:
        ModelError: no file, or it says something that `imaging` does not do.
        ConfigError: unknown geometry or remedy.
    """
    Preprocess(geometry=geometry, remedy=remedy)
    name, content = _image_processor(checkpoint)
    try:
        kind, content = _complete(content)
        size, resized, is_square = _sides(kind, content)
        mean, std = _mean_and_std(kind, content)
        resample = content["resample"]
        if type(resample) is not int or not 0 <= resample < len(_PILLOW_RESAMPLE):
            known = ", ".join(f"{number} {word}" for number, word in enumerate(_PILLOW_RESAMPLE))
            raise ValueError(f"resample = {resample!r} is none of {known}")
        if resized < size:
            raise ValueError(f"size = {resized} is below crop_size = {size}, and images are not padded")
        is_cut_square = is_square and resized > size
        if geometry == "crop" and is_cut_square:
            raise ValueError(f"images become {resized} x {resized} before they are cut; take geometry squash or pad")
        return Preprocess(
            size=size,
            geometry=geometry,
            short_side=resized if geometry == "crop" or (geometry == "squash" and is_cut_square) else None,
            resample=_PILLOW_RESAMPLE[resample],
            mean=mean,
            std=std,
            remedy=remedy,
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
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "resample": _PILLOW_RESAMPLE.index(spec.resample),
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "size": side,
    }
    resized = spec.short_side or spec.size
    if spec.geometry == "crop":
        content |= {"do_center_crop": True, "crop_size": side, "size": {"shortest_edge": resized}}
    elif spec.geometry == "squash" and resized != spec.size:
        content |= {"image_processor_type": "DeiTImageProcessor", "do_center_crop": True, "crop_size": side}
        content["size"] = {"height": resized, "width": resized}
    return content


def _image_processor(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]]:
    """(name of the file, what it says of the image processor), as Transformers finds it."""
    for name in (_PROCESSOR, _IMAGE_PROCESSOR):
        path = model_file(checkpoint.location, name)
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
    if path := model_file(checkpoint.location, OPEN_CLIP):
        return OPEN_CLIP, open_clip_processor(path)
    where = "beside the weights" if checkpoint.is_local else "on the Hub, or connect to it"
    raise checkpoint.error(
        f"{_IMAGE_PROCESSOR} is missing, and no {_PROCESSOR} describes an image processor; save the image processor "
        f"{where}"
    )


def _complete(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(`CLIP` of `CLIPImageProcessor`, of its variants, and `CLIPFeatureExtractor` of old files; all settings)."""
    name = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    kind = name.partition("ImageProcessor")[0].partition("FeatureExtractor")[0]
    if kind not in _KINDS:
        raise ValueError(f"image processor '{name}' is not supported")
    of_no_class = {} if name else {"is_square": not content.get("do_center_crop")}
    complete = {**_DEFAULTS, **_KINDS[kind], **of_no_class, **content}
    for setting, wanted in _NEEDED.items():
        if (complete.get(setting, wanted) or False) != wanted:  # null is false
            raise ValueError(f"{setting} = {complete[setting]!r} is not supported")
    return kind, complete


def _sides(kind: str, content: Mapping[str, Any]) -> tuple[int, int, bool]:
    """(side of the square that enters the model, side or short side to which images are resized before they are cut,
    whether they become square by that), in pixels."""
    if kind == "Siglip2" and content.get("size") is None:  # any number of patches: a square of the most
        side = int(content["patch_size"]) * math.isqrt(int(content["max_num_patches"]))
        return side, side, True
    size = content["size"]
    whole = resized = _side(size, "size", {"height", "width"}, {"shortest_edge"})
    is_square = "height" in size if isinstance(size, Mapping) else isinstance(size, list) or content["is_square"]
    if kind == "ConvNext" and not is_square:
        is_cut = whole < _CUT_BELOW
        return whole, int(whole / _positive(content, "crop_pct")) if is_cut else whole, not is_cut
    if kind == "PoolFormer":
        resized, is_square = int(whole / _positive(content, "crop_pct")), False
    elif kind == "Levit" and not is_square:
        resized = int(256 / 224 * whole)
    if content["do_center_crop"]:
        return _side(content["crop_size"], "crop_size", {"height", "width"}), resized, is_square
    if not is_square or kind in {"ConvNext", "PoolFormer"}:
        raise ValueError(f"size = {size!r} keeps the aspect ratio, and nothing is cut")
    return whole, whole, True


def _side(value: Any, name: str, *keys: set[str]) -> int:
    """Of the square that a number, a list or a table with one of these sets of keys describes."""
    sides = list(value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value])
    is_known = not isinstance(value, Mapping) or set(value) in keys
    if not is_known or not sides or type(sides[0]) is not int or sides != sides[:1] * len(sides) or sides[0] < 1:
        raise ValueError(f"{name} = {value!r} is no square of whole pixels")
    return int(sides[0])


def _positive(content: Mapping[str, Any], name: str) -> float:
    value = content[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value!r} is no positive number")
    return float(value)


def _mean_and_std(
    kind: str, content: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of pixels in [0, 1], by which (grey / 255 - mean) / std is what the processor makes."""
    mean, std = [0.0] * 3, [1.0] * 3
    if content["do_normalize"] and kind != "MobileViT":  # which never does
        mean, std = (_three(content, name) for name in ("image_mean", "image_std"))
    if kind == "EfficientNet" and content["include_top"]:  # divides by std once more
        std = [one * own for one, own in zip(std, _three(content, "image_std"), strict=True)]
    is_rescaled = content["do_rescale"]
    factor = 255 * (_positive(content, "rescale_factor") if is_rescaled else 1.0)
    offset = 1.0 if kind == "EfficientNet" and is_rescaled and content.get("rescale_offset") else 0.0
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
