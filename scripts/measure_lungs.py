"""How well estimated lungs agree with masks: phantoms' true ones, and those that readers drew.

    THORACLIP_SHARED=FOLDER python scripts/measure_lungs.py [--phantoms 60] [--seed 0] [--sheets DIR]

Prints one Markdown row per set: Dice and IoU of the plausible estimates, and the share of implausible ones. FOLDER holds
data/covid-qu-ex-sample and data/covid3-talo; without it only phantoms are measured. `--sheets` draws given (red) and estimated
(green) outlines, worst first, and of 24 pictures without masks the estimate alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from thoraclip.data.lungs import LungEstimate, estimate_lungs
from thoraclip.data.masks import read_mask
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.imaging import decode

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

TILE, COLUMNS, MOST = 200, 8, 48


@dataclass(frozen=True)
class Case:
    """A picture, the mask that it came with, if any, and the estimate."""

    pixels: Grey
    truth: Mask | None
    estimate: LungEstimate
    seconds: float

    @property
    def dice(self) -> float:
        """2 |A n B| / (|A| + |B|); 0 without a mask."""
        if self.truth is None:
            return 0.0
        both = int((self.truth & self.estimate.mask).sum())
        return 2 * both / max(1, int(self.truth.sum()) + int(self.estimate.mask.sum()))


def measure(pixels: Grey, truth: Mask | None) -> Case:
    start = time.process_time()
    estimate = estimate_lungs(pixels)
    return Case(pixels, truth, estimate, time.process_time() - start)


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


def covid3_talo(root: Path, *, unmasked: int = 0, seed: int = 0) -> Iterator[Case]:
    """The 58 covid pictures with a mask; or so many of pneumonia and normal, drawn at random, without one."""
    with (root / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if unmasked:
        others = [row for row in rows if row["label"] != "covid"]
        rows = [others[i] for i in np.random.default_rng(seed).choice(len(others), unmasked, replace=False)]
    for row in rows:
        if row["mask_path"] or unmasked:
            pixels = decode(root / row["rel_path"]).pixels
            yield measure(pixels, None if unmasked else read_mask(root / row["mask_path"], pixels.shape))


def line(name: str, cases: list[Case]) -> str:
    kept = np.array([case.dice for case in cases if case.estimate.is_plausible])
    aside = len(cases) - len(kept)
    speed = 1000 * float(np.median([case.seconds for case in cases]))
    cells = [
        f"{v:.3f}" for scores in (kept, kept / (2 - kept)) for v in (scores.mean(), np.median(scores), scores.min())
    ]
    return f"| {name} | {len(cases)} | {' | '.join(cells)} | {100 * aside / len(cases):.1f} % ({aside}) | {speed:.0f} |"


def draw_sheet(cases: list[Case], path: Path) -> None:
    tiles = []
    for case in sorted(cases, key=lambda case: (case.dice, case.estimate.quality))[:MOST]:
        tile = np.asarray(Image.fromarray(case.pixels).resize((TILE, TILE)).convert("RGB")).copy()
        for mask, colour in ((case.truth, (255, 0, 0)), (case.estimate.mask, (0, 255, 0))):
            if mask is not None:
                small = np.asarray(Image.fromarray(mask).resize((TILE, TILE), Image.Resampling.NEAREST))
                tile[small ^ ndimage.binary_erosion(small)] = colour
        image = Image.fromarray(tile)
        words = f"{case.dice:.2f} q{case.estimate.quality:.2f}{'' if case.estimate.is_plausible else ' implausible'}"
        ImageDraw.Draw(image).text((2, 2), words, fill=(255, 255, 0))
        tiles.append(np.asarray(image))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=60, help="per difficulty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path)
    args = parser.parse_args()
    estimate_lungs(np.zeros((256, 256), np.uint8))  # the grid is made once
    sets = {
        f"phantoms, difficulty {difficulty}": list(phantoms(args.phantoms, difficulty, args.seed))
        for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0)
    }
    data = Path(os.environ.get("THORACLIP_SHARED", "nowhere")) / "data"
    unmasked: list[Case] = []
    if data.is_dir():
        sets["covid-qu-ex-sample"] = list(covid_qu_ex(data / "covid-qu-ex-sample"))
        sets["covid3-talo, masked covid"] = list(covid3_talo(data / "covid3-talo"))
        unmasked = list(covid3_talo(data / "covid3-talo", unmasked=24, seed=args.seed))
    print("| set | images | Dice mean | median | min | IoU mean | median | min | implausible | ms of one core |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, cases in sets.items():
        print(line(name, cases))
    if args.sheets:
        for number, cases in enumerate([*sets.values(), unmasked]):
            if cases:
                draw_sheet(cases, args.sheets / f"lungs_{number}.png")


if __name__ == "__main__":
    main()
