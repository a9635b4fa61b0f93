"""What `thoraclip study --dry-run` tells: what will run, on how many images, and how long and how large it will be.

    methods --Counting (counting)--> tasks --Bench (measuring)--> cost of each different unit --> seconds and memory of every run

The real functions are timed on a few pictures of the very manifest; a training's step grows with its batch as two steps of
different sizes say. Nothing is written but into a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError, ThoraclipError
from thoraclip.methods.running import is_done
from thoraclip.study.auditing import audit_work
from thoraclip.study.counting import Counting, Describe, expected_images
from thoraclip.study.external.counting import external_work
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.study.tasks import Task, Unit, Work
from thoraclip.tables.manifest import Manifest

__all__ = ["FACTOR", "Law", "Measure", "Measured", "draw_plan", "make_plan"]

FACTOR = 2
"""The true time lies within this factor of the estimate, unless the machine does something else meanwhile."""
_SCHEMA = 1


@dataclass(frozen=True)
class Law:
    """What a unit costs: fixed, and for each image.

    Args:
        seconds, seconds_each: time.
        memory_mb, memory_each_mb: the highest memory meanwhile, of the process or, on CUDA, of the device; the part for each
            image is what the data add, not what a batch takes.
    """

    seconds: float = 0.0
    seconds_each: float = 0.0
    memory_mb: float = 0.0
    memory_each_mb: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        laws: unit -> its cost, or why it has none.
        start: seconds that whatever is done first takes once: imports, first calls.
        machine: device, threads, precision.
        pictures: how many pictures were looked at.
    """

    laws: Mapping[Unit, Law | str]
    start: float
    machine: Mapping[str, Any]
    pictures: int


Measure = Callable[[Sequence[Unit], Manifest, Path], Measured]
"""(units, the images, an empty folder) -> what they cost."""


def make_plan(
    config: StudyConfig,
    methods: Sequence[MethodEntry],
    out: Path,
    *,
    manifest: Manifest | None,
    given: Manifest | None,
    describe: Describe,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """The plan as it is printed with `--json`; see docs/index.md.

    Args:
        config, methods, out: of the study; `out` is only read.
        manifest: the images as the study will split them; `None` where that is not known yet.
        given: the manifest that the settings name, if any.
        describe: see `counting.Describe`.
        measure: gives the costs; `None` leaves time and memory out.
    """
    began = time.perf_counter()
    images, has_parts, error = manifest, True, ""
    if images is None:
        try:
            images, has_parts = expected_images(config, given)
        except ThoraclipError as problem:
            error = str(problem)
    counting = Counting(config, images, out, describe) if images else None
    stages = _beginning(counting, methods, has_parts=has_parts) if counting else []
    runs, failed = _runs(counting, methods, out, manifest, error)
    if counting:
        able = [method for method in methods if method.name not in failed]
        stages += [external_work(one, able, counting, config, out) for one in config.external]
        stages.append(audit_work(config, able, counting, out))
        stages.append(counting.judge(able))
    measured = None
    units = list(dict.fromkeys(task.unit for work in (*runs, *stages) for task in work.tasks))
    if measure and images is not None:
        with tempfile.TemporaryDirectory(prefix="thoraclip-") as folder:
            measured = measure(units, images, Path(folder))
    if measured and measured.start:
        stages.insert(0, Work("start", "stage", seconds=measured.start))
    return draw_plan(
        runs, stages, measured, images=None if images is None else len(images), source=config.manifest or config.folder,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _runs(
    counting: Counting | None, methods: Sequence[MethodEntry], out: Path, manifest: Manifest | None, error: str
) -> tuple[list[Work], set[str]]:
    """(every run with its tasks, or with the reason why it has none; names of the methods that cannot run).

    Args:
        counting: `None` where the images are not known.
        methods, out: of the study.
        manifest: what is done is done on these images; `None`: nothing is done.
        error: why the images are not known.
    """
    runs: list[Work] = []
    failed: set[str] = set()
    for method in methods:
        for seed, config, folder in method.runs(out / "runs"):
            try:
                if method.after and method.after.name in failed:
                    raise InputError(f"its adapters are those of '{method.after.name}', which failed")
                began = time.perf_counter()
                done = manifest is not None and is_done(method.kind, config, manifest, folder)
                looking = time.perf_counter() - began  # hashing the model's files; the run does it too
                if counting is None:
                    raise InputError(error)
                runs.append(counting.run(method, seed, config, folder, done=done))
                runs[-1].seconds = 0.0 if done else looking
            except ThoraclipError as problem:
                runs.append(Work(method.name, method.kind, seed, error=str(problem)))
                failed.add(method.name)
    return runs, failed


def _beginning(counting: Counting, methods: Sequence[MethodEntry], *, has_parts: bool) -> list[Work]:
    """What comes before the runs."""
    stages = [counting.prepare(has_parts=has_parts)]
    if any(method.has_own_captions for method in methods):
        try:
            stages.append(counting.captions())
        except ThoraclipError as problem:
            stages.append(Work("captions", "stage", error=str(problem)))
    return stages


def draw_plan(
    runs: Sequence[Work],
    stages: Sequence[Work],
    measured: Measured | None,
    *,
    images: int | None,
    source: str,
    seconds: float,
) -> dict[str, Any]:
    """Counts and costs -> the plan; nothing is looked up here.

    Args:
        runs, stages: as counted.
        measured: `None` where nothing was measured.
        images: of the manifest; `None` where it is not known.
        source: manifest or folder.
        seconds: that all of this took.
    """
    laws = measured.laws if measured else None
    rows, others = [_row(work, laws) for work in runs], [_row(work, laws) for work in stages]
    known = [row for row in (*rows, *others) if row["seconds"] is not None]
    is_whole = bool(measured) and len(known) == len(rows) + len(others)
    totals = {name: sum(row[name] for row in (*rows, *others)) for name in ("images_encoded", "images_trained")}
    totals["seconds"] = round(sum(row["seconds"] for row in known), 3) if measured else None
    totals["memory_mb"] = max((row["memory_mb"] or 0 for row in known), default=0) if measured else None
    return {
        "schema": _SCHEMA,
        "images": images,
        "source": source,
        "runs": rows,
        "stages": [{k: v for k, v in row.items() if k not in ("kind", "seed")} for row in others],
        "totals": {**totals, "complete": is_whole},
        "machine": dict(measured.machine) if measured else None,
        "measured": {"pictures": measured.pictures, "seconds": round(seconds, 3), "factor": FACTOR}
        if measured
        else None,
    }


def _row(work: Work, laws: Mapping[Unit, Law | str] | None) -> dict[str, Any]:
    problem = work.error or next(iter(_problems(work.tasks, laws or {})), None)
    cost = None if laws is None or problem else _cost(work.tasks, laws)
    return {
        "name": work.name,
        "kind": work.kind,
        "seed": work.seed,
        "done": work.done or not (work.tasks or work.seconds or problem),
        "images_encoded": sum(task.encoded for task in work.tasks),
        "images_trained": sum(task.trained for task in work.tasks),
        "seconds": None if cost is None else round(cost[0] + work.seconds, 3),
        "memory_mb": None if cost is None else round(cost[1]),
        "cached": work.cached,
        "shared": work.shared,
        "passes": _passes(work.tasks),
        "error": problem,
    }


def _problems(tasks: Iterable[Task], laws: Mapping[Unit, Law | str]) -> list[str]:
    found = (laws.get(task.unit) for task in tasks)
    return [problem for problem in found if isinstance(problem, str)]


def _cost(tasks: Sequence[Task], laws: Mapping[Unit, Law | str]) -> tuple[float, float]:
    """(seconds, highest memory in MB); every unit must have a law."""
    seconds = memory = 0.0
    for task in tasks:
        law = laws[task.unit]
        assert isinstance(law, Law), "a work with a problem is not costed"
        seconds += task.times * (law.seconds + law.seconds_each * task.size)
        memory = max(memory, law.memory_mb + law.memory_each_mb * task.size)
    return seconds, memory


def _passes(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Images through each model, summed by what is done with them, in the order of their doing."""
    found: dict[tuple[str, str], int] = {}
    for task in tasks:
        if task.what:
            key = (task.what, task.model)
            found[key] = found.get(key, 0) + task.encoded + task.trained
    return [{"what": what, "model": model, "images": images} for (what, model), images in found.items()]
