"""Burned-in marks on phantoms, whose table says which bear one: recall and precision of "this picture has a mark".

python benchmarks/marks.py --images 300 --size 256 --seed 2
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import once
from benchmarks.results import Result

from thoraclip.data.appearance import find_marks
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.imaging import decode
from thoraclip.proportions import wilson


def share(name: str, hits: int, of: int) -> None:
    low, high = wilson(hits, of)
    print(f"{name:<12} {hits:5d} of {of:5d}  {hits / of:.3f} [{low:.3f}, {high:.3f}]")


@dataclass(frozen=True)
class Found:
    """Counts, and what a picture took.

    Args:
        right: pictures with a mark that were found.
        marked, reported, pictures: with a mark, taken for such, all.
        seconds: a picture.
    """

    right: int
    marked: int
    reported: int
    pictures: int
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
    return Found(right, sum(truth), sum(found), len(rows), seconds / len(rows))


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = look(Path(folder) / "phantoms", arguments.images, arguments.size, arguments.seed)
    share("recall", found.right, found.marked)
    share("precision", found.right, found.reported)
    clean = found.pictures - found.marked
    share("specificity", clean - (found.reported - found.right), clean)
    print(f"{1000 * found.seconds:.1f} ms a picture of {arguments.size} x {arguments.size}")


if __name__ == "__main__":
    main()
