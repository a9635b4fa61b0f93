"""Every benchmark, one after another: results.json and a table in Markdown.

    python -m benchmarks.run
    python -m benchmarks.run --only embedding start
    python -m benchmarks.run --quick --out FILE

Each benchmark is a process of its own, so that its memory and its threads are its own; one that fails is told, the
others go on, and the exit code is 1. Rows of other hardware stay, in a table of their own; with --only, those of other
benchmarks too. --quick runs everything at a size that shows that it works and measures nothing; it writes only what it
is told to. Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from itertools import groupby
from pathlib import Path

from benchmarks.measure import hardware
from benchmarks.results import Result, merge, put_between_markers, read_results, table, write_results

from thoraclip.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "benchmarks.md"
BENCHMARKS = {
    "start": "benchmarks.start",
    "data": "benchmarks.data",
    "duplicates": "benchmarks.duplicates",
    "marks": "benchmarks.marks",
    "embedding": "benchmarks.embedding",
    "scaling": "benchmarks.scaling",
    "probing": "benchmarks.probing",
    "contrastive": "benchmarks.contrastive",
    "tuning": "benchmarks.tuning",
    "estimate": "benchmarks.estimate",
    "lungs": "benchmarks.lungs",
    "audit": "benchmarks.audit",
    "audit controls": "benchmarks.audit_controls",
    "explanations": "benchmarks.explanations",
    "novelty": "benchmarks.novelty",
    "inference": "benchmarks.inference",
    "predictions": "benchmarks.predictions",
    "serving": "benchmarks.serving",
    "manifests": "benchmarks.manifests",
}
"""Name -> module with `bench(work, *, quick=False) -> list[Result]`; `work` is one folder for all, in which they share
what is made once."""


def run_one(name: str, work: Path, *, quick: bool) -> list[Result] | None:
    """What a benchmark finds in a process of its own, its name before each row's; None where it failed."""
    file = work / f"{name}.results.json"
    command = [sys.executable, "-m", "benchmarks.run", "--child", name, "--work", str(work), "--out", str(file)]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], cwd=ROOT, stdout=sys.stderr)
    if done.returncode or not file.is_file():
        return None
    machine = hardware()
    return [replace(row, name=f"{name}: {row.name}", hardware=machine) for row in read_results(file)]


def run_all(names: list[str], work: Path, *, quick: bool) -> dict[str, list[Result] | None]:
    """Name -> its rows, None where it failed; how far it is is told."""
    found = {}
    for number, name in enumerate(names, start=1):
        place = f"[{number}/{len(names)}] {name}"
        print(place, file=sys.stderr, flush=True)
        began = time.perf_counter()
        rows = found[name] = run_one(name, work, quick=quick)
        told = "FAILED" if rows is None else f"{len(rows)} rows"
        print(f"{place}: {told}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def page_text(rows: list[Result]) -> str:
    """The command, and for each hardware its table; the rows of one stand together."""
    machines = groupby(rows, key=lambda row: row.hardware)
    return "\n\n".join(f"`make bench`, on {machine}.\n\n{table(found)}" for machine, found in machines)


def main(arguments: list[str] | None = None) -> int:
    """Run, write, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="as small as can be: shows that all of it works")
    parser.add_argument("--out", type=Path, help=f"results; {RESULTS.relative_to(ROOT)} unless --quick")
    parser.add_argument("--page", type=Path, help="page whose table is replaced; that of the docs with --out's default")
    parser.add_argument("--work", type=Path, help="folder that keeps what is made; else a temporary one")
    parser.add_argument("--child", choices=BENCHMARKS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        keep_freed_memory()  # as the command does
        found = import_module(BENCHMARKS[given.child]).bench(given.work, quick=given.quick)
        write_results(given.out, found)
        return 0
    out = given.out or (None if given.quick else RESULTS)
    page = given.page or (PAGE if out == RESULTS else None)
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        found = run_all(given.only or list(BENCHMARKS), work.resolve(), quick=given.quick)
    rows = [row for some in found.values() for row in some or []]
    if out:
        rows = merge(read_results(out), rows, order=list(BENCHMARKS))
        write_results(out, rows)
    text = page_text(rows)
    if page:
        put_between_markers(page, text)
    print(text)
    failed = [name for name, some in found.items() if some is None]
    if failed:
        print(f"failed: {', '.join(failed)}; their earlier rows, if any, are kept", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
