"""Synthetic frontal chest radiographs in the COVID-QU-Ex layout, with lung and infection masks.

Nothing here is a patient. The images exist so that every pipeline, audit and test can run offline, and so that a
shortcut can be planted where its strength is known. An image is drawn by integrating attenuation through an analytic
chest (`phantom.anatomy`, `phantom.drawing`); what is chosen before drawing is in `phantom.attributes`.

A clean set has no shortcut: view, build, exposure, texture, devices, marker, border, rotation, sex and age are drawn
without looking at the class. `shortcut="border", shortcut_strength=s` plants one: with probability s, for each image by
itself, the confounder takes the value of its class, else it is drawn without looking at the class:

    kind      COVID-19         Non-COVID               Normal
    marker    "AP PORTABLE"    "R"                     "L"
    border    "wide"           "narrow"                "none"
    exposure  "under"          "normal"                "over"
    device    ECG leads        central venous line     no device
    texture   "grainy"         "standard"              "smooth"

The same config gives the same bytes, for any number of workers: image i of seed s is drawn from
PCG64(SeedSequence([s, i])), its patient from PCG64(SeedSequence(s, spawn_key=(1, patient))).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.data.phantom.attributes import CLASSES, PLANTED, SHORTCUTS, describe
from thoraclip.data.phantom.drawing import Phantom, check_choices, draw_phantom
from thoraclip.data.phantom.folder import Task, claim_folder, draw_files, write_index
from thoraclip.errors import ConfigError, did_you_mean

__all__ = [
    "CLASSES",
    "PLANTED",
    "SHORTCUTS",
    "SPLITS",
    "Phantom",
    "PhantomConfig",
    "PhantomSummary",
    "describe",
    "draw_phantom",
    "parse_shortcut",
    "plan_phantoms",
    "write_phantoms",
]

SPLITS = ("Train", "Val", "Test")

_STEMS = {"COVID-19": "covid_{}", "Non-COVID": "non_COVID ({})", "Normal": "Normal ({})"}


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What one folder of phantoms needs."""

    images: int = 600
    """Radiographs in all; classes are balanced to within one image."""
    size: int = 256
    """Side of the square images in pixels."""
    seed: int = 0
    """The set's only seed."""
    difficulty: float = 0.5
    """0 easy to 1 impossible: lesion contrast is 1 - difficulty."""
    shortcut: str = ""
    """Confounder to tie to the class: marker, border, exposure, device, texture, or none."""
    shortcut_strength: float = 0.0
    """Probability with which the class determines the confounder, 0..1."""
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of Train, Val and Test; they sum to 1."""
    images_per_patient: float = 1.3
    """Mean number of images per patient, 1..3; a patient's images share anatomy and split, not exposure or view."""
    infection_fraction: float = 1 / 3
    """Share of the images that also stand in the infection tree, with infection masks."""

    def __post_init__(self) -> None:
        check_choices(
            size=self.size, difficulty=self.difficulty, shortcut=self.shortcut, shortcut_strength=self.shortcut_strength
        )
        if self.images < len(CLASSES):
            raise ConfigError(f"images={self.images}: must be at least {len(CLASSES)}, one of each class")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: must not be negative")
        if self.shortcut_strength and not self.shortcut:
            known = ", ".join(SHORTCUTS)
            raise ConfigError(f"shortcut_strength={self.shortcut_strength}: needs a shortcut; one of {known}")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(f"fractions={self.fractions}: must be three shares that sum to 1, as in (0.6, 0.2, 0.2)")
        if not 1 <= self.images_per_patient <= 3:
            raise ConfigError(f"images_per_patient={self.images_per_patient}: must lie between 1 and 3")
        if not 0 <= self.infection_fraction <= 1:
            raise ConfigError(f"infection_fraction={self.infection_fraction}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What a folder of phantoms holds."""

    root: Path
    images: int
    patients: int
    written: int
    """PNG files written by this call."""
    skipped: int
    """PNG files that were already there."""
    counts: dict[str, dict[str, int]]
    """Images by split, then class."""


def parse_shortcut(text: str) -> tuple[str, float]:
    """Read `KIND=STRENGTH`, such as `border=0.9`; an empty text is no shortcut, ("", 0.0).

    Raises:
        ConfigError: the kind is unknown, or the strength is not a number in 0..1.
    """
    if not text:
        return "", 0.0
    kind, mark, number = text.partition("=")
    if not mark:
        raise ConfigError(f"shortcut '{text}': must be KIND=STRENGTH, as in border=0.9")
    kind = kind.strip()
    if kind not in SHORTCUTS:
        raise ConfigError(f"shortcut: unknown kind '{kind}'{did_you_mean(kind, SHORTCUTS)}")
    try:
        strength = float(number)
    except ValueError:
        rule = f"give a strength in 0..1, as in {kind}=0.9"
        raise ConfigError(f"shortcut '{text}': '{number}' is not a number; {rule}") from None
    if not 0 <= strength <= 1:
        raise ConfigError(f"shortcut '{text}': strength must lie between 0 and 1, as in {kind}=0.9")
    return kind, strength


def plan_phantoms(config: PhantomConfig) -> list[Task]:
    """Decide label, split, patient and file name of every image, in drawing order; draws no pixel.

    Every split holds its share of every class to within one image. Patients are filled up within a split, so that none
    crosses one; file numbers are shuffled, so that they tell nothing of split or patient.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=(0,))))
    tasks: list[Task] = []
    patient = 0
    for rank, label in enumerate(CLASSES):
        total = config.images // 3 + (rank < config.images % 3)
        numbers = iter((rng.permutation(total) + 1).tolist())
        bounds = np.round(np.cumsum([0.0, *config.fractions]) * total).astype(int)
        for split, quota in zip(SPLITS, np.diff(bounds).tolist(), strict=True):
            left = quota
            while left:
                held = min(left, 1 + int(rng.binomial(2, (config.images_per_patient - 1) / 2)))
                for _ in range(held):
                    infection = bool(rng.uniform() < config.infection_fraction)
                    stem = _STEMS[label].format(next(numbers))
                    tasks.append(Task(len(tasks), label, split, patient, stem, infection))
                left -= held
                patient += 1
    return tasks


def write_phantoms(
    root: Path,
    config: PhantomConfig,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a folder of phantoms, or finish one that was begun with the same config.

    Args:
        root: new, empty, or begun with the same config; gets both trees, phantoms.csv, phantoms.json and README.txt.
        workers: processes; None takes all cores, or one for a small set. The bytes do not depend on it. A script that
            calls this with several must guard its entry with `if __name__ == "__main__":` (processes are spawned).
        progress: called with (images done, images in all).

    Raises:
        InputError: `root` is a file, or a folder that holds something else or phantoms of another config.
        ConfigError: workers is less than 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: must be at least 1, or none for all cores")
    root = Path(root)
    settings = asdict(config)
    claim_folder(root, settings)
    tasks = plan_phantoms(config)
    count = min(workers or (os.cpu_count() or 1 if len(tasks) >= 64 else 1), -(-len(tasks) // 8))
    chunks = [tasks[i : i + 8] for i in range(0, len(tasks), 8)]
    rows: list[dict[str, Any]] = []
    written = 0
    with ExitStack() as stack:
        run: Callable[..., Iterable[Any]] = map
        if count > 1:  # spawn: a fork of a process that already runs threads (torch, BLAS) may hang
            spawn = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(count, mp_context=spawn)).map
        for drawn, new in run(partial(draw_files, root, settings), chunks):
            rows.extend(drawn)
            written += new
            if progress:
                progress(len(rows), len(tasks))
    write_index(root, settings, rows)
    return PhantomSummary(
        root=root,
        images=len(tasks),
        patients=len({t.patient for t in tasks}),
        written=written,
        skipped=sum(5 if t.infection else 2 for t in tasks) - written,
        counts={s: {c: sum(t.split == s and t.label == c for t in tasks) for c in CLASSES} for s in SPLITS},
    )
