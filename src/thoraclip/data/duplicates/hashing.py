"""Thumbnails, and their hashes: signs of cosines of the picture and of its canonical warps."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "BITS",
    "THUMBNAIL_SIDE",
    "WARPS",
    "coordinates",
    "equalise",
    "is_blank",
    "mirror",
    "near_hashes",
    "thumbnail",
]

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Matrices = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

THUMBNAIL_SIDE = 96
BITS = 256
MIN_CONTRAST, MAX_FLAT = 2.0, 0.9
"""A thumbnail is blank under this standard deviation, in grey levels of 255, or when more than this share has one
grey."""


def thumbnail(pixels: Grey) -> Grey:
    """u8[H, W] -> u8[S, S]: the whole picture, squashed (Pillow's antialiased triangle filter)."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def _warp(degrees: float, left: float, right: float, top: float, bottom: float) -> Matrices:
    """f64[2, 3]: from a cropped, then rotated picture's coordinates in -1..1 to the original's."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn * [1 - left - right, 1 - top - bottom], turn @ [left - right, top - bottom]])


_EDGES = ((0.0, 0.0), (0.05, 0.0), (0.0, 0.05), (0.025, 0.025), (0.05, 0.05))
WARPS = np.array([_warp(turn, *x, *y) for turn in (0.0, -2.0, 2.0) for x, y in product(_EDGES, _EDGES)])
"""f64[75, 2, 3]: the picture itself, then crops of 5 % (10 % in all from four sides), each turned by 0, -2 and 2
degrees."""


def coordinates(side: int) -> tuple[Floats, Floats]:
    centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - 1
    x, y = np.meshgrid(centres, centres)
    return x.ravel(), y.ravel()


def _frequencies() -> Indices:
    """i64[256, 2]: (horizontal, vertical), the lowest first; the lowest of all (brightness, slopes) are left out."""
    both = [(u, v) for u in range(20) for v in range(20) if u * u + v * v >= 4]
    return np.array(sorted(both, key=lambda f: (f[0] ** 2 + f[1] ** 2, f))[:BITS])


@lru_cache(maxsize=1)
def _basis(side: int = 32, taper: float = 0.15) -> Floats:
    """f32[75 * 256, 1024]: cosines under a tapered window, without mean, pulled back through each warp."""
    place = (np.arange(side) + 0.5) / side
    window = 0.5 - 0.5 * np.cos(np.pi * np.minimum(np.minimum(place, 1 - place) / taper, 1))
    weight = np.outer(window, window).ravel()
    u, v = _frequencies().T
    across, down = (np.cos(np.pi * f[:, None] * place) for f in (u, v))
    cosines = (down[:, :, None] * across[:, None, :]).reshape(BITS, -1)
    cosines = (cosines - (cosines @ weight / weight.sum())[:, None]) * weight
    return np.concatenate([_pull_back(cosines, warp, side) for warp in WARPS])


def _pull_back(cosines: Matrices, warp: Matrices, side: int) -> Floats:
    """f32[K, side^2]: times a picture's pixels, what `cosines` are times the warped picture's (bilinear, edges
    repeated)."""
    x, y = coordinates(side)
    u, v = np.clip((warp @ np.stack([x, y, np.ones_like(x)]) + 1) * side / 2 - 0.5, 0, side - 1)
    column, row = np.minimum(u.astype(int), side - 2), np.minimum(v.astype(int), side - 2)
    u, v, corner = u - column, v - row, row * side + column
    pulled = np.zeros((side * side, len(cosines)))
    for weight, step in (((1 - u) * (1 - v), 0), (u * (1 - v), 1), ((1 - u) * v, side), (u * v, side + 1)):
        np.add.at(pulled, corner + step, cosines.T * weight[:, None])
    return pulled.T.astype(np.float32)


def equalise(thumbnails: Grey) -> Floats:
    """u8[N, S, S] -> f32[N, S, S] in -1..1: each grey becomes its mid-rank, so no monotone tone curve matters."""
    flat = thumbnails.reshape(len(thumbnails), THUMBNAIL_SIDE**2).astype(np.int64)
    levels = flat + 256 * np.arange(len(flat))[:, None]
    counts = np.bincount(levels.ravel(), minlength=256 * len(flat)).reshape(-1, 256)
    ranks = ((np.cumsum(counts, axis=1) - counts / 2) * (2 / flat.shape[1]) - 1).astype(np.float32)
    return np.asarray(ranks.ravel()[levels].reshape(thumbnails.shape))


def near_hashes(thumbnails: Grey) -> Hashes:
    """u8[N, S, S] -> u64[N, 75, 4]: 256 bits for each canonical warp; [:, 0] is the picture itself."""
    step = THUMBNAIL_SIDE // 32
    small = equalise(np.asarray(thumbnails)).reshape(-1, 32, step, 32, step).mean(axis=(2, 4)).reshape(-1, 32 * 32)
    bits = (small @ _basis().T > 0).reshape(len(small), len(WARPS), BITS)
    return np.packbits(bits, axis=-1).view(">u8").astype(np.uint64)


def mirror(hashes: Hashes) -> Hashes:
    """u64[..., 4]: the mirrored pictures' hashes; a cosine of odd horizontal frequency changes its sign."""
    return hashes ^ np.packbits(_frequencies()[:, 0] % 2 == 1).view(">u8").astype(np.uint64)


def is_blank(thumbnails: Grey) -> Mask:
    middle = np.median(thumbnails, axis=(1, 2), keepdims=True)
    flat = (thumbnails == middle).mean(axis=(1, 2)) > MAX_FLAT
    return np.asarray(flat | (thumbnails.std(axis=(1, 2)) < MIN_CONTRAST))
