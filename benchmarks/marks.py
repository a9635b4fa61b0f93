"""Burned-in marks on phantoms, whose table says which bear one: recall and precision of "this picture has a mark".

python -m benchmarks.marks --images 300 --size 256 --seed 2
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import once, options
from benchmarks.results import Result

from thoraclip.data.appearance import find_marks
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.imaging import decode
from thoraclip.proportions import wilson


class Found(NamedTuple):
    """Images with a mark that were found, with a mark, and reported as such; seconds an image."""

    right: int
    marked: int
    reported: int
    seconds: float


def look(root: Path, images: int, size: int, seed: int) -> Found:
    """Draw phantoms below `root` and look for marks on all of them."""
    folder = write_phantoms(root, PhantomConfig(images=images, size=size, seed=seed)).root
    with (folder / "phantoms.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    pictures = [decode(folder / row["path"]).pixels for row in rows]
    found: list[bool] = []
    seconds = once(lambda: found.extend(bool(find_marks(pixels)) for pixels in pictures))
    truth = [bool(row["marker"]) for row in rows]
    right = sum(f and t for f, t in zip(found, truth, strict=True))
    return Found(right, sum(truth), sum(found), seconds / len(rows))


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The accuracy of the command line, 300 phantoms that were not tuned on."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        found = look(Path(folder) / "phantoms", 30 if quick else 300, 256, seed=2)
    told = f"the phantoms' own table; {1000 * found.seconds:.1f} ms a picture"
    recall, precision = found.right / found.marked, found.right / found.reported
    return [
        Result("marked pictures found", recall, 0.95, told, 100 * recall, f"% of {found.marked}"),
        Result("reported pictures that are marked", precision, 0.95, told, 100 * precision, f"% of {found.reported}"),
    ]


def main() -> None:
    given = options(__doc__, images=300, size=256, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        found = look(Path(folder) / "phantoms", given.images, given.size, given.seed)
    for name, of in (("recall", found.marked), ("precision", found.reported)):
        low, high = wilson(found.right, of)
        print(f"{name:<12} {found.right:5d} of {of:5d}  {found.right / of:.3f} [{low:.3f}, {high:.3f}]")
    print(f"{1000 * found.seconds:.1f} ms a picture")


if __name__ == "__main__":
    main()
