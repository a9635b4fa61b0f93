"""What is drawn with a pen on the phantoms: lung vessels, lines and devices, burned-in markers, collimation borders."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from thoraclip.data.phantom.attributes import DEVICES, Body, Pose
from thoraclip.dtypes import Greys

__all__ = ["BORDERS", "Floats", "Pen", "draw_border", "draw_date", "draw_devices", "draw_marker", "draw_tree"]

Floats = NDArray[np.floating[Any]]

BORDERS = {"none": 0.0, "narrow": 0.035, "wide": 0.095}


def _project(points: Floats, pose: Pose, size: int) -> Floats:
    """Map body coordinates f[n, 2] (x, y) to pixel coordinates f[n, 2]; the inverse of the grid in `draw_body`."""
    angle = math.radians(pose.rotation_degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray(((np.asarray(points) @ turn * pose.zoom + [pose.shift_x, pose.shift_y]) + 1) * (size / 2) - 0.5)


class Pen:
    """Draws in half fields on a sheet of twice the image size; to reduce it smooths the edges."""

    def __init__(self, pose: Pose, size: int) -> None:
        self.pose, self.size, self.side = pose, size, 1
        """`side`: -1 mirrors what is drawn."""
        self.sheet = Image.new("L", (2 * size, 2 * size))
        self.draw = ImageDraw.Draw(self.sheet)

    def reduced(self) -> Floats:
        """f32[size, size] in 0..1."""
        return np.asarray(self.sheet.reduce(2), np.float32) / 255

    def _place(self, points: Floats | Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        placed = _project(np.asarray(points) * [self.side, 1], self.pose, self.size) * 2 + 0.5
        return [(x, y) for x, y in placed.tolist()]

    def line(self, points: Floats | Sequence[tuple[float, float]], *, fill: int, width: int) -> None:
        """Straight strokes; `width` in pixels of the sheet."""
        self.draw.line(self._place(points), fill=fill, width=width, joint="curve")

    def curve(self, knots: list[tuple[float, float]], *, fill: int, width: float) -> None:
        """A smooth line through `knots` (Catmull-Rom); `width` in half fields."""
        p = np.asarray([knots[0], *knots, knots[-1]], float)
        t = np.linspace(0, 1, 9)[:, None]
        a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
        path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        self.line(path.reshape(-1, 2), fill=fill, width=max(1, round(width * self.size)))

    def polygon(self, points: Floats | Sequence[tuple[float, float]], *, fill: int) -> None:
        self.draw.polygon(self._place(points), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: int) -> None:
        ((px, py),) = self._place([(x, y)])
        r = radius * self.size
        self.draw.ellipse([px - r, py - r, px + r, py + r], fill=fill)


def draw_tree(body: Body, pose: Pose, size: int, rng: np.random.Generator, *, levels: int = 6) -> Floats:
    """Branching vessels (or bronchi) that leave the hila and thin out: f32[size, size] in 0..1, as their calibre.

    The same `rng` gives the patient's tree again; fewer `levels` leave only the large branches.
    """
    paths: list[Floats] = []
    calibres: list[Floats] = []
    for side in (-1, 1):
        angles = np.array([-1.95, -1.5, -1.05, -0.55, -0.1, 0.3, 0.7, 1.05, 1.4]) + rng.normal(0, 0.12, 9)
        tips = np.array([[0.165, -0.05]]) + np.stack([rng.normal(0, 0.012, 9), 0.085 * np.sin(angles)], axis=1)
        width, length = rng.uniform(0.011, 0.018, 9) * body.hilum, np.where(np.abs(angles - 0.8) < 0.7, 0.19, 0.15)
        for level in range(levels):
            bend = angles[:, None] + np.cumsum(rng.normal(0, 0.17, (len(angles), 2)), axis=1)
            heading = np.stack([np.cos(bend), np.sin(bend)], axis=-1) * (length / 2)[:, None, None]
            path = np.concatenate([tips[:, None], tips[:, None] + np.cumsum(heading, axis=1)], axis=1)
            paths.append(path * [side, 1])
            calibres.append(width)
            spread = rng.normal(0, 0.12, (2, len(angles))) + np.array([[-0.36], [0.36]])
            angles = (bend[:, -1] + spread).ravel()
            tips = np.concatenate([path[:, -1]] * 2)
            width = np.concatenate([width] * 2) * rng.uniform(0.62, 0.80, len(angles))
            length = np.concatenate([length] * 2) * rng.uniform(0.68, 0.92, len(angles))
            kept = width > 0.0022 if level else slice(None)
            angles, tips, width, length = angles[kept], tips[kept], width[kept], length[kept]
    calibre = np.concatenate(calibres)
    order = np.argsort(calibre, kind="stable")
    places = _project(np.concatenate(paths)[order].reshape(-1, 2), pose, size).reshape(-1, 6) * 2 + 0.5
    fills = np.minimum(255, 26 + calibre[order] * 9500).astype(int).tolist()
    widths = np.maximum(1, np.round(calibre[order] * size)).astype(int).tolist()
    pen = Pen(pose, size)
    for place, fill, width_pixels in zip(places.tolist(), fills, widths, strict=True):
        pen.draw.line(place, fill=fill, width=width_pixels)
    return pen.reduced()


def draw_devices(devices: tuple[str, ...], pose: Pose, size: int, rng: np.random.Generator) -> Floats:
    """Lines and devices of `DEVICES` as f32[size, size] in 0..1 of their metal's or plastic's full attenuation."""
    pen = Pen(pose, size)
    for name, paint in zip(DEVICES, (_leads, _central_line, _airway, _pacemaker), strict=True):
        if name in devices:
            paint(pen, rng)
    return pen.reduced()


def _leads(pen: Pen, rng: np.random.Generator) -> None:
    """Three electrodes with snaps, their wires leaving the field together."""
    exit_x, exit_y = float(rng.uniform(-0.9, 0.9)), 1.15
    for x, y in ((-0.52, -0.42), (0.50, -0.44), (0.60, 0.42)):
        x, y = x + float(rng.normal(0, 0.06)), y + float(rng.normal(0, 0.07))
        sag = (x + exit_x) / 2 + float(rng.normal(0, 0.12)), (y + exit_y) / 2 + float(rng.normal(0, 0.06))
        pen.curve([(x, y), (x + 0.05, y + 0.12), sag, (exit_x, exit_y)], fill=120, width=0.011)
        pen.disc(x, y, 0.045, 75)
        pen.disc(x, y, 0.021, 235)


def _central_line(pen: Pen, rng: np.random.Generator) -> None:
    """A jugular or subclavian catheter that ends in the superior vena cava."""
    tip = (-0.085 + float(rng.normal(0, 0.012)), 0.02 + float(rng.normal(0, 0.06)))
    if rng.uniform() < 0.5:
        knots = [(-0.30, -1.10), (-0.20, -0.85), (-0.12, -0.55), (-0.10, -0.25), tip]
    else:
        knots = [(-0.85, -0.30), (-0.70, -0.58), (-0.42, -0.66), (-0.15, -0.52), (-0.10, -0.25), tip]
    pen.curve(knots, fill=135, width=0.013)


def _airway(pen: Pen, rng: np.random.Generator) -> None:
    """An endotracheal tube with its radio-opaque stripe, tip some centimetres above the carina."""
    low = -0.33 + float(rng.normal(0, 0.04))
    middle = 0.01 + float(rng.normal(0, 0.005))
    knots = [(middle + 0.02, -1.15), (middle, -0.75), (middle, low)]
    pen.curve(knots, fill=70, width=0.050)
    pen.curve([(x + 0.016, y) for x, y in knots], fill=200, width=0.010)


def _pacemaker(pen: Pen, rng: np.random.Generator) -> None:
    """A generator under the left clavicle with a ventricular lead."""
    x, y = 0.55 + float(rng.normal(0, 0.03)), -0.40 + float(rng.normal(0, 0.03))
    end = (0.22 + float(rng.normal(0, 0.03)), 0.40 + float(rng.normal(0, 0.03)))
    pen.curve(
        [(x - 0.05, y - 0.09), (0.36, -0.60), (0.12, -0.48), (-0.07, -0.20), (-0.05, 0.22), end], fill=190, width=0.012
    )
    pen.disc(*end, 0.012, 255)
    angle = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    wave = np.sign(circle) * np.abs(circle) ** 0.6 * [0.095, 0.080]
    pen.polygon(wave + np.array([x, y]), fill=245)
    pen.polygon(wave * [0.7, 0.4] + np.array([x, y - 0.035]), fill=185)


_font = functools.cache(ImageFont.load_default)


def draw_marker(pixels: Greys, text: str, rng: np.random.Generator) -> None:
    """Burn a side or portable marker into u8[size, size] in place: white letters, or white on a black plate."""
    if not text:
        return
    size = pixels.shape[0]
    left = text == "R" or (text != "L" and bool(rng.uniform() < 0.5))
    font = _font(max(7, round(size * (0.075 if len(text) == 1 else 0.042) * float(rng.uniform(0.85, 1.2)))))
    box = font.getbbox(text)
    wide, high = int(box[2] - box[0]), int(box[3] - box[1])
    x = int(size * rng.uniform(0.02, 0.10))
    x = x if left else size - x - wide
    y = int(size * rng.uniform(0.02, 0.14))
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    if rng.uniform() < 0.3:
        pen.rectangle([x - 3, y - 3, x + wide + 2, y + high + 2], fill=8)
    pen.text((x - box[0], y - box[1]), text, fill=int(rng.integers(225, 256)), font=font)
    pixels[:] = np.asarray(image)


def draw_date(pixels: Greys, text: str) -> None:
    """Burn a date into u8[size, size] in place: white digits on black, at the same place of every image."""
    if not text:
        return
    size = pixels.shape[0]
    font = _font(max(7, round(size * 0.042)))
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    place = (round(0.02 * size), round(0.93 * size))
    pen.rectangle(pen.textbbox(place, text, font=font), fill=8)
    pen.text(place, text, fill=240, font=font)
    pixels[:] = np.asarray(image)


def draw_border(pixels: Greys, border: str, rng: np.random.Generator) -> None:
    """Blacken the collimated margin of u8[size, size] in place; `border` is a key of `BORDERS`."""
    size = pixels.shape[0]
    if not BORDERS[border]:
        return
    top, bottom, left, right = np.maximum(1, np.round(size * BORDERS[border] * rng.uniform(0.7, 1.3, 4)).astype(int))
    shade = int(rng.integers(0, 6))
    pixels[:top], pixels[size - bottom :] = shade, shade
    pixels[:, :left], pixels[:, size - right :] = shade, shade
