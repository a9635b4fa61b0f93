"""A short fingerprint of what a picture shows."""

from __future__ import annotations

import numpy as np
from PIL import Image

from thoraclip.imaging.decoding import Grey
from thoraclip.imaging.resizing import resize

__all__ = ["perceptual_hash"]


def perceptual_hash(pixels: Grey) -> str:
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
