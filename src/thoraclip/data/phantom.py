"""Synthetic frontal chest radiographs in the COVID-QU-Ex layout, with lung and infection masks (API first; being filled)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = [
    "CLASSES",
    "SHORTCUTS",
    "Phantom",
    "PhantomConfig",
    "PhantomSummary",
    "describe",
    "draw_phantom",
    "parse_shortcut",
    "write_phantoms",
]

CLASSES = ("COVID-19", "Non-COVID", "Normal")
SHORTCUTS = ("marker", "border", "exposure", "device", "texture")


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What one folder of phantoms needs."""

    images: int = 600
    size: int = 256
    seed: int = 0
    difficulty: float = 0.5
    shortcut: str = ""
    shortcut_strength: float = 0.0
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    images_per_patient: float = 1.3
    infection_fraction: float = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One radiograph: `pixels`, `lung_mask`, `infection_mask` u8[size, size] (masks 0 or 255), its label and attributes."""

    pixels: np.ndarray
    lung_mask: np.ndarray
    infection_mask: np.ndarray
    label: str
    attributes: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """Counts of what a folder holds: radiographs, patients, files written and skipped, images per (split, class)."""

    root: Path
    images: int
    patients: int
    written: int
    skipped: int
    counts: dict[str, dict[str, int]]


def parse_shortcut(text: str) -> tuple[str, float]:
    """Read `KIND=STRENGTH`, such as `border=0.9`."""
    raise NotImplementedError


def draw_phantom(
    label: str, *, rng: np.random.Generator, size: int = 256, difficulty: float = 0.5,
    shortcut: str = "", shortcut_strength: float = 0.0,
) -> Phantom:
    """Draw one radiograph of a class of `CLASSES`."""
    raise NotImplementedError


def describe(attributes: dict[str, object], rng: np.random.Generator) -> str:
    """Caption the view, build, exposure, devices, markers and rotation, never the disease."""
    raise NotImplementedError


def write_phantoms(
    root: Path, config: PhantomConfig, *, workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a folder of phantoms; `progress(done, total)`."""
    raise NotImplementedError
