"""The only pixel code: decode PNG, JPEG and DICOM to 8-bit grey, and turn grey into the encoder's input.

Training, embedding, export and serving all pass through `preprocess`, so there is one set of numbers.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from thoraclip.errors import ConfigError, ImageError, did_you_mean, first_line

__all__ = [
    "GEOMETRIES",
    "IMAGE_SUFFIXES",
    "Preprocess",
    "Radiograph",
    "check_pixels",
    "decode",
    "fit",
    "normalise",
    "perceptual_hash",
    "preprocess",
]

Grey = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
GEOMETRIES = ("squash", "crop", "pad")
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: no radiograph is that large, a decompression bomb is."""

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Radiograph:
    """One decoded picture.

    Args:
        pixels: u8[H, W], bright is dense (MONOCHROME1 is inverted).
        width, height: in pixels, as displayed.
        mode: Pillow's mode of the file (`L`, `RGB`, `I;16`, ...) or DICOM's photometric interpretation.
        format: `PNG`, `JPEG` or `DICOM`.
    """

    pixels: Grey
    width: int
    height: int
    mode: str
    format: str


def decode(source: Path | bytes) -> Radiograph:
    """Decode a file, or the bytes of one, to 8-bit grey.

    RGB, CMYK and palettes become luma (ITU-R 601-2, Pillow's `L`); alpha is laid over black. Samples deeper than 8 bits
    are scaled by the smallest whole bit depth that holds their largest value, since 16-bit files often carry 10 to 12.

    Raises:
        ImageError: not a PNG, JPEG or DICOM, damaged, larger than 100 megapixels, or without pixels.
    """
    where = str(source) if isinstance(source, Path) else "image"
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(f"{where}: cannot be read ({error.strerror})") from error
    if not data:
        raise ImageError(f"{where}: the file is empty")
    # by content alone, so that a path and its bytes decode alike; files without the preamble start with group 2 or 8
    is_dicom = data[128:132] == b"DICM" or data[:2] in {b"\x02\x00", b"\x08\x00"}
    return _decode_dicom(data, where) if is_dicom else _decode_picture(data, where)


def _decode_picture(data: bytes, where: str) -> Radiograph:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{where}: {image.width} x {image.height} pixels is more than {MAX_PIXELS:,}; not a radiograph"
            )
        mode, kind = image.mode, image.format or "?"
        image.load()
        grey = _to_grey(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise ImageError(f"{where}: more than {MAX_PIXELS:,} pixels; not a radiograph ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{where}: not a PNG, JPEG or DICOM picture") from error
    except (
        Exception
    ) as error:  # Pillow raises many kinds on damaged files (OSError, SyntaxError, struct.error, zlib.error)
        raise ImageError(f"{where}: damaged picture ({first_line(error)})") from error
    return Radiograph(grey, grey.shape[1], grey.shape[0], mode, "JPEG" if kind == "MPO" else kind)


def _to_grey(image: Image.Image) -> Grey:
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        return _scale_by_depth(np.asarray(image))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.array(image, dtype=np.uint8)


def _scale_by_depth(samples: npt.NDArray[Any]) -> Grey:
    """Scale by 2^bits - 1, the smallest of 8..16 bits that holds the largest value."""
    values = samples.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"samples run from {values.min():g} to {values.max():g}; expected whole numbers in 0..65535")
    bits = max(8, int(values.max()).bit_length())
    grey: Grey = np.round(values * (255.0 / (2**bits - 1))).astype(np.uint8)
    return grey


def _decode_dicom(data: bytes, where: str) -> Radiograph:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:  # pydicom reads an element when it is asked for, so any of these lines may find the damage
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        has_pixels = "PixelData" in dataset
        frames, samples = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        pixels = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    except Exception as error:  # of many kinds
        raise ImageError(f"{where}: damaged DICOM ({first_line(error)})") from error
    if not has_pixels:
        raise ImageError(f"{where}: a DICOM header without pixel data")
    if frames != 1 or samples != 1:
        raise ImageError(f"{where}: {frames} frames of {samples} samples; one grey frame is expected")
    if photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ImageError(f"{where}: photometric interpretation '{photometric}'; MONOCHROME1 or MONOCHROME2 is expected")
    if pixels > MAX_PIXELS:
        raise ImageError(f"{where}: more than {MAX_PIXELS:,} pixels; not a radiograph")
    try:
        values = apply_modality_lut(dataset.pixel_array, dataset)
        values = np.asarray(apply_voi_lut(values, dataset), dtype=np.float64)
    except Exception as error:  # decoders raise many kinds
        raise ImageError(f"{where}: DICOM pixels cannot be decoded ({first_line(error)})") from error
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    if photometric == "MONOCHROME1":
        scaled = 255.0 - scaled
    grey = np.round(scaled).astype(np.uint8)
    return Radiograph(grey, grey.shape[1], grey.shape[0], photometric, "DICOM")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How grey pixels become an encoder's input; equal specs give equal numbers.

    Args:
        size: side of the square input, in pixels.
        geometry: `squash` (both sides to `size`; the aspect ratio cannot be read off the picture), `crop` (short side to
            `short_side`, centre `size` x `size`), `pad` (long side to `size`, black bars).
        short_side: used by `crop`; `size` or larger.
        resample: `nearest`, `bilinear`, `bicubic` or `lanczos` (Pillow's, antialiased).
        mean, std: per channel, in units of [0, 1] pixels.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    size: int = 224
    geometry: str = "squash"
    short_side: int | None = None
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.geometry not in GEOMETRIES:
            raise ConfigError(f"unknown geometry '{self.geometry}'{did_you_mean(self.geometry, GEOMETRIES)}")
        if self.resample not in _RESAMPLE:
            raise ConfigError(f"unknown resample '{self.resample}'{did_you_mean(self.resample, _RESAMPLE)}")
        if self.size < 1 or (self.short_side is not None and self.short_side < self.size):
            raise ConfigError(
                f"size {self.size}, short_side {self.short_side}: size >= 1 and short_side >= size are needed"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean}, std {self.std}: three channels with positive std are needed")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, for files and fingerprints."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def fit(pixels: Grey, spec: Preprocess) -> Grey:
    """Bring u8[H, W] to u8[size, size] by the spec's geometry.

    Raises:
        ImageError: geometry `crop` would blow a strip up to more than 100 megapixels.
    """
    image = Image.fromarray(pixels)
    resample = _RESAMPLE[spec.resample]
    if spec.geometry == "squash":
        return np.asarray(image.resize((spec.size, spec.size), resample))
    if spec.geometry == "crop":
        short = spec.short_side or spec.size
        # whole numbers, and the floor of the half difference, as in Transformers' image processors
        width, height = (short * side // min(image.size) for side in image.size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{image.width} x {image.height} pixels: too long a strip for geometry 'crop'; use squash or pad"
            )
        image = image.resize((width, height), resample)
        left, top = (width - spec.size) // 2, (height - spec.size) // 2
        return np.asarray(image.crop((left, top, left + spec.size, top + spec.size)))
    scale = spec.size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = Image.new("L", (spec.size, spec.size), 0)
    canvas.paste(image.resize((width, height), resample), ((spec.size - width) // 2, (spec.size - height) // 2))
    return np.asarray(canvas)


def normalise(grey: Grey, spec: Preprocess) -> Pixels:
    """u8[..., H, W] -> f32[..., 3, H, W]: (grey / 255 - mean) / std, the same grey in three channels."""
    unit = grey[..., None, :, :].astype(np.float32) * np.float32(1 / 255)
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return (unit - mean) / std


def preprocess(radiograph: Radiograph | Grey, spec: Preprocess) -> Pixels:
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
        raise ImageError(
            f"pixels {pixels.dtype}{list(pixels.shape)}: expected float32 [B, 3, {spec.size}, {spec.size}]"
        )
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    unit = pixels * std + mean
    low, high = float(unit.min()), float(unit.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < -1e-3 or high > 1 + 1e-3:
        raise ImageError(
            f"pixels run from {low:.3g} to {high:.3g} after undoing the normalisation; expected [0, 1]: normalise once"
        )
    spread = float(np.abs(unit - unit[:, :1]).max())
    if spread > 2e-3:
        raise ImageError(
            f"channels differ by {spread:.3g} after undoing the normalisation; a radiograph is grey: normalise once"
        )
    contrast = float(unit[:, 0].std(axis=(1, 2)).max())
    if contrast < 0.01:
        raise ImageError(
            f"contrast {contrast:.3g} (standard deviation in [0, 1]) in a whole batch is below 0.01; "
            "the pixels were scaled or normalised twice, or every picture is blank"
        )


def perceptual_hash(pixels: Grey) -> str:
    """64-bit DCT hash as 16 hexadecimal digits (pHash; Zauner 2010, "Implementation and benchmarking of perceptual image
    hash functions", section 3.1).

    The picture is shrunk to 32 x 32, its lowest 8 x 8 DCT-II coefficients are compared with their median.
    """
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * k * (2 * n + 1) / 64)
    low = (basis @ small @ basis.T).ravel()
    bits = low > np.median(low)
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"
