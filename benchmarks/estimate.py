"""How far a dry run's estimate of time and memory is from what the study then takes, for studies of different kinds.

    python -m benchmarks.estimate --images 600

Draws phantoms; for each study a dry run and the study itself, each a process of its own, so that start and imports count. The
ratio is the measured value over the estimated one: 1 is exact, between 0.5 and 2 is what a dry run promises. Let the machine do
nothing else meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import options, phantoms
from benchmarks.results import Result

import thoraclip

STUDIES: dict[str, tuple[str, list[dict[str, object]]]] = {
    "frozen: zero-shot, probes by three solvers, three seeds": ("seeds = [0, 1, 2]", [
        {"kind": "zeroshot"}, {"kind": "probe"}, {"kind": "probe", "solver": "adamw", "epochs": 10},
        {"kind": "probe", "solver": "lp++", "features": "projected"},
    ]),
    "training: LoRA and a network, each with more than one chunk a batch": ("", [
        {"kind": "finetune", "batch_size": 64, "chunk_size": 16, "epochs": 2, "then": "probe"},
        {"kind": "baseline", "batch_size": 32, "chunk_size": 16, "epochs": 2},
    ]),
    "floor: boosted trees, and the resampling of a report": ("resamples = 20000", [{"kind": "trivial"}, {"kind": "zeroshot"}]),
}  # fmt: skip
"""Name -> (settings, methods)."""


def study(settings: str, methods: list[dict[str, object]]) -> str:
    """The study's file."""
    tables = [
        "\n".join(f"{name} = {json.dumps(value)}" for name, value in {"name": f"method {number}", **method}.items())
        for number, method in enumerate(methods)
    ]
    top = f'manifest = "m.parquet"\nmodel = "tiny-clip"\n{settings}\n'
    return top + "\n".join(f"[[methods]]\n{table}" for table in tables)


class Comparison(NamedTuple):
    """What, estimated (0: not comparable), taken, unit: of the time and of the memory; seconds of the dry run."""

    time: tuple[str, float, float, str]
    memory: tuple[str, float, float, str]
    looking: float


def timed(arguments: list[str], output: Path) -> tuple[float, float]:
    """(seconds, highest memory in MB) of a command of its own process; what it prints goes to a file."""
    began = time.perf_counter()
    with output.open("wb") as stream:
        child = subprocess.Popen([sys.executable, "-m", "thoraclip", *arguments], stdout=stream)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"thoraclip {' '.join(arguments)}: exit code {child.returncode}")
    return time.perf_counter() - began, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def compare(file: Path, out: Path) -> Comparison:
    """A dry run, then the study."""
    command = ["study", str(file), "--out", str(out)]
    looking, _ = timed([*command, "--dry-run", "--json"], file.with_suffix(".json"))
    plan: dict[str, Any] = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    totals, machine = plan["totals"], plan["machine"]
    if not totals["complete"]:
        unknown = [f"{row['name']}: {row['error']}" for row in (*plan["runs"], *plan["stages"]) if row["error"]]
        raise SystemExit(f"{file.name}: the dry run cannot tell everything: {'; '.join(unknown)}")
    seconds, memory = timed(command, file.with_suffix(".txt"))
    # on a device it is the device's memory, which no other process can ask for afterwards
    estimated = totals["memory_mb"] if machine["device"] == "cpu" else 0.0
    return Comparison(("time", totals["seconds"], seconds, "s"), ("memory", estimated, memory, "MB"), looking)


def compare_all(root: Path, *, images: int, only: str) -> Iterator[tuple[str, Comparison]]:
    """(name, comparison) of every study whose name begins with `only`, on phantoms in three folds, drawn below `root`."""
    thoraclip.split(phantoms(root, images), out=root / "m.parquet", folds=3)
    for number, (name, parts) in enumerate(STUDIES.items()):
        if name.startswith(only):
            file = root / f"{number}.toml"
            file.write_text(study(*parts), encoding="utf-8")
            yield name, compare(file, root / f"out-{number}")


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Every study on 300 phantoms; with `quick` the last one. A ratio is the larger of took / estimated and its inverse."""
    images, only = (60, "floor") if quick else (300, "")
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name, found in compare_all(Path(folder), images=images, only=only):
            kind = name.partition(":")[0]
            for what, estimated, took, unit in found[:2]:
                if estimated:
                    off = max(took / estimated, estimated / took)
                    told = f"the dry run's estimate, {estimated:.0f} {unit}; whichever is more over the other"
                    rows.append(Result(f"{what} of a study, {kind}", off, 2, told, took, unit, higher_is_better=False))
    return rows


def main() -> None:
    given = options(__doc__, images=600, only="")
    with tempfile.TemporaryDirectory() as folder:
        for name, found in compare_all(Path(folder), **vars(given)):
            print(f"{name}; the dry run took {found.looking:.1f} s", flush=True)
            for what, estimated, took, unit in found[:2]:
                print(f"  {what:<7} estimated {estimated:8.1f} {unit}  took {took:8.1f} {unit}")


if __name__ == "__main__":
    main()
