"""From a label to a radiograph: lesions, attenuation along the beam, detector, markers.

    I = N exp(-(mu_s t_s + mu_b t_b + mu_d t_d)) + scatter    (Beer-Lambert; Bushberg et al., The Essential
                                                               Physics of Medical Imaging, 3rd ed., ch. 3 and 7)
    shown = 255 / (1 + exp(-(-log(I/N) - centre) / width))          bright = attenuating

`centre` follows from the patient's depth and the exposure alone, never from the lesions: outside them, a clean image
carries no trace of its class beyond the scatter that a lesion throws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from thoraclip.data.phantom.anatomy import Anatomy, draw_body, resize
from thoraclip.data.phantom.attributes import CLASSES, Body, Pose, Shortcut, choose_attributes, shape_body
from thoraclip.data.phantom.lines import Floats, draw_border, draw_date, draw_devices, draw_marker, draw_tree
from thoraclip.dtypes import Greys
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.ranges import Share, Side, conform

__all__ = ["Phantom", "cloud", "draw_phantom", "expose"]

MU_SOFT, MU_BONE, MU_DEVICE = 0.17, 0.34, 1.6
"""Attenuation per cm at about 70 keV, bone as the surplus over soft tissue; a device's full value is one unit."""

PHOTONS = {"smooth": 60_000.0, "standard": 22_000.0, "grainy": 10_000.0}
"""Photons per pixel in the open field by the texture of the image."""

NOTICEABLE = 0.35  # share of its peak above which a lesion belongs to the infection mask


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One synthetic radiograph with its masks."""

    pixels: Greys  # u8[size, size], bright = attenuating
    lung_mask: Greys  # u8[size, size], 0 or 255: both lung fields as outlined, without heart, mediastinum and diaphragm
    infection_mask: Greys
    """u8[size, size], 0 or 255: where a lesion exceeds `NOTICEABLE` of its peak, whatever the difficulty; 0 for
    Normal."""
    label: str
    attributes: dict[str, Any]


def draw_phantom(
    label: str,
    *,
    rng: np.random.Generator,
    size: int = 256,
    difficulty: float = 0.5,
    shortcut: str = "",
    shortcut_strength: float = 0.0,
    body: Body | None = None,
) -> Phantom:
    """Draw one frontal chest radiograph of a class.

    Args:
        label: one of `CLASSES`. COVID-19: 3 to 8 ground-glass patches in both lungs, peripheral, mostly low. Non-COVID:
            one lobar consolidation in one lung, denser, at times with air bronchograms. Normal: none.
        rng: the only source of chance.
        size: side of the square image, pixels.
        difficulty: 0 easy to 1 impossible; lesions have 1 - difficulty of their full thickness.
        shortcut: "" or one of `SHORTCUTS`: with probability `shortcut_strength` the confounder takes the value that
            `PLANTED` ties to the class, else it is drawn without looking at the class.
        shortcut_strength: 0..1.
        body: the patient; None draws a new one.

    Returns:
        The image, its masks and attributes (view, sex, age_years, build, exposure, texture, rotation_degrees, turn,
        inspiration, devices, marker, border, date where it is the shortcut, shortcut..., and the finding's side, zone
        and severity).

    Raises:
        ConfigError: an unknown label or shortcut, or a number out of range.
    """
    if label not in CLASSES:
        raise ConfigError(f"label: unknown class '{label}'{did_you_mean(label, CLASSES)}")
    conform("size", size, Side)
    conform("difficulty", difficulty, Share)
    conform("shortcut", shortcut, Shortcut)
    conform("shortcut_strength", shortcut_strength, Share)
    body = body or shape_body(rng)
    attributes = choose_attributes(
        label, body, rng=rng, difficulty=difficulty, shortcut=shortcut, shortcut_strength=shortcut_strength
    )
    pose = Pose(
        rotation_degrees=attributes["rotation_degrees"],
        turn=attributes["turn"],
        shift_x=float(np.clip(rng.normal(0, 0.025), -0.07, 0.07)),
        shift_y=float(np.clip(rng.normal(0.03, 0.035), -0.06, 0.11)),
        zoom=float(rng.uniform(0.90, 1.10)),
        breath=0.035 * attributes["inspiration"],
        supine=attributes["view"] == "AP",
    )
    anatomy = draw_body(body, pose, size)
    opacity = np.zeros_like(anatomy.x)
    if label == "COVID-19":
        opacity = _ground_glass(anatomy, rng)
    elif label == "Non-COVID":
        opacity = _consolidation(anatomy, attributes, rng)
    tree = draw_tree(body, pose, size, np.random.default_rng(body.tree_seed))
    tissue = _parenchyma(anatomy, tree, rng)
    depth = _lesion_depth(label, anatomy, opacity, pose, body, rng)
    tissue += (1.0 - difficulty) * attributes["finding_severity"] * depth
    tissue = np.where(anatomy.lung > 0.3, np.minimum(tissue, 0.85 * anatomy.lung), 0)
    devices = attributes["devices"]
    metal = draw_devices(devices, pose, size, rng) if devices else 0.0
    path = MU_SOFT * (anatomy.soft + tissue) + MU_BONE * anatomy.bone + MU_DEVICE * metal
    centre = 0.70 * MU_SOFT * 0.50 * body.depth_cm + 0.18
    pixels = expose(path, centre, exposure=attributes["exposure"], texture=attributes["texture"], rng=rng)
    draw_border(pixels, attributes["border"], rng)
    draw_marker(pixels, attributes["marker"], rng)
    draw_date(pixels, attributes.get("date", ""))
    lungs, lesion = (np.uint8(255) * inside for inside in (anatomy.field, anatomy.field & (opacity > NOTICEABLE)))
    return Phantom(pixels=pixels, lung_mask=lungs, infection_mask=lesion, label=label, attributes=attributes)


def cloud(size: int, rng: np.random.Generator, cells: tuple[int, ...] = (5, 11, 23, 47)) -> Floats:
    """Multi-scale noise f32[size, size] of mean near 0 and spread near 1, clipped to +-2."""
    total = np.zeros((size, size), np.float32)
    for share, n in zip((0.75, 0.55, 0.42, 0.32), cells, strict=False):
        total += share * resize(rng.standard_normal((n, n), dtype=np.float32), size)
    return np.clip(total, -2, 2)


def _parenchyma(anatomy: Anatomy, tree: Floats, rng: np.random.Generator) -> Floats:
    """What every lung holds in cm of soft tissue: vessels, interstitial texture and a class-blind haze of the bases."""
    size = tree.shape[0]
    air = np.clip(anatomy.lung / 5, 0, 1)
    vessels = 2.6 * tree * np.clip(1.25 - 0.8 * anatomy.reach, 0.15, 1)
    haze = float(np.abs(rng.normal(0, 0.40))) * np.clip(anatomy.level * 1.6 - 0.6, 0, 1)
    fine, coarse = cloud(size, rng, (16, 32, 64, 96)), cloud(size, rng, (3, 6))
    return np.asarray((vessels + 0.17 * fine + 0.28 * coarse + 0.3 + haze) * air)


def _seeds(anatomy: Anatomy, weight: Floats, sides: list[int], rng: np.random.Generator) -> list[tuple[float, float]]:
    """Draw one centre (x, y) per side (-1, +1) from the lung field with density `weight`."""
    centres = []
    for side in sides:
        density = np.where(anatomy.field & (np.sign(anatomy.x) == side), weight, 0)[::2, ::2]
        heap = np.cumsum(density.ravel(), dtype=np.float64)
        spot = int(np.searchsorted(heap, rng.uniform(0, 1) * heap[-1], side="right"))
        row, column = divmod(min(spot, heap.size - 1), density.shape[1])
        centres.append((float(anatomy.x[2 * row, 2 * column]), float(anatomy.y[2 * row, 2 * column])))
    return centres


def _ground_glass(anatomy: Anatomy, rng: np.random.Generator) -> Floats:
    """Several patches in both lungs, at the periphery and mostly in the lower zones; opacity 0..1."""
    count = int(rng.integers(3, 9))
    sides = [-1, 1, *rng.choice([-1, 1], size=count - 2).tolist()]
    weight = np.clip(anatomy.reach - 0.35, 0.01, 1) ** 2 * np.clip(anatomy.level - 0.15, 0.03, 1)
    total = np.zeros_like(anatomy.x)
    grain = cloud(anatomy.x.shape[0], rng)
    for cx, cy in _seeds(anatomy, weight, sides, rng):
        high, wide = rng.uniform(0.12, 0.26), rng.uniform(0.09, 0.18)
        square = ((anatomy.x - cx) / wide) ** 2 + ((anatomy.y - cy) / high) ** 2
        total = np.maximum(total, np.maximum(1 - square / 3.2, 0) ** 1.5)
    return np.clip(total * (1.15 + 0.40 * np.clip(grain, -1.5, 1.5)), 0, 1)


def _consolidation(anatomy: Anatomy, attributes: dict[str, Any], rng: np.random.Generator) -> Floats:
    """One lobar consolidation: sharp at its fissure, ragged elsewhere; opacity 0..1. The patient's right is x < 0."""
    side = -1 if attributes["finding_side"] == "right" else 1
    zone = attributes["finding_zone"]
    level = {"upper": 0.27, "middle": 0.56, "lower": 0.82}[zone]
    weight = np.exp(-(((anatomy.level - level) / 0.10) ** 2)) * np.clip(1 - np.abs(anatomy.reach - 0.45) * 1.6, 0.02, 1)
    ((cx, cy),) = _seeds(anatomy, weight, [side], rng)
    wide, high = rng.uniform(0.26, 0.40), rng.uniform(0.22, 0.34)
    square = ((anatomy.x - cx) / wide) ** 2 + ((anatomy.y - cy) / high) ** 2
    bulk = np.clip(1.35 - 0.75 * square + 0.28 * cloud(anatomy.x.shape[0], rng), 0, 1)
    lean = float(rng.uniform(-0.25, 0.25)) * (np.abs(anatomy.x) - abs(cx))
    edge = 0.55 * high * float(rng.uniform(0.7, 1.4))
    if zone == "upper":
        bulk = bulk * np.clip((cy + edge + lean - anatomy.y) / 0.02 + 0.5, 0, 1)
    elif zone == "middle":
        bulk = bulk * np.clip((anatomy.y - cy + edge + lean) / 0.02 + 0.5, 0, 1)
    return np.where(anatomy.x * side > 0, bulk, 0)


def _lesion_depth(
    label: str, anatomy: Anatomy, opacity: Floats, pose: Pose, body: Body, rng: np.random.Generator
) -> Floats:
    """Soft tissue in cm that the full lesion adds; air bronchograms stay dark within a consolidation."""
    air = np.clip(anatomy.lung / 4, 0, 1)
    if label != "Non-COVID":
        return 9.0 * opacity * air
    dark: Floats | float = 1.0
    if rng.uniform() < 0.5:
        bronchi = draw_tree(replace(body, hilum=1.3), pose, opacity.shape[0], rng, levels=3)
        dark = 1 - 0.32 * np.clip(1.6 * bronchi, 0, 1)
    return 12.0 * opacity * air * dark


def expose(
    path: Floats,
    centre: float,
    *,
    latitude: float = 1.0,
    scatter: float = 0.32,
    exposure: str,
    texture: str,
    rng: np.random.Generator,
) -> Greys:
    """Detector and display: scatter, photon and electronic noise, logarithm, dynamic-range compression, window.

    `path` is the attenuation along the beam, f[size, size]; `centre`, that which is shown as middle grey, less the
    local average's share; `latitude`, the width of the window relative to the chest's; `scatter`, the scattered signal
    as a share of the primary signal around, by default the frontal chest's; `texture`, a key of `PHOTONS`.
    """
    size = path.shape[0]
    primary = np.exp(-path)
    flux = primary + scatter * resize(_lowpass(primary), size)
    photons = PHOTONS[texture] * {"under": 0.6, "normal": 1.0, "over": 1.6}[exposure] * (size / 256) ** -1
    noise = rng.standard_normal((size, size), dtype=np.float32)
    counts = np.maximum(flux * photons + np.sqrt(flux * photons + 9.0) * noise, 2.0)
    dense = -np.log(counts / np.float32(photons))
    dense -= 0.30 * resize(_lowpass(dense), size)
    shift = {"under": -0.42, "normal": 0.0, "over": 0.42}[exposure] + float(np.clip(rng.normal(0, 0.10), -0.2, 0.2))
    width = latitude * float(rng.uniform(0.50, 0.62))
    shown = 255 / (1 + np.exp((centre + shift - dense) / width))
    image = Image.fromarray(np.clip(shown + 0.5, 0, 255).astype(np.uint8))
    if texture == "smooth":
        image = image.filter(ImageFilter.GaussianBlur(0.7 * size / 256))
    elif texture == "grainy":
        image = image.filter(ImageFilter.UnsharpMask(radius=1.6 * size / 256, percent=50, threshold=0))
    return np.array(image)


def _lowpass(values: Floats) -> Floats:
    """Average over about a sixth of the field: f32[32, 32]."""
    coarse = Image.fromarray(values.astype(np.float32)).resize((32, 32), Image.Resampling.BOX)
    padded = np.pad(np.asarray(coarse), 2, mode="edge")
    rows = np.mean([padded[i : i + 32] for i in range(5)], axis=0)
    return np.asarray(np.mean([rows[:, i : i + 32] for i in range(5)], axis=0))
