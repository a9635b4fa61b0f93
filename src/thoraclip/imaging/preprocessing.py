"""From 8-bit grey to the numbers that an encoder takes, by one specification, and to a short fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.imaging.decoding import MAX_PIXELS, Radiograph
from thoraclip.imaging.remedies import NONE, REMEDIES, cropped, remedied
from thoraclip.ranges import GEOMETRIES, Geometry, Joined, OneOf, conform
from thoraclip.shapes import check, number, one_of, optional, sequence, table, text, whole

__all__ = ["Preprocess", "check_pixels", "fit", "normalise", "perceptual_hash", "preprocess", "resize"]

MAX_SIDE = 4096
"""Largest side of an input: three times that of the largest encoders."""
_RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}

PREPROCESS_SHAPE = table(
    size=whole(1, MAX_SIDE),
    geometry=one_of(*GEOMETRIES),
    short_side=optional(whole(1, 2 * MAX_SIDE)),
    resample=one_of(*_RESAMPLE),
    mean=sequence(number(-1e3, 1e3), 3, 3),
    std=sequence(number(1e-6, 1e3), 3, 3),
    remedy=text,
    may=["size", "geometry", "short_side", "resample", "mean", "std", "remedy"],
)
"""Of `Preprocess.as_dict`."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How grey pixels become an encoder's input; equal specs give equal numbers.

    Args:
        size: side of the square input, in pixels.
        geometry: `squash` (both sides to `short_side`; the aspect ratio cannot be read off the picture), `crop` (short
            side to `short_side`), both then cut to the centre of `size`; `pad` (long side to `size`, black bars).
        short_side: `size` or larger; `size` where it is not given.
        resample: `nearest`, `bilinear`, `bicubic` or `lanczos` (Pillow's, antialiased).
        mean, std: per channel, in units of [0, 1] pixels.
        remedy: names of `remedies.REMEDIES` joined by `+`, or `none`.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    size: int = 224
    geometry: str = "squash"
    short_side: int | None = None
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remedy: str = NONE

    def __post_init__(self) -> None:
        conform("geometry", self.geometry, Geometry)
        conform("resample", self.resample, Annotated[str, OneOf(_RESAMPLE)])
        conform("remedy", self.remedy, Annotated[str, Joined(REMEDIES)])
        check(vars(self), PREPROCESS_SHAPE, "preprocess", error=ConfigError, remedy="mend it")
        if self.short_side is not None and self.short_side < self.size:
            raise ConfigError(f"size {self.size}, short_side {self.short_side}: short_side >= size is needed")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The spec that `as_dict` described; raises ConfigError for any other."""
        if unknown := sorted(values.keys() - cls.__dataclass_fields__.keys()):
            raise ConfigError(f"preprocess: unknown '{unknown[0]}'{did_you_mean(unknown[0], cls.__dataclass_fields__)}")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, for files and fingerprints; without a remedy nothing is said of one."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if key != "remedy" or value != NONE}

    @property
    def pixels(self) -> dict[str, Any]:
        """The part of it that decides what `fit` gives; mean and std come later."""
        return {key: value for key, value in self.as_dict().items() if key not in ("mean", "std")}


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize to (width, height) pixels: columns first, then rows.

    Pillow 13 shrinks the rows of tall images first, and each pass rounds to whole grey levels: one call differs from
    Pillow 12 by up to 7 levels in 12 % of the pixels of such an image. Two calls fix the order, and are what one call
    of Pillow 12 does.
    """
    width, height = size
    return image.resize((width, image.height), resample).resize((width, height), resample)


def fit(pixels: Greys, spec: Preprocess) -> Greys:
    """Bring u8[H, W] to u8[size, size] by the spec's remedy and geometry; raises ImageError where `crop` would blow a
    strip up to more than 100 megapixels."""
    image = Image.fromarray(cropped(pixels, spec.remedy))
    resample = _RESAMPLE[spec.resample]
    if spec.geometry in {"squash", "crop"}:
        short = spec.short_side or spec.size
        # whole numbers, and the floor of the half difference, as in Transformers' image processors
        sides = image.size if spec.geometry == "crop" else (1, 1)
        width, height = (short * side // min(sides) for side in sides)
        if width * height > MAX_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise ImageError(f"{size}: too long a strip for geometry 'crop'; use squash or pad")
        small = remedied(np.asarray(resize(image, (width, height), resample)), spec.remedy)
        left, top = (width - spec.size) // 2, (height - spec.size) // 2
        return small[top : top + spec.size, left : left + spec.size]
    scale = spec.size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = np.zeros((spec.size, spec.size), dtype=np.uint8)
    left, top = (spec.size - width) // 2, (spec.size - height) // 2
    small = np.asarray(resize(image, (width, height), resample))
    canvas[top : top + height, left : left + width] = remedied(small, spec.remedy)
    return canvas


def normalise(grey: Greys, spec: Preprocess) -> Singles:
    """u8[..., H, W] -> f32[..., 3, H, W]: (grey / 255 - mean) / std, the same grey in three channels."""
    unit = grey[..., None, :, :].astype(np.float32) * np.float32(1 / 255)
    mean, std = np.array((spec.mean, spec.std), dtype=np.float32)[..., None, None]
    return np.asarray((unit - mean) / std)


def preprocess(radiograph: Radiograph | Greys, spec: Preprocess) -> Singles:
    """Grey picture -> f32[3, size, size], the input of an encoder with this spec."""
    pixels = radiograph.pixels if isinstance(radiograph, Radiograph) else radiograph
    return normalise(fit(pixels, spec), spec)


def check_pixels(pixels: npt.NDArray[Any], spec: Preprocess) -> None:
    """The gate at every encoder's door; called on the first batch.

    The normalisation is undone; what comes out must be grey, lie in [0, 1], and hold contrast. Pixels that were
    normalised twice fail: they leave [0, 1], or their channels part, or 1.7 % of their contrast is left.

    Args:
        pixels: f32[B, 3, size, size].

    Raises:
        ImageError: names the value and the rule that it breaks.
    """
    expected = (3, spec.size, spec.size)
    if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != expected or not len(pixels):
        wanted = f"float32 [B, 3, {spec.size}, {spec.size}]"
        raise ImageError(f"pixels {pixels.dtype}{list(pixels.shape)}: expected {wanted}")
    mean, std = np.array((spec.mean, spec.std), dtype=np.float32)[..., None, None]
    unit, undone = pixels * std + mean, "after undoing the normalisation"
    low, high = float(unit.min()), float(unit.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < -1e-3 or high > 1 + 1e-3:
        raise ImageError(f"pixels run from {low:.3g} to {high:.3g} {undone}; expected [0, 1]: normalise once")
    spread = float(np.abs(unit - unit[:, :1]).max())
    if spread > 2e-3:
        raise ImageError(f"channels differ by {spread:.3g} {undone}; a radiograph is grey: normalise once")
    contrast = float(unit[:, 0].std(axis=(1, 2)).max())
    if contrast < 0.01:
        said = f"contrast {contrast:.3g} (standard deviation in [0, 1]) in a whole batch is below 0.01"
        raise ImageError(f"{said}; the pixels were scaled or normalised twice, or every picture is blank")


def perceptual_hash(pixels: Greys) -> str:
    """64-bit DCT hash as 16 hexadecimal digits (pHash; Zauner 2010, "Implementation and benchmarking of perceptual
    image hash functions", section 3.1).

    The picture is shrunk to 32 x 32, its lowest 8 x 8 DCT-II coefficients are compared with their median.
    """
    small = np.asarray(resize(Image.fromarray(pixels), (32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * k * (2 * n + 1) / 64)
    low = (basis @ small @ basis.T).ravel()
    bits = low > np.median(low)
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"
