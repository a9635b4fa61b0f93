"""Predictions over a large folder: memory over time, a kill half way, and each picture once in the table.

    python -m benchmarks.predictions --images 100000

A bundle of the shipped tiny-clip with a probe on phantoms; the folder holds hard links to 500 phantoms under as many names as
asked for. `thoraclip predict --out` runs in a process of its own, whose memory is read every half second; it is killed
(SIGKILL) at 40 % and started again. The table is then compared with the pictures, name by name, and rows of one picture with
each other.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil
from benchmarks.measure import options
from benchmarks.results import Result

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


class Seen(NamedTuple):
    """A run that was killed and gone on with: MiB and seconds of both processes, rows before the kill, and the table."""

    kept: int
    memory: tuple[list[float], list[float]]
    seconds: tuple[float, float]
    rows: Counter[str]
    """How often each image is in the table."""
    answers: dict[str, set[str]]
    """The different rows of each image, which stands under several names."""


def killed_and_continued(work: Path, images: int) -> Seen:
    """Predict a folder of so many names, killed at 40 %, and again; then read the table."""
    bundle, folder = make(work, images)
    out = work / "scores.csv"
    partial = out.with_name("scores.csv.partial")
    command = [sys.executable, "-m", "thoraclip", "predict", str(bundle), str(folder), "--out", str(out)]
    line = 230  # bytes of a row of the partial table, about
    first, began, killed = watch(command, partial, int(0.4 * images * line))
    with partial.open("rb") as stream:
        kept = sum(1 for _ in stream) - 1
    if out.exists():
        raise SystemExit(f"{out}: there before the end")
    second, more, code = watch(command, partial, 0)
    rows = Counter[str]()
    answers: dict[str, set[str]] = defaultdict(set)
    with out.open(newline="") as stream:
        for row in csv.DictReader(stream):
            rows[row["path"]] += 1
            answers[row["path"][-7:-4]].add(",".join(v for k, v in row.items() if k != "path"))
    if killed != -signal.SIGKILL or code:
        raise SystemExit(f"exit statuses {killed} and {code}")
    return Seen(kept, (first, second), (began, more), rows, answers)


def steady(memory: list[float]) -> list[float]:
    """MiB from a tenth of a process's time on."""
    return [size for size in memory if size][len(memory) // 10 :]  # a process that ended has none


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """20,000 names of 500 phantoms."""
    images = 1000 if quick else 20_000
    with tempfile.TemporaryDirectory(dir=work) as folder:
        seen = killed_and_continued(Path(folder), images)
    memory, once = steady(seen.memory[1]), sum(count == 1 for count in seen.rows.values())
    return [
        Result(
            "memory at the end of a long pass", memory[-1] / memory[0], 1.1, f"after a tenth of it, {memory[0]:.0f} MiB", memory[-1],
            "MiB", higher_is_better=False,
        ),
        Result("pictures once in the table after a kill", once / images, 1, f"{images:,} names; {seen.kept:,} rows before the kill",
               once, "pictures"),
        Result("predict, from a folder to the table", None, None, "", images / sum(seen.seconds), "images/s"),
    ]  # fmt: skip


def main() -> None:
    images = options(__doc__, images=100_000).images
    with tempfile.TemporaryDirectory() as work:
        seen = killed_and_continued(Path(work), images)
    print(f"killed with {seen.kept:,} rows; {images / sum(seen.seconds):.0f} images/s over both processes")
    for memory in seen.memory:
        told = steady(memory)
        print(f"MiB: after a tenth of its time {told[0]:.0f}, at the end {told[-1]:.0f}, most {max(memory):.0f}")
    print(f"images once in the table: {sum(count == 1 for count in seen.rows.values()):,}")
    print(f"images with more than one answer: {sum(len(answer) > 1 for answer in seen.answers.values())}")


if __name__ == "__main__":
    main()
