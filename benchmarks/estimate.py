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
from pathlib import Path
from typing import Any

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


def compare(name: str, file: Path, out: Path) -> None:
    """One row: a dry run, then the study."""
    command = ["study", str(file), "--out", str(out)]
    looking, _ = timed([*command, "--dry-run", "--json"], file.with_suffix(".json"))
    plan: dict[str, Any] = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    totals, machine = plan["totals"], plan["machine"]
    assert totals["complete"], [row["error"] for row in plan["runs"]]
    seconds, memory = timed(command, file.with_suffix(".txt"))
    where = f"{machine['device']}, {machine['threads']} threads, {machine['precision']}"
    print(f"{name} ({where})")
    print(
        f"  time    estimated {totals['seconds']:8.1f} s   took {seconds:8.1f} s   ratio {seconds / totals['seconds']:.2f}"
    )
    if machine["device"] == "cpu":  # else it is the device's memory, which no other process can ask for afterwards
        estimated = totals["memory_mb"]
        print(f"  memory  estimated {estimated:8.0f} MB  took {memory:8.0f} MB  ratio {memory / estimated:.2f}")
    print(f"  the dry run took {looking:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--only", default="", help="begin of a study's name: that one alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = PhantomConfig(images=arguments.images, size=arguments.size)
        phantoms = write_phantoms(root / "phantoms", config).root
        found = index(phantoms, layout="csv", csv_file=phantoms / "phantoms.csv").manifest
        write_manifest(root / "m.parquet", split_folds(found, folds=arguments.folds, seed=0))
        print(f"{arguments.images} phantoms of {arguments.size} pixels, {arguments.folds} folds, {arguments.model}")
        for number, (name, text) in enumerate(STUDIES.items()):
            if name.startswith(arguments.only):
                file = root / f"{number}.toml"
                head = f'manifest = "m.parquet"\nmodel = {json.dumps(arguments.model)}\n'
                file.write_text(head + text, encoding="utf-8")
                compare(name, file, root / f"out-{number}")


if __name__ == "__main__":
    main()
