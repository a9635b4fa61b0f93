"""What a benchmark found: one row in results.json and in the table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thoraclip.runs import atomic_open

BEGIN = "<!-- results: begin -->"
END = "<!-- results: end -->"


@dataclass(frozen=True)
class Result:
    """One number of one stage, measured against something else in the same run."""

    name: str
    """The stage, in a few words; the runner puts the benchmark's name before it: `embedding: from files`."""
    ratio: float | None
    """Ours over `against`; for a time, a memory or a share the other way, `higher_is_better=False`. None: nothing to
    compare."""
    goal: float | None
    """What the ratio is to reach, or not to pass; None: it is only told."""
    against: str
    """What the ratio is over: a plain way, or a limit measured on the spot."""
    value: float
    """The measured number itself, in `unit`."""
    unit: str
    higher_is_better: bool = True
    """Of the ratio."""
    hardware: str = ""
    """What it was measured on, as `measure.hardware` says it."""

    @classmethod
    def small(cls, name: str, ratio: float | None, goal: float | None, against: str, value: float, unit: str) -> Result:
        """A row whose ratio is good when it is small."""
        return cls(name, ratio, goal, against, value, unit, higher_is_better=False)

    @classmethod
    def plain(cls, name: str, value: float, unit: str, told: str = "") -> Result:
        """A number that stands against nothing."""
        return cls(name, None, None, told, value, unit)

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches its goal; None where one of them is missing."""
        if self.ratio is None or self.goal is None:
            return None
        return self.ratio >= self.goal if self.higher_is_better else self.ratio <= self.goal


def read_results(file: Path) -> list[Result]:
    """Rows of an earlier run, none where there is no file."""
    return [Result(**row) for row in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def write_results(file: Path, results: Sequence[Result]) -> None:
    """The rows as a JSON list, one a line, whole or not at all."""
    rows = ",\n".join(f"  {json.dumps(_row(result))}" for result in results)
    with atomic_open(file, "w") as stream:
        stream.write(f"[\n{rows}\n]\n")


def _row(result: Result) -> dict[str, Any]:
    """As it is written: the direction only where small is good, the hardware where it is known."""
    usual = {"higher_is_better": True, "hardware": ""}
    row = {name: cell for name, cell in asdict(result).items() if name not in usual or cell != usual[name]}
    return {name: float(f"{cell:.6g}") if isinstance(cell, float) else cell for name, cell in row.items()}


def merge(earlier: Iterable[Result], found: Iterable[Result], *, order: Sequence[str]) -> list[Result]:
    """Rows of the benchmarks in `found` replaced where they are of the same hardware, the others kept, unknown ones
    dropped.

    Sorted by hardware, that of `found` first, and by benchmark as in `order`.
    """
    new = list(found)
    fresh = {(_benchmark(result), result.hardware) for result in new}
    kept = [row for row in earlier if (_benchmark(row), row.hardware) not in fresh and _benchmark(row) in order]
    rows = [*new, *kept]
    machines = list(dict.fromkeys(row.hardware for row in rows))
    return sorted(rows, key=lambda row: (machines.index(row.hardware), order.index(_benchmark(row))))


def _benchmark(result: Result) -> str:
    return result.name.partition(":")[0]


def table(results: Iterable[Result]) -> str:
    """Markdown: stage, value, ratio, against, goal, met."""
    lines = ["| stage | value | ratio | against | goal | met |", "|---|---|---|---|---|---|"]
    for result in results:
        sign = "at least" if result.higher_is_better else "at most"
        cells = [
            result.name,
            f"{_number(result.value)} {result.unit}".rstrip(),
            "" if result.ratio is None else _number(result.ratio),
            result.against,
            "" if result.goal is None else f"{sign} {result.goal:g}",
            {None: "", True: "yes", False: "**no**"}[result.met],
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits, a whole number as it is, and no exponent where a reader can do without."""
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{value:,.0f}"
    magnitude = int(f"{value:e}".partition("e")[2])
    return f"{value:,.{max(0, 2 - magnitude)}f}" if -3 <= magnitude < 9 else f"{value:.3g}"


def put_between_markers(file: Path, text: str) -> None:
    """Replace what stands between BEGIN and END in a page; a page without both is an error."""
    page = file.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file}: has no lines {BEGIN} and {END} with the table between them; add them")
    with atomic_open(file, "w") as stream:
        stream.write(f"{before}{BEGIN}\n{text}\n{END}{after}")
