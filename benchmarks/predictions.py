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
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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


@dataclass(frozen=True)
class Seen:
    """A run that was killed and gone on with.

    Args:
        codes: exit status of both processes.
        kept: rows of the partial table when the first was killed.
        early: whether the table was there by then.
        memory: MiB over the time of both.
        seconds: of both.
        rows: how often each picture is in the table.
        missing: pictures without a row.
        answers: different rows of each picture that stands under several names.
    """

    codes: tuple[int, int]
    kept: int
    early: bool
    memory: tuple[list[float], list[float]]
    seconds: tuple[float, float]
    rows: Counter[str]
    missing: int
    answers: dict[str, set[str]]


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
    early = out.exists()
    second, more, code = watch(command, partial, 0)
    rows = Counter[str]()
    answers: dict[str, set[str]] = defaultdict(set)
    with out.open(newline="") as stream:
        for row in csv.DictReader(stream):
            rows[row["path"]] += 1
            answers[row["path"][-7:-4]].add(",".join(v for k, v in row.items() if k != "path"))
    missing = {str(file) for file in folder.rglob("*.png")} - rows.keys()
    return Seen((killed, code), kept, early, (first, second), (began, more), rows, len(missing), answers)


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
    """Print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        seen = killed_and_continued(Path(work), given.images)
    (killed, code), (began, more) = seen.codes, seen.seconds
    print(f"killed (status {killed}) after {began:.0f} s with {seen.kept:,} rows; no table yet: {not seen.early}")
    print(f"gone on with: status {code}, {more:.0f} s; {given.images / (began + more):.0f} images/s over both")
    for name, memory in zip(("first", "second"), seen.memory, strict=True):
        told = steady(memory)
        print(
            f"memory of the {name} process, MiB: after a tenth of its time {told[0]:.0f}, at the end {told[-1]:.0f}, most {max(memory):.0f}"
        )
    twice = sum(count > 1 for count in seen.rows.values())
    print(f"rows {sum(seen.rows.values()):,}; pictures without a row {seen.missing}, with two {twice}")
    several = sum(len(answer) > 1 for answer in seen.answers.values())
    print(f"{len(seen.answers)} pictures under several names; with more than one answer: {several}")


if __name__ == "__main__":
    main()
