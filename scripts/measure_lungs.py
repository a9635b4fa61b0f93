"""How well estimated lungs agree with masks: phantoms' true ones, and those that readers drew.

    THORACLIP_SHARED=FOLDER python scripts/measure_lungs.py [--phantoms 60] [--seed 0]

Prints one Markdown row per set: Dice and IoU of the plausible estimates, and the share of implausible ones. FOLDER holds
data/covid-qu-ex-sample and data/covid3-talo; without it only phantoms are measured.
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

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Case(NamedTuple):
    """Dice of the estimate and the mask that the image came with, 2 |A n B| / (|A| + |B|); seconds of one core."""

    dice: float
    is_plausible: bool
    seconds: float


def measure(pixels: Grey, truth: Mask) -> Case:
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


def covid_qu_ex(root: Path) -> Iterator[Case]:
    for picture in sorted(root.rglob("images/*.png")):
        mask = picture.parent.parent / "lung masks" / picture.name
        if mask.is_file():
            pixels = decode(picture).pixels
            yield measure(pixels, read_mask(mask, pixels.shape))


def covid3_talo(root: Path) -> Iterator[Case]:
    """The 58 covid pictures with a mask."""
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["mask_path"]:
                pixels = decode(root / row["rel_path"]).pixels
                yield measure(pixels, read_mask(root / row["mask_path"], pixels.shape))


def line(name: str, cases: list[Case]) -> str:
    kept = np.array([case.dice for case in cases if case.is_plausible])
    aside = len(cases) - len(kept)
    speed = 1000 * float(np.median([case.seconds for case in cases]))
    cells = [
        f"{v:.3f}" for scores in (kept, kept / (2 - kept)) for v in (scores.mean(), np.median(scores), scores.min())
    ]
    return f"| {name} | {len(cases)} | {' | '.join(cells)} | {100 * aside / len(cases):.1f} % ({aside}) | {speed:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=60, help="per difficulty")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    estimate_lungs(np.zeros((256, 256), np.uint8))  # the grid is made once
    sets = {
        f"phantoms, difficulty {difficulty}": list(phantoms(args.phantoms, difficulty, args.seed))
        for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    data = Path(os.environ.get("THORACLIP_SHARED", "nowhere")) / "data"
    if data.is_dir():
        sets["covid-qu-ex-sample"] = list(covid_qu_ex(data / "covid-qu-ex-sample"))
        sets["covid3-talo, masked covid"] = list(covid3_talo(data / "covid3-talo"))
    print("| set | images | Dice mean | median | min | IoU mean | median | min | implausible | ms of one core |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, cases in sets.items():
        print(line(name, cases))


if __name__ == "__main__":
    main()
