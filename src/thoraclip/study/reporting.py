"""What judging costs on this machine: resampling, the figures of a report, and the small files and the card of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thoraclip.data.card import data_facts
from thoraclip.judge.compare import COMPARED, Contestant, compare
from thoraclip.judge.metrics import Scored
from thoraclip.judge.report import MethodResult, judge, write_report
from thoraclip.judge.resampling import replicate
from thoraclip.runs import write_json
from thoraclip.study.estimate import Law
from thoraclip.study.tasks import Unit
from thoraclip.study.timing import seconds_of
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import Predictions

if TYPE_CHECKING:
    from thoraclip.study.measuring import Bench

__all__ = ["REPORTING", "reporting_law"]

_FEW, _RESAMPLES = 1000, 20_000
"""Images that are judged at most; resamples of a pair that is compared."""
_FILES = 8


def reporting_law(bench: Bench, unit: Unit) -> Law:
    """Cost of a unit whose kind is in `REPORTING`."""
    return REPORTING[unit.kind](bench, *unit.about)


def _judge(bench: Bench) -> Law:
    """Of one method, with hardly any resamples."""
    methods = [_method(bench.manifest, "a")]
    return Law(bench.usual(lambda: judge(methods, title="", resamples=100), most=1))


def _figure(bench: Bench) -> Law:
    methods = [_method(bench.manifest, name) for name in ("a", "b")]
    report = judge(methods, title="", resamples=100)
    drawn = 2 + len(bench.manifest.label_set()) + 2 * len(methods)
    return Law(bench.usual(lambda: write_report(report, bench.folder / "report"), most=1) / drawn)


def _resample(bench: Bench, count: int, *, answers: bool = False) -> Law:
    """Of one weight, of so many images in each resample; `answers`: where the scores are not asked for."""
    tables, resamples = [Scored(*_scores(bench.manifest, count))] * 4, max(20, 300_000 // count)
    groups = _groups(bench.manifest, count)
    usual = bench.usual(lambda: replicate(tables, groups, resamples=resamples, seed=0, confusion_only=answers), most=2)
    return Law(seconds_each=usual / (len(tables) * count * resamples))


def _compare(bench: Bench) -> Law:
    """Of one resample of one pair."""
    drawn = np.random.default_rng(0).normal(size=(2, _RESAMPLES))
    both = [
        Contestant(n, dict.fromkeys(COMPARED, 0.5), dict.fromkeys(COMPARED, d), None)
        for n, d in zip("ab", drawn, strict=True)
    ]
    groups = np.arange(_FEW)
    return Law(seconds_each=bench.usual(lambda: compare(both, intervals=True, groups=groups)) / _RESAMPLES)


def _files(bench: Bench) -> Law:
    """The small files of a run folder, each of which is on the disk before the next one is begun."""
    names = [bench.folder / "files" / f"{number}.json" for number in range(_FILES)]

    def write() -> None:
        for name in names:
            write_json(name, {})

    return Law(bench.usual(write))


def _card(bench: Bench) -> Law:
    return Law(seconds_of(lambda: data_facts(bench.manifest)))


def _scores(manifest: Manifest, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(i64[count] classes, f64[count, C] random scores that know the class a little)."""
    labels = manifest.label_set()
    targets = manifest.targets(labels)
    targets = np.resize(targets[targets >= 0], count)
    scores = np.random.default_rng(0).random((count, len(labels)))
    scores[np.arange(count), targets] += 0.5
    return targets, scores / scores.sum(axis=1, keepdims=True)


def _groups(manifest: Manifest, count: int) -> npt.NDArray[np.int64]:
    """i64[count]: numbers of patients, as many images to each as there are; an unknown patient has one image."""
    patients = manifest.column("patient")
    seen: dict[object, int] = {}
    keys = (
        (row, None) if patients[row % len(patients)] is None else patients[row % len(patients)] for row in range(count)
    )
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _method(manifest: Manifest, name: str) -> MethodResult:
    count = min(len(manifest), _FEW)
    nothing: tuple[None, ...] = (None,) * count
    table = Predictions(
        manifest.label_set(), tuple(map(str, range(count))), *_scores(manifest, count), nothing, nothing, nothing
    )
    return MethodResult(name=name, kind="probe", predictions=(table,))


REPORTING: Mapping[str, Callable[..., Law]] = {
    "judge": _judge,
    "figure": _figure,
    "resample": _resample,
    "resample answers": partial(_resample, answers=True),
    "compare": _compare,
    "files": _files,
    "card": _card,
}
"""Kind of unit -> what measures it."""
