"""The only pixel code: decode PNG, JPEG and DICOM to 8-bit grey, and turn grey into the encoder's input.

    file or bytes --decode--> Radiograph (u8[H, W]) --fit--> u8[size, size] --normalise--> f32[3, size, size]

Training, embedding, export and serving all pass through here, so there is one set of numbers.
"""

from __future__ import annotations

from thoraclip.imaging.decoding import DECODING, MAX_PIXELS, Radiograph, decode, read_bytes
from thoraclip.imaging.preprocessing import Preprocess, check_pixels, fit, normalise, perceptual_hash, preprocess

__all__ = [
    "DECODING", "MAX_PIXELS", "Preprocess", "Radiograph", "check_pixels", "decode", "fit", "normalise",
    "perceptual_hash", "preprocess", "read_bytes",
]  # fmt: skip
