"""How well estimated lungs agree with masks: phantoms' true ones, and those that readers drew.

    THORACLIP_SHARED=FOLDER python scripts/measure_lungs.py [--phantoms 60] [--seed 0]

Prints one Markdown row per set: Dice and IoU of the plausible estimates, and the share of implausible ones. FOLDER
holds data/covid-qu-ex-sample and data/covid3-talo; without it only phantoms are measured.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thoraclip.data.lungs import estimate_lungs
from thoraclip.data.masks import read_mask
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.imaging import decode


class Case(NamedTuple):
    """Dice of the estimate and the mask that the image came with, 2 |A n B| / (|A| + |B|); seconds of one core."""

    dice: float
    is_plausible: bool
    seconds: float


def measure(pixels: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_]) -> Case:
    start = time.process_time()
    estimate = estimate_lungs(pixels)
    spent, mask = time.process_time() - start, estimate.mask
    dice = 2 * int((truth & mask).sum()) / max(1, int(truth.sum()) + int(mask.sum()))
    return Case(dice, estimate.is_plausible, spent)


def phantoms(number: int, difficulty: float, seed: int) -> Iterator[Case]:
    for i in range(number):
        rng = np.random.default_rng([seed, i, round(100 * difficulty)])
        drawn = draw_phantom(CLASSES[i % len(CLASSES)], rng=rng, size=256, difficulty=difficulty)
        yield measure(drawn.pixels, drawn.lung_mask > 0)


def covid_qu_ex(root: Path) -> Iterator[tuple[Path, Path]]:
    """(picture, mask)."""
    for picture in sorted(root.rglob("images/*.png")):
        yield picture, picture.parent.parent / "lung masks" / picture.name


def covid3_talo(root: Path) -> Iterator[tuple[Path, Path]]:
    """The same of the 58 covid pictures with a mask."""
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["mask_path"]:
                yield root / row["rel_path"], root / row["mask_path"]


def masked(pairs: Iterator[tuple[Path, Path]]) -> list[Case]:
    pictures = [(decode(picture).pixels, mask) for picture, mask in pairs if mask.is_file()]
    return [measure(pixels, read_mask(mask, pixels.shape)) for pixels, mask in pictures]


def line(name: str, cases: list[Case]) -> str:
    kept = np.array([case.dice for case in cases if case.is_plausible])
    aside = len(cases) - len(kept)
    speed = 1000 * float(np.median([case.seconds for case in cases]))
    both = [(scores.mean(), np.median(scores), scores.min()) for scores in (kept, kept / (2 - kept))]
    cells = " | ".join(f"{value:.3f}" for values in both for value in values)
    return f"| {name} | {len(cases)} | {cells} | {100 * aside / len(cases):.1f} % ({aside}) | {speed:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=60, help="per difficulty")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    estimate_lungs(np.zeros((256, 256), np.uint8))  # the grid is made once
    sets = {
        f"phantoms, difficulty {difficulty}": list(phantoms(given.phantoms, difficulty, given.seed))
        for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    data = Path(os.environ.get("THORACLIP_SHARED", "nowhere")) / "data"
    if data.is_dir():
        sets["covid-qu-ex-sample"] = masked(covid_qu_ex(data / "covid-qu-ex-sample"))
        sets["covid3-talo, masked covid"] = masked(covid3_talo(data / "covid3-talo"))
    print("| set | images | Dice mean | median | min | IoU mean | median | min | implausible | ms of one core |")
    print("|---" * 10 + "|")
    for name, cases in sets.items():
        print(line(name, cases))


if __name__ == "__main__":
    main()
