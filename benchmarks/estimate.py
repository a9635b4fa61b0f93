"""How far a dry run's estimate of time and memory is from what the study then takes, for studies of different kinds.

    python benchmarks/estimate.py --images 600

Draws phantoms; for each study a dry run and the study itself, each a process of its own, so that start and imports count. The
ratio is the measured value over the estimated one: 1 is exact, between 0.5 and 2 is what a dry run promises. Let the machine do
nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import Result

from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.data.splits import split_folds
from thoraclip.tables.manifest import write_manifest

STUDIES = {
    "frozen: zero-shot, probes by three solvers, three seeds": """
seeds = [0, 1, 2]
[[methods]]
name = "zero-shot"
kind = "zeroshot"
[[methods]]
name = "probe, L-BFGS"
kind = "probe"
[[methods]]
name = "probe, AdamW"
kind = "probe"
solver = "adamw"
epochs = 10
[[methods]]
name = "probe, LP++"
kind = "probe"
solver = "lp++"
features = "projected"
""",
    "training: LoRA and a network, each with more than one chunk a batch": """
[[methods]]
name = "LoRA"
kind = "finetune"
batch_size = 64
chunk_size = 16
epochs = 2
then = "probe"
[[methods]]
name = "network"
kind = "baseline"
batch_size = 32
chunk_size = 16
epochs = 2
""",
    "floor: boosted trees, and the resampling of a report": """
resamples = 20000
[[methods]]
name = "trivial"
kind = "trivial"
[[methods]]
name = "zero-shot"
kind = "zeroshot"
""",
}


@dataclass(frozen=True)
class Comparison:
    """What a study was estimated at and what it took: seconds, MB (0: not comparable), and seconds of the dry run."""

    where: str
    estimated_seconds: float
    seconds: float
    estimated_memory: float
    memory: float
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
    where = f"{machine['device']}, {machine['threads']} threads, {machine['precision']}"
    # on a device it is the device's memory, which no other process can ask for afterwards
    estimated = totals["memory_mb"] if machine["device"] == "cpu" else 0.0
    return Comparison(where, totals["seconds"], seconds, estimated, memory, looking)


def show(name: str, found: Comparison) -> None:
    """Print it."""
    print(f"{name} ({found.where})")
    for what, estimated, took, unit in (
        ("time", found.estimated_seconds, found.seconds, "s"),
        ("memory", found.estimated_memory, found.memory, "MB"),
    ):
        if estimated:
            print(
                f"  {what:<7} estimated {estimated:8.1f} {unit}  took {took:8.1f} {unit}  ratio {took / estimated:.2f}"
            )
    print(f"  the dry run took {found.looking:.1f} s", flush=True)


def compare_all(
    root: Path, *, images: int, size: int, folds: int, model: str, only: str
) -> Iterator[tuple[str, Comparison]]:
    """(name, comparison) of every study whose name begins with `only`, on phantoms drawn below `root`."""
    phantoms = write_phantoms(root / "phantoms", PhantomConfig(images=images, size=size)).root
    found = index(phantoms, layout="csv", csv_file=phantoms / "phantoms.csv").manifest
    write_manifest(root / "m.parquet", split_folds(found, folds=folds, seed=0))
    for number, (name, text) in enumerate(STUDIES.items()):
        if name.startswith(only):
            file = root / f"{number}.toml"
            file.write_text(f'manifest = "m.parquet"\nmodel = {json.dumps(model)}\n{text}', encoding="utf-8")
            yield name, compare(file, root / f"out-{number}")


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Every study on 300 phantoms; with `quick` the last one. A ratio is the larger of took / estimated and its inverse."""
    images, only = (60, "floor") if quick else (300, "")
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name, found in compare_all(Path(folder), images=images, size=256, folds=3, model="tiny-clip", only=only):
            kind = name.partition(":")[0]
            for what, estimated, took, unit in (
                ("time", found.estimated_seconds, found.seconds, "s"),
                ("memory", found.estimated_memory, found.memory, "MB"),
            ):
                if estimated:
                    off = max(took / estimated, estimated / took)
                    told = f"the dry run's estimate, {estimated:.0f} {unit}; whichever is more over the other"
                    rows.append(Result(f"{what} of a study, {kind}", off, 2, told, took, unit, higher_is_better=False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--only", default="", help="begin of a study's name: that one alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{arguments.images} phantoms of {arguments.size} pixels, {arguments.folds} folds, {arguments.model}")
        for name, found in compare_all(Path(folder), **vars(arguments)):
            show(name, found)


if __name__ == "__main__":
    main()
