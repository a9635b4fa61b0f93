"""Augmentation of whole batches of grey images, on the device that trains.

What is drawn for an image is a pure function of (seed, step, sample): its batch, the number of processes and a resumed
run change nothing. No image is flipped: a mirrored one has its heart on the right and its side marker reversed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from thoraclip.config import Settings
from thoraclip.dtypes import Ints, Singles
from thoraclip.errors import ConfigError
from thoraclip.models.appearance import CHANGES, change_appearance, crops
from thoraclip.ranges import Range, Share, Weight

__all__ = ["AUGMENTATIONS", "Augmentation", "RandomisedAugmentation", "augment", "drawn_views"]

_CHUNK = 256  # images that are floating point at the same time
_NUMBERS = 9  # uniform numbers per image, the fifth unused; new ones are added at the end, so that old draws stay


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """How far an image is changed; every value is drawn uniformly between minus and plus its setting."""

    rotate_degrees: Annotated[float, Range(0, 180)] = 7.0
    """Turn, in degrees."""
    shift: Share = 0.05
    """Move along each side, as a share of it."""
    zoom: Annotated[float, Range(0, 0.9)] = 0.1
    """Enlarge or reduce, as a share."""
    brightness: Weight = 0.1
    """Add to the grey, as a share of its range."""
    contrast: Share = 0.2
    """Stretch about the image's own mean, as a share."""
    gamma: Annotated[float, Range(0, 10)] = 0.2
    """Exponent of the grey in 0..1, as its natural logarithm."""
    noise: Weight = 0.01
    """Standard deviation of added Gaussian noise at the most, as a share of the range."""


@dataclass(frozen=True, kw_only=True)
class RandomisedAugmentation(Augmentation):
    """With larger turns and grey changes, and with probabilities of changes that hide where an image comes from; see
    `models.appearance`."""

    rotate_degrees: Annotated[float, Range(0, 180)] = 12.0
    shift: Share = 0.08
    zoom: Annotated[float, Range(0, 0.9)] = 0.15
    brightness: Weight = 0.15
    contrast: Share = 0.4
    gamma: Annotated[float, Range(0, 10)] = 0.4
    noise: Weight = 0.0
    crop: Share = 0.5
    """Cut up to 15 % off each end."""
    window: Share = 0.3
    """Cut off the darkest and the brightest greys."""
    curve: Share = 0.3
    """Another grey curve, which rises."""
    resolution: Share = 0.3
    """Reduce and enlarge again."""
    blur: Share = 0.3
    """Gaussian blur."""
    sharpen: Share = 0.3
    """Unsharp mask."""
    vignette: Share = 0.3
    """Darker or brighter outside."""
    grain: Share = 0.5
    """Noise in grains of several sizes."""
    markers: Share = 0.5
    """Burned-in letters, boxes and frames."""
    border: Share = 0.5
    """Black, white or grey bars at the edges."""
    jpeg: Share = 0.5
    """Lossy compression."""

    @property
    def shares(self) -> dict[str, float]:
        """Name in `appearance.CHANGES` -> probability."""
        return {name: getattr(self, name) for name in CHANGES}


AUGMENTATIONS: Mapping[str, Augmentation | None] = {
    "standard": Augmentation(),
    "light": Augmentation(rotate_degrees=3, shift=0.03, zoom=0.05, brightness=0, contrast=0.1, gamma=0, noise=0),
    "randomised": RandomisedAugmentation(),
    "none": None,
}
"""Values of the setting `augmentation`. `light` suits a few hundred images in few steps, `randomised` images whose
classes come from different places."""


def augment(greys: Tensor, config: Augmentation, *, seed: int, step: int, samples: Sequence[int]) -> Tensor:
    """Turn, move and zoom u8[B, H, W] in one bilinear resampling (black comes in), then change the grey; the same shape
    on the same device.

    At another `step` (of the optimiser, or an epoch) other numbers are drawn. `samples` are B numbers that name the
    images, such as their rows of the manifest.
    """
    if len(samples) != len(greys):
        raise ConfigError(f"{len(samples)} samples for {len(greys)} images; one each is needed")
    key = (seed, step)
    chunks = (slice(at, at + _CHUNK) for at in range(0, len(greys), _CHUNK))
    done = [_augment(greys[chunk], config, key, samples[chunk]) for chunk in chunks]
    return torch.cat(done) if done else greys


def drawn_views(views: int, *, seed: int, step: int, samples: Sequence[int]) -> Ints:
    """i64[B]: for each sample one of the numbers 1 to `views`, drawn as `augment` draws."""
    return np.array([_generator((seed, step), 2, n).integers(1, views, endpoint=True) for n in samples], dtype=np.int64)


def _augment(greys: Tensor, config: Augmentation, key: tuple[int, int], samples: Sequence[int]) -> Tensor:
    drawn = torch.from_numpy(_draw(key, samples)).to(greys.device)
    unit = greys[:, None].float() / 255
    randomised = config if isinstance(config, RandomisedAugmentation) else None

    def streams(stream: int) -> list[np.random.Generator]:
        return [_generator(key, stream, n) for n in samples]

    crop = randomised.crop if randomised else 0.0
    if config.rotate_degrees or config.shift or config.zoom or crop:
        warps = _warps(drawn, config, greys.shape)
        if crop:
            warps = _cropped(warps, torch.from_numpy(crops(crop, streams)).to(greys.device))
        grid = nn.functional.affine_grid(warps, list(unit.shape), align_corners=False)
        unit = nn.functional.grid_sample(unit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    change = drawn[:, 5:, None, None, None]
    if config.gamma:
        unit = unit.clamp(0, 1) ** torch.exp(config.gamma * change[:, 0])
    mean = unit.mean(dim=(1, 2, 3), keepdim=True)
    unit = (unit - mean) * (1 + config.contrast * change[:, 1]) + mean + config.brightness * change[:, 2]
    if config.noise:
        shape = unit.shape[1:]
        noise = np.stack([_generator(key, 1, n).standard_normal(shape, dtype=np.float32) for n in samples])
        unit = unit + config.noise * change[:, 3].abs() * torch.from_numpy(noise).to(unit.device)
    unit = unit[:, 0].clamp(0, 1)
    if randomised:
        unit = change_appearance(unit, randomised.shares, streams)
    return (unit * 255).round().to(torch.uint8)


def _cropped(warps: Tensor, crop: Tensor) -> Tensor:
    """The warps f32[B, 2, 3] after crops f32[B, 2, 2]; see `appearance.crops`."""
    turn, factor, move = warps[:, :, :2], crop[:, :, 0], crop[:, :, 1]
    x, y = turn[:, :, 0] * move[:, :1], turn[:, :, 1] * move[:, 1:]
    return torch.cat([turn * factor[:, None], (x + y + warps[:, :, 2])[:, :, None]], dim=2)


def _draw(key: tuple[int, int], samples: Sequence[int]) -> Singles:
    """f32[B, 9] in -1..1."""
    return np.array([_generator(key, 0, n).uniform(-1, 1, _NUMBERS) for n in samples], dtype=np.float32)


def _generator(key: tuple[int, int], stream: int, sample: int) -> np.random.Generator:
    """The counter-based generator Philox (Salmon et al. 2011, doi:10.1145/2063384.2063405) of one sample."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, sample]))


def _warps(drawn: Tensor, config: Augmentation, shape: torch.Size) -> Tensor:
    """f32[B, 2, 3]: from places in the new image to places in the old, both in -1..1."""
    angle = torch.deg2rad(config.rotate_degrees * drawn[:, 0])
    scale = 1 / (1 + config.zoom * drawn[:, 1])
    ratio = shape[1] / shape[2]  # height over width: a turn is a turn in pixels, not in shares
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [
        torch.stack([cos, -sin * ratio, 2 * config.shift * drawn[:, 2]], dim=1),
        torch.stack([sin / ratio, cos, 2 * config.shift * drawn[:, 3]], dim=1),
    ]
    return torch.stack(rows, dim=1)
