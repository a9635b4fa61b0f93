"""How far a dry run's estimate of time is from what the study then takes, for studies of different kinds.

    python -m benchmarks.estimate --images 600

Draws phantoms; for each study a dry run and the study itself, each a process of its own, so that start and imports
count. What it takes over what was estimated is 1 when exact; between 1/3 and 3 is what a dry run promises. Let the
machine do nothing else meanwhile.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.measure import command, launch, phantoms
from benchmarks.results import Result

import thoraclip

STUDIES = {
    "frozen": """seeds = [0, 1, 2]
methods = [
    {name = "zero-shot", kind = "zeroshot"}, {name = "probe", kind = "probe"},
    {name = "adamw", kind = "probe", solver = "adamw", epochs = 10},
    {name = "lp++", kind = "probe", solver = "lp++", features = "projected"},
]""",
    "training": """methods = [
    {name = "lora", kind = "finetune", batch_size = 64, chunk_size = 16, epochs = 2, then = "probe"},
    {name = "network", kind = "baseline", batch_size = 32, chunk_size = 16, epochs = 2},
]""",
    "floor": """resamples = 20000
methods = [{name = "boosted trees", kind = "trivial"}, {name = "zero-shot", kind = "zeroshot"}]""",
}


def compare(file: Path, name: str) -> list[Result]:
    """A dry run, then the study; a ratio is the larger of took / estimated and its inverse."""
    words = ["study", file, "--out", file.with_suffix("")]
    dry = launch(*words, "--dry-run", "--json")
    plan = json.loads(dry.printed)
    if not plan["totals"]["complete"]:
        unknown = [f"{row['name']}: {row['error']}" for row in (*plan["runs"], *plan["stages"]) if row["error"]]
        raise SystemExit(f"{file.name}: the dry run cannot tell everything: {'; '.join(unknown)}")
    study = launch(*words)
    estimated, took = plan["totals"]["seconds"], study.wall
    print(f"{name}: estimated {estimated:.1f} s, took {took:.1f} s; the dry run took {dry.wall:.1f} s")
    off = max(took / estimated, estimated / took)
    told = f"the dry run's estimate, {estimated:.0f} s; whichever is more over the other"
    return [Result.small(f"time of a study, {name}", off, plan["totals"]["factor"], told, took, "s")]


def measure(folder: Path, images: int, only: str) -> list[Result]:
    """Every study, or the one of that name, on phantoms in three folds, drawn below `folder`."""
    thoraclip.split(phantoms(folder, images), out=folder / "m.parquet", folds=3)
    rows = []
    for name in [only] if only else STUDIES:
        file = folder / f"{name}.toml"
        file.write_text(f'manifest = "m.parquet"\nmodel = "tiny-clip"\n{STUDIES[name]}\n', encoding="utf-8")
        rows += compare(file, name)
    return rows


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Every study on 300 phantoms; with `quick` the last one."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(Path(folder), 60, "floor") if quick else measure(Path(folder), 300, "")


if __name__ == "__main__":
    command(__doc__, measure, images=600, only="")
