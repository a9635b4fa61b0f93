"""Predictions over a large folder: memory over time, a kill half way, and each picture once in the table.

    python benchmarks/predictions.py --images 100000

A bundle of the shipped tiny-clip with a probe on phantoms; the folder holds hard links to 500 phantoms under as many names as
asked for. `thoraclip predict --out` runs in a process of its own, whose memory is read every half second; it is killed
(SIGKILL) at 40 % and started again. The table is then compared with the pictures, name by name, and rows of one picture with
each other.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

import thoraclip

PICTURES = 500


def make(root: Path, images: int) -> tuple[Path, Path]:
    """(bundle, folder of links)."""
    thoraclip.phantom(root / "phantoms", images=PICTURES, size=128)
    found = thoraclip.index(root / "phantoms", out=root / "manifest.parquet")
    thoraclip.probe(found.manifest, out=root / "probe", model="tiny-clip")
    thoraclip.export(root / "probe", out=root / "bundle")
    folder, paths = root / "many", found.manifest.paths()
    for number in range(images):
        place = folder / f"{number // 1000:04d}" / f"{number:07d}-{number % len(paths):03d}.png"
        if not number % 1000:
            place.parent.mkdir(parents=True)
        os.link(paths[number % len(paths)], place)
    return root / "bundle", folder


def watch(command: list[str], partial: Path, stop_at: int) -> tuple[list[float], float, int]:
    """(MiB every half second, seconds, exit status) of a process; killed once the partial table has so many lines (0: never)."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[float] = []
    while process.poll() is None:
        time.sleep(0.5)
        try:
            seen.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        except psutil.Error:
            break
        if stop_at and partial.is_file() and partial.stat().st_size > stop_at:
            process.send_signal(signal.SIGKILL)
    return seen, time.perf_counter() - began, process.wait()


def main() -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle, folder = make(Path(work), given.images)
        out = Path(work) / "scores.csv"
        partial = out.with_name("scores.csv.partial")
        command = [sys.executable, "-m", "thoraclip", "predict", str(bundle), str(folder), "--out", str(out)]
        line = 230  # bytes of a row of the partial table, about
        first, seconds, code = watch(command, partial, int(0.4 * given.images * line))
        kept = sum(1 for _ in partial.open("rb")) - 1
        print(f"killed (status {code}) after {seconds:.0f} s with {kept:,} rows; no table yet: {not out.exists()}")
        second, more, code = watch(command, partial, 0)
        print(f"gone on with: status {code}, {more:.0f} s; {given.images / (seconds + more):.0f} images/s over both")
        for name, seen in (("first", first), ("second", second)):
            steady = [size for size in seen if size][len(seen) // 10 :]  # a process that ended has none
            print(
                f"memory of the {name} process, MiB: after a tenth of its time {steady[0]:.0f}, at the end {steady[-1]:.0f}, most {max(seen):.0f}"
            )
        rows = Counter[str]()
        answers: dict[str, set[str]] = defaultdict(set)
        with out.open(newline="") as stream:
            for row in csv.DictReader(stream):
                rows[row["path"]] += 1
                answers[row["path"][-7:-4]].add(",".join(v for k, v in row.items() if k != "path"))
        names = {str(file) for file in folder.rglob("*.png")}
        print(
            f"rows {sum(rows.values()):,}; pictures without a row {len(names - rows.keys())}, with two {sum(c > 1 for c in rows.values())}"
        )
        print(
            f"{len(answers)} pictures under several names; with more than one answer: {sum(len(a) > 1 for a in answers.values())}"
        )


if __name__ == "__main__":
    main()
