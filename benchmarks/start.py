"""How long a command takes to begin: `--help` without torch, and a bundle's first answer.

Each run is a process of its own, from its start to its end.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.inference import cold_start, shared_bundles
from benchmarks.measure import launch, typical
from benchmarks.results import Result

HELP_SECONDS, ANSWER_SECONDS, RUNS = 0.3, 0.8, 7


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """`--help` by processor seconds, `predict` of one picture by an int8 bundle by wall seconds, medians of 7."""
    runs = 1 if quick else RUNS
    bundle = shared_bundles(work, quick=quick)["int8"]
    launch("--help")  # the compiled modules are written
    told = typical([launch("--help") for _ in range(runs)])
    library = typical([launch(start=("-c", "import typer.rich_utils")) for _ in range(runs)])
    answered = cold_start(bundle, runs)
    against = f"{HELP_SECONDS} s of processor time; to import Typer and Rich alone takes {library.processor:.2f} s"
    limit = f"{ANSWER_SECONDS} s; {answered.processor:.2f} s of processor time, {answered.peak:.0f} MiB"
    return [
        Result.small("thoraclip --help", told.processor / HELP_SECONDS, 1, against, told.processor, "s"),
        Result.small("thoraclip predict BUNDLE one.png", answered.wall / ANSWER_SECONDS, 1, limit, answered.wall, "s"),
    ]
