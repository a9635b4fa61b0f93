"""Does `thoraclip audit` cry wolf on real radiographs? Sets without a shortcut, and sets that are known to have one.

    THORACLIP_SHARED=FOLDER python -m benchmarks.audit_controls --out controls.jsonl
    THORACLIP_SHARED=FOLDER python -m benchmarks.audit_controls --out controls.jsonl --seeds 10 --images 600

FOLDER (else `../shared`) holds data/cxr3 and data/covid3-talo. For every set and seed, images are drawn anew, a probe
on tiny-clip is fitted in five patient folds, and audited with one usual lung region for all. Runs are appended to a
file, so that the campaign can be stopped and continued. Where labels are dealt at random, no verdict may be positive,
neither on the classifier nor on the data; where classes are of two sources, the data verdict must be.

    python -m benchmarks.audit_controls --simulate 1000       # no images: how often verdicts hold on drawn answers
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import options
from benchmarks.results import Result

from thoraclip.evaluation.audit_reading import MARGIN, POSITIVE, STRONG
from thoraclip.evaluation.shortcuts import Answers, ShortcutTest, measure_tests, shuffled_control, with_verdicts
from thoraclip.threads import cores

Row = Mapping[str, str]
VERDICTS = ("none", "cannot_tell", "some", "strong")


@dataclass(frozen=True)
class Case:
    """Images of a data set, and the label of each: a column's value by name, or one dealt at random to each group."""

    data: str
    chosen: Callable[[Row], bool]
    label: Callable[[Row], str] | int  # or the number of classes that are dealt at random
    has_shortcut: bool | None  # None where it is in the eye of the reader


def _from(*sources: str) -> Callable[[Row], bool]:
    return lambda row: row["source"].startswith(sources)


CASES = {
    "three classes, labels at random": Case("cxr3", lambda row: True, 3, False),
    "adults of one source, labels at random": Case("cxr3", _from("radiography-db normal"), 2, False),
    "children of one source, labels at random": Case("cxr3", lambda row: row["label"] == "non_covid", 2, False),
    "normal, women and men": Case("covid3-talo", lambda row: row["label"] == "normal", lambda row: row["sex"], None),
    "normal, children and adults of two sources": Case(
        "cxr3", lambda row: row["label"] == "normal", lambda row: row["source"][:7], True
    ),
    "COVID-19 of two sources": Case(
        "cxr3", _from("cohen", "radiography-db covid"), lambda row: row["source"][:5], True
    ),
    "pneumonia of children, COVID-19 of adults": Case(
        "cxr3", lambda row: row["label"] in {"covid", "non_covid"}, lambda row: row["label"], True
    ),
}


def shared() -> Path | None:
    """The folder `data` with the real radiographs, where it is there."""
    place = Path(os.environ.get("THORACLIP_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    return place if (place / "cxr3" / "manifest.csv").is_file() else None


def draw(case: Case, data: Path, images: int, seed: int) -> list[dict[str, str]]:
    """path, label and patient of `images` at most, as many of each class."""
    rng = np.random.default_rng([seed, 5])
    groups: dict[str, list[Row]] = defaultdict(list)
    with (data / case.data / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if case.chosen(row):
                groups[row.get("group") or row["patient_id"] or row["rel_path"]].append(row)
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for name in rng.permutation(sorted(groups)).tolist():
        dealt = "abc"[rng.integers(case.label)] if isinstance(case.label, int) else ""
        for row in groups[name]:
            label = dealt if isinstance(case.label, int) else case.label(row)
            found[label].append({"path": row["rel_path"], "label": label, "patient": name})
    count = min(images // len(found), *map(len, found.values()))
    return [row for rows in found.values() for row in rows[:count]]


def one(name: str, seed: int, images: int) -> dict[str, Any]:
    """Draw, split, fit, audit; a row of the file."""
    import torch

    import thoraclip

    torch.set_num_threads(1)
    case, data = CASES[name], shared()
    assert data is not None
    rows = draw(case, data, images, seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (root / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        found = thoraclip.index(data / case.data, out=root / "all.parquet", layout="csv", csv=root / "rows.csv")
        manifest = thoraclip.split(found.manifest, out=root / "folds.parquet", folds=5, seed=seed)
        probe = {"model": "tiny-clip", "l2_min": 1e-3, "l2_max": 1.0, "l2_steps": 4}
        thoraclip.probe(manifest, out=root / "run", pixels=root / "pixels", seed=seed, **probe)
        aside = {"images": "all", "saliency": 0, "duplicates": False}  # the last two take part in no verdict
        content = thoraclip.audit(
            root / "run", out=root / "audit", manifest=manifest, pixels=root / "pixels", seed=seed, **aside
        )
    positive = {asks: [] for asks in ("classifier", "data", "control")}
    for test in content["tests"]:
        if test["verdict"] in POSITIVE:
            positive[test["asks"]].append(test["name"])
    verdicts = {key: content[key] for key in ("classifier", "data")}
    accuracy = content["balanced_accuracy"]["value"]
    return {
        "case": name,
        "seed": seed,
        "images": len(rows),
        **verdicts,
        "balanced_accuracy": accuracy,
        "tests": positive,
    }


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown."""
    yield "| Set | Images | Runs | Balanced accuracy | Classifier: " + " / ".join(VERDICTS) + " | Data | Controls off |"
    yield "| --- | ---: | ---: | ---: | --- | --- | ---: |"
    for name in CASES:
        if own := [row for row in rows if row["case"] == name]:
            counts = [
                " / ".join(str(Counter(row[key] for row in own)[verdict]) for verdict in VERDICTS)
                for key in ("classifier", "data")
            ]
            accuracy = 100 * np.mean([row["balanced_accuracy"] for row in own])
            off = sum(bool(row["tests"]["control"]) for row in own)
            cells = [name, own[0]["images"], len(own), f"{accuracy:.0f} %", *counts, off]
            yield _row(*cells)


def simulated(sets: int) -> Iterator[str]:
    """Verdicts of an audit: a family of tests at chance and at the margin, one at 20 points, and shuffled labels."""

    def answers(rng: np.random.Generator, share: float, images: int, tests: int) -> Answers:
        target = np.arange(images) % 3
        wrong = (target + rng.integers(1, 3, (tests, images))) % 3
        named = np.where(rng.random((tests, images)) < share, target, wrong)
        return Answers(target, np.arange(images), {str(number): one for number, one in enumerate(named)}, 3)

    yield _row("tests", "images", "effect of each", "any positive", "all below 20 points")
    for tests, effect in ((10, 0.0), (10, MARGIN), (16, 0.0), (16, MARGIN), (1, STRONG)):
        for images in (60, 150, 300):
            counts, rng = np.zeros(2), np.random.default_rng(images)
            for seed in range(sets):
                drawn = answers(rng, 1 / 3 + effect, images, tests)
                asked = [ShortcutTest(name, name, "data", "trees", name) for name in drawn.named]
                rows = with_verdicts(measure_tests(asked, drawn, resamples=200, seed=seed))
                verdicts = {row["verdict"] for row in rows}
                counts += [bool(verdicts & POSITIVE), verdicts == {"none"}]
            yield _row(str(tests), str(images), f"{100 * effect:.0f}", *(f"{share:.3f}" for share in counts / sets))
    for images, off in itertools.product((60, 150), (0.0, -0.14)):
        rng, stopped = np.random.default_rng(images), 0
        for _ in range(sets):
            permuted = [answers(rng, 1 / 3 + off, images, 1) for _ in range(10)]
            (row,) = with_verdicts([shuffled_control("0", "shuffled", "trees", permuted)])
            stopped += row["verdict"] in POSITIVE
        yield _row("shuffled labels", str(images), f"{100 * off:.0f}", f"{stopped / sets:.3f}", "-")


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def is_right(row: Mapping[str, Any]) -> bool:
    """No alarm where there is no shortcut, and what the data offer named where there is one."""
    alarms = {row["classifier"], row["data"]} & POSITIVE
    return row["data"] in POSITIVE if CASES[row["case"]].has_shortcut else not alarms


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """One run of each set that is known to have a shortcut, or none."""
    if shared() is None:
        print("skipped: data/cxr3 is absent; set THORACLIP_SHARED", file=sys.stderr)
        return []
    known = [name for name, case in CASES.items() if case.has_shortcut is not None]
    rows = [one(name, 0, 60 if quick else 300) for name in (known[-1:] if quick else known)]
    right = sum(map(is_right, rows))
    name = "verdicts on real radiographs as known"
    against = f"{len(rows)} sets, with and without a shortcut"
    return [Result(name, right / len(rows), 1, against, right, f"of {len(rows)}")]


def main() -> None:
    given = options(__doc__, out=Path("audit-controls.jsonl"), seeds=5, images=300, workers=cores(), simulate=0)
    if given.simulate:
        print(*simulated(given.simulate), sep="\n")
        return
    if shared() is None:
        sys.exit("data/cxr3 is absent; set THORACLIP_SHARED")
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.is_file() else []
    done = {(row["case"], row["seed"]) for row in rows}
    todo = [(name, seed) for seed in range(given.seeds) for name in CASES if (name, seed) not in done]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool, given.out.open("a") as stream:
        for job in [pool.submit(one, *job, given.images) for job in todo]:
            rows.append(job.result())
            stream.write(json.dumps(rows[-1]) + "\n")
            stream.flush()
    print(*lines(rows), sep="\n")


if __name__ == "__main__":
    main()
