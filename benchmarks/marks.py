"""Burned-in marks on phantoms, whose table says which bear one: recall and precision of "this picture has a mark".

python -m benchmarks.marks --images 300 --seed 2
"""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.measure import command, once, phantoms
from benchmarks.results import Result

from thoraclip.data.appearance import find_marks
from thoraclip.imaging import decode
from thoraclip.proportions import wilson


def measure(folder: Path, images: int, seed: int) -> list[Result]:
    """Look for marks on phantoms of 256 pixels drawn below `folder`."""
    root = phantoms(folder, images, seed=seed).root
    with (root / "phantoms.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    pictures = [decode(root / row["path"]).pixels for row in rows]
    found: list[bool] = []
    spent = once(lambda: found.extend(bool(find_marks(pixels)) for pixels in pictures)) / len(rows)
    marked = [bool(row["marker"]) for row in rows]
    right = sum(f and m for f, m in zip(found, marked, strict=True))

    def row(name: str, of: int) -> Result:
        low, high = (100 * end for end in wilson(right, of))
        told = f"the phantoms' own table; {right} of {of} [{low:.1f}, {high:.1f}]; {1000 * spent:.1f} ms a picture"
        return Result(name, right / of, 0.95, told, 100 * right / of, f"% of {of}")

    return [row("marked pictures found", sum(marked)), row("reported pictures that are marked", sum(found))]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """300 phantoms that were not tuned on."""
    return measure(work, 30 if quick else 300, seed=2)


if __name__ == "__main__":
    command(__doc__, measure, images=300, seed=2)
