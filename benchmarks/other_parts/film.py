"""A bare film to which bones and flesh are added as analytic solids: rods, ellipsoids and plates, integrated along the
beam.

Lengths in the image plane are in half fields (1.0 is half the image), as in the phantoms; thicknesses are in cm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thoraclip.data.phantom.anatomy import resize
from thoraclip.data.phantom.lines import Floats

__all__ = ["Film", "Knots", "closed_curve", "curve", "root"]

Knots = Sequence[tuple[float, ...]]

_OUTLINE_GRID = 128


def root(values: Floats) -> Floats:
    """Half chord of a unit circle where `values` is the squared radius: sqrt(1 - r2), 0 outside."""
    return np.sqrt(np.maximum(1 - values, 0))


def curve(knots: Knots, steps: int = 4) -> NDArray[np.float64]:
    """A smooth line through its knots (Catmull-Rom), f64[m, k]; the columns beyond x and y, such as a radius, go
    along."""
    p = np.asarray([knots[0], *knots, knots[-1]], float)
    path = _spline(p, steps)
    return np.concatenate([path, p[-1:]])


def closed_curve(knots: Knots, steps: int = 3) -> NDArray[np.float64]:
    """A smooth closed outline through its knots, f64[m, k]."""
    return _spline(np.asarray([knots[-1], *knots, knots[0], knots[1]], float), steps)


def _spline(p: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.asarray(path.reshape(-1, p.shape[1]))


def _within(part: slice, whole: slice) -> slice:
    """`part` counted from the begin of `whole`, which holds it."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _shrunk(values: Floats, size: int) -> Floats:
    """Averages over blocks, f32[size, size]: their centres are where `resize` takes them to be."""
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BOX))


class Film:
    """Thickness maps of one posed body part: `soft` and `bone`, f32[size, size], in cm.

    Args:
        size: side of the image, pixels.
        half_field_cm: what half the image's side is in the patient.
        rng: for the pose (rotation, side, magnification, shift) and a smooth warp that gives each patient other shapes.
        tilt_degrees: largest rotation.
    """

    def __init__(self, size: int, half_field_cm: float, rng: np.random.Generator, *, tilt_degrees: float = 5.0) -> None:
        self.size, self.half_field_cm, self.rng = size, half_field_cm, rng
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        u, v = np.meshgrid(axis - rng.normal(0, 0.02), axis - rng.normal(0, 0.02))
        angle, zoom = math.radians(rng.uniform(-tilt_degrees, tilt_degrees)), rng.uniform(0.92, 1.08)
        side, slender = rng.choice([-1, 1]), rng.uniform(0.94, 1.06)
        x = side * (u * math.cos(angle) + v * math.sin(angle)) / (zoom * slender)
        y = (-u * math.sin(angle) + v * math.cos(angle)) / zoom
        warp = [0.020 * resize(rng.standard_normal((5, 5), dtype=np.float32), size) for _ in range(2)]
        self.x, self.y = (x + warp[0]).astype(np.float32), (y + warp[1]).astype(np.float32)
        self.soft = np.zeros((size, size), np.float32)
        self.bone = np.zeros((size, size), np.float32)

    def near(self, mean: float, share: float = 0.06) -> float:
        """A measure of this patient: `mean` with a spread of `share` of it, cut at two spreads."""
        return float(mean * (1 + share * np.clip(self.rng.standard_normal(), -2, 2)))

    def tube(self, knots: Knots, *, steps: int = 4) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The pixels near a smooth line through (x, y, radius); there, distance to it squared and in radii, and the
        radius.

        Where nothing is near, the distance is 9 and the radius 1.
        """
        path = curve(knots, steps)
        (left, top, _), (right, bottom, margin) = path.min(axis=0).tolist(), path.max(axis=0).tolist()
        whole = self._box(left, right, top, bottom, margin) or (slice(0, 0), slice(0, 0))
        square = np.full(self.x[whole].shape, 9.0, np.float32)
        radius = np.ones_like(square)
        for (ax, ay, ar), (bx, by, br) in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            box = self._box(min(ax, bx), max(ax, bx), min(ay, by), max(ay, by), max(ar, br))
            if box is None:
                continue
            inner = _within(box[0], whole[0]), _within(box[1], whole[1])
            px, py, dx, dy = self.x[box] - np.float32(ax), self.y[box] - np.float32(ay), bx - ax, by - ay
            t = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
            r = ar + (br - ar) * t
            found = ((px - t * dx) ** 2 + (py - t * dy) ** 2) / (r * r)
            closer = found < square[inner]
            square[inner] = np.where(closer, found, square[inner])
            radius[inner] = np.where(closer, r, radius[inner])
        return whole, square, radius

    def _box(self, left: float, right: float, top: float, bottom: float, margin: float) -> tuple[slice, slice] | None:
        """The pixels near a segment; found on every fourth row and column, and widened by as much."""
        x, y = self.x[::4, ::4], self.y[::4, ::4]
        inside = (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not rows.size:
            return None
        cut = [slice(max(4 * int(i[0]) - 4, 0), min(4 * int(i[-1]) + 8, self.size)) for i in (rows, columns)]
        return cut[0], cut[1]

    def flesh(self, knots: Knots, *, depth: float = 1.0) -> None:
        """A round limb through (x, y, radius), joined to the flesh there is; `depth` is its depth over its width."""
        box, square, radius = self.tube(knots)
        self.soft[box] = np.maximum(self.soft[box], 2 * depth * self.half_field_cm * radius * root(square))

    def long_bone(self, knots: Knots, *, density: float = 1.0, cortex: float = 0.38, steps: int = 4) -> None:
        """A hollow bone through (x, y, radius): a thick cortex where it is thin, spongy bone where it flares."""
        box, square, radius = self.tube(knots, steps=steps)
        waist = (min(k[2] for k in knots) / radius) ** 2
        inner = 1 - cortex * np.minimum(waist, 1)
        filling = 0.30 + 0.22 * (1 - waist)
        chord = root(square) - (1 - filling) * inner * root(square / inner**2)
        self.bone[box] += 2 * density * self.half_field_cm * radius * chord

    def ellipse(
        self, x: float, y: float, wide: float, high: float, *, turn_degrees: float = 0.0, power: float = 2.0
    ) -> Floats:
        """|u / wide|^power + |v / high|^power about a centre: below 1 inside; a block for a power of 4."""
        c, s = math.cos(math.radians(turn_degrees)), math.sin(math.radians(turn_degrees))
        u, v = (self.x - x) * c + (self.y - y) * s, (self.y - y) * c - (self.x - x) * s
        if power == 2:
            return np.asarray((u / wide) ** 2 + (v / high) ** 2)
        return np.asarray(np.abs(u / wide) ** power + np.abs(v / high) ** power)

    def short_bone(self, square: Floats, *, depth_cm: float, rind: float = 0.12, filling: float = 0.45) -> None:
        """A spongy bone within an `ellipse`: a thin cortex around a `filling` of its density."""
        inner = (1 - rind) ** 2
        self.bone += depth_cm * (root(square) - (1 - filling) * (1 - rind) * root(square / inner))

    def vertebra(
        self, x: float, y: float, wide: float, high: float, *, turn_degrees: float = 0.0, depth_cm: float
    ) -> None:
        """A vertebral body with bright end plates, as seen from the front or the side."""
        square = self.ellipse(x, y, wide, high, turn_degrees=turn_degrees, power=4)
        self.short_bone(square, depth_cm=depth_cm, rind=0.16, filling=0.5)

    def depth_inside(self, outline: Knots) -> Floats:
        """Distance to a smooth closed outline through (x, y): positive inside, negative outside."""
        step = max(1, self.size // _OUTLINE_GRID)
        x, y = (_shrunk(values, self.size // step) for values in (self.x, self.y))
        path = closed_curve(outline).astype(np.float32)
        square, inside = np.full_like(x, 9.0), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(path.tolist(), np.roll(path, -1, axis=0).tolist(), strict=True):
            px, py, dx, dy = x - np.float32(ax), y - np.float32(ay), bx - ax, by - ay
            t = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
            square = np.minimum(square, (px - t * dx) ** 2 + (py - t * dy) ** 2)
            if dy:
                inside ^= ((y >= ay) != (y >= by)) & (px < dx * py / dy)
        signed = np.where(inside, np.sqrt(square), -np.sqrt(square))
        return signed if step == 1 else resize(signed, self.size)

    def solid(self, outline: Knots, *, depth_cm: float, rounding: float) -> Floats:
        """Thickness in cm of a body with a closed outline whose edge is rounded off over `rounding` half fields."""
        depth = np.clip(self.depth_inside(outline) / rounding, 0, 1)
        return np.asarray(depth_cm * np.sqrt(depth * (2 - depth)))

    def plate(
        self, outline: Knots, *, depth_cm: float, rim_cm: float, rim: float = 0.018, rounding: float = 0.06
    ) -> None:
        """A flat or flaring bone with a closed outline and a bright cortical rim of `rim` half fields."""
        inside = self.depth_inside(outline)
        depth = np.clip(inside / rounding, 0, 1)
        edge = np.exp(-(((inside - rim) / rim) ** 2)) * (inside > -rim)
        self.bone += depth_cm * np.sqrt(depth * (2 - depth)) + rim_cm * edge

    def air(self, square: Floats, *, depth_cm: float) -> None:
        """Take air out of the flesh within an `ellipse`."""
        self.soft = np.maximum(self.soft - depth_cm * root(square), 0)
