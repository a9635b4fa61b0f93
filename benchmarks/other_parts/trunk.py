"""Skull, pelvis, abdomen and the chest from the side on a `phantom.film.Film`; positions in half fields."""

from __future__ import annotations

import numpy as np
from benchmarks.other_parts.film import Film, Knots, root

from thoraclip.data.phantom.drawing import cloud

__all__ = ["draw_abdomen", "draw_lateral_chest", "draw_pelvis", "draw_skull"]


def _mirrored(knots: Knots) -> Knots:
    return [(-k[0], *k[1:]) for k in knots]


def _spine_from_front(film: Film, top: float, bottom: float, *, wide: float, high: float, depth_cm: float) -> None:
    """Vertebral bodies with pedicles and spinous processes, and transverse processes, between two heights."""
    y = top
    while y < bottom:
        w = wide * (1 + 0.12 * (y - top))
        film.vertebra(0, y, w, 0.43 * high, depth_cm=depth_cm)
        for side in (-1, 1):
            film.short_bone(film.ellipse(side * 0.62 * w, y - 0.12 * high, 0.22 * w, 0.16 * high), depth_cm=0.9)
            film.long_bone([(side * w, y, 0.022), (side * 1.75 * w, y - 0.03 * high, 0.012)])
        film.short_bone(film.ellipse(0, y + 0.18 * high, 0.16 * w, 0.26 * high), depth_cm=1.1)
        y += high


def _bowel_gas(film: Film, count: int, *, wide: float, top: float, bottom: float) -> None:
    """Pockets of gas of up to 4 cm, in chains as in a colon."""
    rng = film.rng
    for _ in range(count):
        x, y = rng.uniform(-wide, wide), rng.uniform(top, bottom)
        for _ in range(int(rng.integers(1, 5))):
            square = film.ellipse(
                x, y, rng.uniform(0.05, 0.12), rng.uniform(0.04, 0.09), turn_degrees=rng.uniform(0, 180)
            )
            film.air(square, depth_cm=float(rng.uniform(1.5, 4.0)))
            x, y = x + rng.normal(0, 0.09), y + rng.normal(0, 0.09)


def draw_skull(film: Film) -> None:
    """Skull from the side (lateral): vault with two tables, base, face with orbit and antrum, mandible, teeth, neck."""
    profile: Knots = [
        (-0.60, -0.30),
        (-0.66, -0.10),
        (-0.68, 0.02),
        (-0.80, 0.20),
        (-0.70, 0.26),
        (-0.74, 0.36),
        (-0.72, 0.44),
        (-0.73, 0.52),
        (-0.69, 0.60),
        (-0.68, 0.74),
        (-0.52, 0.80),
        (-0.20, 0.72),
        (-0.06, 0.85),
        (-0.08, 1.5),
        (0.55, 1.5),
        (0.50, 0.85),
        (0.56, 0.45),
        (0.75, 0.20),
        (0.88, -0.15),
        (0.78, -0.58),
        (0.42, -0.88),
        (-0.05, -0.93),
        (-0.42, -0.72),
    ]
    film.soft = film.solid(profile, depth_cm=film.near(13.5), rounding=0.45)
    vault: Knots = [
        (-0.58, -0.02),
        (-0.62, -0.22),
        (-0.56, -0.45),
        (-0.38, -0.70),
        (-0.05, -0.87),
        (0.38, -0.82),
        (0.70, -0.55),
        (0.81, -0.18),
        (0.70, 0.12),
        (0.52, 0.27),
        (0.30, 0.33),
        (0.08, 0.26),
        (-0.06, 0.12),
        (-0.25, 0.03),
    ]
    inside = film.depth_inside(vault)
    table = 0.05 * film.near(1, 0.15)
    shell = np.exp(-((np.maximum(inside, 0) / table) ** 2)) * (inside > 0)
    film.bone += 0.75 * (inside > 0) + 2.0 * shell
    film.bone += 0.8 * np.exp(-(((inside - 0.006) / 0.012) ** 2)) + 0.7 * np.exp(-(((inside - 0.055) / 0.010) ** 2))
    _skull_base(film)
    _face(film)
    film.air(film.ellipse(-0.02, 0.72, 0.05, 0.35, turn_degrees=4), depth_cm=3.0)
    for number in range(5):
        y = 0.50 + 0.145 * number
        x = 0.19 - 0.02 * number
        film.vertebra(x, y, 0.085, 0.060, turn_degrees=6, depth_cm=1.9)
        film.long_bone(
            [(x + 0.12, y + 0.02, 0.034), (x + 0.22, y + 0.05, 0.022), (x + 0.29, y + 0.07, 0.032)], density=0.6
        )


def _skull_base(film: Film) -> None:
    """Petrous pyramids, sella, the floors of the fossae."""
    film.short_bone(film.ellipse(0.17, 0.22, 0.16, 0.095, turn_degrees=-12), depth_cm=4.2, filling=0.8)
    film.air(film.ellipse(0.30, 0.24, 0.07, 0.06), depth_cm=2.0)
    for knots in (
        [(-0.56, 0.01, 0.014), (-0.35, -0.01, 0.012), (-0.16, 0.05, 0.014), (-0.08, 0.055, 0.016)],
        [(-0.08, 0.055, 0.014), (-0.065, 0.11, 0.012), (-0.01, 0.12, 0.012), (0.02, 0.06, 0.016)],  # sella turcica
        [(0.02, 0.06, 0.016), (0.06, 0.16, 0.018), (0.12, 0.30, 0.020)],  # clivus
        [(-0.22, 0.03, 0.012), (-0.15, 0.17, 0.012), (-0.02, 0.22, 0.014)],
    ):
        film.long_bone(knots, density=3.0, cortex=0.9)


def _face(film: Film) -> None:
    """Facial bones, thin around orbit and antrum, teeth and mandible."""
    face: Knots = [
        (-0.60, -0.02),
        (-0.66, 0.04),
        (-0.74, 0.15),
        (-0.64, 0.20),
        (-0.68, 0.32),
        (-0.67, 0.42),
        (-0.50, 0.43),
        (-0.26, 0.42),
        (-0.16, 0.36),
        (-0.14, 0.12),
        (-0.35, 0.02),
    ]
    film.plate(face, depth_cm=1.3, rim_cm=1.0, rim=0.012)
    for x, y, wide, high, depth_cm in (
        (-0.46, 0.11, 0.105, 0.095, 3.5),
        (-0.42, 0.29, 0.14, 0.085, 4.5),
        (-0.60, -0.03, 0.03, 0.06, 2.0),
    ):
        square = film.ellipse(x, y, wide, high)
        film.bone *= 1 - 0.6 * (square < 1)
        film.bone += 0.9 * np.exp(-(((np.sqrt(square) - 1) / 0.10) ** 2))
        film.air(square, depth_cm=depth_cm)
    for number in range(7):
        x = -0.645 + 0.055 * number
        for y, turn in ((0.455, 8), (0.545, -8)):
            film.short_bone(film.ellipse(x, y, 0.022, 0.052, turn_degrees=turn, power=3), depth_cm=1.9, filling=0.9)
    film.long_bone(
        [
            (-0.64, 0.63, 0.065),
            (-0.45, 0.645, 0.06),
            (-0.22, 0.60, 0.065),
            (-0.10, 0.50, 0.075),
            (-0.03, 0.34, 0.055),
            (0.01, 0.24, 0.032),
        ],
        density=1.5,
        cortex=0.3,
    )


def draw_pelvis(film: Film) -> None:
    """Pelvis from the front (AP): ilia, sacrum, hips, pubic rami around the obturator foramina, proximal femora."""
    girth = film.near(1.0, 0.08)
    trunk: Knots = [
        (-0.82, -1.5),
        (-0.80, -0.8),
        (-0.90, -0.3),
        (-1.0, 0.15),
        (-1.02, 0.6),
        (-0.98, 1.5),
        (-0.12, 1.5),
        (-0.05, 0.75),
        (0.0, 0.55),
        (0.05, 0.75),
        (0.12, 1.5),
        (0.98, 1.5),
        (1.02, 0.6),
        (1.0, 0.15),
        (0.90, -0.3),
        (0.80, -0.8),
        (0.82, -1.5),
    ]
    film.soft = film.solid([(x * girth, y) for x, y in trunk], depth_cm=film.near(19), rounding=0.55)
    _bowel_gas(film, int(film.rng.integers(3, 8)), wide=0.4, top=-0.9, bottom=0.0)
    ilium: Knots = [
        (0.15, -0.38),
        (0.22, -0.56),
        (0.38, -0.68),
        (0.57, -0.66),
        (0.72, -0.55),
        (0.755, -0.42),
        (0.70, -0.33),
        (0.655, -0.24),
        (0.655, -0.17),
        (0.62, -0.10),
        (0.655, -0.03),
        (0.61, 0.03),
        (0.52, 0.12),
        (0.42, 0.15),
        (0.35, 0.08),
        (0.325, -0.04),
        (0.27, -0.10),
        (0.20, -0.14),
        (0.15, -0.20),
        (0.125, -0.29),
    ]
    sockets: list[Knots] = [
        [(0.38, 0.11, 0.07), (0.24, 0.13, 0.045), (0.12, 0.19, 0.045), (0.055, 0.24, 0.06), (0.045, 0.31, 0.045)],
        [(0.06, 0.31, 0.040), (0.14, 0.38, 0.036), (0.23, 0.44, 0.045)],
        [(0.41, 0.12, 0.075), (0.37, 0.25, 0.058), (0.31, 0.38, 0.062), (0.25, 0.45, 0.050)],
    ]
    femora: list[Knots] = [
        [
            (0.54, 0.07, 0.085),
            (0.62, 0.12, 0.078),
            (0.72, 0.20, 0.105),
            (0.735, 0.32, 0.095),
            (0.725, 0.50, 0.075),
            (0.69, 1.5, 0.070),
        ],
        [(0.80, 0.10, 0.045), (0.79, 0.20, 0.065), (0.75, 0.30, 0.06)],
        [(0.68, 0.33, 0.03), (0.665, 0.37, 0.032)],
    ]
    for mirror in (lambda k: k, _mirrored):
        film.plate(mirror(ilium), depth_cm=1.5, rim_cm=1.5, rim=0.012, rounding=0.10)
        brim: Knots = [
            (0.14, -0.24, 0.014),
            (0.26, -0.11, 0.013),
            (0.335, 0.03, 0.013),
            (0.30, 0.11, 0.012),
            (0.12, 0.17, 0.010),
        ]
        film.long_bone(mirror(brim), density=2.0, cortex=0.9)
        for knots in sockets:
            film.long_bone(mirror(knots), density=0.8)
        for knots in femora:
            film.long_bone(mirror(knots), density=0.8)
    for side in (-1, 1):
        head = film.ellipse(side * 0.525, 0.065, film.near(0.105, 0.03), 0.105)
        film.short_bone(head, depth_cm=2.8, filling=0.6)
        roof = np.abs(np.sqrt(film.ellipse(side * 0.525, 0.065, 0.125, 0.125)) - 1)
        film.bone += 1.6 * np.exp(-((roof / 0.07) ** 2)) * (film.y < 0.06)
    sacrum: Knots = [
        (-0.20, -0.42),
        (-0.08, -0.45),
        (0.08, -0.45),
        (0.20, -0.42),
        (0.17, -0.25),
        (0.10, -0.08),
        (0.05, 0.03),
        (0.0, 0.07),
        (-0.05, 0.03),
        (-0.10, -0.08),
        (-0.17, -0.25),
    ]
    film.plate(sacrum, depth_cm=1.9, rim_cm=0.7, rim=0.012)
    for number in range(4):
        for side in (-1, 1):
            square = film.ellipse(side * (0.085 - 0.012 * number), -0.33 + 0.085 * number, 0.024, 0.018)
            film.bone -= np.minimum(1.3 * root(square), film.bone)
    _spine_from_front(film, -1.0, -0.45, wide=0.115, high=0.20, depth_cm=2.0)


def draw_abdomen(film: Film) -> None:
    """Abdomen from the front (AP, supine): lumbar spine, lower ribs, iliac crests, psoas, kidneys, bowel gas."""
    girth = film.near(1.0, 0.08)
    trunk: Knots = [
        (-0.86, -1.5),
        (-0.86, -0.8),
        (-0.83, -0.3),
        (-0.80, 0.1),
        (-0.86, 0.5),
        (-0.95, 1.5),
        (0.95, 1.5),
        (0.86, 0.5),
        (0.80, 0.1),
        (0.83, -0.3),
        (0.86, -0.8),
        (0.86, -1.5),
    ]
    film.soft = film.solid([(x * girth, y) for x, y in trunk], depth_cm=film.near(19), rounding=0.6)
    for side in (-1, 1):
        psoas: Knots = [
            (side * 0.10, -0.55),
            (side * 0.20, -0.2),
            (side * 0.30, 0.2),
            (side * 0.36, 0.6),
            (side * 0.16, 0.6),
            (side * 0.08, 0.0),
        ]
        film.soft += film.solid(psoas, depth_cm=1.6, rounding=0.08)
        film.soft += 1.4 * root(film.ellipse(side * 0.40, -0.30 + 0.04 * side, 0.14, 0.25, turn_degrees=-side * 12))
        film.air(film.ellipse(side * 0.45, -1.12, 0.42, 0.24), depth_cm=7.0)  # the lungs behind the domes
    film.soft += 1.8 * root(film.ellipse(-0.45, -0.55, 0.42, 0.42))  # liver
    _bowel_gas(film, int(film.rng.integers(9, 16)), wide=0.62, top=-0.45, bottom=0.9)
    _spine_from_front(film, -1.05, 0.62, wide=0.110, high=0.225, depth_cm=2.2)
    ilium: Knots = [
        (0.16, 0.66),
        (0.24, 0.50),
        (0.38, 0.42),
        (0.56, 0.44),
        (0.70, 0.58),
        (0.74, 0.80),
        (0.66, 1.5),
        (0.30, 1.5),
        (0.20, 0.95),
    ]
    sacrum: Knots = [(-0.2, 0.70), (0.0, 0.66), (0.2, 0.70), (0.15, 1.0), (0.08, 1.4), (-0.08, 1.4), (-0.15, 1.0)]
    film.plate(ilium, depth_cm=1.3, rim_cm=1.6, rim=0.013, rounding=0.08)
    film.plate(_mirrored(ilium), depth_cm=1.3, rim_cm=1.6, rim=0.013, rounding=0.08)
    film.plate(sacrum, depth_cm=1.7, rim_cm=0.7, rim=0.012)
    for number, reach in enumerate((0.80, 0.76, 0.66, 0.42)):
        y = -1.05 + 0.20 * number
        for side in (-1, 1):
            film.long_bone(
                [
                    (side * 0.12, y, 0.026),
                    (side * 0.4 * reach, y + 0.05, 0.030),
                    (side * 0.8 * reach, y + 0.19, 0.030),
                    (side * reach, y + 0.34, 0.026),
                ],
                density=0.6,
            )


def draw_lateral_chest(film: Film) -> None:
    """Chest from the side, facing left or right: one overlaid pair of lungs between sternum and spine, heart, two
    domes."""
    girth = film.near(1.0, 0.05)
    body: Knots = [
        (-0.30, -1.5),
        (-0.28, -0.92),
        (-0.52, -0.62),
        (-0.70, -0.15),
        (-0.76, 0.25),
        (-0.78, 0.65),
        (-0.76, 1.5),
        (0.74, 1.5),
        (0.70, 0.75),
        (0.78, 0.2),
        (0.80, -0.3),
        (0.66, -0.75),
        (0.40, -1.0),
        (0.34, -1.5),
    ]
    film.soft = film.solid([(x * girth, y) for x, y in body], depth_cm=film.near(32), rounding=0.38)
    film.flesh([(-0.30, -0.45, 0.30), (-0.62, -0.85, 0.22), (-0.9, -1.4, 0.20)], depth=0.8)  # raised arms
    lungs: Knots = [
        (0.10, -0.84),
        (0.30, -0.78),
        (0.54, -0.54),
        (0.65, -0.12),
        (0.67, 0.28),
        (0.60, 0.68),
        (0.42, 0.54),
        (0.15, 0.36),
        (-0.15, 0.32),
        (-0.42, 0.44),
        (-0.60, 0.56),
        (-0.63, 0.25),
        (-0.57, -0.15),
        (-0.42, -0.50),
        (-0.15, -0.74),
    ]
    air = film.solid(lungs, depth_cm=film.near(20), rounding=0.24)
    for centre, height in ((0.0, 0.40), (0.06, 0.47)):  # each lung stands on a dome of its own
        dome = film.y - height - 0.55 * (film.x - centre) ** 2 + 0.02
        air *= 1 - 0.45 * np.clip(dome / 0.02, 0, 1)
    heart = root(film.ellipse(-0.30, 0.22, film.near(0.37), 0.25, turn_degrees=-42))
    box, square, _ = film.tube(
        [
            (-0.20, 0.0, 0.10),
            (-0.16, -0.26, 0.09),
            (0.0, -0.36, 0.085),
            (0.16, -0.28, 0.08),
            (0.26, 0.0, 0.075),
            (0.32, 0.5, 0.07),
        ]
    )
    hila = root(film.ellipse(0.0, -0.06, 0.13, 0.11)) + 0.5 * root(
        film.ellipse(0.03, 0.06, 0.16, 0.20, turn_degrees=30)
    )
    air[box] *= 1 - 0.16 * root(square)  # aorta
    air *= (1 - 0.66 * heart) * (1 - 0.25 * hila)
    air *= 1 - 0.06 * cloud(film.size, film.rng, (16, 32, 64))
    film.soft = np.maximum(film.soft - 0.78 * air, 0)
    film.air(film.ellipse(0.08, -0.55, 0.045, 0.42, turn_degrees=-6), depth_cm=2.2)  # trachea
    for number in range(13):
        y = -0.98 + 0.165 * number
        x = 0.47 + 0.10 * np.sin(1.6 * (y + 0.65)) - 0.14 * max(0.0, -0.55 - y)
        film.vertebra(x, y, 0.088, 0.066, turn_degrees=-10 * np.cos(1.6 * (y + 0.65)), depth_cm=3.2)
    film.long_bone(
        [(-0.40, -0.62, 0.045), (-0.52, -0.42, 0.034), (-0.64, -0.05, 0.030), (-0.69, 0.18, 0.022)], density=0.8
    )
    for number in range(10):
        y, drop = -0.74 + 0.125 * number, 0.34 + 0.03 * number
        front = -0.30 - 0.032 * min(number, 8)
        for shift in (-0.012, 0.03):
            film.long_bone(
                [
                    (0.66, y + shift, 0.024),
                    (0.70, y + 0.07 + shift, 0.026),
                    (0.35, y + 0.5 * drop + shift, 0.026),
                    (0.5 * front, y + 0.85 * drop + shift, 0.026),
                    (front, y + drop + shift, 0.024),
                ],
                density=0.65,
                steps=3,
            )
    film.long_bone([(0.28, -0.72, 0.02), (0.48, -0.40, 0.022), (0.52, -0.12, 0.018)], density=0.8)  # scapula
