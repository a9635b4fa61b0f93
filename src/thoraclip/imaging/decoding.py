"""PNG, JPEG and DICOM to 8-bit grey, or to one reason why not; no file can crash, hang or flood the process."""

from __future__ import annotations

import io
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from thoraclip.dtypes import Greys
from thoraclip.errors import ImageError, first_line
from thoraclip.imaging.deep import alpha_remarks, deep_grey, display_exponent, is_deep, png_chunks
from thoraclip.imaging.depth import Depth
from thoraclip.imaging.dicom import MAX_PIXELS, DicomHeader, decode_dicom, is_dicom, refuse_many_scans
from thoraclip.imaging.names import foreign_format

__all__ = ["DECODING", "MAX_PIXELS", "Radiograph", "decode", "read_bytes"]

DECODING = 4
"""Number of the rules by which files become grey; what was kept under another number is made again."""
MAX_BYTES = 512 * 1024**2
"""Larger files are not read: 100 megapixels of 16 bits take 200 MB."""
_NO_DIFFERENCE = 8
"""Of 255 levels: a profile that changes greys by less needs no remark; 2.2 against sRGB is 3, 1.8 is 17."""


@dataclass(frozen=True)
class Radiograph:
    """One decoded picture.

    Args:
        pixels: u8[H, W], bright is dense (MONOCHROME1 is inverted).
        width, height: in pixels, as displayed.
        mode: Pillow's mode of the file (`L`, `RGB`, `I;16`, ...) or DICOM's photometric interpretation.
        format: `PNG`, `JPEG` or `DICOM`.
        header: what a DICOM file says of the patient and the exposure; `None` for other formats.
        depth: by which the samples of a 16-bit PNG were scaled; `None` for other files.
        remarks: where the file contradicts itself, or its values do not fit their depth, and what was done; sentences.
    """

    pixels: Greys
    width: int
    height: int
    mode: str
    format: str
    header: DicomHeader | None = None
    depth: Depth | None = None
    remarks: tuple[str, ...] = ()

    @property
    def bits(self) -> int | None:
        """The depth in bits."""
        return None if self.depth is None else self.depth.bits


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
    except ValueError as error:
        raise ImageError(f"{path}: no file's name holds a NUL byte") from error


def decode(
    source: Path | str | bytes, *, bits: int | None = None, of_set: int | None = None, max_pixels: int = MAX_PIXELS
) -> Radiograph:
    """Decode a file, or the bytes of one, to 8-bit grey.

    RGB, CMYK and palettes become luma (ITU-R 601-2, Pillow's `L`); alpha is laid over black; gAMA is honoured as a
    screen does. Samples of 16 bits are scaled by their depth, and values above it are white; see `imaging.depth`.
    DICOM is shown as its look-up tables say; see `imaging.display`.

    Args:
        source: the file, or its content.
        bits: depth of a 16-bit PNG, whatever the file says.
        of_set: depth of a 16-bit PNG that states none.
        max_pixels: larger pictures are refused before any of them is decoded.

    Raises:
        ImageError: not a PNG, JPEG or DICOM, damaged, larger than `max_pixels`, or not one grey radiograph.
    """
    where = "image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    try:
        if not data:
            raise ImageError("the file is empty")
        if is_dicom(data):
            grey, photometric, header, remarks = decode_dicom(data, max_pixels)
            return Radiograph(grey, grey.shape[1], grey.shape[0], photometric, "DICOM", header, remarks=remarks)
        return _decode_picture(data, max_pixels, bits=bits, of_set=of_set)
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error


def _decode_picture(data: bytes, max_pixels: int, *, bits: int | None, of_set: int | None) -> Radiograph:
    depth: Depth | None = None
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if image.width * image.height > max_pixels:
            raise ImageError(f"{image.width} x {image.height} pixels is more than {max_pixels:,}; not a radiograph")
        mode, kind = image.mode, image.format or "?"
        chunks = png_chunks(data)
        if kind != "PNG":
            refuse_many_scans(data)
        if is_deep(chunks):
            grey, depth = deep_grey(data, image, chunks, bits=bits, of_set=of_set)
            remarks = depth.remarks
        else:
            image.load()
            exponent, passed_over = display_exponent(chunks)
            grey, transparent = _to_grey(ImageOps.exif_transpose(image), exponent)
            remarks = passed_over + transparent
        if profile := image.info.get("icc_profile"):
            remarks += _profile_remarks(profile)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise ImageError(f"more than {max_pixels:,} pixels; not a radiograph ({error})") from error
    except UnidentifiedImageError as error:
        foreign = foreign_format(data)
        raise ImageError(f"not a PNG, JPEG or DICOM picture{foreign and f' ({foreign})'}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files: OSError, SyntaxError, struct.error, ...
        raise ImageError(f"damaged picture ({first_line(error)})") from error
    kind = "JPEG" if kind == "MPO" else kind
    return Radiograph(grey, grey.shape[1], grey.shape[0], mode, kind, depth=depth, remarks=remarks)


@lru_cache(maxsize=8)
def _profile_remarks(content: bytes) -> tuple[str, ...]:
    """A remark where an ICC profile shows other greys than a screen without it (sRGB) does."""
    levels, change = np.arange(48, 256, 16, dtype=np.uint8), 0
    greys = Image.fromarray(levels[None])
    with suppress(ImageCms.PyCMSError, OSError, ValueError):  # a damaged one, or one of another kind of picture
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        greys = greys.convert("L" if profile.profile.xcolor_space.strip() == "GRAY" else "RGB")
        shown = ImageCms.profileToProfile(greys, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        change = max(np.asarray(shown)[0, :, 1].astype(int) - levels, key=abs)
    if abs(change) < _NO_DIFFERENCE:
        return ()
    how = f"{abs(change)} of 255 levels {'brighter' if change > 0 else 'darker'}"
    return (f"its ICC profile is not applied; with it, greys are up to {how}",)


def _to_grey(image: Image.Image, exponent: float) -> tuple[Greys, tuple[str, ...]]:
    """(grey, remarks on its alpha) of a picture of 8 bits or fewer; `exponent`: see `display_exponent`."""
    remarks: tuple[str, ...] = ()
    has_alpha = image.mode in {"P", "RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info
    if has_alpha:
        image = image.convert("RGBA")
        remarks = alpha_remarks(int(np.asarray(image)[..., 3].max()), 255)
    elif image.mode != "L":
        image = image.convert("RGB")
    if exponent != 1:
        shown = [round(255 * (level / 255) ** exponent) for level in range(256)]
        same = list(range(256)) if has_alpha else []
        image = image.point(shown * (len(image.getbands()) - has_alpha) + same)
    if has_alpha:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8), remarks
