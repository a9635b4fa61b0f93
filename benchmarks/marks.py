"""Burned-in marks on phantoms, whose table says which bear one: recall and precision of "this picture has a mark".

python benchmarks/marks.py --images 300 --size 256 --seed 2
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

from thoraclip.data.appearance import find_marks
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.imaging import decode
from thoraclip.proportions import wilson


def share(name: str, hits: int, of: int) -> None:
    low, high = wilson(hits, of)
    print(f"{name:<12} {hits:5d} of {of:5d}  {hits / of:.3f} [{low:.3f}, {high:.3f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = PhantomConfig(images=arguments.images, size=arguments.size, seed=arguments.seed)
        root = write_phantoms(Path(folder) / "phantoms", config).root
        with (root / "phantoms.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        pictures = [decode(root / row["path"]).pixels for row in rows]
    began = time.perf_counter()
    found = [bool(find_marks(pixels)) for pixels in pictures]
    seconds = time.perf_counter() - began
    truth = [bool(row["marker"]) for row in rows]
    right = sum(f and t for f, t in zip(found, truth, strict=True))
    share("recall", right, sum(truth))
    share("precision", right, sum(found))
    share("specificity", sum(not f and not t for f, t in zip(found, truth, strict=True)), len(truth) - sum(truth))
    print(f"{1000 * seconds / len(rows):.1f} ms a picture of {arguments.size} x {arguments.size}")


if __name__ == "__main__":
    main()
