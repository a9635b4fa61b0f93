"""Synthetic radiographs of what is not a frontal chest: other body parts, and the chest from the side.

They are what a chest X-ray classifier meets by mistake. Physics, detector, markers and borders are those of the chest
phantoms (`phantom.drawing`), so that an image is told from a chest by its anatomy and not by its film; the tube voltage
and the window are those of the part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from benchmarks.other_parts.film import Film
from benchmarks.other_parts.limbs import draw_foot, draw_hand, draw_knee
from benchmarks.other_parts.trunk import draw_abdomen, draw_lateral_chest, draw_pelvis, draw_skull
from numpy.typing import NDArray

from thoraclip.data.phantom.drawing import MU_BONE, MU_SOFT, PHOTONS, Side, cloud, expose
from thoraclip.data.phantom.lines import BORDERS, draw_border, draw_marker
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.ranges import conform

__all__ = ["OTHER_PARTS", "draw_other_phantom"]


@dataclass(frozen=True)
class _Part:
    """How a body part is drawn and exposed.

    Args:
        draw: adds flesh and bone to a film.
        half_field_cm: half the image's side in the patient.
        hardness: attenuation relative to that at the chest's tube voltage; limbs are taken with softer rays.
        latitude: width of the display's window relative to the chest's.
        scatter: share of the mean signal that is scattered into every pixel.
        tilt_degrees: largest rotation on the film.
    """

    draw: Callable[[Film], None]
    half_field_cm: float
    hardness: float
    latitude: float
    scatter: float
    tilt_degrees: float = 5.0


_PARTS = {
    "hand": _Part(draw_hand, 11.0, 3.0, 0.80, 0.05, 20.0),
    "knee": _Part(draw_knee, 9.5, 1.15, 0.95, 0.15, 10.0),
    "skull": _Part(draw_skull, 12.5, 1.0, 0.95, 0.25),
    "pelvis": _Part(draw_pelvis, 20.0, 1.0, 0.80, 0.32),
    "foot": _Part(draw_foot, 13.0, 2.2, 1.0, 0.05, 15.0),
    "abdomen": _Part(draw_abdomen, 18.0, 1.0, 0.70, 0.32),
    "lateral chest": _Part(draw_lateral_chest, 18.0, 0.8, 1.1, 0.30),
}

OTHER_PARTS = tuple(_PARTS)
"""The parts that `draw_other_phantom` draws, lateral chest included: not frontal."""


def draw_other_phantom(part: str, *, rng: np.random.Generator, size: int = 256) -> NDArray[np.uint8]:
    """Draw one radiograph of a body part that is not the frontal chest.

    Args:
        part: one of `OTHER_PARTS`.
        rng: the only source of chance: patient, pose, side, exposure, texture, marker and border.
        size: side of the square image, pixels, 32 to 2048.

    Returns:
        u8[size, size], bright = attenuating.

    Raises:
        ConfigError: an unknown part, or a size out of range.
    """
    if part not in _PARTS:
        raise ConfigError(f"part: unknown body part '{part}'{did_you_mean(part, OTHER_PARTS)}")
    conform("size", size, Side)
    traits = _PARTS[part]
    film = Film(size, traits.half_field_cm * rng.uniform(0.9, 1.1), rng, tilt_degrees=traits.tilt_degrees)
    traits.draw(film)
    film.bone *= 1 + 0.10 * cloud(size, rng, (24, 48, 96))
    soft = film.soft * (1 + 0.02 * cloud(size, rng, (4, 9, 19)))
    path = traits.hardness * (MU_SOFT * soft + MU_BONE * film.bone)
    body = path[path > 0.1 * traits.hardness]
    exposure, texture = (
        str(rng.choice(["under", "normal", "over"], p=[0.15, 0.7, 0.15])),
        str(rng.choice(list(PHOTONS))),
    )
    centre = 0.70 * float(np.quantile(body, 0.6))
    pixels = expose(
        path, centre, latitude=traits.latitude, scatter=traits.scatter, exposure=exposure, texture=texture, rng=rng
    )
    draw_border(pixels, str(rng.choice(list(BORDERS))), rng)
    draw_marker(pixels, str(rng.choice(["", "R", "L"])), rng)
    return pixels
