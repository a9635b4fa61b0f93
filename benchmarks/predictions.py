"""Predictions over a large folder: memory over time, a kill half way, and each picture once in the table.

    python -m benchmarks.predictions --images 100000

A bundle of the shipped tiny-clip with a probe on phantoms; the folder holds hard links to 500 phantoms under as many
names as asked for. `thoraclip predict --out` runs in a process of its own, whose memory is read every half second; it
is killed (SIGKILL) at 40 % and started again. The table is then compared with the pictures, name by name, and rows of
one picture with each other.
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

import psutil
from benchmarks.measure import MIB, command, phantoms
from benchmarks.results import Result

import thoraclip

PICTURES, BYTES_OF_A_ROW = 500, 230
"""Of the partial table, about."""


def make(root: Path, images: int) -> tuple[Path, Path]:
    """(bundle, folder of links)."""
    manifest = phantoms(root, PICTURES, size=128)
    thoraclip.probe(manifest, out=root / "probe", model="tiny-clip")
    thoraclip.export(root / "probe", out=root / "bundle", manifest=manifest)
    folder, paths = root / "many", manifest.paths()
    for number in range(images):
        place = folder / f"{number // 1000:04d}" / f"{number:07d}-{number % len(paths):03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(paths[number % len(paths)], place)
    return root / "bundle", folder


def watch(words: list[str], partial: Path, stop_at: float) -> tuple[list[float], int]:
    """(MiB every half second from a tenth of the time on, exit status); killed once the partial table has so many
    bytes."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: list[float] = []
    while process.poll() is None:
        time.sleep(0.5)
        try:
            seen.append(psutil.Process(process.pid).memory_info().rss / MIB)
        except psutil.Error:
            break
        if partial.is_file() and partial.stat().st_size > stop_at:
            process.send_signal(signal.SIGKILL)
    known = [size for size in seen if size]  # a process that ended has none
    return known[len(seen) // 10 :], process.wait()


def measure(folder: Path, images: int) -> list[Result]:
    """Predict a folder of so many names, killed at 40 %, and again; then read the table."""
    bundle, many = make(folder, images)
    out, partial = folder / "scores.csv", folder / "scores.csv.partial"
    words = [sys.executable, "-m", "thoraclip", "predict", str(bundle), str(many), "--out", str(out)]
    memory, kept, began = [], 0, time.perf_counter()
    for stop_at, status in ((0.4 * images * BYTES_OF_A_ROW, -signal.SIGKILL), (float("inf"), 0)):
        seen, ended = watch(words, partial, stop_at)
        if ended != status or out.exists() != (status == 0):
            raise SystemExit(f"exit status {ended} instead of {status}, or {out} there before the end")
        kept = kept or len(partial.read_bytes().splitlines()) - 1
        memory.append(seen)
        print(f"MiB after a tenth of its time {seen[0]:.0f}, then {max(seen):.0f} at the most")
    spent = time.perf_counter() - began
    rows, answers = Counter[str](), defaultdict[str, set[str]](set)
    with out.open(newline="") as stream:
        for row in csv.DictReader(stream):
            path = row.pop("path")
            rows[path] += 1
            answers[path[-7:-4]].add(",".join(row.values()))
    single = sum(count == 1 for count in rows.values())
    print(f"images with more than one answer: {sum(len(found) > 1 for found in answers.values())} of {len(answers)}")
    first, last = memory[1][0], memory[1][-1]
    names, tenth = f"{images:,} names; {kept:,} rows before the kill", f"after a tenth of it, {first:.0f} MiB"
    return [
        Result.small("memory at the end of a long pass", last / first, 1.1, tenth, last, "MiB"),
        Result("pictures once in the table after a kill", single / images, 1, names, single, "pictures"),
        Result.plain("predict, from a folder to the table", images / spent, "images/s"),
    ]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """20,000 names of 500 phantoms."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(Path(folder), 1000 if quick else 20_000)


if __name__ == "__main__":
    command(__doc__, measure, images=100_000)
