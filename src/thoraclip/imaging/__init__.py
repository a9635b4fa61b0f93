"""The only pixel code: decode PNG, JPEG and DICOM to 8-bit grey, and turn grey into the encoder's input.

    file or bytes --decode--> Radiograph (u8[H, W]) --fit--> u8[size, size] --normalise--> f32[3, size, size]

Training, embedding, export and serving all pass through here, so there is one set of numbers.
"""

from __future__ import annotations

from thoraclip.imaging.decoding import (
    DECODING,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Radiograph,
    decode,
    is_image_name,
    read_bytes,
    told_by_name,
)
from thoraclip.imaging.dicom import DicomHeader
from thoraclip.imaging.preprocessing import GEOMETRIES, Preprocess, check_pixels, fit, normalise, preprocess
from thoraclip.imaging.resizing import perceptual_hash

__all__ = [
    "DECODING",
    "GEOMETRIES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "DicomHeader",
    "Preprocess",
    "Radiograph",
    "check_pixels",
    "decode",
    "fit",
    "is_image_name",
    "normalise",
    "perceptual_hash",
    "preprocess",
    "read_bytes",
    "told_by_name",
]
