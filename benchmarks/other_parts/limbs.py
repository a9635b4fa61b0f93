"""Hand, knee and foot as rods, blocks and plates on a `phantom.film.Film`; positions in half fields."""

from __future__ import annotations

import math

from benchmarks.other_parts.film import Film

__all__ = ["draw_foot", "draw_hand", "draw_knee"]


def _digit(
    film: Film, start: tuple[float, float], lean_degrees: float, lengths: tuple[float, ...], *, girth: float
) -> None:
    """A chain of phalanges with its flesh, from a knuckle on; `lean_degrees` from straight up to the viewer's right."""
    x, y = start
    skin: list[tuple[float, ...]] = [(x, y, 1.95 * girth)]
    for number, length in enumerate(lengths):
        lean = math.radians(lean_degrees + film.near(4, 0.5) - 4)
        length = film.near(length, 0.04)
        dx, dy = math.sin(lean) * length, -math.cos(lean) * length
        last = number == len(lengths) - 1
        r = girth * (1.0, 0.86, 0.72)[number]

        def at(
            t: float, radius: float, x: float = x, y: float = y, dx: float = dx, dy: float = dy
        ) -> tuple[float, ...]:
            return x + t * dx, y + t * dy, radius

        if last:
            knots = [at(0.10, r), at(0.25, 0.85 * r), at(0.60, 0.48 * r), at(0.82, 0.66 * r), at(0.90, 0.5 * r)]
        else:
            knots = [at(0.06, r), at(0.18, 0.95 * r), at(0.5, 0.62 * r), at(0.82, 0.72 * r), at(0.92, 0.82 * r)]
        film.long_bone(knots)
        x, y = x + dx, y + dy
        skin.append((x, y, (1.9, 1.75, 1.45)[number] * girth))
    film.flesh(skin, depth=0.85)


def _metacarpal(film: Film, base: tuple[float, float], head: tuple[float, float], *, girth: float) -> None:
    (bx, by), (hx, hy) = base, head

    def at(t: float, radius: float) -> tuple[float, ...]:
        return bx + t * (hx - bx), by + t * (hy - by), radius * girth

    film.long_bone([at(0.05, 1.05), at(0.16, 0.95), at(0.5, 0.62), at(0.8, 0.8), at(0.94, 1.08)])


def draw_hand(film: Film) -> None:
    """Hand and wrist from behind (PA): phalanges, metacarpals, carpus, distal radius and ulna."""
    spread = film.near(1, 0.25)
    fingers = {  # base and head of the metacarpal, lean in degrees, phalanges
        "index": ((-0.105, 0.33), (-0.21, -0.04), -9, (0.29, 0.17, 0.125)),
        "middle": ((-0.015, 0.31), (-0.045, -0.08), -1, (0.32, 0.20, 0.135)),
        "ring": ((0.07, 0.32), (0.12, -0.05), 6, (0.30, 0.19, 0.135)),
        "little": ((0.14, 0.35), (0.265, 0.03), 15, (0.235, 0.14, 0.115)),
    }
    for name, (base, head, lean, lengths) in fingers.items():
        girth = 0.042 if name != "little" else 0.036
        _metacarpal(film, base, head, girth=1.1 * girth)
        _digit(film, (head[0] + 0.0015 * lean * spread, head[1] - 0.03), lean * spread, lengths, girth=girth)
    _metacarpal(film, (-0.175, 0.42), (-0.375, 0.19), girth=0.048)
    _digit(film, (-0.395, 0.165), -38 * film.near(1, 0.1), (0.22, 0.17), girth=0.046)
    carpus = [
        (-0.115, 0.50, 0.05, 0.075, -35),
        (-0.025, 0.535, 0.055, 0.05, 10),
        (0.065, 0.515, 0.05, 0.048, 30),
        (0.085, 0.485, 0.028, 0.034, 0),
        (-0.165, 0.425, 0.052, 0.05, -30),
        (-0.093, 0.405, 0.04, 0.048, -10),
        (-0.015, 0.425, 0.047, 0.085, 0),
        (0.075, 0.425, 0.055, 0.065, 15),
    ]
    for x, y, wide, high, turn in carpus:
        square = film.ellipse(x, y, film.near(wide), film.near(high), turn_degrees=turn, power=2.8)
        film.short_bone(square, depth_cm=1.25)
    film.long_bone(
        [
            (-0.075, 0.615, 0.095),
            (-0.075, 0.67, 0.105),
            (-0.08, 0.78, 0.075),
            (-0.09, 0.95, 0.055),
            (-0.10, 1.4, 0.055),
        ],
        density=0.75,
    )
    film.long_bone([(0.095, 0.635, 0.045), (0.095, 0.70, 0.048), (0.09, 0.82, 0.037), (0.085, 1.4, 0.042)])
    film.flesh(
        [(-0.02, 0.10, 0.31), (-0.01, 0.32, 0.27), (0.0, 0.55, 0.22), (0.0, 0.75, 0.21), (-0.01, 1.5, 0.25)], depth=0.48
    )
    film.flesh([(-0.12, 0.48, 0.16), (-0.26, 0.30, 0.15), (-0.39, 0.16, 0.09)], depth=0.75)
    for x, y in ((-0.21, -0.02), (-0.05, -0.06), (0.11, -0.03), (0.25, 0.05)):
        film.flesh([(x, y, 0.085), (0.7 * x, 0.2, 0.11)], depth=0.8)


def draw_knee(film: Film) -> None:
    """Knee from the front (AP): femoral condyles, tibial plateau, fibula, patella."""
    girth = film.near(1.0, 0.08)
    film.flesh(
        [
            (0, -1.5, 0.80 * girth),
            (0, -0.8, 0.66 * girth),
            (0, -0.15, 0.56),
            (0, 0.2, 0.51),
            (0, 0.6, 0.53 * girth),
            (0, 1.5, 0.50 * girth),
        ]
    )
    femur = [
        (-0.16, -1.5),
        (-0.16, -0.95),
        (-0.19, -0.65),
        (-0.29, -0.42),
        (-0.39, -0.28),
        (-0.40, -0.12),
        (-0.33, -0.02),
        (-0.20, 0.01),
        (-0.09, -0.04),
        (-0.04, -0.15),
        (0.04, -0.15),
        (0.09, -0.04),
        (0.20, 0.01),
        (0.32, -0.02),
        (0.38, -0.13),
        (0.36, -0.30),
        (0.27, -0.43),
        (0.18, -0.65),
        (0.16, -0.95),
        (0.16, -1.5),
    ]
    tibia = [
        (-0.37, 0.10),
        (-0.30, 0.085),
        (-0.19, 0.10),
        (-0.08, 0.085),
        (-0.045, 0.035),
        (0.0, 0.075),
        (0.045, 0.04),
        (0.08, 0.085),
        (0.19, 0.10),
        (0.30, 0.085),
        (0.37, 0.11),
        (0.38, 0.19),
        (0.29, 0.34),
        (0.19, 0.52),
        (0.155, 0.80),
        (0.15, 1.5),
        (-0.15, 1.5),
        (-0.155, 0.80),
        (-0.20, 0.52),
        (-0.31, 0.34),
        (-0.39, 0.19),
    ]
    for outline in (femur, tibia):
        film.plate(outline, depth_cm=2.3, rim_cm=1.5, rim=0.020, rounding=0.16)
    for y, wide in ((-0.013, 0.13), (0.105, 0.13)):  # subchondral bone
        for x in (-0.21, 0.21):
            film.short_bone(film.ellipse(x, y + (0.012 if y > 0 else -0.012), wide, 0.014), depth_cm=1.1)
    film.long_bone(
        [(0.335, 0.33, 0.055), (0.345, 0.40, 0.072), (0.335, 0.52, 0.052), (0.32, 0.8, 0.045), (0.31, 1.5, 0.048)],
        density=2.2,
    )
    patella = film.ellipse(0.03, -0.34 * film.near(1, 0.1), film.near(0.185), film.near(0.19), power=2.4)
    film.short_bone(patella, depth_cm=1.0, rind=0.08, filling=0.7)


def draw_foot(film: Film) -> None:
    """Foot from above (dorsoplantar): toes, five near-parallel metatarsals, tarsus, heel behind the ankle."""
    rays = [  # base and head of the metatarsal, lean, phalanges, girth
        ((-0.20, 0.14), (-0.235, -0.28), -3, (0.19, 0.155), 0.062),
        ((-0.10, 0.09), (-0.105, -0.37), -2, (0.135, 0.055, 0.05), 0.036),
        ((-0.02, 0.12), (0.005, -0.33), 2, (0.13, 0.05, 0.045), 0.034),
        ((0.06, 0.15), (0.10, -0.27), 5, (0.115, 0.045, 0.04), 0.034),
        ((0.13, 0.19), (0.19, -0.18), 9, (0.10, 0.04, 0.04), 0.036),
    ]
    for base, head, lean, lengths, girth in rays:
        _metacarpal(film, base, head, girth=1.12 * girth)
        _digit(film, (head[0] + 0.002 * lean, head[1] - 0.045), lean, lengths, girth=girth)
    for x in (-0.265, -0.205):  # sesamoids
        film.short_bone(film.ellipse(x, -0.255, 0.022, 0.030), depth_cm=0.8)
    tarsus = [
        (-0.19, 0.22, 0.068, 0.075, 5),
        (-0.095, 0.19, 0.048, 0.075, 0),
        (-0.02, 0.20, 0.048, 0.065, -5),
        (-0.11, 0.335, 0.13, 0.055, 12),
        (0.085, 0.295, 0.085, 0.12, -10),
        (-0.095, 0.50, 0.12, 0.13, 5),
        (0.035, 0.56, 0.10, 0.20, -5),
    ]
    for x, y, wide, high, turn in tarsus:
        square = film.ellipse(x, y, film.near(wide, 0.04), film.near(high, 0.04), turn_degrees=turn, power=2.8)
        film.short_bone(square, depth_cm=1.8)
    film.short_bone(film.ellipse(0.0, 0.80, 0.125, 0.18, power=2.5), depth_cm=1.6)
    film.long_bone([(-0.05, 0.62, 0.17), (-0.04, 0.75, 0.15), (-0.02, 1.3, 0.11)], density=0.4)
    film.flesh(
        [(-0.02, -0.26, 0.30), (-0.04, -0.05, 0.29), (-0.02, 0.2, 0.26), (0.0, 0.45, 0.24), (0.0, 0.8, 0.22)],
        depth=0.55,
    )
    film.flesh([(-0.01, 0.50, 0.18), (-0.01, 0.72, 0.21), (0.0, 1.4, 0.22)], depth=0.85)
