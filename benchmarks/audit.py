"""How well `thoraclip audit` finds shortcuts of known strength, and how often it sees one where there is none.

Every run draws phantoms with one confounder tied to the class (or none), splits them into five patient folds, fits a
probe on tiny-clip, and audits it. Found is: a test that points at the confounder is positive. A false alarm is: any
positive test of a clean set. Runs are appended to a file, so that the campaign can be stopped and continued.

    python -m benchmarks.audit --out audit-runs.jsonl                 # 100 clean runs and 20 of each kind and strength
    python -m benchmarks.audit --out audit-runs.jsonl --clean 0 --each 0 --figure docs/audit-power.svg
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import options
from benchmarks.results import Result

from thoraclip.proportions import wilson
from thoraclip.threads import cores

STRENGTHS = (0.5, 0.7, 0.9, 1.0)
OUTSIDE, BORDER, CORNERS = "what lies outside the lungs", "the border", "the corners"
POINTS_AT = {
    "marker": {"background marks", BORDER, CORNERS},
    "border": {"background frame", BORDER},
    "exposure": {"background exposure", OUTSIDE},
    "device": {"background marks", OUTSIDE},
    "texture": {"background grain", OUTSIDE},
    "date": {"background strokes", BORDER, CORNERS},
}
"""Confounder -> tests by name, or regions that a test finds, which point at it. Trees on all features together do
not."""


def one(kind: str, strength: float, seed: int, images: int, difficulty: float) -> dict[str, Any]:
    """Draw, split, fit, audit; a row of the file."""
    import torch

    import thoraclip
    from thoraclip.data.phantom import PhantomConfig, write_phantoms

    torch.set_num_threads(1)
    drawn = {"images": images, "seed": seed, "difficulty": difficulty}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:  # noqa: PTH112
        root, pictures = Path(folder), Path(folder) / "phantoms"
        planted = PhantomConfig(size=128, shortcut=kind, shortcut_strength=strength, **drawn)
        write_phantoms(pictures, planted, workers=1)
        found = thoraclip.index(pictures, out=root / "all.parquet", layout="csv", csv=pictures / "phantoms.csv")
        manifest = thoraclip.split(found.manifest, out=root / "folds.parquet", folds=5, seed=seed)
        probe = {"model": "tiny-clip", "l2_min": 1e-3, "l2_max": 1.0, "l2_steps": 4}
        thoraclip.probe(manifest, out=root / "run", pixels=root / "pixels", seed=seed, **probe)
        wall, cpu = time.perf_counter(), time.process_time()
        aside = {"images": "all", "saliency": 0, "duplicates": False}  # the last two take part in no verdict
        content = thoraclip.audit(
            root / "run", out=root / "audit", manifest=manifest, pixels=root / "pixels", seed=seed, **aside
        )
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    tests = {t["name"]: [t["verdict"], round(t["effect"], 4), t["finds"], t["p_holm"]] for t in content["tests"]}
    accuracy = content["balanced_accuracy"]["value"]
    row = {"kind": kind or "clean", "strength": strength, "overall": content["overall"], "balanced_accuracy": accuracy}
    return {**row, **drawn, "tests": tests, **spent}


def positive(row: dict[str, Any]) -> list[str]:
    """Names of the positive tests."""
    return [name for name, (verdict, *_) in row["tests"].items() if verdict in {"some", "strong"}]


def is_found(row: dict[str, Any]) -> bool:
    """Whether a positive test points at the confounder; of a clean set, whether any test is positive."""
    if row["kind"] == "clean":
        return bool(positive(row))
    wanted = POINTS_AT[row["kind"]]
    return any(name in wanted or row["tests"][name][2] in wanted for name in positive(row))


def plan(clean: int, each: int) -> Iterator[tuple[str, float, int]]:
    """(kind, strength, seed) of every run, kinds and strengths taking turns."""
    for seed in range(max(clean, each)):
        if seed < clean:
            yield "", 0.0, seed
        for kind in POINTS_AT if seed < each else ():
            for strength in STRENGTHS:
                yield kind, strength, 10_000 + seed


def of(rows: list[dict[str, Any]], kind: str, strength: float | None = None) -> list[dict[str, Any]]:
    """The runs of a confounder, at a strength or at all."""
    return [row for row in rows if row["kind"] == kind and strength in (None, row["strength"])]


def shares(own: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Percent of some runs in which the confounder is found, and the 95 % interval."""
    hits = sum(map(is_found, own))
    return 100 * hits / len(own), *(100 * end for end in wilson(hits, len(own)))


def summarise(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table: found of all runs, overall readings, and the time of an audit."""
    levels = ("strong", "some", "none", "cannot_tell")
    yield f"| Confounder | Strength | Runs | Found, 95 % | Overall: {' / '.join(levels)} | Balanced accuracy |"
    yield "| --- | ---: | ---: | --- | --- | ---: |"
    for kind, strength in itertools.product(("clean", *POINTS_AT), (0.0, *STRENGTHS)):
        if own := of(rows, kind, strength):
            share, low, high = shares(own)
            told = " / ".join(str(sum(r["overall"] == level for r in own)) for level in levels)
            accuracy = 100 * np.mean([r["balanced_accuracy"] for r in own])
            percent = f"{share:.0f} % [{low:.1f}, {high:.1f}]"
            yield f"| {kind} | {strength:g} | {len(own)} | {percent} | {told} | {accuracy:.0f} % |"
    for name in ("seconds", "cpu_seconds"):
        spent = [r[name] for r in rows]
        yield (
            f"{name} of an audit of {rows[0]['images']} images, median and longest: {np.median(spent):.1f}, "
            f"{max(spent):.1f}"
        )


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """The power curves: share of runs in which the confounder was found, by its strength."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#1b2733")
    curves = {kind: (kind, STRENGTHS, 0.006 * (number - 2)) for number, kind in enumerate(POINTS_AT)}
    curves["clean"] = (f"clean ({len(of(rows, 'clean'))} runs): false alarms", (0.0,), 0.0)
    for (kind, (label, strengths, shift)), colour in zip(curves.items(), colours, strict=True):
        points = [(strength, *shares(own)) for strength in strengths if (own := of(rows, kind, strength))]
        x, y, low, high = np.array(points).T
        style = {"color": colour, "marker": "s" if kind == "clean" else "o", "markersize": 4, "linewidth": 1.4}
        axes.errorbar(x + shift, y, yerr=[y - low, high - y], label=label, **style)
    axes.set(xlabel="strength: chance that the class decides the confounder", ylabel="runs (%)", ylim=(-3, 103))
    axes.grid(color="#d5dbe1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(file, format="svg", metadata={"Date": None})


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A reduced campaign: a clean set, and each confounder once at its full strength; and the speed of the audits."""
    jobs = [("marker", 1.0, 10_000)] if quick else [("", 0.0, 0), *((kind, 1.0, 10_000) for kind in POINTS_AT)]
    rows = [one(*job, images=120 if quick else 240, difficulty=0.0) for job in jobs]
    clean = of(rows, "clean")
    planted = [row for row in rows if row not in clean]
    hits, alarms, cpu = sum(map(is_found, planted)), sum(map(is_found, clean)), [row["cpu_seconds"] for row in rows]
    against = f"{len(planted)} planted in phantoms; false alarms on {len(clean)} clean sets: {alarms}"
    name, unit = "confounders of full strength found", f"of {len(planted)}"
    audit = f"an audit of {rows[0]['images']} images"
    return [
        Result(name, hits / len(planted), 1, against, hits, unit),
        Result.plain(audit, float(np.median(cpu)), "s of processor time"),
    ]


def main() -> None:
    sizes = {"clean": 100, "each": 20, "images": 240, "difficulty": 0.0, "workers": cores()}
    given = options(__doc__, out=Path("audit-runs.jsonl"), figure=None, **sizes)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    done = {(r["kind"], r["strength"], r["seed"]) for r in rows}
    todo = [job for job in plan(given.clean, given.each) if (job[0] or "clean", *job[1:]) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool, given.out.open("a") as stream:
        for job in [pool.submit(one, *job, given.images, given.difficulty) for job in todo]:
            rows.append(job.result())
            stream.write(json.dumps(rows[-1]) + "\n")
            stream.flush()
    print(*summarise(rows), sep="\n")
    if given.figure:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
