"""Does the classifier read lungs or shortcuts? From the answers under altered views to one verdict per test.

Every test is a difference of two balanced accuracies (mean recall), or of one and chance, on the same images:

    above chance   b(answers) - 1/C     what is still known when the lungs are gone
    drop           b(before) - b(after) what is lost with a region, beyond what as many pixels at random cost

and is positive where the difference is larger than `MARGIN`: one-sided z = (effect - MARGIN) / SE, where SE is the
spread of the effect over resampled patients (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 6 and
13), corrected (Holm 1979) over the tests that ask the same: what this classifier uses, or what the data offer. Its
verdict is `none` where the 95 % interval excludes `STRONG`, else `cannot_tell`, as where a small effect says nothing:
nearly one answer to all images, or nothing left to lose. That all tests of a family exclude it
needs no correction: the family's claim holds only if each one does (Berger 1982, Technometrics 24:295).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints
from thoraclip.evaluation.audit_reading import FAMILIES, MARGIN, STRONG, sentence
from thoraclip.evaluation.compare import holm
from thoraclip.evaluation.intervals import percentile_interval
from thoraclip.evaluation.reading import ALPHA
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.weighted import ratio
from thoraclip.proportions import t_quantile

__all__ = [
    "MIN_GROUPS",
    "Answers",
    "ShortcutTest",
    "balanced_accuracies",
    "interval",
    "measure_tests",
    "shared_errors",
    "shuffled_control",
    "with_verdicts",
]


MIN_GROUPS = 10
"""Of each class, independent ones: with fewer the spread over resamples is no guide to chance, and a test cannot
tell."""
_NEARLY = 0.9
"""From this share of the images on, each class counted alike, one answer is nearly the only one: of the true classes
no more than the rest can be told."""
_REACH = 1.96
"""Standard errors to each side of a 95 % interval."""


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
        asks: what this `classifier` uses, what the `data` offer to any, or nothing of its own: a `control`.
        by: whose answers these are: the `classifier`'s as it is, a `probe`'s fitted anew on its features, `trees`'.
        after: name of the answers that are looked at.
        before: name of the answers that they are compared with; empty for chance.
        finds: what a positive result points at, as in "what lies outside the lungs".
        control: name of the control that replaces as many pixels at random in the same way.
    """

    name: str
    title: str
    asks: str
    by: str
    after: str
    before: str = ""
    finds: str = ""
    control: str = ""


def balanced_accuracies(
    answers: Answers, names: Sequence[str], *, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, Floats], dict[str, float]]:
    """Of every name the balanced accuracy, f64[R] of it in resamples of groups, and chance. The mean runs over the
    classes that an image of this name has; chance is one over their number. The resamples are the same ones for all
    names, so that differences are paired."""
    one_hot = np.eye(answers.classes)[answers.target]
    named = [answers.named[name][:, None] for name in names]
    columns = [one_hot * counted for own in named for counted in (own >= 0, own == answers.target[:, None])]
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


def interval(value: float, drawn: Floats, error: float = 0.0) -> dict[str, float]:
    """`low` and `high`, the 95 % percentile interval of f64[R] resampled values; no narrower than with the standard
    error `error`."""
    low, high = percentile_interval(drawn)
    return {"low": min(low, value - _REACH * error), "high": max(high, value + _REACH * error)}


def measure_tests(
    tests: Sequence[ShortcutTest], answers: Answers, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Effect, interval over resampled groups and p of every test; see the module.

    Returns:
        One mapping per test: name, title, asks, by, finds, before, after (balanced accuracies), chance, images, effect,
        error (standard), low, high, p, is_constant (one answer to all images), is_small (fewer than `MIN_GROUPS`),
        doubt (why a small effect would say nothing, or empty).
    """
    named, pairs = dict(answers.named), {test: f"{test.before} | {test.after}" for test in tests if test.before}
    for test, pair in pairs.items():  # what was answered before, of the images that were asked afterwards too
        named[pair] = np.where(named[test.after] >= 0, named[test.before], -1)
    names = sorted({test.after for test in tests} | set(pairs.values()))
    asked_of = Answers(answers.target, answers.groups, named, answers.classes)
    values, drawn, chances = balanced_accuracies(asked_of, names, resamples=resamples, seed=seed)
    rows: list[dict[str, Any]] = []
    for test in tests:
        after, chance, before = values[test.after], chances[test.after], pairs.get(test)
        if before is None:
            effect, spread = after - chance, drawn[test.after] - chance
        else:
            effect, spread = values[before] - after, drawn[before] - drawn[test.after]
        asked = answers.named[test.after] >= 0
        floor = 0.5 / max(len(np.unique(answers.groups[asked])), 1)
        row: dict[str, Any] = {key: getattr(test, key) for key in ("name", "title", "asks", "by", "finds")}
        row |= {"before": values.get(before or ""), "after": after, "chance": chance, "images": int(asked.sum())}
        row["error"] = max(float(spread.std(ddof=1)), floor)
        row |= {"effect": effect, **interval(effect, spread, floor), "p": _p(effect, row["error"])}
        row["is_constant"] = len(np.unique(answers.named[test.after][asked])) < 2
        groups = [len(np.unique(answers.groups[asked & (answers.target == c)])) for c in range(answers.classes)]
        row["is_small"] = min(filter(None, groups), default=0) < MIN_GROUPS  # the rarest class that was asked about
        row["doubt"] = _doubt(row, answers.target[asked], answers.named[test.after][asked])
        rows.append(row)
    by_name = {row["name"]: row for row in rows}
    for test, row in zip(tests, rows, strict=True):
        control = by_name.get(test.control)
        if not row["doubt"] and control and control["after"] <= control["chance"] + MARGIN < control["before"]:
            row["doubt"] = f"{control['title']}, leave chance only, too"
    return rows


def _doubt(row: Mapping[str, Any], target: Ints, named: Ints) -> str:
    """Why the answers to images of these classes could not have had a large effect, or nothing."""
    present = np.unique(target)
    shares = [np.mean([(named[target == c] == answer).mean() for c in present]) for answer in np.unique(named)]
    if max(shares, default=0.0) >= _NEARLY:
        return "nearly one answer to all such images"
    if row["before"] is not None and row["before"] <= row["chance"] + MARGIN:
        return "there was nothing to lose"
    return ""


def with_verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `p_holm`, corrected within each family, `verdict` and `words`; see the module. A control that says
    nothing by itself has no `p_holm`, and its verdict is `cannot_tell`."""
    judged = [{**row, "p_holm": None, "verdict": "cannot_tell"} for row in rows]
    for family in (*FAMILIES, "shuffled"):
        of_family = [row for row in judged if ("shuffled" if "permutations" in row else row["asks"]) == family]
        for row, p in zip(of_family, holm([1.0 if r["is_small"] else r["p"] for r in of_family]), strict=True):
            row["p_holm"] = p
            row["verdict"] = _verdict(row)
    return [row | {"words": sentence(row)} for row in judged]


def _verdict(row: Mapping[str, Any]) -> str:
    if row["is_constant"] or row["is_small"]:
        return "cannot_tell"
    if row["p_holm"] < ALPHA:
        return "strong" if abs(row["effect"]) >= STRONG else "some"
    if row["doubt"]:
        return "cannot_tell"
    return "none" if max(-row["low"] if row["asks"] == "control" else 0, row["high"]) < STRONG else "cannot_tell"


def shared_errors(
    answers: Answers, classifier: str, alone: Mapping[str, Any], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Whether the classifier errs as a classifier without lungs does: asked where the latter is wrong.

    Effect: how much more often both name the same wrong class than they would if, within each true class, their answers
    had nothing to do with each other: mean of [a = b] - sum_k P(a = k | y) P(b = k | y), over the images where b is
    wrong. Tested only where b (row `alone`, whose answers have its name) is shown to be better than chance, and then
    one more test of the classifier, whose answers are a.
    """
    a, b, y, c = answers.named[classifier], answers.named[alone["name"]], answers.target, answers.classes
    wrong = (a >= 0) & (b >= 0) & (b != y)
    images = int(wrong.sum())
    cells = np.eye(c**3)[(y * c + np.maximum(a, 0)) * c + np.maximum(b, 0)] * wrong[:, None]  # [N, y a b]
    effect = float(_excess(cells.sum(axis=0)[None], c)[0])
    weights = resample_weights(answers.groups, resamples=resamples, seed=seed)
    drawn = np.concatenate([_excess(w.T @ cells, c) for w in weights])
    floor = 0.5 / max(1, images)
    error = max(float(drawn.std(ddof=1)), floor)
    row: dict[str, Any] = {"name": "shared-errors", "title": f"where {alone['title']} alone name the wrong class"}
    row |= {"asks": "classifier", "by": "classifier", "finds": alone["title"]}
    row |= {**dict.fromkeys(("before", "after", "chance")), "images": images, "effect": effect}
    row |= {**interval(effect, drawn, floor), "error": error, "p": _p(effect, error)}
    return row | {"is_constant": False, "is_small": False, "doubt": ""}


def shuffled_control(name: str, title: str, by: str, permuted: Sequence[Answers]) -> dict[str, Any]:
    """Whether what is fitted names labels that were shuffled, which nothing can unless it has seen what it is asked;
    `permuted` are of each permutation the answers of this name, and the shuffled labels as the target.

    Effect: mean over K permutations of the balanced accuracy less chance. The permutations are independent draws on the
    same images, so p is that of Student's t with K - 1 degrees of freedom, two-sided, for more than `MARGIN`.
    """
    from scipy.special import stdtr  # type: ignore[import-untyped]

    effects, after, chance = [], 0.0, 0.0
    for answers in permuted:
        if (answers.named[name] >= 0).any():
            values, _, chances = balanced_accuracies(answers, [name], resamples=1, seed=0)
            after, chance = values[name], chances[name]
            effects.append(after - chance)
    row: dict[str, Any] = {"name": name, "title": title, "asks": "control", "by": by, "finds": "", "before": None}
    groups = min((len(np.unique(a.groups[a.target == c])) for a in permuted for c in np.unique(a.target)), default=0)
    row |= {"is_constant": False, "doubt": "", "is_small": len(effects) < 2 or groups < MIN_GROUPS}
    row |= {"images": len(permuted[0].target), "permutations": len(effects), "chance": chance}
    if len(effects) < 2:
        return row | {"after": None, "effect": 0.0, "low": -1.0, "high": 1.0, "p": 1.0}
    effect, free = float(np.mean(effects)), len(effects) - 1
    error = max(float(np.std(effects, ddof=1)), 1e-9) / math.sqrt(len(effects))
    reach = t_quantile(free) * error
    p = 2 * float(stdtr(free, -(abs(effect) - MARGIN) / error))
    row |= {"after": chance + effect, "effect": effect, "low": effect - reach, "high": effect + reach}
    return row | {"p": min(1.0, p)}


def _excess(counts: Floats, classes: int) -> Floats:
    """f64[R, C * C * C] counts of (true, a, b) -> f64[R]: agreement of a and b beyond that of independence within a
    class."""
    cells = counts.reshape(-1, classes, classes, classes)
    per_class = cells.sum(axis=(2, 3))
    agree = np.einsum("rykk->ry", cells)
    by_chance = (cells.sum(axis=3) * cells.sum(axis=2)).sum(axis=2) / np.maximum(per_class, 1e-12)
    return np.asarray((agree - by_chance).sum(axis=1) / np.maximum(per_class.sum(axis=1), 1e-12))


def _p(effect: float, error: float) -> float:
    """One-sided p of an effect above `MARGIN`."""
    return 0.5 * math.erfc((effect - MARGIN) / error / math.sqrt(2))
