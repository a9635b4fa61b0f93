"""Does the classifier read lungs or shortcuts? From the answers under altered views to one verdict per test, and one
overall.

Every test is a difference of two balanced accuracies (mean recall), or of one and chance, on the same images:

    above chance   b(answers) - 1/C     what is still known when the lungs are gone
    drop           b(before) - b(after) what is lost when all but the lungs is gone, or a region without any finding

and is positive where the difference is larger than `MARGIN` beyond chance: one-sided z = (effect - MARGIN) / SE, where
SE is the spread of the effect over resampled patients (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch.
6 and 13), corrected over all counted tests (Holm 1979). The smallest effect that a test could have shown is MARGIN +
(z_(1 - ALPHA / m) + z_0.8) SE: seen with a chance of 80 % at the strictest step of Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.evaluation.compare import holm
from thoraclip.evaluation.reading import ALPHA, between, points, probability, share
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.weighted import ratio

__all__ = [
    "MARGIN",
    "POSITIVE",
    "STRONG",
    "VERDICTS",
    "Answers",
    "ShortcutTest",
    "balanced_accuracies",
    "interval",
    "judge_tests",
    "overall",
    "shared_errors",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MARGIN = 0.05
"""Balanced accuracy. What lies below it beyond chance is not called reliance: a lesion throws a little scatter beside
it, and a classifier of a few hundred images is not exactly as good on one half of them as on the other."""
STRONG = 0.20
"""From this effect on, reliance is called strong; a set that could not have shown as much cannot tell."""
MIN_GROUPS = 10
"""Of each class, independent ones: with fewer the spread over resamples is no guide to chance. Such a test has p = 1
and a smallest effect of 1, so that it cannot tell."""
_POWER = 0.8
_SMALLEST = "smallest effect that this set could have shown"

VERDICTS = {
    "strong": "strong sign",
    "some": "some sign",
    "none": "no sign",
    "cannot_tell": "cannot tell",
    "control": "control",
}
"""Verdict of a test -> in words."""
POSITIVE = frozenset({"strong", "some"})
"""Verdicts that are a sign of reliance."""


@dataclass(frozen=True)
class Answers:
    """Named classes of the same N images.

    Args:
        target: i64[N], the true classes, 0..C-1.
        groups: i64[N], numbered without a gap: patients, or the images themselves.
        named: name -> i64[N], the class that was named; -1 where this image was not asked.
        classes: C.
    """

    target: Ints
    groups: Ints
    named: Mapping[str, Ints]
    classes: int


@dataclass(frozen=True)
class ShortcutTest:
    """One test.

    Args:
        name: unique.
        title: what was done, begins a sentence.
        level: what it looks at: the `classifier` as it is, one fitted again on its `features`, or the `data` alone.
        after: name of the answers that are looked at.
        before: name of the answers that they are compared with; empty for chance.
        counts: False for a control, which stands in the table and in no verdict.
        finds: what a positive result points at, as in "what lies outside the lungs".
    """

    name: str
    title: str
    level: str
    after: str
    before: str = ""
    counts: bool = True
    finds: str = ""


def balanced_accuracies(
    answers: Answers, names: Sequence[str], *, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, Floats], dict[str, float]]:
    """Of every name the balanced accuracy, f64[R] of it in resamples of groups, and chance.

    The mean runs over the classes that an image of this name has; chance is one over their number. The resamples are
    the same ones for all names, so that differences are paired.
    """
    one_hot = np.eye(answers.classes)[answers.target]
    columns = []
    for name in names:
        asked = (answers.named[name] >= 0).astype(np.float64)
        right = (answers.named[name] == answers.target).astype(np.float64)
        columns += [one_hot * asked[:, None], one_hot * right[:, None]]
    table = np.concatenate(columns, axis=1)  # [N, names * 2 * C]
    shape = (len(names), 2, answers.classes)
    point = table.sum(axis=0).reshape(shape)
    weights = resample_weights(answers.groups, resamples=resamples, seed=seed)
    drawn = np.concatenate([(w.T @ table).reshape(-1, *shape) for w in weights])
    values = dict(zip(names, _mean_recall(point[None])[0].tolist(), strict=True))
    replicates = dict(zip(names, _mean_recall(drawn).T, strict=True))
    chance = {n: 1 / max(1, int((point[i, 0] > 0).sum())) for i, n in enumerate(names)}
    return values, replicates, chance


def _mean_recall(counts: Floats) -> Floats:
    """f64[R, names, 2 (asked, right), C] -> f64[R, names]; classes that nobody was asked are left out."""
    asked, right = counts[:, :, 0], counts[:, :, 1]
    return np.asarray(ratio(right, asked).sum(axis=2) / np.maximum((asked > 0).sum(axis=2), 1))


def interval(value: float, drawn: Floats) -> dict[str, float]:
    """`low` and `high`, the 95 % percentile interval of f64[R] resampled values; the value lies inside."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"low": min(float(low), value), "high": max(float(high), value)}


def judge_tests(tests: Sequence[ShortcutTest], answers: Answers, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Effect, interval over resampled groups, p and verdict of every test; see the module.

    Returns:
        One mapping per test: name, title, level, counts, finds, before, after (balanced accuracies), chance, images,
        effect, low, high, p, p_holm, smallest_effect, verdict (`strong`, `some`, `none`, `cannot_tell`, `control`),
        words.
    """
    named, pairs = dict(answers.named), {test: f"{test.before} | {test.after}" for test in tests if test.before}
    for test, pair in pairs.items():  # what was answered before, of the images that were asked afterwards too
        named[pair] = np.where(named[test.after] >= 0, named[test.before], -1)
    names = sorted({test.after for test in tests} | set(pairs.values()))
    asked_of = Answers(answers.target, answers.groups, named, answers.classes)
    values, drawn, chances = balanced_accuracies(asked_of, names, resamples=resamples, seed=seed)
    counted = max(1, sum(test.counts for test in tests))
    rows: list[dict[str, Any]] = []
    for test in tests:
        after, chance, before = values[test.after], chances[test.after], pairs.get(test)
        if before is None:
            effect, spread = after - chance, drawn[test.after] - chance
        else:
            effect, spread = values[before] - after, drawn[before] - drawn[test.after]
        asked = answers.named[test.after] >= 0
        error = max(float(spread.std(ddof=1)), 0.5 / max(len(np.unique(answers.groups[asked])), 1))
        row: dict[str, Any] = {key: getattr(test, key) for key in ("name", "title", "level", "counts", "finds")}
        row |= {"before": values.get(before or ""), "after": after, "chance": chance, "images": int(asked.sum())}
        row |= {"effect": effect, **interval(effect, spread), "p": _p(effect, error)}
        row |= {"says_nothing": len(np.unique(answers.named[test.after][asked])) < 2, "p_holm": None}
        row["smallest_effect"] = _smallest(error, after, chance if before is None else None, counted)
        groups = [len(np.unique(answers.groups[asked & (answers.target == c)])) for c in range(answers.classes)]
        if min(filter(None, groups), default=0) < MIN_GROUPS:  # of the rarest class that was asked about
            row |= {"p": 1.0, "smallest_effect": 1.0}
        rows.append(row)
    corrected = [row for row in rows if row["counts"]]
    for row, p in zip(corrected, holm([row["p"] for row in corrected]), strict=True):
        row["p_holm"] = p
    for row in rows:
        row["verdict"] = _verdict(row)
        row["words"] = _words(row)
    return rows


def _smallest(error: float, after: float, chance: float | None, counted: int) -> float:
    """The effect that would be seen with a chance of 80 %: at the spread of this set, which for an accuracy is largest
    at a half."""
    steps = _z(1 - ALPHA / counted) + _z(_POWER)
    effect = MARGIN + steps * error
    if chance is None or not 0 < after < 1:
        return effect
    for _ in range(3):
        there = min(0.999, chance + effect)
        effect = MARGIN + steps * error * math.sqrt(there * (1 - there) / (after * (1 - after)))
    return effect


def shared_errors(
    answers: Answers, classifier: str, alone: Mapping[str, Any], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Whether the classifier errs as a classifier without lungs does: asked where the latter is wrong.

    Effect: how much more often both name the same wrong class than they would if, within each true class, their answers
    had nothing to do with each other: mean of [a = b] - sum_k P(a = k | y) P(b = k | y), over the images where b is
    wrong. Tested only where b is shown to be better than chance, and at an error of its own beside that of the family
    of all other tests (both together at most twice ALPHA where the background does tell the classes, ALPHA where it
    does not).

    Args:
        classifier: name of a's answers.
        alone: row of the test of b, whose answers have its name.
    """
    a, b, y, c = answers.named[classifier], answers.named[alone["name"]], answers.target, answers.classes
    wrong = (a >= 0) & (b >= 0) & (b != y)
    images = int(wrong.sum())
    cells = np.eye(c**3)[(y * c + np.maximum(a, 0)) * c + np.maximum(b, 0)] * wrong[:, None]  # [N, y a b]
    effect = float(_excess(cells.sum(axis=0)[None], c)[0])
    weights = resample_weights(answers.groups, resamples=resamples, seed=seed)
    drawn = np.concatenate([_excess(w.T @ cells, c) for w in weights])
    error = max(float(drawn.std(ddof=1)), 0.5 / max(1, images))
    p, title = _p(effect, error), f"where {alone['title']} alone name the wrong class"
    row: dict[str, Any] = {"name": "shared-errors", "title": title, "level": "classifier", "counts": True}
    row |= {"says_nothing": False, "finds": alone["title"], **dict.fromkeys(("before", "after", "chance"))}
    row |= {"images": images, "effect": effect, **interval(effect, drawn), "p": p, "p_holm": p}
    row["smallest_effect"] = MARGIN + (_z(1 - ALPHA) + _z(_POWER)) * error
    row["verdict"] = _verdict(row)
    row["words"] = (
        f"{title[0].upper()}{title[1:]} ({images} images), the classifier names the same wrong class {points(effect)} "
        f"points{between(row, points)} more often than by chance: {VERDICTS[row['verdict']]} ({probability(p)} for "
        f"more than {share(MARGIN)} points)."
    )
    return row


def _excess(counts: Floats, classes: int) -> Floats:
    """f64[R, C * C * C] counts of (true, a, b) -> f64[R]: agreement of a and b beyond that of independence within a
    class."""
    cells = counts.reshape(-1, classes, classes, classes)
    per_class = cells.sum(axis=(2, 3))
    agree = np.einsum("rykk->ry", cells)
    by_chance = (cells.sum(axis=3) * cells.sum(axis=2)).sum(axis=2) / np.maximum(per_class, 1e-12)
    return np.asarray((agree - by_chance).sum(axis=1) / np.maximum(per_class.sum(axis=1), 1e-12))


def _z(quantile: float) -> float:
    from scipy.special import ndtri  # type: ignore[import-untyped]

    return float(ndtri(quantile))


def _p(effect: float, error: float) -> float:
    """One-sided p of an effect above `MARGIN`."""
    return 0.5 * math.erfc((effect - MARGIN) / error / math.sqrt(2))


def _verdict(row: Mapping[str, Any]) -> str:
    if not row["counts"] or row["says_nothing"]:
        return "control"
    if row["p_holm"] < ALPHA:
        return "strong" if row["effect"] >= STRONG else "some"
    return "none" if row["smallest_effect"] <= STRONG else "cannot_tell"


def _words(row: Mapping[str, Any]) -> str:
    """The test in one or two sentences."""
    who = {"classifier": "the classifier", "features": "a classifier fitted anew on such pictures", "data": "trees"}
    subject = who[row["level"]]
    change, span = row["effect"], between(row, points)
    if row["before"] is None:
        said = (
            f"{subject} {'name' if row['level'] == 'data' else 'names'} the class with a balanced accuracy of "
            f"{share(row['after'])} %, {points(change)} points{span} from chance ({share(row['chance'])} %)"
        )
    else:
        said = (
            f"{subject} {'loses' if change >= 0 else 'gains'} {share(abs(change))} points of balanced accuracy, from "
            f"{share(row['before'])} to {share(row['after'])} %{span}"
        )
    title = row["title"][0].upper() + row["title"][1:]
    if row["says_nothing"]:
        said += ", one answer to all such pictures, so that this fill says nothing"
    if row["verdict"] == "control":
        return f"{title}: {said}. A control."
    more = f" of reliance on {row['finds']}" if row["verdict"] in POSITIVE and row["finds"] else ""
    beyond = f"{probability(row['p_holm'])} for more than {share(MARGIN)} points, after Holm's correction"
    limit = f"; less than {share(row['smallest_effect'])} points could not have been shown"
    return f"{title}: {said}: {VERDICTS[row['verdict']]}{more} ({beyond}{'' if more else limit})."


def overall(tests: Sequence[Mapping[str, Any]], *, above_chance: bool, masks: bool) -> tuple[str, list[str]]:
    """The reading of all tests together: `none`, `some`, `strong` or `cannot_tell`; and in words, with its reasons.

    `masks`: whether a lung region was known, so that the tests on it ran.
    """
    own = [t for t in tests if t["verdict"] != "control" and t["level"] != "data"]
    positive = sorted((t for t in tests if t["counts"] and t["verdict"] in POSITIVE), key=lambda t: -t["effect"])
    found = [t for t in positive if t["level"] != "data"]
    data = [t for t in positive if t["level"] == "data"]
    told = [_without_lungs(data)] if data else []
    if found:
        level = "strong" if any(t["verdict"] == "strong" for t in found) else "some"
        words = f"{level.capitalize()} reliance on non-lung content."
        return level, [words, *(t["words"] for t in found[:3]), *told]
    blind = [t["smallest_effect"] for t in own if t["verdict"] == "cannot_tell"]
    if not above_chance:
        why = ["The classifier is not shown to be better than chance, so nothing tells what it reads.", *told]
    elif data:
        why = [*told, "No test shows that the classifier uses this, and none can show that it does not."]
    elif not masks:
        why = ["No lung region is known, so no test could take the lungs away."]
    elif not own:
        why = ["The classifier gives one answer to all altered pictures, so no test says anything."]
    elif blind:
        why = [
            f"{len(blind)} of {len(own)} tests could not have shown an effect of {share(STRONG)} points: there are "
            f"too few images ({_SMALLEST}: {share(max(blind))} points)."
        ]
    else:
        why = [f"None of {len(own)} tests shows more than {share(MARGIN)} points beyond chance."]
        return "none", ["No sign of reliance on non-lung content.", *why]
    worst = max((t["smallest_effect"] for t in own), default=None)
    size = "" if worst is None else f" ({_SMALLEST}: {share(worst)} points of balanced accuracy)"
    return "cannot_tell", [f"Cannot tell whether the classifier relies on non-lung content{size}.", *why]


def _without_lungs(data: Sequence[Mapping[str, Any]]) -> str:
    """What trees make of the pictures without looking at a lung; `data` begins with the most telling features."""
    first, *rest = data
    rest = [t for t in rest if t["name"] != "background all"]
    alone = "".join(f", on {t['name'].removeprefix('background ')} alone {share(t['after'])} %" for t in rest[:3])
    return (
        f"The classes can be told apart without looking at a lung: trees on {first['title']} reach "
        f"{share(first['after'])} % balanced accuracy (chance {share(first['chance'])} %){alone}."
    )
