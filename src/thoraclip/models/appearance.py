"""Changes of how a radiograph was taken, stored and marked, drawn without looking at its class.

What they change (exposure, sharpness, grain, compression, border, burned-in letters) tells nothing of the disease, but
often where an image comes from. Where it is drawn anew for every image, a classifier cannot use it.

Every change takes f32[b, H, W] in 0..1 and for each of the b images a generator of its own, and computes an image
without its neighbours in the batch: sums are written out, so that their order never depends on b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.dtypes import Singles

__all__ = ["CHANGES", "Change", "Streams", "change_appearance", "crops"]

Generators = Sequence[np.random.Generator]
Streams = Callable[[int], Generators]
"""Number of a stream -> a new generator for each image."""

_MOST_CUT = 0.15  # of a side, by a crop or a border on each end
_MOST_BLUR, _MOST_SHARPENED = 0.01, 0.01  # standard deviation, as a share of the width
_BRIGHT, _DARK = (0.65, 1.0), (0.0, 0.2)
_KNOTS = 6
_CROP_STREAM = 16
_GLYPHS = [
    "44447", "65655", "25755", "65644", "72227", "65556", "57755", "55255", "34216", "72222", "55557", "74647", "34443",
    "75557", "26227", "61247", "61216", "55711", "74616", "34757", "71222", "75757", "75716",
]  # fmt: skip
"""L R A P I D M X S T U E C and the digits, five rows of three pixels, each row an octal digit."""
_QUANTA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""ITU-T T.81 (1992), table K.1: quantisation of luminance; row is the vertical frequency."""


@dataclass(frozen=True)
class Change:
    """One entry of `CHANGES`."""

    stream: int  # of the random numbers; never used again for another change
    apply: Callable[[Tensor, Generators], Tensor]


def change_appearance(unit: Tensor, shares: Mapping[str, float], streams: Streams) -> Tensor:
    """Apply each of `CHANGES` to a share of the images, in their order.

    Args:
        unit: f32[B, H, W] in 0..1.
        shares: name of a change -> probability with which an image has it; a change that is not named is not made.
        streams: of the B images.

    Returns:
        f32[B, H, W] in 0..1.
    """
    for name, change in CHANGES.items():
        if share := shares.get(name, 0.0):
            generators = streams(change.stream)
            at = [n for n, generator in enumerate(generators) if generator.uniform() < share]
            if at:
                changed = change.apply(unit[at], [generators[n] for n in at])
                unit = unit.index_copy(0, torch.tensor(at, device=unit.device), changed.clamp(0, 1))
    return unit


def crops(share: float, streams: Streams) -> Singles:
    """f32[B, 2, 2]: of each image its x and its y, multiplied by the first number and moved by the second.

    In coordinates from -1 to 1 that cuts up to 15 % off each end and enlarges the rest to the whole; a share of the
    images is cut.
    """
    drawn = np.stack([generator.uniform(size=5) for generator in streams(_CROP_STREAM)])
    left, right, top, bottom = (_MOST_CUT * drawn[:, 1:] * (drawn[:, :1] < share)).T
    return np.array([[1 - left - right, left - right], [1 - top - bottom, top - bottom]], dtype=np.float32).transpose(
        2, 0, 1
    )


def _drawn(generators: Generators, like: Tensor, *bounds: tuple[float, float]) -> list[Tensor]:
    """A number in each of some ranges for each image: f32[b, 1, 1], one tensor a range."""
    low, high = np.array(bounds).T
    values = np.array([generator.uniform(low, high) for generator in generators], dtype=np.float32)
    return list(torch.from_numpy(values).to(like.device).T[:, :, None, None])


def _window(unit: Tensor, generators: Generators) -> Tensor:
    """Cut off up to 10 % of the darkest and of the brightest pixels, and stretch the rest to 0..1."""
    darkest, brightest = _drawn(generators, unit, (0, 0.1), (0.9, 1))
    step = max(1, unit.shape[-1] // 64)  # some pixels tell the shares of all
    some = unit[:, ::step, ::step].flatten(1).sort(dim=1).values[:, :, None]
    low, high = (some.gather(1, (share * (some.shape[1] - 1)).long()) for share in (darkest, brightest))
    return (unit - low) / (high - low).clamp(min=0.05)


def _curve(unit: Tensor, generators: Generators) -> Tensor:
    """A random grey curve from 0 to 1 that only rises, of straight pieces."""
    steps = torch.cat(_drawn(generators, unit, *[(0.25, 1.75)] * _KNOTS), dim=1)[:, :, 0]
    ends = torch.stack([steps[:, :n].cumsum(1)[:, -1] if n else steps[:, 0] * 0 for n in range(_KNOTS + 1)], dim=1)
    ends = ends / ends[:, -1:]
    place = unit.flatten(1) * _KNOTS
    piece = place.long().clamp(max=_KNOTS - 1)
    low = ends.gather(1, piece)
    return (low + (place - piece) * (ends.gather(1, piece + 1) - low)).reshape(unit.shape)


def _resolution(unit: Tensor, generators: Generators) -> Tensor:
    """Reduce to a side of 25 % to 100 % and enlarge again."""
    done = []
    for image, generator in zip(unit[:, None, None], generators, strict=True):
        share = 0.25 ** generator.uniform()
        size = [max(1, round(side * share)) for side in unit.shape[1:]]
        small = nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        done.append(nn.functional.interpolate(small, list(unit.shape[1:]), mode="bilinear")[0])
    return torch.cat(done)


def _smooth(unit: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Convolve with a Gaussian of sigma f32[b, 1, 1] pixels, at most `most`; the edge is repeated outside."""
    radius = math.ceil(3 * most)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=unit.device) / sigma.clamp(min=0.05)) ** 2)
    weights = weights / sum(weights[:, :, n : n + 1] for n in range(2 * radius + 1))
    for axis in (1, 2):
        pad = [radius, radius, 0, 0] if axis == 2 else [0, 0, radius, radius]
        padded, side = nn.functional.pad(unit[:, None], pad, mode="replicate")[:, 0], unit.shape[axis]
        unit = torch.zeros_like(unit)
        for n in range(2 * radius + 1):
            unit = torch.addcmul(unit, weights[:, :, n : n + 1], padded.narrow(axis, n, side))
    return unit


def _blur(unit: Tensor, generators: Generators) -> Tensor:
    most = _MOST_BLUR * unit.shape[-1]
    (sigma,) = _drawn(generators, unit, (0.1 * most, most))
    return _smooth(unit, sigma, most)


def _sharpen(unit: Tensor, generators: Generators) -> Tensor:
    """Add up to twice what a blur takes away (unsharp mask)."""
    most = _MOST_SHARPENED * unit.shape[-1]
    sigma, amount = _drawn(generators, unit, (0.2 * most, most), (0.2, 2))
    return unit + amount * (unit - _smooth(unit, sigma, most))


def _vignette(unit: Tensor, generators: Generators) -> Tensor:
    """Darken the outside by up to 60 % or brighten it by up to 25 %, about a centre of its own."""
    amount, x, y = _drawn(generators, unit, (-0.25, 0.6), (-0.3, 0.3), (-0.3, 0.3))
    rows, columns = _places(unit)
    return unit * (1 - amount * ((2 * columns - 1 - x) ** 2 + (2 * rows - 1 - y) ** 2) / 2)


def _grain(unit: Tensor, generators: Generators) -> Tensor:
    """Add Gaussian noise of up to 30 % of the image's own standard deviation, in grains of 1 to 6 pixels at a side of
    224."""
    done = []
    for image, generator in zip(unit[:, None, None], generators, strict=True):
        spread = generator.uniform(0, 0.3) * image.std(correction=0)
        grain = 6 ** generator.uniform() * unit.shape[-1] / 224
        size = [max(1, round(side / max(1, grain))) for side in unit.shape[1:]]
        noise = torch.from_numpy(generator.standard_normal((1, 1, *size), dtype=np.float32)).to(unit.device)
        done.append(image + spread * nn.functional.interpolate(noise, list(unit.shape[1:]), mode="bilinear"))
    return torch.cat(done)[:, 0]


def _markers(unit: Tensor, generators: Generators) -> Tensor:
    """Burn in one to three rows of letters, boxes or frames, mostly bright, near the corners."""
    drawn = np.stack([_marks(unit.shape[1:], generator) for generator in generators])
    alpha, level = torch.from_numpy(drawn).to(unit.device).unbind(1)
    return unit * (1 - alpha) + level * alpha


def _marks(shape: Sequence[int], generator: np.random.Generator) -> Singles:
    """f32[2, H, W]: how much of each pixel is covered, and with what grey."""
    height, width = shape
    canvas = np.zeros((2, height, width), dtype=np.float32)
    for _ in range(int(generator.integers(1, 4))):
        kind, share = generator.uniform(), generator.uniform(0.03, 0.08)
        if kind < 0.7:
            names = generator.choice(_GLYPHS, size=int(generator.integers(1, 9)))
            rows = [[[*(int(row) >> bit & 1 for bit in (2, 1, 0)), 0] for row in name] for name in names]
            scale = max(1, round(share * height / 5))
            mark = np.kron(np.concatenate(rows, axis=1)[:, :-1], np.ones((scale, scale)))
        else:
            mark = np.ones([max(1, round(share * height)), max(1, round(generator.uniform(0.03, 0.25) * width))])
            thick = max(1, round(0.01 * height))
            if kind > 0.85:
                mark[thick:-thick, thick:-thick] = 0
        if generator.uniform() < 0.1:
            mark = np.rot90(mark)
        covered = mark[:height, :width] > 0
        top, left = (_near_an_end(side - size, generator) for side, size in zip(shape, covered.shape, strict=True))
        level = generator.uniform(*(_BRIGHT if generator.uniform() < 0.8 else _DARK))
        part = canvas[:, top : top + covered.shape[0], left : left + covered.shape[1]]
        part[0][covered], part[1][covered] = generator.uniform(0.6, 1), level
    return canvas


def _near_an_end(room: int, generator: np.random.Generator) -> int:
    """A place from 0 to `room`, in the first or the last quarter of them."""
    place, is_first = round(generator.uniform(0, 0.25) * room), generator.uniform() < 0.5
    return place if is_first else room - place


def _border(unit: Tensor, generators: Generators) -> Tensor:
    """Cover up to 15 % of the side: of all four ends alike, or of some; mostly black, also white and grey."""
    numbers = np.stack([generator.uniform(size=11) for generator in generators])
    widths, present, (alike, kind, grey) = numbers[:, :4], numbers[:, 4:8] < 0.6, numbers[:, 8:].T
    widths = _MOST_CUT * np.where(alike[:, None] < 0.5, widths[:, :1], widths * present)
    level = np.select([kind < 0.6, kind < 0.8], [0.05 * grey, 1 - 0.05 * grey], grey)
    top, bottom, left, right = torch.from_numpy(widths).to(unit).T[:, :, None, None]
    rows, columns = _places(unit)
    outside = (rows < top) | (1 - rows < bottom) | (columns < left) | (1 - columns < right)
    return torch.where(outside, torch.from_numpy(level).to(unit)[:, None, None], unit)


def _places(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of the pixels in 0..1: f32[H, 1] and f32[W]."""
    rows, columns = ((torch.arange(side, device=unit.device) + 0.5) / side for side in unit.shape[1:])
    return rows[:, None], columns


def _jpeg(unit: Tensor, generators: Generators) -> Tensor:
    """What a JPEG file of quality 10 to 95 keeps."""
    (quality,) = _drawn(generators, unit, (10, 95))
    return compressed(unit, quality.round())


def compressed(unit: Tensor, quality: Tensor) -> Tensor:
    """f32[b, H, W] in 0..1 as baseline JPEG keeps it: blocks of 8 x 8, their cosine transform rounded to multiples of
    table K.1, which a quality f32[b, 1, 1] in 1..100 scales as libjpeg does. Edges are repeated to whole blocks."""
    count, height, width = unit.shape
    down, across = -height % 8, -width % 8
    padded = nn.functional.pad((unit * 255).round()[:, None], [0, across, 0, down], mode="replicate") - 128
    blocks = padded.reshape(count, (height + down) // 8, 8, (width + across) // 8, 8)
    scale = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    quanta = torch.floor((_QUANTA.to(unit.device) * scale + 50) / 100).clamp(1, 255)[:, None, :, None, :]
    k = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2  # [frequency, place]
    cosines[0] /= math.sqrt(2)
    matrix = cosines.to(unit)
    kept = torch.round(_product(matrix, _product(matrix, blocks, 2), 4) / quanta) * quanta
    back = _product(matrix.T, _product(matrix.T, kept, 2), 4) + 128
    return back.round().reshape(count, height + down, width + across)[:, :height, :width] / 255


def _product(matrix: Tensor, blocks: Tensor, axis: int) -> Tensor:
    """An 8 x 8 matrix times an axis of blocks, as a sum of eight terms in their order."""
    total = torch.zeros_like(blocks)
    for n, column in enumerate(matrix.T):
        total = total + column.reshape([-1, *[1] * (blocks.ndim - 1 - axis)]) * blocks.narrow(axis, n, 1)
    return total


CHANGES: Mapping[str, Change] = {
    "window": Change(17, _window),
    "curve": Change(18, _curve),
    "resolution": Change(19, _resolution),
    "blur": Change(20, _blur),
    "sharpen": Change(21, _sharpen),
    "vignette": Change(22, _vignette),
    "grain": Change(23, _grain),
    "markers": Change(24, _markers),
    "border": Change(25, _border),
    "jpeg": Change(26, _jpeg),
}
"""Name -> change, in the order in which they are made; `RandomisedAugmentation` has a probability of each name."""
