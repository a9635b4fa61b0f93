"""Mask files: read, brought to the picture's shape and through the picture's geometry, and what is wrong with one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from thoraclip.dtypes import Masks, Singles
from thoraclip.errors import ImageError, first_line, named
from thoraclip.imaging import MAX_PIXELS, Preprocess, fit, read_bytes
from thoraclip.imaging.dicom import refuse_many_scans
from thoraclip.imaging.remedies import NONE

__all__ = ["fit_mask", "mask_problem", "read_mask"]


_ASPECT_TOLERANCE = 0.02  # a mask whose aspect ratio is off by more is of another picture, or of a cropped one
_MOST = 0.95  # a lung mask that covers more says nothing


def read_mask(path: Path, shape: tuple[int, int]) -> Masks:
    """A mask file as bool[H, W] of its picture's shape.

    Inside is what reaches half of the file's largest value, in any of its colour channels; alpha is laid over black. So
    0/255, 0/1, and two lungs of two colours or numbered 1 and 2 are read alike; an all-black file has no pixel inside.
    Another size of the same aspect ratio is resampled (nearest). PNG or JPEG of any mode; `shape` is (H, W) of the
    picture as displayed. ImageError where the mask is unreadable, or of another aspect ratio.
    """
    values = _read_values(path)
    height, width = shape
    rows, columns = values.shape
    if abs((columns * height) / (rows * width) - 1) > _ASPECT_TOLERANCE:
        raise ImageError(
            f"{path}: the mask is {columns} x {rows} pixels and its picture {width} x {height}: their aspect ratios "
            f"differ by more than {100 * _ASPECT_TOLERANCE:.0f} %; give the mask of this very picture, uncropped"
        )
    top = values.max()
    mask = (values >= top / 2) & (values > 0)
    if mask.shape == shape:
        return np.asarray(mask)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _read_values(path: Path) -> Singles:
    """f32[h, w]: the largest of a pixel's colour channels; alpha is laid over black."""
    data = read_bytes(path)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{path}: {image.width} x {image.height} pixels is more than {MAX_PIXELS:,}; not a mask")
        if image.format != "PNG":
            refuse_many_scans(data)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in {"1", "L", "I", "F"} or image.mode.startswith("I;"):
            return np.asarray(image).astype(np.float32)
        if image.mode not in {"RGB", "CMYK", "YCbCr", "LAB", "HSV"} or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.asarray(np.asarray(image.convert("RGB")).max(axis=-1), np.float32)
    except ImageError as error:
        raise ImageError(named(path, error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: the mask is no PNG or JPEG picture; save it as PNG") from error
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ImageError(f"{path}: damaged mask ({first_line(error)}); write it again") from error


def mask_problem(mask: Masks) -> str | None:
    """What makes a mask bool[H, W] useless as a lung mask, in words; `None` where nothing does."""
    share = float(mask.mean())
    if share == 0:
        return "the mask is empty: no pixel lies inside"
    if share > _MOST:
        return f"the mask covers {100 * share:.1f} % of the picture; more than {100 * _MOST:.0f} % tells nothing apart"
    return None


def fit_mask(mask: Masks, spec: Preprocess) -> Masks:
    """bool[H, W], of what the spec's remedy keeps of an image (`imaging.kept_box`), -> bool[S, S] as `imaging.fit` does
    with the image (and raises), nearest; bars are outside."""
    return fit(np.where(mask, 255, 0).astype(np.uint8), replace(spec, resample="nearest", remedy=NONE)) > 127
