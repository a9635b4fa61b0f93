"""The analytic chest behind the phantoms: maps, over the half fields of `phantom.attributes`, of thickness in cm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from thoraclip.data.phantom.attributes import Body, Pose
from thoraclip.data.phantom.lines import Floats, Pen
from thoraclip.dtypes import Masks

__all__ = ["Anatomy", "draw_body", "resize"]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Maps of one posed body, each f32[size, size]; `soft` and `bone` in cm, `lung` cm of air, the others as said."""

    x: Floats
    y: Floats
    soft: Floats
    bone: Floats
    lung: Floats
    field: Masks  # lung as a radiologist outlines it, bool: between heart, chest wall and diaphragm
    reach: Floats  # 0 at the mediastinum to 1 at the lateral chest wall
    level: Floats  # 0 at the lung's apex to 1 at the diaphragm


def resize(values: Floats, size: int) -> Floats:
    """Enlarge a coarse map f32[h, w] to f32[size, size] with bicubic interpolation."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))


def draw_body(body: Body, pose: Pose, size: int) -> Anatomy:
    """Project a posed body to thickness maps; deterministic, no noise."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    u, v = np.meshgrid(axis - pose.shift_x, axis - pose.shift_y)
    angle = math.radians(pose.rotation_degrees)
    x = ((u * math.cos(angle) + v * math.sin(angle)) / pose.zoom).astype(np.float32)
    y = ((-u * math.sin(angle) + v * math.cos(angle)) / pose.zoom).astype(np.float32)
    side = np.abs(x)
    wide = _cage(body, y)
    lung, field, reach, level = _lungs(body, pose, x, y, wide)
    soft = _flesh(body, pose, x, y, side)
    bone = _ribs(body, x, y, side, wide) + _clavicles(body, pose, x, y, side) + _shoulder_blades(pose, size)
    near = np.flatnonzero((side < 0.16).any(axis=0))  # what is slender is to cost little
    column = slice(int(near[0]), int(near[-1]) + 1)
    bone[:, column] += _spine(body, x[:, column], y[:, column])
    soft = np.maximum(soft - 0.80 * lung - _windpipe(body, pose, x, y) - _stomach(body, pose, x, y), 0)
    return Anatomy(x=x, y=y, soft=soft, bone=bone, lung=lung, field=field, reach=reach, level=level)


def _root(values: Floats) -> Floats:
    """Half chord of a unit circle where `values` is the squared radius: sqrt(1 - r2), 0 outside."""
    return np.sqrt(np.maximum(1 - values, 0))


def _step(values: Floats, width: float) -> Floats:
    """Linear ramp from 0 at -width/2 to 1 at +width/2."""
    return np.asarray(np.clip(values / width + 0.5, 0, 1))


def _cage(body: Body, y: Floats) -> Floats:
    """Half width of the rib cage's inside at the height `y`."""
    base = 0.42
    below = np.clip((base - y) / (base - body.apex + 0.06), 0, 1)
    wide = body.cage * np.sqrt(np.maximum(1 - below * below * below, 0.004))
    return np.asarray(wide - 0.10 * np.maximum(y - base, 0) ** 2)


def dome_height(body: Body, pose: Pose, x: Floats) -> Floats:
    """Height of the diaphragm's contour under each x: the right dome stands higher, angles fall off laterally."""
    top = body.dome + pose.breath - (0.07 if pose.supine else 0.0)
    crest = np.where(x < 0, np.float32(0.30), np.float32(0.34))
    out = np.abs(x) - crest
    fall, inner = np.maximum(out / 0.61, 0), np.minimum(out, 0)
    return np.asarray(top + 0.80 * fall * fall * np.sqrt(fall) + 0.17 * inner * inner + np.float32(0.045) * (x >= 0))


def _heart(body: Body, pose: Pose, x: Floats, y: Floats) -> Floats:
    """Thickness of heart and great vessels as a fraction of the chest's depth, 0..1."""
    size = body.heart * (1.14 if pose.supine else 1.0)
    low = body.dome + pose.breath - (0.07 if pose.supine else 0.0) - 0.175 * size
    dx, dy = x - 0.13 - 0.07 * pose.turn, y - low
    c, s = math.cos(body.tilt), math.sin(body.tilt)
    main = _root(((dx * c + dy * s) / (0.375 * size)) ** 2 + ((-dx * s + dy * c) / (0.238 * size)) ** 2)
    atrium = _root(((x + 0.055 - 0.05 * pose.turn) / (0.155 * size)) ** 2 + ((y - low + 0.01) / 0.27) ** 2)
    knob = _root(((x - 0.075 - 0.06 * pose.turn) / (body.knob + 0.03)) ** 2 + ((y + 0.27) / (body.knob + 0.02)) ** 2)
    trunk = _root(((x - 0.09) / 0.115) ** 2 + ((y + 0.07) / 0.17) ** 2)
    width = 0.118 + 0.018 * np.clip(y + 0.6, 0, 1) + (0.02 if pose.supine else 0) + 0.05 * np.clip(-0.55 - y, 0, 1)
    band = _root(((x - 0.02 - 0.04 * pose.turn) / width) ** 2)
    return np.asarray(np.maximum.reduce([main, 0.9 * atrium, 0.8 * knob, 0.75 * trunk, 0.85 * band]))


def _lungs(body: Body, pose: Pose, x: Floats, y: Floats, wide: Floats) -> tuple[Floats, Masks, Floats, Floats]:
    """Air thickness in cm, the outlined lung field, and the two lung coordinates (reach, level)."""
    side = np.abs(x)
    top = body.apex + 0.05 + 1.6 * (side - 0.31) ** 2 + 2.0 * np.maximum(0.2 - side, 0) ** 2
    dome = dome_height(body, pose, x)
    over, under = y - top, dome - y
    heart = _heart(body, pose, x, y)
    shell = _root((side / wide) ** 2)
    cap = np.sqrt(np.clip(over / 0.55, 0, 1))
    floor = _step(under, 0.012) * (0.62 + 0.38 * np.clip(under / 0.22, 0, 1))
    recess = 0.13 * np.clip(1 + under / 0.16, 0, 1) * (under < 0)  # lung behind the dome, in the posterior sulcus
    chest = 0.80 * body.depth_cm * (0.9 + 0.1 * np.clip(y + 0.6, 0, 1))
    lung = chest * np.sqrt(shell * np.sqrt(shell)) * cap * (floor + recess) * (1 - 0.93 * np.sqrt(np.clip(heart, 0, 1)))
    field = (shell > 0.06) & (over > 0.01) & (under > 0.0) & (heart < 0.12)
    reach = np.clip((side - 0.12) / np.maximum(wide - 0.12, 0.05), 0, 1)
    level = np.clip(over / np.maximum(dome - top, 0.05), 0, 1)
    return lung, field, reach, level


def _flesh(body: Body, pose: Pose, x: Floats, y: Floats, side: Floats) -> Floats:
    """Soft tissue in cm as if the chest were full: torso, neck, shoulders, arms, breasts."""
    trunk = body.cage + body.wall + 0.05 * np.clip(y - 0.3, 0, 1) * (body.build == "large")
    torso = np.sqrt(np.maximum(1 - (side / trunk) ** 2 * np.sqrt(side / trunk), 0))
    outer = np.clip((side - 0.2) / 0.85, 0, 1.6)
    slope = -1.02 + 0.32 * outer * np.sqrt(outer) - 2 * np.clip(0.27 - side, 0, 0.25)
    thick = 0.30 * np.clip((y - slope) / 0.04, 0, 1) + 0.70 * np.sqrt(np.clip((y - slope) / 0.75, 0, 1))
    torso = torso * np.maximum(thick, 0.55 * _root((x / 0.24) ** 2))
    shoulder = 0.58 * np.sqrt(np.clip((y - slope) / 0.22, 0, 1)) * np.sqrt(np.clip((-0.10 - y) / 0.4, 0, 1))
    shoulder = shoulder * _root(np.square((side / 1.28) ** 2))
    along = np.clip((y + 0.5) / 1.3, 0, 1)
    arm = 0.38 * _root(((side - trunk - 0.19 - 0.10 * along) / 0.15) ** 2) * (y > -0.45)
    full = np.maximum(np.maximum(torso, shoulder), arm) * body.depth_cm
    if body.breast:
        low = 0.34 + 0.06 * pose.supine
        fall = ((side - 0.43) / 0.34) ** 2 + np.where(y < low, (y - low) / 0.42, (y - low) / 0.24) ** 2
        full = full + body.breast * _root(fall)
    return np.asarray(full + 0.9 * _root(((side - 0.48) / 0.36) ** 2 + ((y + 0.28) / 0.33) ** 2))  # pectoral muscle


def _tube(distance: Floats, radius: Floats | float) -> Floats:
    """Chord through a hollow bone, as a multiple of its radius: cortex bright, marrow fainter."""
    square = (distance / radius) ** 2
    return 2 * (_root(square) - 0.62 * _root(square / 0.72**2) * 0.72)


def _ribs(body: Body, x: Floats, y: Floats, side: Floats, wide: Floats) -> Floats:
    """Ribs in cm of bone. A rib is a tilted ring on the cage: its posterior half is the upper, its anterior the lower
    arc.

    With s = sqrt(1 - (x/A)^2) the posterior arc is y_k - drop s and the anterior arc y_k + drop s, so one phase
    (y +- drop s) / spacing draws all of them at once.
    """
    ring = (side / (wide + 0.025)) ** 2
    s = _root(ring)
    slope = body.drop * side / np.maximum(wide**2 * np.maximum(s, 0.12), 1e-3)
    lean = 1 / np.sqrt(1 + slope**2)
    inside = _step(1 - ring, 0.03)
    shifts = np.asarray(body.rib_shift, np.float32)
    total = np.zeros_like(x)
    for back in (True, False):
        fall = body.drop * s if back else -1.15 * body.drop * s - 0.10 * (1 - side / 0.8)
        phase = (y + fall - body.apex - 0.02) / body.spacing + body.rib_phase
        index = np.clip(np.floor(phase), 0, 11).astype(np.int8)
        offset = (phase - index - 0.5 + np.take(shifts, index + (12 if not back else 0))) * body.spacing * lean
        shown = (phase > 0) & (phase < (10.4 if back else 6.6))
        if not back:  # the costal cartilage is not seen: ribs end near the mid-clavicular line, later further down
            shown = shown * np.clip((side - 0.30 - 0.025 * index) / 0.10, 0, 1)
        edge = 1 / np.maximum(s, 0.45)
        total += (0.42 if back else 0.36) * _tube(offset, 0.036 if back else 0.042) * shown * edge
    return total * inside * _step(side - 0.05, 0.04)


def _spine(body: Body, x: Floats, y: Floats) -> Floats:
    """Vertebral bodies with discs, pedicles and spinous processes, in cm of bone."""
    height = 0.118 + 0.02 * y
    phase = (y + 0.03) / height
    within = phase - np.floor(phase) - 0.5
    centre = x - 2 * body.curve * np.sin(3 * y)
    end = np.abs(within)
    half = 0.074 + 0.012 * y + 0.020 * end
    square = (centre / half) ** 2
    block = _root(square * square)
    shape = 0.62 + 0.38 * _step(0.40 - end, 0.08) + 0.30 * _root(((end - 0.36) / 0.07) ** 2)
    across, down = np.abs(centre) - 0.048, (within + 0.1) * height
    pedicle = _tube(np.sqrt(across * across + down * down), 0.022)
    spike = _root((centre / 0.018) ** 2 + ((within - 0.15) / 0.3) ** 2)
    return np.asarray(1.05 * block * shape + 0.25 * pedicle + 0.45 * spike)


def _clavicles(body: Body, pose: Pose, x: Floats, y: Floats, side: Floats) -> Floats:
    """Collar bones in cm of bone: an S from the manubrium to the shoulder, high and flat in AP views."""
    along = (side - 0.07 - 0.035 * pose.turn * np.sign(x)) / 0.80
    height = -0.56 - (0.09 if pose.supine else 0.0) + body.clavicle
    bend = height - (0.09 if pose.supine else 0.20) * along - 0.045 * np.sin(2 * math.pi * along)
    radius = 0.036 + 0.012 * np.clip(1 - 4 * along, 0, 1)
    rod = _tube((y - bend) * 0.96, radius)
    return 0.85 * rod * _step(along - 0.02, 0.05) * _step(1.02 - along, 0.05)


def _shoulder_blades(pose: Pose, size: int) -> Floats:
    """Scapulae and humeri in cm of bone; rotated off the lungs in PA views, over them in AP views."""
    pen, inward = Pen(pose, size), 0.15 if pose.supine else 0.0
    thick = max(2, round(0.030 * size))
    lateral = [(0.93 - inward / 2, -0.38), (0.80 - inward, 0.02), (0.745 - inward, -0.02), (0.73 - inward, -0.40)]
    blade = [(0.76 - inward, -0.66), (0.97, -0.56), *lateral]
    for pen.side in (-1, 1):
        pen.polygon(blade, fill=48)
        pen.line(blade[2:] + blade[:1], fill=84, width=thick)
        pen.line([(0.75 - inward, -0.56), (0.93, -0.68), (1.04, -0.70)], fill=120, width=2 * thick)
        pen.line([(1.06, -0.50), (1.10, 0.10), (1.16, 0.75)], fill=130, width=round(0.085 * size))
        pen.line([(1.07, -0.40), (1.10, 0.10), (1.16, 0.75)], fill=95, width=round(0.045 * size))
        pen.disc(1.05, -0.53, 0.095 * pose.zoom, 125)
    small = pen.sheet.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(small, np.float32) / 100


def _windpipe(body: Body, pose: Pose, x: Floats, y: Floats) -> Floats:
    """Air of trachea and main bronchi in cm."""
    middle = x - 0.01 - 0.05 * pose.turn * (y + 0.5)
    tube = _root((middle / 0.042) ** 2) * _step(-0.16 - y, 0.03)
    fork = y + 0.16
    branch = _root(((np.abs(middle) - 0.75 * fork) / 0.036) ** 2) * _step(fork, 0.03) * np.clip(1 - fork / 0.16, 0, 1)
    return np.asarray(1.9 * tube + 1.4 * branch)


def _stomach(body: Body, pose: Pose, x: Floats, y: Floats) -> Floats:
    """Air of the gastric bubble under the left dome in cm."""
    if body.bubble < 0.15:
        return np.zeros_like(x)
    centre = float(dome_height(body, pose, np.array([0.36]))[0]) + 0.05 + 0.09 * body.bubble
    square = ((x - 0.36) / (0.10 + 0.1 * body.bubble)) ** 2 + ((y - centre) / (0.09 * body.bubble)) ** 2
    return 5 * body.bubble * _root(square)
