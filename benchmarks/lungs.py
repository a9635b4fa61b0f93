"""How well two lung regions agree with masks drawn by people: one placed on each image, and the same for all.

    THORACLIP_SHARED=FOLDER python -m benchmarks.lungs
    THORACLIP_SHARED=FOLDER python -m benchmarks.lungs --images 300 --seed 1

FOLDER (else `../shared`) holds data/cxr3, data/covid3-talo and data/covid-qu-ex-sample; without it only phantoms are
measured. In cxr3 the normal and non_covid images with a mask are of children, the covid ones of adults.
At most --images of each class with a mask, drawn with --seed. One Markdown row for each set and region:

    Dice      2 |A n B| / (|A| + |B|): mean, and what 95 % of the images exceed
    covered   share of the drawn lung that lies in the region, mean
    hidden    the same with the margin that the audit adds where it hides the lungs
    is lung   share of the region that is drawn lung, mean
    area      share of the image that the region takes, mean
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.measure import options
from benchmarks.results import Result
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from thoraclip.data.lungs import usual_region
from thoraclip.data.masks import read_mask
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.views import MARGIN
from thoraclip.imaging import decode
from thoraclip.imaging.lungs import estimate_lungs

Grey = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Pair = tuple[Path, Path]
"""Image, mask."""

SIDE = 128
"""Masks are compared at this size, after the estimate."""
MILLISECONDS: list[float] = []
"""Processor time of each estimate."""


def placed(pixels: Grey) -> Mask | None:
    """The outline as it is placed on one image; `None` for an implausible one."""
    began = time.process_time()
    mask, reason = estimate_lungs(pixels)
    MILLISECONDS.append(1000 * (time.process_time() - began))
    return None if reason else mask


def usual(pixels: Grey) -> Mask:
    """What an audit takes for all images without a mask."""
    return usual_region(*pixels.shape)


REGIONS: Mapping[str, Callable[[Grey], Mask | None]] = {"placed on each image": placed, "the same for all": usual}


def rows(file: Path, mask_column: str) -> Iterator[tuple[str, Path, Path]]:
    """(label, image, mask) of every row of a manifest.csv that has a mask."""
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row[mask_column]:
                yield row.get("label", "covid"), file.parent / row["rel_path"], file.parent / row[mask_column]


def drawn_by_people(data: Path, images: int, seed: int) -> dict[str, list[Pair]]:
    """Set -> at most so many images with their masks."""
    sets: dict[str, list[Pair]] = defaultdict(list)
    for name, column in (("cxr3", "lung_mask"), ("covid3-talo", "mask_path")):
        for label, image, mask in rows(data / name / "manifest.csv", column):
            sets[f"{name}, {label}"].append((image, mask))
    for image in sorted((data / "covid-qu-ex-sample").rglob("images/*.png")):
        mask = image.parent.parent / "lung masks" / image.name
        if mask.is_file():
            sets["covid-qu-ex-sample"].append((image, mask))
    rng = np.random.default_rng(seed)
    return {name: [pairs[i] for i in sorted(rng.permutation(len(pairs))[:images])] for name, pairs in sets.items()}


def read(pairs: list[Pair]) -> Iterator[tuple[Grey, Mask]]:
    """(image, drawn mask)."""
    for image, mask in pairs:
        pixels = decode(image).pixels
        yield pixels, read_mask(mask, pixels.shape)


def phantoms(count: int, difficulty: float, seed: int) -> Iterator[tuple[Grey, Mask]]:
    """(image, true mask), the classes taking turns."""
    for number in range(count):
        rng = np.random.default_rng([seed, number, round(100 * difficulty)])
        drawn = draw_phantom(CLASSES[number % len(CLASSES)], rng=rng, size=256, difficulty=difficulty)
        yield drawn.pixels, drawn.lung_mask > 0


def compare(cases: Iterator[tuple[Grey, Mask]]) -> dict[str, list[list[float]]]:
    """Region -> (Dice, covered, hidden, is lung, area) of every image with a plausible region."""
    made: dict[str, list[list[float]]] = {name: [] for name in REGIONS}
    for pixels, truth in cases:
        lung = shrunk(truth)
        for name, find in REGIONS.items():
            mask = find(pixels)
            if mask is not None:
                region = shrunk(mask)
                both, wide = (region & lung).sum(), ndimage.binary_dilation(region, iterations=round(MARGIN * SIDE))
                dice, hidden = 2 * both / (region.sum() + lung.sum()), (wide & lung).sum() / lung.sum()
                made[name].append([dice, both / lung.sum(), hidden, both / region.sum(), region.mean()])
    return made


def shrunk(mask: Mask) -> Mask:
    """bool[128, 128]."""
    return np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def measure(images: int, seed: int) -> dict[str, tuple[int, dict[str, list[list[float]]]]]:
    """Set -> (number of images, what `compare` gives)."""
    made = {f"phantoms, difficulty {d:g}": (images, compare(phantoms(images, d, seed))) for d in (0.0, 0.5, 1.0)}
    data = Path(os.environ.get("THORACLIP_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if not (data / "cxr3" / "manifest.csv").is_file():
        print(f"skipped masks drawn by people: {data / 'cxr3'} is absent; set THORACLIP_SHARED", file=sys.stderr)
        return made
    sets = drawn_by_people(data, images, seed)
    return made | {name: (len(pairs), compare(read(pairs))) for name, pairs in sets.items()}


def lines(made: Mapping[str, tuple[int, dict[str, list[list[float]]]]]) -> Iterator[str]:
    """The table in Markdown."""
    yield "| masks | images | region | Dice, mean | 5 % | covered | hidden | is lung | area | implausible |"
    yield "| --- | ---: | --- " + "| ---: " * 7 + "|"
    for name, (count, regions) in made.items():
        for region, values in regions.items():
            cells = [
                np.mean([v[0] for v in values]),
                np.quantile([v[0] for v in values], 0.05),
                *np.mean(values, axis=0)[1:],
            ]
            yield f"| {name} | {count} | {region} | {' | '.join(f'{c:.2f}' for c in cells)} | {count - len(values)} |"


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The outline on each image against one region for all: mean Dice over the sets."""
    made = measure(3 if quick else 100, seed=1)
    each, same = (
        float(np.mean([np.mean([v[0] for v in regions[name]]) for _, regions in made.values()])) for name in REGIONS
    )
    against = f"one region for all, {100 * same:.1f} %; mean of {len(made)} sets"
    return [
        Result("Dice of an outline placed on each image", each / same, 1, against, 100 * each, "%"),
        Result.plain("one outline", float(np.median(MILLISECONDS)), "ms of processor time"),
    ]


if __name__ == "__main__":
    given = options(__doc__, images=300, seed=1)
    print(*lines(measure(given.images, given.seed)), sep="\n")
    print(f"\nOne outline: {np.median(MILLISECONDS):.0f} ms of processor time, median.")
