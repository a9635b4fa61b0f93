"""Who is X-rayed and how he or she stands: the patient's measures, the pose of one exposure.

Lengths in the image plane are in *half fields*: 1.0 is half the image, about 18 cm in the patient. The origin is the
image centre, x grows to the viewer's right (the patient's left), y grows downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Body", "Floats", "Mask", "Pose", "project", "shape_body"]

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

BUILDS = ("slim", "average", "large")
_WALL = {"slim": 0.07, "average": 0.12, "large": 0.21}
_DEPTH_CM = {"slim": 18.5, "average": 21.0, "large": 25.0}


@dataclass(frozen=True, kw_only=True)
class Body:
    """A patient's anatomy; half fields unless the name says otherwise."""

    build: str
    sex: str
    age_years: int
    depth_cm: float
    wall: float
    cage: float
    apex: float
    spacing: float
    drop: float
    rib_phase: float
    rib_shift: tuple[float, ...]
    heart: float
    tilt: float
    knob: float
    curve: float
    dome: float
    breast: float
    bubble: float
    clavicle: float
    hilum: float
    tree_seed: int


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the patient stood before the detector for one exposure."""

    rotation_degrees: float
    turn: float
    shift_x: float
    shift_y: float
    zoom: float
    breath: float
    supine: bool
    """AP view: magnified heart, high clavicles, scapulae over the lungs, raised diaphragm."""


def shape_body(rng: np.random.Generator) -> Body:
    """Draw a patient: sex, age, build and the sizes of what is inside; nothing here knows of a disease."""
    sex = str(rng.choice(["F", "M"]))
    build = str(rng.choice(BUILDS, p=[0.3, 0.45, 0.25]))
    age = int(np.clip(rng.normal(54, 17), 18, 94))

    def near(mean: float, spread: float) -> float:
        return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

    return Body(
        build=build,
        sex=sex,
        age_years=age,
        depth_cm=_DEPTH_CM[build] * near(1, 0.04),
        wall=_WALL[build] * near(1, 0.12),
        cage=near(0.745 if sex == "M" else 0.71, 0.025),
        apex=near(-0.76, 0.03),
        spacing=near(0.150, 0.007),
        drop=near(0.20, 0.03),
        rib_phase=float(rng.uniform()),
        rib_shift=tuple(rng.normal(0, 0.04, 24).tolist()),
        heart=near(1.0 + 0.002 * (age - 54), 0.07),
        tilt=near(0.62, 0.08),
        knob=near(0.075 + 0.0005 * (age - 54), 0.01),
        curve=near(0, 0.012),
        dome=near(0.50, 0.04),
        breast=max(0.0, near(2.2, 0.7)) if sex == "F" else 0.0,
        bubble=max(0.0, near(0.6, 0.5)),
        clavicle=near(0.0, 0.02),
        hilum=near(1.0, 0.15),
        tree_seed=int(rng.integers(2**31)),
    )


def project(points: Floats, pose: Pose, size: int) -> Floats:
    """Map body coordinates f[n, 2] (x, y) to pixel coordinates f[n, 2]; the inverse of the grid in `draw_body`."""
    angle = math.radians(pose.rotation_degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray(((np.asarray(points) @ turn * pose.zoom + [pose.shift_x, pose.shift_y]) + 1) * (size / 2) - 0.5)
