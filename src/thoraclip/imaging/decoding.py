"""PNG, JPEG and DICOM to 8-bit grey, or to one reason why not; no file can crash, hang or flood the process."""

from __future__ import annotations

import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from thoraclip.errors import ImageError, first_line
from thoraclip.imaging.dicom import MAX_PIXELS, DicomHeader, decode_dicom, is_dicom, refuse_many_scans

__all__ = ["DECODING", "MAX_PIXELS", "Grey", "Radiograph", "decode", "is_image_name", "read_bytes", "told_by_name"]

Grey = npt.NDArray[np.uint8]

DECODING = 2
"""Number of the rules by which files become grey; what was kept under another number is made again."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
MAX_BYTES = 512 * 1024**2
"""Larger files are not read: 100 megapixels of 16 bits take 200 MB."""


@dataclass(frozen=True)
class Radiograph:
    """One decoded picture.

    Args:
        pixels: u8[H, W], bright is dense (MONOCHROME1 is inverted).
        width, height: in pixels, as displayed.
        mode: Pillow's mode of the file (`L`, `RGB`, `I;16`, ...) or DICOM's photometric interpretation.
        format: `PNG`, `JPEG` or `DICOM`.
        header: what a DICOM file says of the patient and the exposure; `None` for other formats.
    """

    pixels: Grey
    width: int
    height: int
    mode: str
    format: str
    header: DicomHeader | None = None


def is_image_name(path: Path) -> bool:
    """True for a picture's ending, and for a file without one that begins like DICOM or cannot be opened."""
    told = told_by_name(path.name)
    if told is not None:
        return told
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True


def told_by_name(name: str) -> bool | None:
    """Whether a file's ending is a picture's; `None` without an ending, where only the content tells."""
    suffix = Path(name).suffix
    if suffix.lower() in IMAGE_SUFFIXES:
        return True
    return None if not suffix or suffix[1:].isdigit() else False  # DICOM is often named by a UID: 1.2.840.113619


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; raises ImageError where it is missing, unreadable, a device or a pipe, or larger
    than 512 MiB."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ImageError(f"{path}: cannot be read (not a regular file)")
        if facts.st_size > MAX_BYTES:
            raise ImageError(f"{path}: {facts.st_size:,} bytes is more than {MAX_BYTES:,}; not a radiograph")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def decode(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> Radiograph:
    """Decode a file, or the bytes of one, to 8-bit grey.

    RGB, CMYK and palettes become luma (ITU-R 601-2, Pillow's `L`); alpha is laid over black. Samples deeper than 8 bits
    are scaled by the smallest whole bit depth that holds their largest value, since 16-bit files often carry 10 to 12.
    DICOM is shown as its look-up tables say; see `imaging.display`.

    Args:
        source: the file, or its content.
        max_pixels: larger pictures are refused before any of them is decoded.

    Raises:
        ImageError: not a PNG, JPEG or DICOM, damaged, larger than `max_pixels`, or not one grey radiograph.
    """
    where = "image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    if not data:
        raise ImageError(f"{where}: the file is empty")
    if is_dicom(data):
        grey, photometric, header = decode_dicom(data, where, max_pixels)
        return Radiograph(grey, grey.shape[1], grey.shape[0], photometric, "DICOM", header)
    return _decode_picture(data, where, max_pixels)


def _decode_picture(data: bytes, where: str, max_pixels: int) -> Radiograph:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.width} x {image.height} pixels is more than {max_pixels:,}; not a radiograph")
        mode, kind = image.mode, image.format or "?"
        if kind != "PNG":
            refuse_many_scans(data)
        image.load()
        grey = _to_grey(ImageOps.exif_transpose(image))
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise ImageError(f"{where}: more than {max_pixels:,} pixels; not a radiograph ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{where}: not a PNG, JPEG or DICOM picture") from error
    except Exception as error:  # Pillow raises many kinds on damaged files: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"{where}: damaged picture ({first_line(error)})") from error
    return Radiograph(grey, grey.shape[1], grey.shape[0], mode, "JPEG" if kind == "MPO" else kind)


def _to_grey(image: Image.Image) -> Grey:
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        return _scale_by_depth(np.asarray(image))
    if image.mode in {"P", "RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.array(image, dtype=np.uint8)


def _scale_by_depth(samples: npt.NDArray[Any]) -> Grey:
    """Scale by 2^bits - 1, the smallest of 8..16 bits that holds the largest value."""
    low, high = float(samples.min()), float(samples.max())
    if not 0 <= low <= high <= 65535:
        raise ImageError(f"samples run from {low:g} to {high:g}; expected whole numbers in 0..65535")
    bits = max(8, int(high).bit_length())
    table = np.round(np.arange(2**bits) * (255.0 / (2**bits - 1))).astype(np.uint8)
    grey = np.empty(samples.shape, dtype=np.uint8)
    for row, line in enumerate(samples):  # one by one: an index, or floats, of 100 megapixels would take 800 MB
        grey[row] = table[line.astype(np.uint16)]
    return grey
